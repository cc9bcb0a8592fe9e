"""Images to train on, and what a crop of them tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def make_image(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth colour image that depends on `number`."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(0.11 * (number + 2) * x + 0.07 * (c + 1) * y + c) for c in range(3)]
    return Image.fromarray((127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8))


def write_images(folder: Path, names: list[str], first: int = 0) -> None:
    for number, name in enumerate(names, first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(path)


def find_crop(crop: torch.Tensor | np.ndarray) -> tuple[int, int, int, bool]:
    """Return (file, top, left, mirrored) of a 16-pixel crop of `photographs`, having checked every pixel of it."""
    rows, columns, number = crop[0, :, 0], crop[1, 0], crop[2, 0, 0]
    flip = bool(columns[0] > columns[-1])
    top, left = int(rows[0]), int(columns.min())
    y, x = np.mgrid[top : top + 16, left : left + 16]
    want = np.stack([y, x[:, ::-1] if flip else x, np.full_like(x, int(number))])
    assert np.array_equal(crop, want)
    return int(number), top, left, flip
