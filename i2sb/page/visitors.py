"""What each visitor of the page has: a picture, a folder, and a way to stop. Nobody sees another's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Lock

from i2sb.page.pictures import Upload

MOST_VISITORS = 50  # of more, those who came first lose what they had


class Visitor:
    """One open page in a browser."""

    def __init__(self, parent: Path) -> None:
        self.folder = Path(mkdtemp(dir=parent))
        self.upload: Upload | None = None
        self.stop = Event()

    def leave(self) -> None:
        """Stop what is computed for it, and remove what it had."""
        self.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All of them, by the names that their browsers drew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self._known: dict[str, Visitor] = {}
        self._lock = Lock()

    def find(self, name: str) -> Visitor:
        """Return the visitor of this name, a new one if it is not known."""
        with self._lock:
            if name not in self._known:
                self._known[name] = Visitor(self.folder)
                while len(self._known) > MOST_VISITORS:
                    self._known.pop(next(iter(self._known))).leave()
            return self._known[name]

    def forget(self, name: str) -> None:
        """See a visitor off, whose page was closed."""
        with self._lock:
            visitor = self._known.pop(name, None)
        if visitor is not None:
            visitor.leave()

    @contextmanager
    def all_leaving(self) -> Iterator[None]:
        """See everybody off at the end of a `with` block."""
        try:
            yield
        finally:
            with self._lock:
                for visitor in self._known.values():
                    visitor.leave()
                self._known.clear()
