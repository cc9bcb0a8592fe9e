"""Runs on the disk, whoever made them: this project's, the released program's, and exported files of weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from i2sb.config import TrainConfig, check_unedited
from i2sb.errors import FileError, UserError, require
from i2sb.parsing import read_config
from i2sb.storage.checkpoint import PARTS, averaged_weights, find_checkpoint, read_checkpoint
from i2sb.storage.exported import ENDING, Exported, read_export
from i2sb.storage.hub import fetch_weights, is_on_hub, parse_name
from i2sb.storage.released import PARTS as RELEASED_PARTS
from i2sb.storage.released import is_released, read_options, recognise_network
from i2sb.tensor_files import check_finite, read_checksum

# Weights that the package carries, to be named without path and ending.
CARRIED = Path(__file__).resolve().parent.parent / "weights"


def kept_file(run_dir: Path, setting: str) -> Path:
    """Return where a run keeps the weights of another that its `setting` names: it needs that other one no more."""
    return run_dir / f"{setting}{ENDING}"


def read_other(setting: str, config: TrainConfig, gone_on_with: Path | None) -> Exported | None:
    """Return the averaged weights that a `setting` of a training run names; None if it names none.

    gone_on_with: the folder of the run that is resumed, which keeps them; None for a new run. Raises UserError if there
    are none.
    """
    name = getattr(config, setting)
    if not name:
        return None
    if gone_on_with is None:
        return read_weights(find_weights(setting, name, Path(config.results_dir)))
    path = kept_file(gone_on_with, setting)
    if not path.is_file():
        raise FileError(path, f"is gone, which this run keeps of its `{setting}` {name}; copy it back")
    return read_weights(path)


def find_carried(name: str) -> Path | None:
    """Return the file of the weights of this name that the package carries, None if it carries none."""
    carried = {path.stem: path for path in CARRIED.glob(f"*{ENDING}")}
    return carried.get(name)


def resolve(named: str | Path) -> Path:
    """Return the path to read weights from: what is given, if it is there; else what it names that is elsewhere.

    That is weights on the Hub, "hf:ORG/NAME", which are fetched, or weights that the package carries. Raises UserError
    if the Hub does not give them.
    """
    if is_on_hub(named):
        return fetch_weights(str(named))
    path = Path(named)
    return path if path.exists() else find_carried(str(named)) or path


def is_export(path: Path) -> bool:
    """Whether a path is that of an exported file, there or not, and not of a run."""
    return path.suffix == ENDING and not path.is_dir()


def settings_file(path: Path) -> Path:
    """Return where the settings of a run of this project, or of an exported file, are kept."""
    return path if is_export(path) else path / "config.yaml"


def read_run_config(run_dir: Path) -> TrainConfig:
    """Read a run's settings: its config.yaml, or options.pkl (which does not know the network's size) if released.

    Or those in an exported file. Raises UserError naming the file if that fails.
    """
    if is_export(run_dir):
        return read_export(run_dir).config
    return read_options(run_dir) if is_released(run_dir) else read_config(TrainConfig, run_dir / "config.yaml")


def find_weights(setting: str, name: str, results_dir: Path, others: str = "") -> Path:
    """Return the exported file or the run that a setting names, as `find_source` finds it.

    Raises UserError if there is neither. others: what else the setting could have been.
    """
    path = find_source(name, results_dir).weights
    found = is_export(path) or path.is_dir()
    require(found, setting, name, f"give {others}a {ENDING} file or a run (there is no {path})")
    return path


class Source(NamedTuple):
    """What images are restored with, and where those of a split go.

    weights: a run's folder, or an exported file. folder: that of the run, or one in `results_dir` that has the file's
    name. run: what restored images are said to be made by, the folder as seen from `results_dir`.
    """

    weights: Path
    folder: Path
    run: str


def find_source(name: str, results_dir: Path) -> Source:
    """Return what a name stands for.

    An exported file that is there, a run of `results_dir`, weights that the package carries, a path to a run, in that
    order; or weights on the Hub, "hf:ORG/NAME", which are fetched. If there is nothing of that name, reading what is
    returned says so. Raises UserError if the Hub does not give them.
    """
    if is_on_hub(name):
        run = f"hf/{parse_name(name).repository}"
        return Source(fetch_weights(name), results_dir / run, run)
    path, run_dir = Path(name), results_dir / name
    if is_export(path) and (path.is_file() or not run_dir.is_dir()):
        return Source(path, results_dir / path.name, path.name)
    if not run_dir.is_dir():
        if carried := find_carried(name):
            return Source(carried, results_dir / carried.name, carried.name)
        if path.is_dir():
            run_dir = path
    place, base = (Path(os.path.abspath(folder)) for folder in (run_dir, results_dir))
    inside = place.is_relative_to(base)
    return Source(run_dir, run_dir, place.relative_to(base).as_posix() if inside else place.name)


def read_weights(path: Path, *, ema: bool = True, checkpoint: str | Path | None = None) -> Exported:
    """Return the weights of a run, or of an exported file, with their settings; arguments as of `load_model`.

    Raises UserError naming the file if they are missing, broken or not finite.
    """
    if not is_export(path):
        return _read_run(path, ema, checkpoint)
    if checkpoint is not None:
        raise UserError("ckpt_file", checkpoint, f"{path} is one file of weights and has no checkpoints")
    return _read_file(path, ema)


def _read_file(path: Path, ema: bool) -> Exported:
    exported = read_export(path)
    if exported.averaged and not ema:
        raise FileError(path, "holds averaged weights; the raw ones are written by scripts/export.py --raw")
    for part in (exported, exported.mean):
        if part is not None:
            check_finite(part.weights, path)
    return replace(exported, checksum=read_checksum(path))


class RunState(NamedTuple):
    """A run as one of its checkpoints holds it.

    config: its settings; the network of a released run is not among them. file: the checkpoint. state: what is in it.
    """

    config: TrainConfig
    file: Path
    state: dict[str, Any]


def read_run(run_dir: Path, checkpoint: str | Path | None = None) -> RunState:
    """Read a run, this project's or a released one, without building its network; `checkpoint` as for `load_model`.

    Tensors come into memory as they are used: leave the file in place meanwhile. Raises UserError naming the file if
    the run, its settings or all its checkpoints are missing or broken.
    """
    if not run_dir.is_dir():
        raise FileError(run_dir, "there is no such run")
    released = is_released(run_dir)
    config = read_run_config(run_dir)
    parts = RELEASED_PARTS if released else PARTS
    if checkpoint is None:
        newest = find_checkpoint(run_dir, mmap=True, parts=parts)
        if newest is None:
            raise FileError(run_dir, "holds no checkpoint yet")
        path, state = newest
    else:
        files = [path for path in (run_dir / checkpoint, Path(checkpoint)) if path.is_file()]
        names = ", ".join(sorted(path.name for path in run_dir.glob("*.pt"))) or "none"
        require(bool(files), "ckpt_file", checkpoint, f"there is no such file; checkpoints in {run_dir}: {names}")
        path = files[0]
        state = read_checkpoint(path, mmap=True, parts=parts)
    if not released:
        check_unedited(state.get("settings", {}), config, path)
    return RunState(config, path, state)


def _read_run(run_dir: Path, ema: bool, checkpoint: str | Path | None = None) -> Exported:
    config, path, state = read_run(run_dir, checkpoint)
    weights = averaged_weights(state, path) if ema else state["net"]
    check_finite(weights, path)
    if is_released(run_dir):
        config = replace(config, network=recognise_network(weights, path))
        iteration = state["ema"].get("num_updates")
        if type(iteration) is not int:
            raise FileError(path, "its averaged weights (ema) lack num_updates, the number of iterations")
    else:
        iteration = state["progress"]["iteration"]
    mean = _read_file(kept_file(run_dir, "x1_from"), True) if config.x1_from else None
    return Exported(weights, config, iteration, averaged=ema, mean=mean, checksum=read_checksum(path))
