"""The programs: flags in, one call. train.py, sample.py, compute_metrices.py and scripts/app.py are these, and so are
i2sb-train, i2sb-sample, i2sb-score and i2sb-app of an installed package."""

from collections.abc import Mapping
from typing import Any

from i2sb.cli.program import run_program
from i2sb.config import EvalConfig, PageConfig, SampleConfig, TrainConfig


def train() -> None:
    """Train a bridge: train.py, i2sb-train."""
    run_program(TrainConfig, _train, complete=_complete_student)


def sample() -> None:
    """Restore degraded images: sample.py, i2sb-sample."""
    run_program(SampleConfig, _sample)


def score() -> None:
    """Score restored images: compute_metrices.py, i2sb-score."""
    run_program(EvalConfig, _score)


def app() -> None:
    """Restore pictures in the browser: scripts/app.py, i2sb-app."""
    run_program(PageConfig, _app)


# What loads torch is imported when flags and files are right, so that --help and mistakes answer at once.


def _complete_student(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if not given["distill"]:
        return {}
    from i2sb.training.teacher import complete_student

    return complete_student(given)


def _train(config: TrainConfig) -> None:
    from i2sb.training.loop import train

    train(config)


def _sample(config: SampleConfig) -> None:
    from i2sb.sampling.split import run

    run(config)


def _score(config: EvalConfig) -> None:
    from i2sb.evaluation.score import run

    run(config)


def _app(config: PageConfig) -> None:
    from i2sb.page.serve import run

    run(config)
