"""What an option of the programs is: a default, a line of help, the values it may have, and what it decides.

Options are the fields of the dataclasses in i2sb.config; all that is to be said of one stands where it is defined.
"""

from __future__ import annotations

import math
import re
from dataclasses import Field, field, fields
from typing import Any, Literal

from i2sb.errors import UserError


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    may_change: bool = False,
    later: bool = False,
    older: Any = None,
    of_teacher: Literal["", "usual", "always"] = "",
    group: str = "",
    common: bool = False,
    **more: Any,
) -> Any:
    """A field with its default and the line that `--help` prints for it.

    at_least, above, at_most, below: the numbers it may have, each of them where it is several, besides None where its
    type has that.
    may_change: it may differ when a run goes on: it changes neither what the weights mean nor the order of the data.
    later: versions before it saved no such line; what they made is as the default says, or as `older`.
    group: the heading under which `--help` lists it, and those after it up to the next that names one.
    common: it is among the few that people change first, which `--help` lists on top instead.
    of_teacher: whether a student has it of its teacher, "usual"ly, if nothing else is said, or "always".
    more: what else a family of options says of each.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    places = {"group": group, "common": common}
    ages = {"may_change": may_change, "later": later, "older": older, "of_teacher": of_teacher}
    return field(default=default, metadata={"help": help, "bounds": bounds, **places, **ages, **more})


def by_group(config_class: type) -> dict[str, list[Field[Any]]]:
    """Return the options under the headings of `--help`, those that people change first under the first of them."""
    groups: dict[str, list[Field[Any]]] = {"most used": []}
    group = ""
    for f in fields(config_class):
        group = f.metadata["group"] or group
        groups.setdefault(group, [])
        groups["most used" if f.metadata["common"] else group].append(f)
    return {heading: options for heading, options in groups.items() if options}


def check_bounds(options: Any) -> None:
    """Raise UserError for a number that is not finite or not one that its option may have, or a text with a null."""
    for f in fields(options):
        value = getattr(options, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) and "\0" in number:
                raise UserError(f.name, repr(number), "holds a null character, which no name of a file can")
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if not math.isfinite(number):
                raise UserError(f.name, number, "must be finite")
            bounds = {words: bound for words, bound in f.metadata["bounds"].items() if bound is not None}
            if not all(_HOLDS[words](number, bound) for words, bound in bounds.items()):
                raise UserError(
                    f.name, number, "must be " + " and ".join(f"{words} {bound}" for words, bound in bounds.items())
                )


_HOLDS = {
    "at least": lambda value, bound: value >= bound,
    "above": lambda value, bound: value > bound,
    "at most": lambda value, bound: value <= bound,
    "below": lambda value, bound: value < bound,
}


def older_values(config_class: type) -> dict[str, Any]:
    """Return what the options stand for in a file that was written before they came, where that is not the default."""
    return {f.name: f.metadata["older"] for f in fields(config_class) if f.metadata["older"] is not None}


def flag(name: str) -> str:
    """Return the flag that sets an option."""
    return "--" + name.replace("_", "-")


def write_flags(message: str) -> str:
    """Return a message for the command line: settings, which it has in backticks, become flags."""
    return re.sub(r"`([A-Za-z]\w*)`", lambda match: flag(match[1]), message)
