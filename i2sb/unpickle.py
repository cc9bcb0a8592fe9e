"""Reading pickles of others without running anything from them.

The released program left two kinds: options.pkl (an argparse.Namespace) and the .lmdb.pt beside an LMDB (a torchvision
ImageFolder). Of the classes they name nothing is imported: each becomes a bare holder of attributes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

# The names that a file may mention, as (module, name); Python 3.13 has pathlib's classes in a module of its own.
_PATHS = {
    (module, name)
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "Path", "PurePosixPath", "PureWindowsPath", "PurePath")
}
NAMESPACE = {("argparse", "Namespace")} | _PATHS
IMAGE_FOLDER = {
    ("torchvision.datasets.folder", "ImageFolder"),
    ("torchvision.datasets.folder", "default_loader"),
    ("torchvision.datasets.vision", "StandardTransform"),
} | _PATHS

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins what torch.save wrote before it wrote zip files


class Bare:
    """Stands for an object of a class that was not imported: what it was made from, and its attributes.

    attributes: what the file sets on the object; nothing in it is looked up by the reader.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Bare:
        self = super().__new__(cls)
        self.args, self.attributes = args, {}
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"attributes come as a {type(state).__name__}")
        self.attributes = state


# In Python, not C: there a few bytes of a file can claim gigabytes of memory.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: io.BytesIO, allowed: set[tuple[str, str]]) -> None:
        super().__init__(file)
        # Classes of this reading alone: whatever a file does to them ends with it.
        self.holders = {place: type(place[1], (Bare,), {}) for place in allowed}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.holders:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return self.holders[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to data outside itself")


def read_pickle(path: Path, allowed: set[tuple[str, str]], *, max_bytes: int) -> Any:
    """Read what pickle.dump or torch.save wrote: objects of the `allowed` classes come as Bare.

    Raises ValueError naming the file, and what it asks for, if it names any other class, is broken, or is larger than
    `max_bytes`.
    """
    try:
        content = _read_limited(path, max_bytes)
        file = io.BytesIO(content)
        value = _Unpickler(file, allowed).load()
        if value == _LEGACY_MAGIC:
            for _ in range(3):  # version of the format, the machine, then the object
                value = _Unpickler(file, allowed).load()
        return value
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except Exception as error:  # bytes that are no pickle can raise anything in the reader
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: refused ({reason})") from None


def as_text(value: Any) -> str | None:
    """Return a string, or a path that a pickle holds, as text; None for anything else."""
    if isinstance(value, Bare) and ("pathlib", type(value).__name__) in _PATHS:
        parts = value.args
        return str(PurePosixPath(*parts)) if all(isinstance(part, str) for part in parts) else None
    return value if isinstance(value, str) else None


def _read_limited(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of the pickle: the whole file, or data.pkl of torch's zip file."""
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(f"{size} bytes, at most {max_bytes} are expected")
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(entries) != 1:
            raise ValueError("a zip file without data.pkl")
        if entries[0].file_size > max_bytes:
            raise ValueError(f"{entries[0].file_size} bytes, at most {max_bytes} are expected")
        return archive.read(entries[0])
