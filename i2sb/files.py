"""Writing files so that one of the given name is always whole, and what is asked of files everywhere."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Ends the names of files being written.
PARTIAL = ".partial"


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete what killed processes left unfinished in `folder`: of all files, or only of the one of this name."""
    for partial in folder.glob(f".*{PARTIAL}"):  # a name may hold what a pattern would take as a wildcard
        if partial.name.startswith(f".{name}." if name else "."):
            partial.unlink(missing_ok=True)


def read_regular(path: Path) -> bytes:
    """Return what a file holds. Raises OSError naming it for a pipe or a device, which could wait or go on for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return path.read_bytes()


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Call write(file) on a temporary file beside `path`, bring it to the disk if `sync`, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def append(path: Path, line: bytes) -> None:
    """Add a line to a file in one piece, so that lines which several processes add do not mingle."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_os_error(error: BaseException | None) -> str | None:
    """Return what the disk said (no space left, quota exceeded, …) if that is behind an error, else None."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None
