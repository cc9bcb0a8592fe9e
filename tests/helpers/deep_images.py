"""Images of more than 8 bits or three channels, as arrays and as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from i2sb.image_files import ARRAY, TIFF, Form, encode


def make_pixels(dtype: str, channels: int, number: int = 0, height: int = 17, width: int = 23) -> np.ndarray:
    """A smooth image [C, H, W] of this type, using all of its range, and noise in its last bits."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(0.11 * (number + 2) * x + 0.07 * (c + 1) * y + c) for c in range(channels)])
    unit = (0.5 + 0.49 * waves + 0.01 * np.random.default_rng(number).random(waves.shape)).clip(0, 1)
    if np.issubdtype(dtype, np.integer):
        kind = np.iinfo(dtype)
        return (unit * (kind.max - kind.min) + kind.min).round().astype(dtype)
    return unit.astype(dtype)


def npy_bytes(array: np.ndarray) -> bytes:
    """The file of a NumPy array."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def deep_bytes(dtype: str, channels: int, ending: str, *, pages: int = 1, **tiff: Any) -> bytes:
    """A file of such an image, its channels last. pages, tiff: how a TIFF is written."""
    pixels = make_pixels(dtype, channels)
    array = pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)
    if ending == ARRAY:
        return npy_bytes(array)
    if ending != TIFF:
        return encode(torch.from_numpy(pixels), Form(dtype, ending))
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        for _ in range(pages):
            kind = {"photometric": "minisblack", "planarconfig": "contig" if channels > 1 else None, **tiff}
            file.write(array, metadata=None, **kind)
    return content.getvalue()


def write_deep(
    folder: Path, count: int, form: Form, channels: int, *, first: int = 0, height: int = 20, width: int = 24
) -> None:
    """Write numbered images of this form below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = make_pixels(form.dtype, channels, number, height, width)
        (folder / f"{number}{form.ending}").write_bytes(encode(torch.from_numpy(pixels), form))
