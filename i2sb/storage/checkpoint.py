"""Checkpoints on disk: written whole or not at all, read without running code.

A run directory holds checkpoint_{iteration}.pt files, latest.pt, a link to the newest, and checkpoints.json, a manifest
of their sizes. Each is a dict laid out as in the released program: `net` (keys prefixed `diffusion_model.`), `ema`,
`optimizer`, `sched`, and beside them `progress` and `format`, the version of this layout.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2sb.files import PARTIAL, write_atomically, write_text

LATEST = "latest.pt"
MANIFEST = "checkpoints.json"
FORMAT = 1
PARTS = ("net", "ema", "optimizer", "sched", "progress")
_NAME = "checkpoint_{:08d}.pt"
_PATTERN = re.compile(r"checkpoint_(\d+)\.pt")


class BrokenCheckpointError(ValueError):
    """A checkpoint file that is cut off or no checkpoint at all."""


def save_checkpoint(run_dir: Path, state: dict[str, Any], iteration: int, keep_last: int) -> Path:
    """Write the state reached after `iteration`, point latest.pt to it, and keep the `keep_last` newest up to it."""
    path = run_dir / _NAME.format(iteration)
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    link = run_dir / f".{LATEST}{PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, run_dir / LATEST)
    # Those beyond it are broken ones that were passed over: not ours to delete, nor to count.
    reached = [other for other in _list_checkpoints(run_dir) if _iteration(other) <= iteration]
    for old in reached[keep_last:]:
        old.unlink()
    sizes = {other.name: other.stat().st_size for other in _list_checkpoints(run_dir)}
    write_text(run_dir / MANIFEST, json.dumps({"format": FORMAT, "bytes": sizes}, indent=2))
    return path


def find_checkpoint(
    run_dir: Path, *, mmap: bool = False, parts: Sequence[str] = PARTS
) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest checkpoint of a run that is whole; None if it has none. `mmap`, `parts` as in read_checkpoint.

    A broken one is named on standard error and passed over. Raises BrokenCheckpointError if all are broken.
    """
    candidates = _list_checkpoints(run_dir)
    if not candidates and (run_dir / LATEST).exists():
        candidates = [run_dir / LATEST]
    if not candidates and (run_dir / LATEST).is_symlink():
        raise BrokenCheckpointError(f"{run_dir / LATEST}: points to {os.readlink(run_dir / LATEST)}, which is gone")
    sizes = _read_manifest(run_dir)
    for path in candidates:
        try:
            size = path.stat().st_size
            if size != sizes.get(path.name, size):
                raise BrokenCheckpointError(f"{path}: broken checkpoint ({size} of {sizes[path.name]} bytes)")
            return path, read_checkpoint(path, mmap=mmap, parts=parts)
        except BrokenCheckpointError as error:
            print(f"warning: {error}; passed over", file=sys.stderr)
    if candidates:
        raise BrokenCheckpointError(
            f"{run_dir}: none of its {len(candidates)} checkpoints is whole; restore one from a backup, "
            "or give another --name to start anew"
        )
    return None


def read_checkpoint(path: Path, *, mmap: bool = False, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Load one checkpoint onto the CPU; `parts` are what it must hold.

    With `mmap` tensors come into memory as they are used: for taking some of them, while the file stays in place.
    Raises BrokenCheckpointError naming the file if it cannot be read, ValueError if a newer version wrote it.
    """
    state = read_tensors(path, mmap=mmap)
    version = state.get("format", FORMAT) if isinstance(state, dict) else FORMAT
    if version != FORMAT:
        raise ValueError(f"{path}: is of format {version}, this version of the program reads {FORMAT}: use a newer one")
    missing = [part for part in parts if not isinstance(state, dict) or part not in state]
    dicts = [state[part] for part in parts if part in ("net", "ema", "progress")] if not missing else []
    if missing or not all(isinstance(part, dict) for part in dicts) or not is_named_tensors(state["net"]):
        raise BrokenCheckpointError(
            f"{path}: is no checkpoint of this program (lacks {', '.join(missing) or 'tensors'})"
        )
    return state


def read_tensors(path: Path, *, mmap: bool = False) -> Any:
    """Load whatever tensors and plain values torch.save wrote, onto the CPU. `mmap` as in read_checkpoint.

    Raises BrokenCheckpointError naming the file if it is damaged or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not compare the check sums
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
        else:
            mmap = False  # what torch wrote before 1.6
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are no checkpoint can raise anything in the reader
        reason = " ".join(str(error).split())[:100]
        if reason.startswith("Weights only"):
            reason = "it holds more than tensors and plain values"
        raise BrokenCheckpointError(f"{path}: broken checkpoint ({reason})") from None


def is_named_tensors(value: object) -> bool:
    """Whether a value is a dict of names with tensors."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def averaged_weights(state: dict[str, Any], source: Path) -> dict[str, Tensor]:
    """Return a checkpoint's averaged weights under the names of `net`, in whose order they are kept.

    Raises ValueError naming the `source` if they are not there or are of other shapes.
    """
    shadow = state["ema"].get("shadow_params")
    if not isinstance(shadow, list) or [_shape(p) for p in shadow] != [_shape(p) for p in state["net"].values()]:
        raise ValueError(f"{source}: its averaged weights (ema) are not those of its network (net)")
    return dict(zip(state["net"], shadow, strict=True))


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: Path, *, assign: bool = False) -> None:
    """Copy `weights` into `module`, or with `assign` make them its own without a copy.

    Raises ValueError listing what does not fit, ten names at most.
    """
    check_shapes(module.state_dict(), weights, source)
    module.load_state_dict(weights, assign=assign)


def check_shapes(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise ValueError listing what differs in names and shapes, if anything: shortest first, ten at most."""
    misfits = [
        f"{name} {_shape(weights.get(name))} in the file, {_shape(own.get(name))} in the network"
        for name in sorted(own.keys() | weights.keys())
        if _shape(own.get(name)) != _shape(weights.get(name))
    ]
    if misfits:
        raise ValueError(f"{source}: holds another architecture, {len(misfits)} parameters differ: {_first(misfits)}")


def _shape(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return "missing" if tensor is None else type(tensor).__name__
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first(misfits: Iterable[str], count: int = 10) -> str:
    shortest = sorted(misfits, key=len)
    return "; ".join(shortest[:count]) + ("; …" if len(shortest) > count else "")


def _read_manifest(run_dir: Path) -> dict[str, int]:
    """Return the sizes of the checkpoints that were written; the files themselves count if the manifest is gone."""
    try:
        sizes = json.loads((run_dir / MANIFEST).read_text())["bytes"]
        return {name: size for name, size in sizes.items() if type(size) is int}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the run's checkpoint files, newest first."""
    found = [path for path in run_dir.glob("checkpoint_*.pt") if _PATTERN.fullmatch(path.name)]
    return sorted(found, key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(_PATTERN.fullmatch(path.name)[1])
