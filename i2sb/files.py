"""Writing files so that one of the given name is always whole, and what is asked of files everywhere."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Ends the names of files being written.
PARTIAL = ".partial"


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete what killed processes left unfinished in `folder`: of all files, or only of the one of this name."""
    for partial in folder.glob(f".*{PARTIAL}"):  # a name may hold what a pattern would take as a wildcard
        if partial.name.startswith(f".{name}." if name else "."):
            partial.unlink(missing_ok=True)


def check_regular(path: Path) -> None:
    """Raise OSError naming a pipe or a device: reading it could wait or go on for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():  # which says so itself
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Return what a file holds. Raises OSError like `check_regular`."""
    check_regular(path)
    return path.read_bytes()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in what the disk says while it is written, which Python leaves out there."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of what the disk says
        said = _find_os_error(error)
        if said is None or said.filename is not None or said.errno is None:
            raise
        raise OSError(said.errno, said.strerror, str(path)) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Call write(file) on a temporary file beside `path`, bring it to the disk if `sync`, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with naming(path), open(partial, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_atomically` does."""
    # A name that is no UTF-8 becomes what JSON and YAML read back as that name.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def append(path: Path, line: bytes) -> None:
    """Add a line to a file in one piece, so that lines which several processes add do not mingle."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with naming(path):
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


def _find_os_error(error: BaseException | None) -> OSError | None:
    """Return what the disk said (no space left, quota exceeded, …) if that is behind an error, else None."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
