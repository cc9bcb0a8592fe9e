"""A degradation of the user's own: a class in a file, named as path/to/file.py:ClassName."""

import re
from functools import partial

import torch

from corruption.base import Corrupted, Corruption, CorruptionError
from corruption.user_file import load_from_file

LARGEST = 50.0  # images in [-1, 1] stay below it, even with noise added; those in [0, 255] do not


def is_custom(name: str) -> bool:
    """Whether a degradation's name points into a Python file, which is run when it is built."""
    return re.search(r"\.py(:|$)", name) is not None


def build_custom(name: str) -> Corruption:
    """Run the file and build the class. Raises CorruptionError naming what is wrong with file or class."""
    wrong = partial(CorruptionError, "corrupt", name)
    path, _, class_name = name.rpartition(":")
    if not path or not class_name.isidentifier():
        raise wrong("name the class too, as path/to/file.py:ClassName")
    kind = load_from_file("corrupt", name)
    if not (isinstance(kind, type) and issubclass(kind, Corruption)):
        raise wrong(f"{path} holds no class {class_name} derived from corruption.Corruption")
    if kind.degrade is Corruption.degrade:
        raise wrong(f"{class_name} lacks its method degrade(self, clean, draws)")
    try:
        corruption = kind()
    except Exception as error:  # the user's code can raise anything
        advice = "; it must need no arguments" if isinstance(error, TypeError) else ""
        raise wrong(f"{class_name}() failed: {type(error).__name__}: {error}{advice}") from error
    if "_buffers" not in vars(corruption):
        raise wrong(f"{class_name}.__init__ must call super().__init__() first")
    return corruption


def check_custom(name: str, corruption: Corruption, channels: int, height: int, width: int) -> None:
    """Try it on three images of noise, so that mistakes show before any data is read, as CorruptionError.

    What the user's own code raises is passed on, traceback and all.
    """
    wrong = partial(CorruptionError, "corrupt", name)
    clean = torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = clean.clone()
    done, again = (corruption(given, [torch.Generator().manual_seed(i) for i in range(3)]) for _ in range(2))
    if not (isinstance(done, Corrupted) and isinstance(done.image, torch.Tensor)):
        raise wrong(f"degrade must return Corrupted(image), not {type(done).__name__}")
    for part, tensor, shape in (("image", done.image, clean.shape), ("mask", done.mask, (3, 1, height, width))):
        if tensor is None:
            continue
        is_tensor = isinstance(tensor, torch.Tensor)
        if not is_tensor or tensor.shape != shape or tensor.dtype != torch.float32:
            returned = f"{list(tensor.shape)}, {tensor.dtype}" if is_tensor else type(tensor).__name__
            raise wrong(
                f"degrade returned as {part} {returned}; "
                f"it must be {list(shape)}, torch.float32, for images [3, {channels}, {height}, {width}]"
            )
        if not tensor.isfinite().all():
            raise wrong(f"degrade returned as {part} values that are not finite")
    if done.image.abs().max() > LARGEST:
        raise wrong(f"degrade returned values as large as {done.image.abs().max():.4g}; images are in [-1, 1]")
    if done.mask is not None and not ((done.mask == 0) | (done.mask == 1)).all():
        raise wrong("degrade returned a mask that is not 1 inside the hole and 0 outside")
    if not torch.equal(given, clean):
        raise wrong("degrade changes the clean images it is given; let it work on a copy")
    if not torch.equal(done.image, again.image) or (done.mask is not None and not torch.equal(done.mask, again.mask)):
        raise wrong(
            "degrade returned other images for the same seeds; "
            "take random numbers from draws.rand_like, randn_like and the like"
        )
    corruption.makes_holes = done.mask is not None
