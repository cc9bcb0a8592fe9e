"""Files of images: told apart by what they hold, decoded without loss, and written in the kind they came in.

Most are pictures of 8 bits a channel, which Pillow decodes. What Pillow would not keep whole is read here: PNG of 16
bits, TIFF of other types or more channels (with tifffile, an optional package), and NumPy's arrays.
"""

from __future__ import annotations

import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from i2sb.images import TYPES, ValueRange, from_pixels, is_plain, open_image, to_pil

PNG, TIFF, ARRAY, ARRAYS = ".png", ".tif", ".npy", ".npz"
INSTALL = "pip install -r scripts/requirements-arrays.txt"
SNIFFED = 32  # bytes at the start of a file that tell its kind

_PNG_START = b"\x89PNG\r\n\x1a\n"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_COLOURS = {1: 0, 3: 2, 4: 6}  # by channels
_ICC, _ORIENTATION = 34675, 274  # tags of TIFF
# What turns pixels [C, H, W] upright, by EXIF's number of how they lie.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, :, ::-1],
    3: lambda pixels: pixels[:, ::-1, ::-1],
    4: lambda pixels: pixels[:, ::-1],
    5: lambda pixels: pixels.swapaxes(1, 2),
    6: lambda pixels: pixels.swapaxes(1, 2)[:, :, ::-1],
    7: lambda pixels: pixels[:, ::-1, ::-1].swapaxes(1, 2),
    8: lambda pixels: pixels.swapaxes(1, 2)[:, ::-1],
}


class UnsuitableError(ValueError):
    """A whole image that cannot be used for what it is: the message says all, where `UNDECODABLE` says how it broke."""


@dataclass(frozen=True)
class Form:
    """How an image is stored.

    dtype: one of TYPES. ending: PNG (of pictures of 8 bits, too), TIFF, ARRAY or ARRAYS. axis: where its channels are,
    0 or -1; None for [H, W]. colour: whether a TIFF says that it is RGB. name: of the array in an npz.
    """

    dtype: str = "uint8"
    ending: str = PNG
    axis: int | None = -1
    colour: bool = False
    name: str = "arr_0"

    def numbered(self, channels: int) -> Form:
        """Return how sample.py stores what it restores of such an image: 8 bits in grey or RGB as PNG, as published."""
        if self.dtype == "uint8" and channels in (1, 3):
            return Form()
        return Form(self.dtype, ARRAY, self.axis) if self.ending == ARRAYS else self


class Decoded(NamedTuple):
    """What a file that Pillow would not keep whole holds: pixels [C, H, W] of one of TYPES, its form and ICC profile.

    orientation: as EXIF numbers it, 1 being upright.
    """

    pixels: np.ndarray
    form: Form
    profile: bytes | None = None
    orientation: int = 1


class Planes(NamedTuple):
    """A decoded image as Pillow images whose bands are its channels: one of 8 bits, or one of kind "F" a channel,
    in [-1, 1], so that all are resized and cropped alike; and how it was stored."""

    images: tuple[Image.Image, ...]
    form: Form

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images[0].size

    def each(self, change: Callable[[Image.Image], Image.Image]) -> Planes:
        """Return the image with every part changed so."""
        return Planes(tuple(map(change, self.images)), self.form)

    def tensor(self) -> Tensor:
        """Return the image, [C, H, W]: uint8 if it is plain, else float32 in [-1, 1]."""
        return torch.cat([TF.pil_to_tensor(image) for image in self.images])


def open_planes(content: bytes, channels: int, value_range: ValueRange, *, upright: bool) -> Planes:
    """Decode an image file for a network of so many channels.

    Pictures of 8 bits become grey or RGB for 1 and 3 channels, all else must have as many as are wanted.
    upright: turn it as its EXIF says. Raises one of UNDECODABLE if it is broken, UnsuitableError if it does not fit.
    """
    decoded = read_whole(content, channels)
    if decoded is None:
        image = open_image(content)
        if upright:
            image = ImageOps.exif_transpose(image)
        image = _convert(image, channels)
        if is_plain("uint8", value_range):
            return Planes((image,), Form())
        pixels, form, orientation = TF.pil_to_tensor(image).numpy(), Form(), 1
    else:
        pixels, form, orientation = decoded.pixels, decoded.form, decoded.orientation
    if upright:
        pixels = turn_upright(pixels, orientation)
    return Planes(tuple(map(Image.fromarray, scale_pixels(pixels, value_range))), form)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn or mirror pixels [C, H, W] that are stored in an orientation of EXIF."""
    return np.ascontiguousarray(_TURNS[orientation](pixels))


def scale_pixels(pixels: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return pixels as they are if they are plain, else in [-1, 1]. Raises UnsuitableError like `from_pixels`."""
    if is_plain(pixels.dtype.name, value_range):
        return pixels
    try:
        return from_pixels(pixels, value_range)
    except ValueError as error:
        raise UnsuitableError(str(error)) from None


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if channels in (1, 3):
        return image.convert("L" if channels == 1 else "RGB")
    mode = {2: "LA", 4: "RGBA"}.get(channels)
    if image.mode != mode:
        has = len(image.getbands())
        raise UnsuitableError(f"has {_count(has)} ({image.mode}), `image_channels` is {channels}")
    return image


def _count(channels: int) -> str:
    return f"{channels} channel{'s' * (channels > 1)}"


# --- Reading what Pillow would not keep whole ------------------------------------------------------------------------


def may_need_whole(start: bytes) -> bool:
    """Say by the first SNIFFED bytes of a file whether `read_whole` could have something to say of it."""
    return _find_reader(start) is not None


def read_whole(content: bytes, channels: int | None) -> Decoded | None:
    """Decode a file that Pillow would not keep whole for images of so many channels; None if Pillow does, or nobody.

    channels: None if any number will do. Raises ValueError or OSError if it is broken, UnsuitableError if it does not
    fit, is of none of TYPES, or needs a package that is not there.
    """
    reader = _find_reader(content[:SNIFFED])
    try:
        decoded = None if reader is None else reader(content, channels)
    except (EOFError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, IndexError, RuntimeError) as error:
        raise ValueError(str(error) or "cut off, or damaged") from None
    if decoded is None:
        return None
    if decoded.pixels.size == 0:
        raise UnsuitableError("holds no pixels")
    if channels is not None and len(decoded.pixels) != channels:
        raise UnsuitableError(f"has {_count(len(decoded.pixels))}, `image_channels` is {channels}")
    return decoded


_Reader = Callable[[bytes, "int | None"], "Decoded | None"]


def _find_reader(start: bytes) -> _Reader | None:
    if start.startswith(b"\x93NUMPY"):
        return _read_npy
    if start.startswith(b"PK\x03\x04"):
        return _read_npz
    if start.startswith(_TIFF_STARTS):
        return _read_tiff
    if start.startswith(_PNG_START) and start[24:25] == b"\x10":  # bits a channel
        return _read_png
    if start[:2] in (b"P5", b"P6"):
        return _refuse_deep_ppm
    return None


def is_deep_png(start: bytes) -> bool:
    """Say by the first SNIFFED bytes of a file whether it is a PNG of 16 bits a channel."""
    return _find_reader(start) is _read_png


def _read_npy(content: bytes, channels: int | None) -> Decoded:
    return _lay_out(np.load(io.BytesIO(content), allow_pickle=False), channels, ARRAY)


def _read_npz(content: bytes, channels: int | None) -> Decoded:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise UnsuitableError(f"holds {len(arrays.files)} arrays ({', '.join(arrays.files[:5])}), one is wanted")
        name = arrays.files[0]
        return _lay_out(arrays[name], channels, ARRAYS, name=name)


def _read_png(content: bytes, channels: int | None) -> Decoded:
    if b"acTL" in content[: content.find(b"IDAT")]:
        raise UnsuitableError("is an animation; give its pictures one by one")
    with Image.open(io.BytesIO(content)) as image:
        (((raw, *_),), bands) = _tiles(image), len(image.getbands())
        orientation = image.getexif().get(_ORIENTATION, 1)
        profile = image.info.get("icc_profile")
        if bands == 1:
            pixels = np.asarray(image).astype(np.uint16)[None]
        elif raw in _LOW_BYTES:  # of these Pillow keeps the high byte alone
            low = _decode_raw(content, _LOW_BYTES[raw])
            pixels = np.moveaxis(np.asarray(image).astype(np.uint16) << 8 | low, -1, 0)
        else:
            raise UnsuitableError("is a PNG of 16 bits in grey with transparency; save it as TIFF or .npy")
    form = Form("uint16", PNG, None if len(pixels) == 1 else -1)
    return Decoded(pixels, form, profile, orientation if orientation in _TURNS else 1)


# How Pillow calls 16-bit pixels whose first byte is the high one, and what it calls those whose last byte is.
_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def _decode_raw(content: bytes, raw: str) -> np.ndarray:
    """Decode a PNG as if its pixels lay so in it."""
    with Image.open(io.BytesIO(content)) as image:
        image.tile = [(*tile[:3], raw) for tile in image.tile]  # type: ignore[misc]
        return np.asarray(image)


def _refuse_deep_ppm(content: bytes, channels: int | None) -> None:
    with Image.open(io.BytesIO(content)) as image:
        arguments = [argument for tile in _tiles(image) for argument in tile]
    if any(type(argument) is int and argument > 255 for argument in arguments):
        raise UnsuitableError("is a PPM of more than 8 bits a channel; save it as PNG, TIFF or .npy")


def _tiles(image: Image.Image) -> list[tuple[Any, ...]]:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in tiles]


def _read_tiff(content: bytes, channels: int | None) -> Decoded | None:
    if channels in (None, 1, 3) and _is_picture(content):
        return None
    try:
        import tifffile
    except ImportError:
        raise UnsuitableError(f"is a TIFF that needs the package tifffile ({INSTALL})") from None
    logging.getLogger(tifffile.__name__).setLevel(logging.CRITICAL)  # or it says in lines of its own what it raises
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages: list[Any] = [page for page in file.pages if not page.is_reduced]  # type: ignore[union-attr]
            if not pages:
                raise ValueError("cut off, or damaged")
            if len(pages) > 1:
                raise UnsuitableError(f"holds {len(pages)} pictures; one is wanted, its channels the samples of a page")
            page = pages[0]
            if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
                raise UnsuitableError(f"has {page.photometric.name} colours; convert it to grey or RGB first")
            pixels, axes = page.asarray(), page.axes
            profile, orientation = (page.tags.valueof(code) for code in (_ICC, _ORIENTATION))
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise UnsuitableError(f"is compressed in a way that needs the package imagecodecs ({INSTALL})") from None
        raise
    if axes not in ("YX", "YXS", "SYX"):
        raise UnsuitableError(f"is of shape {list(pixels.shape)}; [H, W] with channels is wanted")
    colour = page.photometric == tifffile.PHOTOMETRIC.RGB
    decoded = _lay_out(pixels, channels, TIFF, axis={"YX": None, "YXS": -1, "SYX": 0}[axes], colour=colour)
    return decoded._replace(profile=profile, orientation=orientation if orientation in _TURNS else 1)


def _is_picture(content: bytes) -> bool:
    """Whether a TIFF is one of 8 bits that Pillow decodes."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if not isinstance(image, TiffImagePlugin.TiffImageFile):
                return True
            bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            signed = set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {1}
            return max(bits) <= 8 and not signed
    except UnidentifiedImageError:
        return False


def _lay_out(
    array: np.ndarray,
    channels: int | None,
    ending: str,
    *,
    axis: int | None = None,
    colour: bool = False,
    name: str = "arr_0",
) -> Decoded:
    """Put the channels first. Without an `axis` they are on the one that is as long as wanted, the last if both are."""
    dtype = array.dtype.newbyteorder("=").name
    if dtype not in TYPES:
        raise UnsuitableError(f"holds pixels of type {dtype}; there are {', '.join(TYPES)}")
    if array.ndim not in (2, 3):
        raise UnsuitableError(f"is of shape {list(array.shape)}; [H, W], [H, W, C] or [C, H, W] is wanted")
    if array.ndim == 3 and axis is None:
        axis = -1 if channels in (None, array.shape[-1]) or array.shape[0] != channels else 0
        if channels not in (None, array.shape[axis]):
            raise UnsuitableError(
                f"is of shape {list(array.shape)}, `image_channels` is {channels}: [H, W, {channels}] or "
                f"[{channels}, H, W] is wanted"
            )
    pixels = array[None] if axis is None else np.moveaxis(array, axis, 0)
    form = Form(dtype, ending, axis, colour, name)
    return Decoded(np.ascontiguousarray(pixels.astype(dtype, copy=False)), form)


# --- Writing ---------------------------------------------------------------------------------------------------------


def encode(pixels: Tensor, form: Form, profile: bytes | None = None) -> bytes:
    """Return a file of pixels [C, H, W], of the type and in the kind that the form says.

    profile: an ICC profile, which arrays cannot hold.
    """
    array = pixels.cpu().numpy()
    out = io.BytesIO()
    if form.ending == PNG and form.dtype == "uint8":
        to_pil(pixels).save(out, format="PNG")
        return out.getvalue()
    if form.ending == PNG:
        return _encode_png(array, profile)
    array = array[0] if form.axis is None else np.ascontiguousarray(np.moveaxis(array, 0, form.axis))
    if form.ending == TIFF:
        _write_tiff(out, array, form, profile)
    elif form.ending == ARRAYS:
        with zipfile.ZipFile(out, "w") as arrays, arrays.open(f"{form.name}.npy", "w") as file:
            np.save(file, array, allow_pickle=False)
    else:
        np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _write_tiff(out: io.BytesIO, array: np.ndarray, form: Form, profile: bytes | None) -> None:
    import tifffile  # or the image that has this form would not have been read

    tifffile.imwrite(
        out,
        array,
        photometric="rgb" if form.colour else "minisblack",
        planarconfig={None: None, -1: "contig", 0: "separate"}[form.axis],
        metadata=None,
        extratags=[(_ICC, 7, len(profile), profile, True)] if profile else [],
    )


def _encode_png(array: np.ndarray, profile: bytes | None) -> bytes:
    """Write uint16 [C, H, W], C of 1, 3 or 4, as PNG, which Pillow does for grey alone."""
    channels, height, width = array.shape
    rows = array.transpose(1, 2, 0).astype(">u2").reshape(height, -1).view(np.uint8)
    # Every byte less the one above it (filter 2): smaller where an image is smooth.
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), rows - above], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    if profile:
        chunks.insert(1, (b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    checked = ((kind + data, len(data)) for kind, data in chunks)
    return _PNG_START + b"".join(
        struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk, length in checked
    )
