"""From a study's settings to its cells: each a folder of restored images, with the run that restores them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from i2sb.cli.program import describe
from i2sb.config import EvalConfig, SampleConfig, TrainConfig
from i2sb.consistency import check_consistency
from i2sb.errors import FileError, UserError
from i2sb.formulation import Formulation
from i2sb.network_sizes import is_own
from i2sb.options import flag
from i2sb.parsing import C, read_config, read_flags
from i2sb.tasks import build_formulation, build_task_corruption
from studies.settings import OF_TASK, Settings, Study


@dataclass(frozen=True)
class Run:
    """A network to train: a formulation on a task (all tasks, if it does not see the degradation) with a seed."""

    config: TrainConfig
    flags: list[str]


@dataclass(frozen=True)
class Cell:
    """A folder of images to restore and score."""

    task: str
    formulation: str
    sampler: str
    seed: int
    nfe: int
    run: Run
    config: SampleConfig
    flags: list[str]

    @property
    def folder(self) -> Path:
        """Where its images go."""
        return self.config.run_dir / self.config.sample_dir

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from all other cells of the study."""
        return {name: getattr(self, name) for name in ("task", "formulation", "sampler", "seed", "nfe")}

    def scoring(self, score: Settings) -> tuple[EvalConfig, list[str]]:
        """Return how its images are scored, with the study's settings of compute_metrices.py; and as flags."""
        names = ("ckpt", "results_dir", "sample_dir", "corrupt", "mask_file")
        decided = {name: getattr(self.config, name) for name in names}
        return make_config(EvalConfig, {**score, **{name: value for name, value in decided.items() if value}}, "score")


@dataclass(frozen=True)
class Plan:
    """All cells in their order, and those there cannot be, with the reason."""

    cells: list[Cell]
    left_out: list[dict[str, Any]]


def make_config(config_class: type[C], settings: Settings, section: str) -> tuple[C, list[str]]:
    """Check settings of a section of the study; returns them as a config and as flags. Raises UserError naming both."""
    flags: list[str] = []
    try:
        for name, value in settings.items():
            if isinstance(value, bool):
                flags.append(flag(name) if value else flag(f"no_{name}"))
            elif value is None:
                raise UserError(name, None, "has no value; give one, or leave the line out")
            else:
                flags += [flag(name), str(value)]
        return read_flags(config_class, flags), flags
    except UserError as error:
        raise error.inside(Path(section)) from None


def make_plan(study: Study, source: Path) -> Plan:
    """List the cells of a study. Raises UserError naming the `source` if settings are wrong."""
    planned: list[Cell | dict[str, Any]] = []
    for seed, task, name in product(study.seeds, study.tasks, study.formulations):
        try:
            planned += _plan_formulation(study, task, name, seed)
        except UserError as error:
            raise FileError(source, f"tasks, {task}, with {name}: {error.marked}") from None
    cells = [cell for cell in planned if isinstance(cell, Cell)]
    left_out = [reason for reason in planned if not isinstance(reason, Cell)]
    if not cells:
        raise FileError(source, f"nothing can be done: {left_out[0]['reason'] if left_out else ''}")
    return Plan(cells, left_out)


def _plan_formulation(study: Study, task: str, name: str, seed: int) -> Iterator[Cell | dict[str, Any]]:
    run, formulation = _plan_run(study, task, name, seed)
    of_task = {key: value for key, value in study.of_task(task).items() if key in OF_TASK}
    task_config = replace(run.config, **{"mask_file": "", "degradation_noise": 0.0, **of_task})
    degradation = build_task_corruption(task_config, run.config.restored_size)
    for sampler, nfe in product(study.samplers(name) or list(formulation.samplers), study.nfe):
        key = {"task": task, "formulation": name, "sampler": sampler, "seed": seed, "nfe": nfe}
        try:
            formulation.check_degradation(degradation)
            formulation.check_nfe(nfe)
        except UserError as error:
            # Without the number, so that the same reason is told once for all numbers of evaluations.
            yield {**key, "reason": error.must if error.setting == "nfe" else describe(error)}
            continue
        settings = {
            "ckpt": run.config.name,
            "results_dir": study.results_dir,
            "seed": seed,
            **({} if degradation is None else of_task),
            **({"network": run.config.network} if is_own(run.config.network) else {}),
            **study.sample,
            **study.of_formulation(name, "sample"),
            "sampler": sampler,
            "nfe": nfe,
            "sample_dir": f"{task}_{sampler}_nfe{nfe}",
        }
        config, flags = make_config(SampleConfig, settings, "sample")
        formulation.settle(config.sampling)
        check_consistency(config.consistency, task_config.corrupt, degradation)
        cell = Cell(**key, run=run, config=config, flags=flags)
        cell.scoring(study.score)
        yield cell


def _plan_run(study: Study, task: str, name: str, seed: int) -> tuple[Run, Formulation]:
    settings = {"results_dir": study.results_dir, "seed": seed, "formulation": name, **study.train}

    def make(of_task: Settings, run_name: str) -> tuple[Run, Formulation]:
        changes = {**of_task, **study.of_formulation(name, "train"), "name": run_name}
        config, flags = make_config(TrainConfig, {**settings, **changes}, "train")
        formulation = build_formulation(config)
        if config.eval_every:
            try:
                formulation.check_nfe(config.eval_nfe)
            except UserError as error:
                raise UserError("eval_nfe", error.value, f"{error.must}; or train with eval_every: 0") from None
        return Run(config, flags), formulation

    run, formulation = make(study.of_task(task), f"{task}/{name}/seed{seed}")
    if formulation.sees_degradation:
        return run, formulation
    # One run serves all tasks. It has nothing of theirs but a degradation, which only validation sees: the one it began
    # with, or else the first that it can restore.
    shared = f"any/{name}/seed{seed}"
    begun = study.folder / shared / "config.yaml"
    corrupts = [study.of_task(other)["corrupt"] for other in study.tasks]
    for corrupt in [read_config(TrainConfig, begun).corrupt] if begun.exists() else corrupts:
        run, formulation = make({"corrupt": corrupt}, shared)
        try:
            formulation.check_degradation(build_task_corruption(run.config, run.config.restored_size))
            break
        except UserError:
            continue
    return run, formulation
