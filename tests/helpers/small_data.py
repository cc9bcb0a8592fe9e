"""Small data sets, and a way to pack one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

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
