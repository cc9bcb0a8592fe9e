"""From YAML files and flags to a validated config: defaults < YAML < flags.

jsonargparse does the reading and the type checks (docs/method.md says why it and not another); this module gives it
the dataclasses' fields as flags and turns its complaints into one line each.
"""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from argparse import Action
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

from i2sb.errors import FileError, UserError
from i2sb.files import read_regular
from i2sb.options import by_group, flag, older_values

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")  # its fields are made by i2sb.config.option


def make_parser(config_class: type[C]) -> ArgumentParser:
    """Return a parser with a flag for every field of the config."""
    parser = ArgumentParser(
        description=config_class.__doc__,
        usage="%(prog)s [--config FILE.yaml] [--SETTING VALUE ...]",
        formatter_class=HelpFormatter,
        add_help=False,
        exit_on_error=False,
        allow_abbrev=False,
    )
    # Before Python 3.14, argparse takes -1e4 for a flag.
    parser._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    types = get_type_hints(config_class)
    for heading, options in by_group(config_class).items():
        group = parser.add_argument_group(heading)
        for f in options:
            group.add_argument(
                flag(f.name), default=f.default, help=f.metadata["help"], **_argument(f.name, types[f.name])
            )
    return parser


def _argument(name: str, kind: Any) -> dict[str, Any]:
    """Say for argparse what values a field's type admits, and what `--help` writes for one."""
    if kind is bool:
        return {"action": ActionYesNo(yes_prefix="", no_prefix="no-")}
    elements = _elements(kind)
    several = {"nargs": "+" if elements[-1] is ... else len(elements)} if elements else {}
    one = elements[0] if elements else kind
    words = _metavars(one, name.split("_")[-1].upper())
    return {"type": one, "metavar": words[0] if len(words) == 1 else f"{{{','.join(words)}}}", **several}


def _metavars(kind: Any, text: str) -> list[str]:
    """Return what stands in `--help` for each value, or sort of value, that a type admits; `text` for any text."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind) if value != ""]
    sorts = {int: ["N"], float: ["X"], str: [text], type(None): []}
    return sorts[kind] if kind in sorts else [word for part in get_args(kind) for word in _metavars(part, text)]


class HelpFormatter(argparse.HelpFormatter):
    """Lists flags in a column of one width, each with its default where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._action_max_length = self._max_help_position  # of every parser alike

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # a flag stays whole

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").replace("%", "%%")
        if action.default in ("", None) or isinstance(action.default, bool):
            return text
        return f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: Action) -> str:
        if isinstance(action, ActionYesNo):
            return action.option_strings[0].replace("--", "--[no-]")
        return super()._format_action_invocation(action)


# From the settings that were given to such as stand below them, by which they are completed.
Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def read_flags(
    config_class: type[C],
    flags: Sequence[str],
    config_file: str | Path | None = None,
    complete: Complete | None = None,
) -> C:
    """Build a config from `flags` over the values in the YAML file, over what completes them, over the defaults.

    Raises ValueError for unknown names (with the nearest right one), for wrong types and for wrong values.
    """
    path = None if config_file is None else Path(config_file)
    values = {} if path is None else read_yaml(path)
    given = _read(config_class, flags, values, path)
    if complete is not None and (below := complete(given)):
        given = _read(config_class, flags, values, path, below)
    return config_class(**given)


def _read(
    config_class: type[C],
    flags: Sequence[str],
    values: dict[str, Any],
    config_file: Path | None,
    below: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a config's settings: flags over the values of a file over those `below`, over the defaults."""
    parser = make_parser(config_class)
    parser.set_defaults(**below)
    names = [f.name for f in fields(config_class)]
    switches = [f"no_{f.name}" for f in fields(config_class) if isinstance(f.default, bool)]
    given = [token.split("=")[0] for token in flags if token.startswith("--")]
    _refuse_unknown(given, [flag(name) for name in (*names, *switches)])
    types = get_type_hints(config_class)
    for i, token in enumerate(flags, 1):
        name, equals, value = token.removeprefix("--").replace("-", "_").partition("=")
        kind = types.get(name)
        for text in [value] if equals else flags[i : i + max(1, len(_elements(kind)))]:
            if kind is not None and _is_other_number(kind, text):
                raise UserError(name, text, f"must be {_in_words(kind)}")
    if config_file is not None:
        _refuse_unknown(values, names, config_file)
        for name, kind in types.items():
            # jsonargparse would accept these, or refuse them without naming the setting
            value = values.get(name, kind)
            if (
                (kind is bool and value is not kind and not isinstance(value, bool))
                or (value is None and type(None) not in get_args(kind))
                or _is_other_number(kind, value)
                or (_elements(kind) and value is not kind and not _fits_several(kind, value))
            ):
                shown = "null" if value is None else value
                raise UserError(name, shown, f"must be {_in_words(kind)}").inside(config_file)
        parser.set_defaults(**_parse(parser.parse_object, values, config_class, config_file))
    parsed = _parse(parser.parse_args, list(flags), config_class)
    several = {name: tuple(v) for name, v in parsed.items() if isinstance(v, list)}
    return expand_homes(parsed) | several


def expand_homes(values: dict[str, Any]) -> dict[str, Any]:
    """Put the user's home for ~ at the beginning of texts and paths, and leave other values as they are.

    A shell does so in --results-dir ~, but neither in --results-dir=~ nor in a file.
    """
    return {
        name: type(v)(os.path.expanduser(v)) if isinstance(v, str | Path) and re.match("~(/|$)", str(v)) else v
        for name, v in values.items()
    }


def read_config(config_class: type[C], path: Path) -> C:
    """Read the config that a run saved at `path`. Raises ValueError naming the file if that fails or a line is gone."""
    return from_values(config_class, read_yaml(path), path)


def from_yaml(config_class: type[C], text: str, source: Path) -> C:
    """Take back what `to_yaml` gave and `source` keeps. Raises ValueError naming the source like `read_config`."""
    return from_values(config_class, _parse_yaml(text, source), source)


def from_values(config_class: type[C], given: dict[str, Any], path: Path) -> C:
    """Build the config that `path` holds in these values. Raises ValueError like `read_config`."""
    try:
        missing = [f.name for f in fields(config_class) if f.name not in given and not f.metadata["later"]]
        if missing:  # a default in its place could be another bridge or network
            raise FileError(path, f"lacks {', '.join(missing)}; restore it as the run saved it")
        return config_class(**_read(config_class, [], older_values(config_class) | given, path))
    except UserError as error:
        raise error if error.setting == path else error.inside(path) from None


def to_yaml(config: DataclassInstance) -> str:
    """Return the settings as YAML that `read_config` and `--config` take back."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Reads plain values only, and refuses a name that is given twice, of which YAML would keep the last.

    What is a number, true or null is as in YAML 1.2: in 1.1, which PyYAML reads, 010 is 8, 1:20 is 80 and no is false.
    """

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name) for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would take for something else."""


# The core schema of YAML 1.2.2, section 10.3.2.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of 'name: value' lines, whatever the names. Raises ValueError naming the file if that fails."""
    try:
        return _parse_yaml(read_regular(path).decode(), path)
    except FileNotFoundError:
        raise FileError(path, "there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read as YAML: {_one_line(error)}") from None


def _parse_yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise FileError(path, f"cannot be read as YAML: {_one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FileError(path, f"must hold lines of the form 'name: value', not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _refuse_unknown(given: Iterable[str], known: Sequence[str], source: Path | None = None) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "--help lists what there is"
            unknown = UserError("", None, f"unknown setting {name}: {hint}")
            raise unknown if source is None else unknown.inside(source)


def _elements(kind: Any) -> tuple[Any, ...]:
    """Return the types of what a field of several has, `...` after one of any number; () for other fields.

    >>> _elements(tuple[float, float] | None)
    (<class 'float'>, <class 'float'>)
    """
    for part in (kind, *get_args(kind)):
        if get_origin(part) is tuple:
            return get_args(part)
    return ()


def _fits_several(kind: Any, value: object) -> bool:
    """Whether what a file says of a field of several is nothing, or a list of as many numbers or texts."""
    elements = _elements(kind)
    if value is None or not isinstance(value, (list, tuple)):
        return value is None
    taken = (int, float) if elements[0] is float else elements[:1]
    fit = all(type(v) in taken for v in value)
    return fit and len(value) > 0 and (elements[-1] is ... or len(value) == len(elements))


def _is_other_number(kind: Any, value: object) -> bool:
    """Whether jsonargparse would take a text for a number as YAML 1.1 does: 1:20, 1_000, 0b1 or +010."""
    numeric = bool({int, float} & {kind, *get_args(kind), *_elements(kind)})
    return numeric and isinstance(value, str) and re.search(r"[:_]|0b|\+0\d", value) is not None


def _parse(parse: Callable[[Any], Any], given: Any, config_class: type, source: Path | None = None) -> dict[str, Any]:
    try:
        return parse(given).as_dict()
    except ArgumentError as error:
        message = _one_line(error)
    # jsonargparse tells the setting and its value only in an English sentence; requirements.txt caps its version.
    key = re.search(r'Parser key "(\w+)"', message)
    value = re.search(r"(?:Got|Given) value:\s*(.*)$", message)
    if key and value:
        wanted = _in_words(get_type_hints(config_class)[key[1]])
        mistake = UserError(key[1], value[1] or repr(value[1]), f"must be {wanted}")
    else:
        mistake = UserError("", None, message)
    raise mistake if source is None else mistake.inside(source)


def _in_words(kind: Any) -> str:
    """Say what values a field's type admits."""
    if get_origin(kind) is Literal:
        return "one of " * (len(get_args(kind)) > 1) + ", ".join(map(str, get_args(kind)))
    if elements := _elements(kind):
        one = {int: "whole number", float: "number", str: "text"}[elements[0]]
        return f"one {one} or several" if elements[-1] is ... else f"{len(elements)} {one}s"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(kind) or " or ".join(map(_in_words, get_args(kind)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
