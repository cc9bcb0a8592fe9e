"""The degradations by name. Images are [B, C, H, W] in [-1, 1]; nothing here knows about the bridge."""

import math
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
    "describe_damage",
    "find_multiple",
    "is_custom",
]


class _Number(NamedTuple):
    """The number in the names of a family. pattern: such a name, as a regular expression with the number in its group;
    word: what the number is; least, most: what it may be, as far as the images' size does not say so.
    """

    pattern: str
    word: str
    least: int
    most: int | None = None


class _Entry(NamedTuple):
    """What a name stands for, or the names of a family.

    build: from the side of the (square) images, in a family the number, and the options it takes.
    damage: what is wrong with its images, in words for people who do not know the name; {} is a family's number.
    """

    build: Callable[..., Corruption]
    description: str
    damage: str = ""
    options: tuple[str, ...] = ()
    number: _Number | None = None


# The order of the mixture's nine is published: image i of an evaluation has number i mod 9.
_PUBLISHED = (
    *("jpeg-5", "jpeg-10", "blur-uni", "blur-gauss", "sr4x-pool", "sr4x-bicubic"),
    *("inpaint-center", "inpaint-freeform1020", "inpaint-freeform2030"),
)
_TABLE = {
    "jpeg-Q": _Entry(
        lambda side, quality: JPEG(quality),
        "JPEG of quality Q, 1 to 100, without its file; published are 5 and 10",
        damage="JPEG compression of quality {}",
        number=_Number(r"jpeg-([0-9]{1,9})", "quality", 1, 100),
    ),
    "blur-uni": _Entry(
        lambda side: PublishedBlur(UNIFORM, side),
        "uniform blur as published, its faults included",
        damage="even blur, as published",
    ),
    "blur-gauss": _Entry(
        lambda side: PublishedBlur(GAUSSIAN, side),
        "Gaussian blur as published, its faults included",
        damage="soft (Gaussian) blur, as published",
    ),
    "srNx-pool": _Entry(
        lambda side, factor: PoolSuperResolution(factor),
        "shrunk N times, 2 or more, by block means, shown at the old size; published is sr4x-pool",
        damage="low resolution: shrunk {} times (block means)",
        number=_Number(r"sr([0-9]{1,9})x-pool", "factor", 2),
    ),
    "srNx-bicubic": _Entry(
        lambda side, factor: BicubicSuperResolution(factor),
        "shrunk N times, 2 or more, by a cubic kernel, shown at the old size; published is sr4x-bicubic",
        damage="low resolution: shrunk {} times (bicubic)",
        number=_Number(r"sr([0-9]{1,9})x-bicubic", "factor", 2),
    ),
    "inpaint-center": _Entry(
        lambda side: CenterInpainting(), "the middle quarter is missing", damage="a hole in the middle"
    ),
    "inpaint-freeform1020": _Entry(
        lambda side, **options: FreeformInpainting((10, 20), **options),
        "brush strokes over 10 to 20 % of the area are missing",
        options=("mask_file",),
        damage="holes like brush strokes, 10 to 20 % of the picture",
    ),
    "inpaint-freeform2030": _Entry(
        lambda side, **options: FreeformInpainting((20, 30), **options),
        "brush strokes over 20 to 30 % of the area are missing",
        options=("mask_file",),
        damage="holes like brush strokes, 20 to 30 % of the picture",
    ),
    "blur-uni-exact": _Entry(
        lambda side: ExactBlur(UNIFORM), "uniform blur, nine taps, done right", damage="even blur"
    ),
    "blur-gauss-exact": _Entry(
        lambda side: ExactBlur(GAUSSIAN), "Gaussian blur, five taps, done right", damage="soft (Gaussian) blur"
    ),
    "decolor": _Entry(lambda side: Decoloring(), "grey; use it with --add-x1-noise --cond-x1", damage="lost colours"),
    "mixture": _Entry(
        lambda side, **options: Mixture(_build_each(map(_find, _PUBLISHED), side, options), blind=True),
        "one of the nine published ones, at random for each image",
        options=("mask_file",),
        damage="damage of one of nine kinds",
    ),
}

# The published names, and all that are no family's.
CORRUPTIONS: tuple[str, ...] = tuple(
    dict.fromkeys((*_PUBLISHED, *(name for name, entry in _TABLE.items() if entry.number is None)))
)
PUBLISHED: tuple[str, ...] = (*_PUBLISHED, "mixture")  # those that the released program has


def build_corruption(
    name: str, image_size: int = 256, *, image_channels: int = 3, degradation_noise: float = 0.0, **options: Any
) -> Corruption:
    """Build the degradation `name` for square images of `image_size` pixels.

    name: one of CORRUPTIONS, jpeg-Q for any quality, srNx-pool or srNx-bicubic for any factor, such as sr3x-pool,
    path/to/file.py:ClassName for a class of the user's own, whose file is then run, or several of these with commas
    between: the mixture of them, every one as likely (twice as likely if it is given twice).
    degradation_noise: standard deviation of the noise in what a linear degradation measures of images in [-1, 1].
    options: mask_file, the published freeform masks, for those that have such holes.
    Raises CorruptionError for an unknown name, for unknown options and for noise where it has no meaning, ShapeError
    for images that it cannot take.

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
    if degradation_noise:
        for part_name, part in zip(names, parts, strict=True):
            try:
                part.set_noise(degradation_noise)
            except ValueError as error:
                raise CorruptionError("degradation_noise", degradation_noise, f"{part_name}: {error}") from None
    for part_name, part in zip(names, parts, strict=True):
        if is_custom(part_name):
            check_custom(part_name, part, image_channels, image_size, image_size)
    return parts[0] if len(parts) == 1 else Mixture(parts)


def find_multiple(name: str) -> int:
    """Return what the sides of pictures are brought to multiples of for the degradation `name` (`Corruption.multiple`).

    As build_corruption does, it runs the file of a class of the user's own, and raises CorruptionError.
    """
    parts = _build_each(map(_find, name.split(",")), Corruption.multiple, {})
    return math.lcm(*(part.multiple for part in parts))


def _build_each(entries: Iterable[_Entry], side: int, options: Mapping[str, Any]) -> list[Corruption]:
    """Build degradations, each with those of the options that it takes."""
    return [entry.build(side, **{k: v for k, v in options.items() if k in entry.options}) for entry in entries]


def describe_corruptions() -> str:
    """Return a line for each degradation and each family of them, as `--corrupt help` prints them."""
    lines = [f"{name:22}{entry.description}" for name, entry in _TABLE.items()]
    lines += [
        f"{'paired':22}none: the data set holds degraded images itself, as degraded/ beside clean/",
        f"{'file.py:ClassName':22}a class of your own, derived from corruption.Corruption",
        f"{'jpeg-5,sr4x-pool,…':22}any of these with commas between: one of them, at random for each image",
    ]
    return "\n".join(lines)


def describe_damage(name: str) -> str:
    """Say what is wrong with the images of a degradation, in words for people who do not know its name.

    A name without such words, as of a class of the user's own, whose file is not run, stands for itself. Raises
    CorruptionError for an unknown name.

    >>> describe_damage("jpeg-5,sr4x-pool,jpeg-10")
    'JPEG compression of quality 5 or 10, or low resolution: shrunk 4 times (block means)'
    """
    numbers: dict[str, list[str]] = {}
    for part in dict.fromkeys(name.split(",")):
        entry = _find(part)
        match = re.fullmatch(entry.number.pattern, part) if entry.number else None
        numbers.setdefault(entry.damage or part, []).extend(match.groups() if match else ())
    return ", or ".join(damage.format(_enumerate(found)) for damage, found in numbers.items())


def _enumerate(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _find(name: str) -> _Entry:
    """Return the row of a name; of a family's, with the number in it given to `build`."""
    if is_custom(name):
        return _Entry(lambda side: build_custom(name), "")
    for known, entry in _TABLE.items():
        if entry.number is None:
            if name == known:
                return entry
        elif match := re.fullmatch(entry.number.pattern, name):
            return _settle_number(name, entry, entry.number, int(match[1]))
    known_names = tuple(dict.fromkeys((*CORRUPTIONS, *_TABLE)))
    near = get_close_matches(name, known_names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CorruptionError("corrupt", name, f"unknown degradation; {hint}there are {', '.join(known_names)}")


def _settle_number(name: str, entry: _Entry, number: _Number, value: int) -> _Entry:
    if value < number.least or (number.most is not None and value > number.most):
        bounds = f"at least {number.least}" if number.most is None else f"between {number.least} and {number.most}"
        raise CorruptionError("corrupt", name, f"the {number.word} must be {bounds}")
    return entry._replace(build=lambda side, **options: entry.build(side, value, **options))
