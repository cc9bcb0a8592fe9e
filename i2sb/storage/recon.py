"""Restored images in the released program's files: recon.pt, or recon_{i}_{n}.pt for each of n parts.

They hold `arr`, float32 [M, C, H, W] in [-1, 1] in the order of the data set, and `label_arr`, int64 [M].
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb.errors import FileError
from i2sb.files import PARTIAL, naming, write_atomically
from i2sb.images import to_uint8
from i2sb.storage.sample_folder import SampleFolder
from i2sb.tensor_files import read_tensors

WHOLE = "recon.pt"
_PART = re.compile(r"recon_(\d+)_(\d+)\.pt")


class ReconFiles:
    """Restored images by their index in the split; they stay in the files and come into memory as they are used.

    labels: the class of each, int64 [N].
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path, self.files = path, files
        parts = [_read(file) for file in files]
        self._images = [part["arr"] for part in parts]
        shapes = {tuple(images.shape[1:]) for images in self._images}
        if len(shapes) > 1:
            raise FileError(path, f"the parts hold images of different sizes ({sorted(shapes)})")
        self.labels = torch.cat([part["label_arr"] for part in parts])
        self.channels, self.height, self.width = next(iter(shapes))

    @staticmethod
    def find(path: Path) -> list[Path]:
        """Return the files in a folder, in the order of their images. Raises UserError if parts of a set are gone."""
        if (path / WHOLE).exists():
            return [path / WHOLE]
        matches = [match for file in path.glob("recon_*.pt") if (match := _PART.fullmatch(file.name))]
        counts = {int(match[2]) for match in matches}
        if not counts:
            return []
        if len(counts) > 1:
            sets = ", ".join(map(str, sorted(counts)))
            raise FileError(path, f"holds parts of several sets (of {sets} parts)")
        count = counts.pop()
        missing = sorted(set(range(count)) - {int(match[1]) for match in matches})
        if missing:
            raise FileError(path, f"lacks {len(missing)} of {count} parts, first recon_{missing[0]}_{count}.pt")
        return [path / f"recon_{i}_{count}.pt" for i in range(count)]

    def __len__(self) -> int:
        return sum(map(len, self._images))

    def load(self, index: int) -> Tensor:
        """Return image number `index`, uint8 [C, H, W]. Raises UserError naming the file if it is not finite."""
        row = index
        for file, images in zip(self.files, self._images, strict=True):
            if row < len(images):
                image = images[row]
                if not image.isfinite().all():
                    raise FileError(file, f"image {row} holds values that are not finite")
                return to_uint8(image)
            row -= len(images)
        raise IndexError(index)


def _read(file: Path) -> dict[str, Any]:
    part = read_tensors(file, mmap=True)
    images = part.get("arr") if isinstance(part, dict) else None
    labels = part.get("label_arr") if isinstance(part, dict) else None
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise FileError(file, "holds no restored images (a dict of the tensors arr and label_arr is wanted)")
    fits = images.ndim == 4 and images.dtype == torch.float32 and labels.shape == images.shape[:1]
    if not fits or labels.dtype != torch.int64:
        raise FileError(
            file,
            f"arr is {images.dtype} {list(images.shape)}, label_arr {labels.dtype} {list(labels.shape)}; "
            "float32 [M, 3, H, W] and int64 [M] are wanted",
        )
    return part


def write_recon(path: Path, folder: SampleFolder, indices: Sequence[int], labels: Tensor) -> None:
    """Write the images `indices` of a folder, which must all exist, and their labels int64 [M].

    An 8-bit value becomes the middle of the numbers that are truncated to it, so that truncating gives it back.
    The array grows in a file beside `path`, as large as itself, and not in memory. Raises UserError if an image is
    unreadable.
    """
    shape = (len(indices), *folder.load(indices[0]).shape)
    pixels = path.with_name(f".{path.name}.pixels{PARTIAL}")
    try:
        pixels.unlink(missing_ok=True)
        if hasattr(os, "posix_fallocate"):  # or a full disk would kill the process where it writes into the array
            with naming(path), open(pixels, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        arr = torch.from_file(str(pixels), shared=True, size=math.prod(shape))
        arr = arr.view(shape)
        for row, index in enumerate(indices):
            image = folder.load(index)
            if image.dtype != torch.uint8:
                raise FileError(folder.image_path(index), f"is of {image.dtype}; {WHOLE} is for 8-bit images alone")
            arr[row] = ((image.float() + 0.5) / 127.5 - 1).clamp(max=1)
        write_atomically(path, lambda file: torch.save({"arr": arr, "label_arr": labels}, file))
    finally:
        pixels.unlink(missing_ok=True)


def recon_path(folder: Path, partition: str) -> Path:
    """Return where the file of a --partition, or of the whole split, lies."""
    return folder / (f"recon_{partition}.pt" if partition else WHOLE)
