"""People's own pictures: found, read, checked and written back in the same form.

What a picture is besides its pixels is kept: the ending and so the format, its size as people see it (turned upright
if its EXIF says so), transparency, grey, and the colour profile. Other metadata is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from torch import Tensor
from torchvision.transforms import functional as TF

from i2sb.data.stores import IMAGE_ENDINGS, list_files, list_images
from i2sb.errors import FileError, require
from i2sb.files import check_regular, write_atomically
from i2sb.images import refuse_undecodable, to_pil

COLOUR_MODES = ("RGB", "RGBA", "P", "PA")
GREY_MODES = ("1", "L", "LA")
ALPHA_ENDINGS = (".png", ".webp", ".tif", ".tiff")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture: image uint8 [C, H, W], C of 1 or 3; alpha uint8 [1, H, W] if it is transparent somewhere."""

    image: Tensor
    alpha: Tensor | None
    grey: bool
    profile: bytes | None


def find_pictures(path: Path, setting: str = "input") -> dict[str, Path]:
    """Return the pictures that `path` is or holds, by their names relative to it, in order.

    Raises UserError naming the setting if it is no picture, no folder, or holds none.
    """
    endings = ", ".join(sorted(IMAGE_ENDINGS))
    if path.is_dir():
        pictures = {name: path / name for name in sorted(list_images(path))}
        require(bool(pictures), setting, path, f"holds no pictures (looked for {endings})")
        return pictures
    require(path.exists(), setting, path, "there is no such file or folder")
    require(path.suffix.lower() in IMAGE_ENDINGS, setting, path, f"pictures end in one of {endings}")
    return {path.name: path}


def advise_endings(path: Path) -> str:
    """Say in a line which files of a folder are passed over, since their endings are of no picture; "" if none is."""
    others = sorted(set(list_files(path)) - set(list_images(path))) if path.is_dir() else []
    named = ", ".join(others[:5]) + ", …" * (len(others) > 5)
    return (
        f"`input`: {len(others)} files are passed over, since they end in no picture's ending: {named}"
        if others
        else ""
    )


def check_picture(path: Path, channels: int) -> tuple[int, int]:
    """Return the height and width of a picture as people see it, without decoding it.

    channels: of the network, 1 or 3. Raises UserError naming the file if it is of a kind that cannot be restored.
    """
    with _open(path, channels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the sides
        return (width, height) if turned else (height, width)


def read_picture(path: Path, channels: int) -> Picture:
    """Decode a picture for a network of 1 or 3 channels. Raises UserError naming the file if that cannot be done."""
    with _open(path, channels) as opened:
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)
        alpha = TF.pil_to_tensor(image.convert("RGBA").getchannel("A")) if _is_transparent(image) else None
        grey = image.mode in GREY_MODES
        pixels = TF.pil_to_tensor(image.convert("RGBA").convert("RGB") if image.mode == "PA" else image.convert("RGB"))
    return Picture(pixels if channels == 3 else pixels[:1], alpha, grey, profile)


def write_picture(path: Path, image: Tensor, like: Picture, *, colours: bool = False) -> None:
    """Write image uint8 [C, H, W] in the form of the picture that it was restored from, as the ending says.

    A grey picture stays grey, unless the network is one that `colours`.
    """
    drawn = to_pil(image)
    if like.grey and not colours:
        drawn = drawn.convert("L")
    kind = Image.registered_extensions()[path.suffix.lower()]
    if like.alpha is not None:
        if kind == "WEBP":
            drawn = drawn.convert("RGB")
        drawn.putalpha(to_pil(like.alpha))
    options = dict(_SAVE_OPTIONS.get(kind, {}))
    if like.profile and kind in ("JPEG", "PNG", "WEBP", "TIFF") and not (like.grey and drawn.mode.startswith("RGB")):
        options["icc_profile"] = like.profile
    write_atomically(path, lambda file: drawn.save(file, format=kind, **options), sync=False)


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """Return a hole, float32 [1, H, W]: 1 where the picture at `path` is white, 0 where it is black.

    Raises UserError naming the file unless it has these sides and a hole that leaves something.
    """
    image = read_picture(path, 3).image
    sides = f"{image.shape[2]}x{image.shape[1]}"
    if image.shape[1:] != (height, width):
        raise FileError(path, f"the mask is {sides} pixels, its picture {width}x{height}: they must be the same")
    mask = (image.float().mean(0, keepdim=True) >= 127.5).to(torch.float32)
    if mask.min() == mask.max():
        colour = "white" if mask.min() == 1 else "black"
        raise FileError(path, f"the mask is {colour} all over; white is missing")
    return mask


@contextmanager
def _open(path: Path, channels: int) -> Iterator[Image.Image]:
    if not path.exists():
        raise FileError(path, "there is no such file")
    check_regular(path)
    with refuse_undecodable(path, "picture", "remove or replace it"), Image.open(path) as image:
        _refuse_kinds(image, path, channels)
        yield image


def _refuse_kinds(image: Image.Image, path: Path, channels: int) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise FileError(path, f"holds {frames} pictures; give one by one what is to be restored")
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        raise FileError(path, "has more than 8 bits a channel; convert it to 8 bits first")
    if image.mode not in COLOUR_MODES + GREY_MODES:
        raise FileError(path, f"has {image.mode} colours; convert it to RGB first")
    if channels == 1 and image.mode not in GREY_MODES:
        raise FileError(path, "is in colour, but this run restores grey pictures; convert it to grey first")
    if _is_transparent(image) and path.suffix.lower() not in ALPHA_ENDINGS:
        raise FileError(path, f"is transparent, which {path.suffix} files cannot be; save it as .png first")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel; Pillow would cut those of colour pictures without a word."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    for tile in image.tile if isinstance(image, ImageFile.ImageFile) else ():
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if image.format == "PPM":
            return any(type(argument) is int and argument > 255 for argument in arguments)
        if image.format == "PNG":
            return any(isinstance(argument, str) and ";16" in argument for argument in arguments)
    return False
