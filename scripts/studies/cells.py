"""Doing a cell: train its run, restore its images, score them; whatever of that is done is not done again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from i2sb import load_model
from i2sb.config import SamplingOptions, TrainConfig, check_resumable
from i2sb.data.dataset import ImageDataset
from i2sb.errors import FileError
from i2sb.evaluation import score as evaluation
from i2sb.files import write_text
from i2sb.network_sizes import check_image_size
from i2sb.parsing import read_config
from i2sb.sampling import split as sampling
from i2sb.stopping import StoppedError
from i2sb.storage.sample_folder import SETTINGS, SampleFolder
from i2sb.tasks import build_task_corruption, open_task_split
from i2sb.training import loop as training
from studies.plan import Cell, Plan
from studies.settings import Study

ROOT = Path(__file__).resolve().parent.parent.parent
# A file in every folder that is scored: the settings of that, and how long it took.
SCORED = "scored.json"
# Settings of sample.py that decide what images look like, besides the sampling options.
_NETWORK_AND_DATA = ("use_fp16", "precision", "subset", "image_size")


def do_cell(cell: Cell, study: Study) -> dict[str, Any]:
    """Do what is left to do; returns what `read_score` then finds.

    Raises StoppedError if it was asked to stop, UserError if something cannot be done.
    """
    run = cell.run.config
    model = load_model(run.run_dir, network=run.network) if find_iteration(run) else None
    if model is None or model.iteration < run.num_itr:  # the newest may be broken
        _run_program("train.py", training.train, run, cell.run.flags)
        model = load_model(run.run_dir, network=run.network)
    begun = time.perf_counter()
    _run_program("sample.py", sampling.run, cell.config, cell.flags)
    restored = time.perf_counter()
    _run_program("compute_metrices.py", evaluation.run, *cell.scoring(study.score))
    network = model.network
    note = {
        "sample": cell.flags,
        "score": study.score,
        "parameters": sum(p.numel() for p in network.parameters()),
        "condition_parameters": network.count_condition_parameters(),
        "seconds_to_restore": restored - begun,  # since it was last started
        "seconds_to_score": time.perf_counter() - restored,
    }
    write_text(cell.folder / SCORED, json.dumps(note, indent=2))
    score = read_score(cell, study)
    if score is None:
        raise FileError(cell.folder, f"was scored, but its {SCORED} does not say so: are two studies at work here?")
    return score


def _run_program(program: str, main: Callable[[Any], None], config: Any, flags: list[str]) -> None:
    """Run one of the three programs: here, or as a process of its own where it is to start others."""
    if getattr(config, "n_gpu_per_node", 1) * getattr(config, "num_proc_node", 1) > 1:
        status = _run_process([sys.executable, str(ROOT / program), *flags])
    else:
        try:
            main(config)
            status = 0
        except SystemExit as stop:
            status = stop.code
    if status in (75, 130):
        raise StoppedError(f"{program} was stopped", status)
    if status:
        raise FileError(ROOT / program, f"failed with status {status}; the reason stands above")


def _run_process(command: list[str]) -> int:
    """Run a program to its end; what asks this one to stop is passed on, for the program to save its work."""
    with subprocess.Popen(command) as process:
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number)),
            signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: process.send_signal(number)),
            signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),  # Ctrl-C reaches both
        }
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_score(cell: Cell, study: Study) -> dict[str, Any] | None:
    """Return what a finished cell's metrics.json and its own note say; None if there is anything left to do."""
    try:
        note = json.loads((cell.folder / SCORED).read_text())
        report = json.loads((cell.folder / "metrics.json").read_text())
        done = (note["sample"], note["score"], report["settings"]["iteration"])
        lost = SampleFolder.open(cell.folder).missing(range(report["images"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if lost or done != (cell.flags, study.score, cell.run.config.num_itr):
        return None
    return {**cell.key, "run": cell.run.config.name, "folder": str(cell.folder), **note, **report}


def find_iteration(run: TrainConfig) -> int:
    """Return the iteration of a run's newest checkpoint by its name, 0 if there is none."""
    stems = [path.stem.removeprefix("checkpoint_") for path in run.run_dir.glob("checkpoint_*.pt")]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return max(numbers, default=0)


def open_images(cell: Cell) -> ImageDataset:
    """Open the images that a cell restores."""
    run = cell.run.config
    task = replace(run, corrupt=cell.config.corrupt or run.corrupt)
    size = cell.config.image_size or run.restored_size
    return open_task_split(task, cell.config.dataset_dir or run.dataset_dir, "val", size).subset(cell.config.subset)


def check_data(plan: Plan) -> None:
    """Raise UserError if a run or a cell cannot have its images."""
    checked_runs, checked_data = set(), set()
    for cell in plan.cells:
        run, config = cell.run.config, cell.config
        if run.name not in checked_runs:
            checked_runs.add(run.name)
            open_task_split(run, run.dataset_dir, "train", run.image_size)
        key = (run.name, config.corrupt, config.dataset_dir, config.subset, config.image_size)
        if key not in checked_data:
            checked_data.add(key)
            size = config.image_size or run.restored_size
            check_image_size(run.network, size)
            corrupt = config.corrupt or run.corrupt
            corruption = build_task_corruption(replace(run, corrupt=corrupt, mask_file="", degradation_noise=0.0), size)
            if corruption is not None:
                corruption.check_shape(run.image_channels, size, size)
            open_images(cell)


def check_unchanged(cell: Cell) -> None:
    """Raise UserError if a run or images exist that were made with other settings than the study now asks for."""
    run, anew = cell.run.config, "give another results_dir to start anew"
    if (run.run_dir / "config.yaml").exists():
        check_resumable(read_config(TrainConfig, run.run_dir / "config.yaml"), run, run.run_dir)
    iteration = find_iteration(run)
    if iteration > run.num_itr:
        raise FileError(run.run_dir, f"was trained to iteration {iteration}, beyond num_itr {run.num_itr}: {anew}")
    if not (cell.folder / SETTINGS).exists():
        return
    before, config = SampleFolder.open(cell.folder).settings, cell.config
    if before.iteration != run.num_itr:
        restored_at = f"was restored at iteration {before.iteration}, num_itr is {run.num_itr} now"
        raise FileError(cell.folder, f"{restored_at}: {anew}")
    for name in (*(f.name for f in fields(SamplingOptions)), *_NETWORK_AND_DATA):
        value, value_before = getattr(config, name), getattr(before, name)
        if value is not None and value != value_before:
            raise FileError(cell.folder, f"was restored with {name} {value_before}, it is {value} now: {anew}")
