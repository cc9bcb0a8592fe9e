"""Stopping on request: the program finishes the iteration, saves its state and exits.

A cluster that wants its machine back sends SIGTERM or SIGUSR1, a person presses Ctrl-C (SIGINT).
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

# What train.py exits with after it was asked to stop: EX_TEMPFAIL of sysexits.h, "run the same again".
STOPPED = 75
REPEAT_SECONDS = 1.0  # in which a second signal may be the launcher's copy of the first


class StoppedError(Exception):
    """The run was asked to stop and did, its state saved. status: what the program exits with."""

    def __init__(self, message: str, status: int = STOPPED) -> None:
        super().__init__(message)
        self.status = status


class StopRequest:
    """Remembers, for the length of a `with` block, that the process was asked to stop.

    received: the first signal that came, or None. A second Ctrl-C raises KeyboardInterrupt at once, if it comes after
    the moment in which launchers repeat the first one.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at > REPEAT_SECONDS:
            raise KeyboardInterrupt
