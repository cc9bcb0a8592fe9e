"""Reading other people's pickles without running anything from them.

The released program left two kinds: options.pkl (an argparse.Namespace) and the .lmdb.pt beside an LMDB (a torchvision
ImageFolder). Of the classes they name nothing is imported: each becomes a bare holder of attributes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from i2sb.errors import FileError

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
    """Stands for an object of a class that was not imported.

    args: what it was made from. attributes: what the file sets on it, which are never looked up on the object itself.
    """

    args: tuple[Any, ...]
    attributes: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Bare:
        self = super().__new__(cls)
        self.args, self.attributes = args, {}
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"attributes come as a {type(state).__name__}")
        self.attributes = state


# The private class, which is in Python: in the public one, which is in C, ten bytes can claim gigabytes of memory.
class _Unpickler(pickle._Unpickler):
    def _refuse_bytearray(self) -> None:
        raise pickle.UnpicklingError("it holds a bytearray, which no such file needs")

    # The one instruction that makes room for as many bytes as the file says, before it reads any.
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _refuse_bytearray}

    def __init__(self, file: io.BytesIO, allowed: set[tuple[str, str]]) -> None:
        super().__init__(file)
        # Classes made for this one file: whatever it does to them is of no consequence for others.
        self.holders = {(module, name): type(name, (Bare,), {}) for module, name in allowed}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.holders:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return self.holders[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to data outside itself")


def read_pickle(path: Path, allowed: set[tuple[str, str]], *, max_bytes: int) -> Any:
    """Read what pickle.dump or torch.save wrote: objects of the `allowed` classes come as Bare.

    Raises UserError naming the file, and what it asks for, if it names any other class, is broken, or is larger than
    `max_bytes`; OSError if the disk cannot read it.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FileError(path, "there is no such file") from None
    if size > max_bytes:
        raise FileError(path, f"refused ({size} bytes, at most {max_bytes} are expected)")
    content = path.read_bytes()
    try:
        return _unpickle(io.BytesIO(content), allowed, max_bytes)
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no pickle can raise anything in the reader
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileError(path, f"refused ({reason})") from None


def _unpickle(file: io.BytesIO, allowed: set[tuple[str, str]], max_bytes: int) -> Any:
    """Read a pickle, or one of the two formats in which torch.save wraps it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data.pkl"]]
            if len(entries) != 1:
                raise ValueError("a zip file without data.pkl")
            if entries[0].file_size > max_bytes:
                raise ValueError(f"{entries[0].file_size} bytes, at most {max_bytes} are expected")
            file = io.BytesIO(archive.read(entries[0]))
    file.seek(0)
    value = _Unpickler(file, allowed).load()
    if value == _LEGACY_MAGIC:
        for _ in range(3):  # version of the format, the machine, then the object
            value = _Unpickler(file, allowed).load()
    return value


def as_text(value: Any) -> str | None:
    """Return a string, or a path that a pickle holds, as text; None for anything else."""
    if isinstance(value, Bare) and ("pathlib", type(value).__name__) in _PATHS:
        parts = value.args
        return str(PurePosixPath(*parts)) if all(isinstance(part, str) for part in parts) else None
    return value if isinstance(value, str) else None
