"""People's own pictures: found, read, checked and written back in the same form.

What a picture is besides its pixels is kept: the ending and so the format, the type of its pixels, its size as people
see it (turned upright if its EXIF says so), transparency, grey, and the colour profile. Other metadata is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from i2sb.data.stores import IMAGE_ENDINGS, list_files, list_images
from i2sb.errors import FileError, require
from i2sb.files import check_regular, write_atomically
from i2sb.image_files import (
    SNIFFED,
    Decoded,
    Form,
    UnsuitableError,
    encode,
    may_need_whole,
    read_whole,
    scale_pixels,
    turn_upright,
)
from i2sb.images import UNDECODABLE, ValueRange, refuse_undecodable, say_undecodable, to_pil, whole_range

COLOUR_MODES = ("RGB", "RGBA", "P", "PA")
GREY_MODES = ("1", "L", "LA")
CHANNEL_MODES = {2: "LA", 4: "RGBA"}  # of runs whose channels these are
ALPHA_ENDINGS = (".png", ".webp", ".tif", ".tiff")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    image: [C, H, W], uint8 if it is plain (i2sb.images), else float32 in [-1, 1]; stored: its pixels as they are in the
    file. alpha: uint8 [1, H, W] if a picture in grey or colour is transparent somewhere. grey: whether it is shown to
    the network as a colour picture, and is none. form: of what Pillow would not keep whole, None of all others.
    """

    image: Tensor
    stored: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    profile: bytes | None = None
    form: Form | None = None

    @property
    def dtype(self) -> str:
        """The type of its pixels, one of i2sb.images.TYPES."""
        return self.form.dtype if self.form else "uint8"


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


def check_picture(path: Path, channels: int, value_range: ValueRange = None) -> tuple[int, int]:
    """Return the height and width of a picture as people see it; those of 8 bits are not decoded for it.

    channels: of the network. Raises UserError naming the file if it is of a kind that cannot be restored.
    """
    if decoded := _read_whole(path, channels):
        return tuple(_make_picture(path, decoded, value_range).image.shape[1:])  # type: ignore[return-value]
    with _open(path, channels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the sides
        return (width, height) if turned else (height, width)


def read_picture(path: Path, channels: int, value_range: ValueRange = None) -> Picture:
    """Decode a picture for a network of so many channels. Raises UserError naming the file if that cannot be done.

    value_range: of its pixels, None for all that their type has.
    """
    if decoded := _read_whole(path, channels):
        return _make_picture(path, decoded, value_range)
    with _open(path, channels) as opened:
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)
        if channels in CHANNEL_MODES:
            pixels, alpha, grey = TF.pil_to_tensor(image), None, False
        else:
            alpha = TF.pil_to_tensor(image.convert("RGBA").getchannel("A")) if _is_transparent(image) else None
            grey = image.mode in GREY_MODES
            colour = image.convert("RGBA").convert("RGB") if image.mode == "PA" else image.convert("RGB")
            pixels = TF.pil_to_tensor(colour)[:channels]
    return Picture(_scale(path, pixels, value_range), pixels, alpha, grey, profile)


def _read_whole(path: Path, channels: int | None) -> Decoded | None:
    if not path.exists():
        raise FileError(path, "there is no such file")
    check_regular(path)
    with path.open("rb") as file:
        if not may_need_whole(file.read(SNIFFED)):
            return None
    try:
        return read_whole(path.read_bytes(), channels)
    except UnsuitableError as error:
        raise FileError(path, str(error)) from None
    except UNDECODABLE as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise FileError(path, f"unreadable picture ({say_undecodable(error)}); remove or replace it") from None


def _make_picture(path: Path, decoded: Decoded, value_range: ValueRange) -> Picture:
    stored = torch.from_numpy(turn_upright(decoded.pixels, decoded.orientation))
    return Picture(_scale(path, stored, value_range), stored, profile=decoded.profile, form=decoded.form)


def _scale(path: Path, pixels: Tensor, value_range: ValueRange) -> Tensor:
    try:
        return torch.from_numpy(scale_pixels(pixels.numpy(), value_range))
    except UnsuitableError as error:
        raise FileError(path, str(error)) from None


def write_picture(path: Path, image: Tensor, like: Picture, *, colours: bool = False) -> None:
    """Write image [C, H, W] in the form of the picture that it was restored from, whose type it has.

    A grey picture stays grey, unless the network is one that `colours`.
    """
    if like.form is not None:
        content = encode(image, like.form, like.profile)
        write_atomically(path, lambda file: file.write(content), sync=False)
        return
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
    if decoded := _read_whole(path, None):
        image = torch.from_numpy(turn_upright(decoded.pixels, decoded.orientation))
        white = whole_range(decoded.form.dtype)[1]
    else:
        image, white = read_picture(path, 3).image, 255
    sides = f"{image.shape[2]}x{image.shape[1]}"
    if image.shape[1:] != (height, width):
        raise FileError(path, f"the mask is {sides} pixels, its picture {width}x{height}: they must be the same")
    mask = (image.double().mean(0, keepdim=True) >= white / 2).to(torch.float32)
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
    if frames > 1 and image.format != "MPO":  # a camera's JPEG, which holds previews and the like after its picture
        raise FileError(path, f"holds {frames} pictures; give one by one what is to be restored")
    if channels in CHANNEL_MODES and image.mode == CHANNEL_MODES[channels]:
        return
    if channels not in (1, 3):
        raise FileError(path, f"has {len(image.getbands())} channels ({image.mode}), this run restores {channels}")
    if image.mode not in COLOUR_MODES + GREY_MODES:
        raise FileError(path, f"has {image.mode} colours; convert it to RGB first")
    if channels == 1 and image.mode not in GREY_MODES:
        raise FileError(path, "is in colour, but this run restores grey pictures; convert it to grey first")
    if _is_transparent(image) and path.suffix.lower() not in ALPHA_ENDINGS:
        raise FileError(path, f"is transparent, which {path.suffix} files cannot be; save it as .png first")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
