"""How long what is left of a study will take, from a few iterations and evaluations of every formulation."""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from i2sb import load_model
from i2sb.distributed import find_device
from i2sb.evaluation import score as evaluation
from i2sb.sampling import split as sampling
from i2sb.training import loop as training
from studies.cells import find_iteration, open_images, read_score
from studies.plan import Cell, Plan
from studies.settings import Study

ITERATIONS = 4


@dataclass(frozen=True)
class Timing:
    """Seconds for an iteration, for a network evaluation of an image, to score an image, and to begin a cell."""

    iteration: float
    evaluation: float
    scoring: float
    beginning: float


def estimate(study: Study, plan: Plan) -> str:
    """Return, in lines to read, how long what is left of the study will take."""
    left = [cell for cell in plan.cells if read_score(cell, study) is None]
    timings: dict[str, Timing] = {}
    trainings: dict[str, float] = {}
    restoring, restored = 0.0, 0
    for cell in left:
        if cell.formulation not in timings:
            timings[cell.formulation] = _time_formulation(cell, study)
        timing, run = timings[cell.formulation], cell.run.config
        iterations = max(0, run.num_itr - find_iteration(run))
        validations = -(-iterations // run.eval_every) if run.eval_every else 0
        images = len(open_images(cell))
        validation = timing.evaluation * run.eval_nfe * min(images, run.eval_images)
        trainings[run.name] = iterations * timing.iteration + validations * validation
        restored += images
        restoring += timing.beginning + images * (cell.nfe * timing.evaluation + timing.scoring)
    training_time = sum(trainings.values())
    return "\n".join(
        [
            *(
                f"{name}: {timing.iteration:.3g} s an iteration, {timing.evaluation:.3g} s an evaluation of an image, "
                f"{timing.scoring:.3g} s to score one"
                for name, timing in timings.items()
            ),
            f"{len(trainings)} runs to train: {_in_words(training_time)}",
            f"{len(left)} of {len(plan.cells)} folders to restore and score, {restored} images in all: "
            f"{_in_words(restoring)}",
            f"in all: {_in_words(training_time + restoring)}, if this machine stays as fast as it was just now",
        ]
    )


def _time_formulation(cell: Cell, study: Study) -> Timing:
    """Train, restore and score a little in a folder that is deleted again."""
    with tempfile.TemporaryDirectory() as folder:
        brief = {"eval_every": 0, "log_every": 1, "log_writer": "none", "ckpt": "", "log_dir": ""}
        config = replace(cell.run.config, results_dir=folder, name="timed", num_itr=ITERATIONS, **brief)
        with quiet():
            training.train(config)
        lines = [json.loads(line) for line in (config.run_dir / "log.jsonl").read_text().splitlines()]
        iteration = min(config.batch_size / line["images_per_second"] for line in lines)

        # --subset goes by base names, so those that occur once; all images if there are none.
        names = Counter(key.rpartition("/")[2] for key in open_images(cell).keys)
        few = [name for name, count in names.items() if count == 1][: cell.config.batch_size]
        subset = f"{folder}/few.txt" if few else cell.config.subset
        (Path(folder) / "few.txt").write_text("\n".join(few))
        timed = len(few) or names.total()
        sample = replace(cell.config, results_dir=folder, ckpt="timed", nfe=1, subset=subset, sample_dir="a")
        with quiet():
            begun = time.perf_counter()
            sampling.run(sample)
            restored = time.perf_counter()
            evaluation.run(replace(cell, config=sample).scoring(study.score)[0])
            scored = time.perf_counter()

        model = load_model(config.run_dir, find_device(config.device), network=config.network)
        side, channels = config.restored_size, config.image_channels
        count = min(timed, cell.config.batch_size)
        x = torch.zeros(count, channels, side, side, device=model.device)
        steps = torch.zeros(count, dtype=torch.long, device=model.device)
        times = []
        with torch.no_grad():
            for _ in range(3):
                begin = time.perf_counter()
                model.network(x, steps, cond=x if model.formulation.cond_x1 else None).sum().item()
                times.append((time.perf_counter() - begin) / count)
    each = min(times)
    return Timing(iteration, each, (scored - restored) / timed, max(0.0, restored - begun - each * timed))


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what the programs print; their errors come through."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _in_words(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
