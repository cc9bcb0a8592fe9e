"""The bridge that a student with `distill` is made of: found, checked, and what the student has of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from corruption import is_custom
from i2sb.config import TrainConfig
from i2sb.errors import require
from i2sb.network_sizes import is_own
from i2sb.storage.exported import Exported
from i2sb.storage.runs import find_weights, kept_file, read_other, read_weights
from i2sb.tasks import build_formulation

# How a student trains unless told otherwise: published, but for how often it is saved and looked at.
USUAL = {"formulation": "student", "num_itr": 3000, "save_every": 500, "eval_every": 500}


def complete_student(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a student that need not be given beside `distill`: those of its teacher, and USUAL.

    given: all settings of TrainConfig, defaults included. Raises UserError if there is no such bridge, or if code
    belongs to it that is not named.
    """
    kept = kept_file(Path(given["results_dir"]) / given["name"], "distill")
    begun = bool(given["name"]) and kept.is_file()
    path = kept if begun else find_weights("distill", given["distill"], Path(given["results_dir"]))
    teacher = read_weights(path).config
    for setting, is_code in (("network", is_own), ("corrupt", is_custom)):
        value = getattr(teacher, setting)
        must = f"{path}: its `{setting}` is code, which is not run unasked: give {value} if you trust that file"
        require(not is_code(value) or given[setting] == value, setting, None, must)
    inherited = {f.name: getattr(teacher, f.name) for f in fields(TrainConfig) if f.metadata["of_teacher"]}
    return USUAL | inherited | {"eval_nfe": given["nfe"]}


def read_teacher(config: TrainConfig, gone_on_with: Path | None) -> Exported | None:
    """Return the averaged weights of the bridge that a student is made of; None of a run that is no student.

    gone_on_with: the folder of the run that is resumed, which keeps them; None for a new run, whose `distill` names
    them. Raises UserError if there are none, or if no such student can be made of them.
    """
    teacher = read_other("distill", config, gone_on_with)
    if teacher is not None:
        _check(teacher.config, config)
    return teacher


def _check(teacher: TrainConfig, config: TrainConfig) -> None:
    """Raise UserError unless the bridge with these settings can be distilled into the run with those."""
    kind = teacher.formulation
    must = f"is a {kind}, of which no student can be made; name a run trained with `formulation` bridge"
    require(build_formulation(teacher).can_teach, "distill", config.distill, must)
    for f in fields(TrainConfig):
        theirs, ours = getattr(teacher, f.name), getattr(config, f.name)
        must = f"must be as of the bridge that is distilled, {theirs!r}; leave it out"
        require(f.metadata["of_teacher"] != "always" or theirs == ours, f.name, ours, must)
