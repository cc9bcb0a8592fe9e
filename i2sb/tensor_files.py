"""Tensors in files that torch.save wrote: read without running code, and compared with the module they are for."""

import errno
import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from i2sb.errors import FileError
from i2sb.files import check_regular, hash_file

_SHOWN = 10


class UnreadableFileError(FileError):
    """A file that is cut off, damaged, or holds more than tensors and plain values; `reason` says which."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(path, f"cannot be read ({reason})")


def read_tensors(path: Path, *, mmap: bool = False) -> Any:
    """Load whatever tensors and plain values torch.save wrote, onto the CPU.

    With `mmap` tensors come into memory as they are used: for taking some of them, while the file stays in place.
    Raises UnreadableFileError if the file is damaged or holds anything else, OSError if the disk cannot read it.
    """
    check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not compare the check sums
                damaged = archive.testzip()
            if damaged:
                raise UnreadableFileError(path, f"{damaged} is damaged")
        else:
            mmap = False  # what torch wrote before 1.6
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (UnreadableFileError, MemoryError):
        raise
    except Exception as error:  # bytes that torch.save never wrote can raise anything in the reader
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset in it lies before its start
            raise
        reason = " ".join(str(error).split())
        if os.strerror(errno.ENOMEM) in reason:  # torch reports it as a RuntimeError
            raise MemoryError(f"{path}: {reason}") from None
        if reason.startswith("Weights only"):
            reason = "it holds more than tensors and plain values"
        elif not isinstance(error, (RuntimeError, UnreadableFileError)):  # torch's reader stumbled
            reason = "torch.save did not write it"
        raise UnreadableFileError(path, reason[:100]) from None


def read_checksum(path: Path) -> str:
    """Return what identifies the contents of a file of tensors.

    Of what torch.save writes, they are not read: it keeps their check sums.
    """
    if not zipfile.is_zipfile(path):  # .safetensors, and what torch wrote before 1.6
        return hash_file(path)
    with zipfile.ZipFile(path) as archive:
        listed = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def is_named_tensors(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether a value is a dict of names with tensors."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def check_finite(weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError naming the file and the first of its weights that holds NaN or infinite values."""
    for name, tensor in weights.items():
        # A sum is quick and keeps both, but may overflow.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            count = tensor.numel() - int(tensor.isfinite().sum())
            raise FileError(source, f"{count} of the {tensor.numel()} values of {name} are NaN or infinite")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path, *, assign: bool = False) -> None:
    """Copy `weights`, read from the file `source`, into `module`; with `assign` make them its own without a copy.

    Raises UserError listing what does not fit.
    """
    check_shapes(module.state_dict(), weights, source)
    module.load_state_dict(weights, assign=assign)


def check_shapes(module: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError listing the parameters whose names or shapes differ, if any: shortest first, ten at most.

    module: the state dict to fill. weights: the one to fill it with, read from the file `source`.
    """
    misfits = [
        f"{name} {describe_shape(weights.get(name))} in the file, {describe_shape(module.get(name))} in the network"
        for name in sorted(module.keys() | weights.keys())
        if describe_shape(module.get(name)) != describe_shape(weights.get(name))
    ]
    if misfits:
        listed = _join_shortest(misfits)
        raise FileError(source, f"holds another architecture, {len(misfits)} parameters differ: {listed}")


def describe_shape(tensor: object) -> str:
    """Return a tensor's shape, as in "3x5"; of None "missing", of anything else its type."""
    if not isinstance(tensor, Tensor):
        return "missing" if tensor is None else type(tensor).__name__
    return "x".join(map(str, tensor.shape)) or "scalar"


def _join_shortest(misfits: Iterable[str]) -> str:
    shortest = sorted(misfits, key=len)
    return "; ".join(shortest[:_SHOWN]) + ("; …" if len(shortest) > _SHOWN else "")
