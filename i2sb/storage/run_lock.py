"""One process at a time may write into a run's folder, or do something to a folder that several write into."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from i2sb.errors import FileError
from i2sb.files import naming

LOCK = ".lock"


class RunLock:
    """A lock on a run's folder, held until `release` or the end of the process, however it ends.

    POSIX locks are not inherited: processes that load data and outlive a killed run do not keep it.
    """

    def __init__(self, run_dir: Path) -> None:
        """Take the lock. Raises UserError if another process has it; warns where the file system has no locks."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = open(run_dir / LOCK, "a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._file.close()
                raise FileError(
                    run_dir, f"{holder} trains this run already; stop it first, or give another `name`"
                ) from None
            print(f"warning: {run_dir}: not guarded against a second run ({error.strerror})", file=sys.stderr)
        self._file.truncate(0)
        with naming(run_dir / LOCK):
            os.write(self._file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Give the lock back."""
        self._file.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Do something in a folder while no other process does, waiting for it; unguarded where there are no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"warning: {folder}: not guarded against other processes ({error.strerror})", file=sys.stderr)
        yield
