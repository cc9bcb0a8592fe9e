"""Small data sets, and where a crop of them was taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from i2sb.data.dataset import ImageDataset, open_split


def open_tiny(root: Path, split: str = "train", image_channels: int = 3) -> ImageDataset:
    return open_split(root, split, image_size=16, image_channels=image_channels)


def open_native(root: Path, split: str = "train", side: int = 16) -> ImageDataset:
    return open_split(root, split, image_size=side, native=True)


def take(values: Iterable, count: int) -> list:
    return list(itertools.islice(values, count))


def pack_lmdb(folder: Path, out: Path, split: str, keys: Sequence[str] | None = None) -> Path:
    """Write an LMDB of a folder's images in this process, under the `keys` given for their sorted paths."""
    import lmdb

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{split}_faster_imagefolder.lmdb"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = keys or [file.relative_to(folder).as_posix() for file in files]
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for name, file in zip(names, files, strict=True):
            writing.put(name.encode(), file.read_bytes())
    return path


def find_crop(crop: torch.Tensor) -> tuple[int, int, int, bool]:
    """Return (file, top, left, mirrored) of a crop of the fixture `photographs`, having checked every pixel of it."""
    rows, columns, number = crop[0, :, 0], crop[1, 0], crop[2, 0, 0]
    flip = bool(columns[0] > columns[-1])
    top, left = int(rows[0]), int(columns.min())
    y, x = np.mgrid[top : top + 16, left : left + 16]
    want = np.stack([y, x[:, ::-1] if flip else x, np.full_like(x, int(number))])
    assert np.array_equal(crop.numpy(), want)
    return int(number), top, left, flip
