"""A user's mistake, told apart from our own bugs: only it becomes one line; everything else keeps its traceback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class UserError(ValueError):
    """A setting or a file that cannot be used, raised where it is met.

    setting: the argument as the library names it ("nfe"), or the Path of a file or folder. value: what was found there,
    or None where the name alone says it. must: what would be right, or what is wrong; all of the message where no
    setting is to blame (""). Other settings that `must` speaks of stand in backticks, as in "must be below `interval`":
    the command line writes them as its flags.

    >>> print(UserError("nfe", 0, "must be at least 1"))
    nfe 0: must be at least 1
    """

    def __init__(self, setting: str | Path, value: object, must: str) -> None:
        self.setting, self.value, self.must = setting, value, must
        super().__init__(_say(str(setting), value, must))

    @property
    def marked(self) -> str:
        """The mistake in one line, the setting in backticks as `must` has others: to be part of another's `must`."""
        bare = isinstance(self.setting, Path) or not self.setting
        return _say(str(self.setting) if bare else f"`{self.setting}`", self.value, self.must)

    def inside(self, file: Path) -> UserError:
        """Return the same mistake, met in a file, which is named first."""
        return FileError(file, self.marked)


class FileError(UserError):
    """A file or folder that cannot be used. must: what is wrong with it.

    >>> print(FileError("photo.jpg", "is cut off"))
    photo.jpg: is cut off
    """

    def __init__(self, path: str | Path, must: str) -> None:
        super().__init__(Path(path), None, must)


def _say(setting: str, value: object, must: str) -> str:
    named = setting if value is None else f"{setting} {value}"
    return f"{named}: {must}" if named else must


def list_differences(before: Mapping[str, object], now: Mapping[str, object], *, now_is: str = "now") -> str:
    """Say which of the values `now` are not as they were before; "" if all are.

    >>> list_differences({"nfe": 10, "seed": 0}, {"nfe": 5, "seed": 0})
    'nfe 10 there, 5 now'
    """
    return "; ".join(
        f"{name} {before.get(name)} there, {value} {now_is}" for name, value in now.items() if before.get(name) != value
    )


def require(holds: bool, setting: str | Path, value: object, must: str) -> None:
    """Raise the UserError of a setting unless it `holds` what it must."""
    if not holds:
        raise UserError(setting, value, must)
