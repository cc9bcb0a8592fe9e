"""What STUDY.yaml says, checked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from i2sb.errors import FileError
from i2sb.formulation_table import FORMULATIONS
from i2sb.parsing import expand_homes, read_yaml

# Settings that must be the same for all, or the comparison is unfair; a task's own; and those the study decides.
SHARED = ("dataset_dir", "image_size", "image_channels", "network", "batch_size", "num_itr", "ema")
OF_TASK = ("corrupt", "mask_file", "degradation_noise")
DECIDED = ("name", "ckpt", "results_dir", "formulation", "seed", "sampler", "nfe", "sample_dir")
DECIDED += ("limit", "partition", "input", "output", "ckpt_file", "make_reference")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What STUDY.yaml says.

    results_dir: the study's folder. tasks: a name with the settings of train.py that are the task's own; the name is
    the degradation unless `corrupt` says otherwise. formulations: a name with `train` and `sample`, settings that are
    the formulation's own, and `samplers` (default: all it has). seeds; nfe: numbers of network evaluations.
    train, sample, score: settings of the three programs for all. sheet_nfe, sheet_images: what the sheets show.
    """

    results_dir: str
    tasks: dict[str, Settings | None]
    formulations: dict[str, Settings | None]
    train: Settings
    seeds: list[int] = field(default_factory=lambda: [0])
    nfe: list[int] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50, 100])
    sample: Settings = field(default_factory=dict)
    score: Settings = field(default_factory=dict)
    sheet_nfe: int = 10
    sheet_images: int = 4

    @property
    def folder(self) -> Path:
        """Where all that the study makes goes."""
        return Path(self.results_dir)

    def of_task(self, task: str) -> Settings:
        """Return a task's own settings of train.py, its degradation among them."""
        return {"corrupt": task, **(self.tasks[task] or {})}

    def of_formulation(self, name: str, section: str) -> Settings:
        """Return a formulation's own settings for "train" or "sample"."""
        return (self.formulations[name] or {}).get(section) or {}

    def samplers(self, name: str) -> list[str]:
        """Return the samplers that were chosen for a formulation; empty for all it has."""
        return (self.formulations[name] or {}).get("samplers") or []


def read_study(path: Path) -> Study:
    """Read STUDY.yaml. Raises UserError naming the file and what is wrong."""
    values = read_yaml(path)
    for mistake in _find_mistakes(values):
        raise FileError(path, mistake)
    return Study(**expand_homes(values))


def _find_mistakes(values: Settings) -> Iterator[str]:
    """Yield what is wrong, each thing only if all before it is right."""
    kinds = {name: get_origin(kind) or kind for name, kind in get_type_hints(Study).items()}
    if not {"results_dir", "tasks", "formulations", "train"} <= values.keys():
        yield "must hold results_dir, tasks, formulations and train"
    for name, value in values.items():
        if name not in kinds:
            yield f"unknown setting {name}: there are {', '.join(f.name for f in fields(Study))}"
        if type(value) is not kinds[name] or not value and name in ("tasks", "formulations", "seeds", "nfe"):
            yield f"{name}: must be a {kinds[name].__name__}, and not empty"
    for name, least in (("seeds", 0), ("nfe", 1)):
        numbers = values.get(name, [])
        if any(type(number) is not int or number < least for number in numbers) or len(set(numbers)) < len(numbers):
            yield f"{name} {numbers}: must be whole numbers, {least} or more, each once"
    for name in ("sheet_nfe", "sheet_images"):
        if values.get(name, 1) < 1:
            yield f"{name} {values[name]}: must be at least 1"
    for part in ("tasks", "formulations"):
        for name, lines in values[part].items():
            if not isinstance(name, str) or re.fullmatch(r"\w[\w.+-]*", name) is None:
                yield f"{part}, {name}: begin with a letter or digit, go on with those or . _ - + (it becomes a folder)"
            if not isinstance(lines, dict | None):
                yield f"{part}, {name}: must hold lines of the form 'name: value', or nothing"
    for name, lines in values["tasks"].items():
        if not isinstance((lines or {}).get("corrupt", ""), str):
            yield f"tasks, {name}, corrupt: must be text"
    for name, lines in values["formulations"].items():
        if name not in FORMULATIONS:
            yield f"formulations, {name}: unknown; there are {', '.join(FORMULATIONS)}"
        wrong = [key for key in lines or {} if key not in ("train", "sample", "samplers")]
        if wrong:
            yield f"formulations, {name}: unknown {', '.join(wrong)}: train, sample, samplers"
        for section in ("train", "sample"):
            if not isinstance((lines or {}).get(section), dict | None):
                yield f"formulations, {name}, {section}: must hold lines of the form 'name: value', or nothing"
        samplers = (lines or {}).get("samplers", [])
        if (
            not isinstance(samplers, list)
            or not all(isinstance(sampler, str) for sampler in samplers)
            or len(set(samplers)) < len(samplers)
        ):
            yield f"formulations, {name}, samplers: must be a list of names, each once"
    yield from _find_misplaced(values)


def _find_misplaced(values: Settings) -> Iterator[str]:
    """Yield settings that stand where they would make the comparison unfair, or that are the study's own."""
    formulations = {name: lines or {} for name, lines in values["formulations"].items()}
    tasks = {f"tasks, {name}": lines for name, lines in values["tasks"].items()}
    training = tasks | {f"formulations, {name}, train": lines.get("train") for name, lines in formulations.items()}
    sections = {name: values.get(name) for name in ("train", "sample", "score")}
    sections |= {f"formulations, {name}, sample": lines.get("sample") for name, lines in formulations.items()}
    for where, section in (sections | training).items():
        unnamed = [name for name in section or {} if not isinstance(name, str)]
        if unnamed:
            yield f"{where}: {unnamed[0]}: is no setting"
        of_task = [name for name in section or {} if name in OF_TASK and where not in tasks]
        if of_task:
            yield f"{where}: {', '.join(of_task)} is a task's own: put it under tasks"
        decided = [name for name in section or {} if name in DECIDED]
        if decided:
            yield f"{where}: {', '.join(decided)} is what the study decides: leave it out"
    for where, section in training.items():
        shared = [name for name in section or {} if name in SHARED]
        if shared:
            yield f"{where}: {', '.join(shared)} is the same for all: put it under train"
