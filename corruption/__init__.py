"""The degradations by name. Images are [B, C, H, W] in [-1, 1]; nothing here knows about the bridge."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch

from corruption.base import Corrupted, Corruption, CorruptionError, Draws, LinearCorruption, ShapeError
from corruption.blur import GAUSSIAN, UNIFORM, ExactBlur, PublishedBlur
from corruption.custom import build_custom, check_custom, is_custom
from corruption.decolor import Decoloring
from corruption.inpaint import CenterInpainting, FreeformInpainting
from corruption.jpeg import JPEG
from corruption.mixture import Mixture
from corruption.superresolution import BicubicSuperResolution, PoolSuperResolution

__all__ = [
    "CORRUPTIONS",
    "Corrupted",
    "Corruption",
    "CorruptionError",
    "Draws",
    "LinearCorruption",
    "PUBLISHED",
    "ShapeError",
    "build_corruption",
    "describe_corruptions",
    "is_custom",
]


class _Entry(NamedTuple):
    """What a name stands for. build: from the side of the (square) images and the options it takes."""

    build: Callable[..., Corruption]
    description: str
    options: tuple[str, ...] = ()


# The order of the mixture's nine is published: image i of an evaluation has number i mod 9.
_PUBLISHED = {
    "jpeg-5": _Entry(lambda side: JPEG(5), "JPEG of quality 5; any jpeg-Q with Q from 1 to 100"),
    "jpeg-10": _Entry(lambda side: JPEG(10), "JPEG of quality 10"),
    "blur-uni": _Entry(lambda side: PublishedBlur(UNIFORM, side), "uniform blur as published, its faults included"),
    "blur-gauss": _Entry(lambda side: PublishedBlur(GAUSSIAN, side), "Gaussian blur as published, its faults included"),
    "sr4x-pool": _Entry(lambda side: PoolSuperResolution(), "shrunk 4x by block means, shown at the old size"),
    "sr4x-bicubic": _Entry(lambda side: BicubicSuperResolution(), "shrunk 4x by a cubic kernel, shown at the old size"),
    "inpaint-center": _Entry(lambda side: CenterInpainting(), "the middle quarter is missing"),
    "inpaint-freeform1020": _Entry(
        lambda side, **options: FreeformInpainting((10, 20), **options),
        "brush strokes over 10 to 20 % of the area are missing",
        ("mask_file",),
    ),
    "inpaint-freeform2030": _Entry(
        lambda side, **options: FreeformInpainting((20, 30), **options),
        "brush strokes over 20 to 30 % of the area are missing",
        ("mask_file",),
    ),
}
_TABLE = {
    **_PUBLISHED,
    "blur-uni-exact": _Entry(lambda side: ExactBlur(UNIFORM), "uniform blur, nine taps, done right"),
    "blur-gauss-exact": _Entry(lambda side: ExactBlur(GAUSSIAN), "Gaussian blur, five taps, done right"),
    "decolor": _Entry(lambda side: Decoloring(), "grey; use it with --add-x1-noise --cond-x1"),
    "mixture": _Entry(
        lambda side, **options: Mixture(_build_each(_PUBLISHED.values(), side, options), blind=True),
        "one of the nine published ones, at random for each image",
        ("mask_file",),
    ),
}

CORRUPTIONS: tuple[str, ...] = tuple(_TABLE)
PUBLISHED: tuple[str, ...] = (*_PUBLISHED, "mixture")  # those that the released program has


def build_corruption(name: str, image_size: int = 256, *, image_channels: int = 3, **options: Any) -> Corruption:
    """Build the degradation `name` for square images of `image_size` pixels.

    name: one of CORRUPTIONS, jpeg-Q for any quality, path/to/file.py:ClassName for a class of the user's own, whose
    file is then run, or several of these with commas between: the mixture of them, every one as likely (twice as likely
    if it is given twice). options: mask_file, the published freeform masks, for those that have such holes.
    Raises CorruptionError for an unknown name and for unknown options, ShapeError for images that it cannot take.

    >>> clean = torch.rand(2, 3, 64, 64) * 2 - 1
    >>> build_corruption("jpeg-10", 64)(clean).image.shape
    torch.Size([2, 3, 64, 64])
    >>> degraded, mask = build_corruption("inpaint-center", 64)(clean)
    >>> mask.shape, mask.mean().item()  # the hole is a quarter of the image
    (torch.Size([2, 1, 64, 64]), 0.25)
    """
    names = name.split(",")
    entries = [_find(part_name) for part_name in names]
    if len(names) > 1 and "mixture" in names:
        raise CorruptionError("corrupt", name, "mixture is the published nine; give a mixture of your own without it")
    unknown = [f"`{option}`" for option in options if all(option not in e.options for e in entries)]
    if unknown:
        raise CorruptionError("corrupt", name, f"takes no {', '.join(unknown)}")
    with torch.inference_mode(False):  # or no gradient could pass through its tables
        parts = _build_each(entries, image_size, options)
    try:
        for part in parts:
            part.check_shape(image_channels, image_size, image_size)
    except ValueError as error:
        raise ShapeError(str(error)) from None
    for part_name, part in zip(names, parts, strict=True):
        if is_custom(part_name):
            check_custom(part_name, part, image_channels, image_size, image_size)
    return parts[0] if len(parts) == 1 else Mixture(parts)


def _build_each(entries: Iterable[_Entry], side: int, options: Mapping[str, Any]) -> list[Corruption]:
    """Build degradations, each with those of the options that it takes."""
    return [entry.build(side, **{k: v for k, v in options.items() if k in entry.options}) for entry in entries]


def describe_corruptions() -> str:
    """Return a line for each degradation, as `--corrupt help` prints them."""
    lines = [f"{name:22}{entry.description}" for name, entry in _TABLE.items()]
    lines += [
        f"{'paired':22}none: the data set holds degraded images itself, as degraded/ beside clean/",
        f"{'file.py:ClassName':22}a class of your own, derived from corruption.Corruption",
        f"{'jpeg-5,sr4x-pool,…':22}any of these with commas between: one of them, at random for each image",
    ]
    return "\n".join(lines)


def _find(name: str) -> _Entry:
    if name in _TABLE:
        return _TABLE[name]
    if is_custom(name):
        return _Entry(lambda side: build_custom(name), "")
    quality = re.fullmatch(r"jpeg-([0-9]+)", name)
    if quality:
        if not 1 <= int(quality[1]) <= 100:
            raise CorruptionError("corrupt", name, "the quality must be between 1 and 100")
        return _Entry(lambda side: JPEG(int(quality[1])), "")
    near = get_close_matches(name, CORRUPTIONS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CorruptionError("corrupt", name, f"unknown degradation; {hint}there are {', '.join(CORRUPTIONS)}")
