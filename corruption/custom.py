"""A degradation of the user's own: a class in a file, named as path/to/file.py:ClassName."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

from corruption.base import Corrupted, Corruption


def is_custom(name: str) -> bool:
    """Whether a degradation's name points into a Python file, which is run when it is built."""
    return re.search(r"\.py(:|$)", name) is not None


def build_custom(name: str) -> Corruption:
    """Run the file and build the class. Raises ValueError naming what is wrong with file or class."""
    path, _, class_name = name.rpartition(":")
    if not path or not class_name.isidentifier():
        raise ValueError(f"--corrupt {name}: name the class too, as path/to/file.py:ClassName")
    kind = load_from_file(name, "--corrupt")
    if not (isinstance(kind, type) and issubclass(kind, Corruption)):
        raise ValueError(f"--corrupt {name}: {path} holds no class {class_name} derived from corruption.Corruption")
    try:
        return kind()
    except TypeError as error:
        raise ValueError(f"--corrupt {name}: {class_name}() failed: {error}; it must need no arguments") from error


def load_from_file(name: str, flag: str) -> object | None:
    """Run a user's file, named as path/to/file.py:name, and return what it holds under that name, None if nothing.

    Raises ValueError with the flag that it was given to if there is no such file, or if running it fails.
    """
    path, _, wanted = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{flag} {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"{flag.lstrip('-')}_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: anything can come out of it
        raise ValueError(f"{flag} {name}: running {path} failed: {type(error).__name__}: {error}") from error
    return getattr(module, wanted, None)


def check_custom(name: str, corruption: Corruption, channels: int, height: int, width: int) -> None:
    """Try it on black images, so that mistakes show before any data is read. Raises ValueError if it returns others.

    What the user's own code raises is passed on, traceback and all.
    """
    clean = torch.full((2, channels, height, width), -1.0)
    done = corruption(clean, torch.Generator().manual_seed(0))
    if not (isinstance(done, Corrupted) and isinstance(done.image, torch.Tensor)):
        raise ValueError(f"--corrupt {name}: degrade must return Corrupted(image), not {type(done).__name__}")
    for part, tensor, shape in (("image", done.image, clean.shape), ("mask", done.mask, (2, 1, height, width))):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != torch.float32):
            raise ValueError(
                f"--corrupt {name}: degrade returned an {part} of {list(tensor.shape)}, {tensor.dtype}; "
                f"it must be {list(shape)}, torch.float32, for images [2, {channels}, {height}, {width}]"
            )
    if not done.image.isfinite().all():
        raise ValueError(f"--corrupt {name}: degrade returned values that are not finite")
