"""Progress: a bar on terminals, in files and pipes a plain line every half minute, to be read with `tail`."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

if TYPE_CHECKING:
    from typing_extensions import Self

SECONDS_BETWEEN_LINES = 30.0
# tqdm's own bar, but slow rates, too, are shown as images a second, not seconds an image.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_LINE = "{n_fmt}/{total_fmt} {unit}, {percentage:.0f} %, {elapsed} gone, {remaining} left, {rate_noinv_fmt}{postfix}"
_ENDLESS_LINE = "{n_fmt} {unit}, {elapsed} gone, {rate_noinv_fmt}{postfix}"


class Progress(Protocol):
    """What is drawn on standard error while something goes on."""

    def update(self, n: int = 1) -> object:
        """Say that so many more are done."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Say something after the numbers, at once or when they are drawn next."""

    def close(self) -> None:
        """Draw the last state and stop."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def progress_bar(
    total: int | None, unit: str, *, initial: int = 0, scaled: bool = False, quiet: bool = False
) -> Progress:
    """Return the progress of `total` units, None if nobody knows how many, of which `initial` were done before.

    It stays silent if `quiet` or if the total is 0. scaled: write 1.2M for 1234567.
    """
    if quiet or total == 0 or _is_on_screen():
        return tqdm(
            total=total,
            initial=initial,
            unit=unit,
            unit_scale=scaled,
            disable=quiet or total == 0,
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format=_BAR if total else None,
        )
    return _Lines(total, unit, initial, scaled)


def _is_on_screen() -> bool:
    """Whether standard error is a terminal whose size is known: on others tqdm would draw nothing."""
    return sys.stderr.isatty() and 0 not in os.get_terminal_size(sys.stderr.fileno())


def say(message: str, *, error: bool = False) -> None:
    """Print a line above whatever bar is drawn, on standard output or, of an error, on that."""
    tqdm.write(message, file=sys.stderr if error else sys.stdout)


class _Lines:
    """Progress where no terminal is: a line when one is due, and at the end."""

    def __init__(self, total: int | None, unit: str, initial: int, scaled: bool) -> None:
        self.n = initial
        self._total, self._unit, self._initial, self._scaled = total, unit, initial, scaled
        self._begun = self._written = time.monotonic()
        self._postfix = ""
        self._is_news = False

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        self._is_news |= n > 0
        self._write_if_due()

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self._postfix = s
        self._is_news |= refresh
        if refresh:
            self._write_if_due()

    def close(self) -> None:
        if self._is_news:
            self._write()

    def _write_if_due(self) -> None:
        if time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._write()

    def _write(self) -> None:
        self._is_news, self._written = False, time.monotonic()
        line = tqdm.format_meter(
            self.n,
            self._total or 0,
            self._written - self._begun,
            unit=self._unit,
            unit_scale=self._scaled,
            postfix=self._postfix or None,
            initial=self._initial,
            bar_format=_LINE if self._total else _ENDLESS_LINE,
        )
        print(line, file=sys.stderr, flush=True)
