"""Restored images in the released program's files: recon.pt, or recon_{i}_{n}.pt for each of n parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb.images import to_uint8

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
            raise ValueError(f"{path}: the parts hold images of different sizes ({sorted(shapes)})")
        self.labels = torch.cat([part["label_arr"] for part in parts])
        self.channels, self.height, self.width = next(iter(shapes))

    @staticmethod
    def found(path: Path) -> list[Path]:
        """Return the files in a folder, in the order of their images. Raises ValueError if parts of a set are gone."""
        if (path / WHOLE).exists():
            return [path / WHOLE]
        matches = [match for file in path.glob("recon_*.pt") if (match := _PART.fullmatch(file.name))]
        counts = {int(match[2]) for match in matches}
        if not counts:
            return []
        if len(counts) > 1:
            raise ValueError(f"{path}: holds parts of several sets (of {', '.join(map(str, sorted(counts)))} parts)")
        count = counts.pop()
        missing = sorted(set(range(count)) - {int(match[1]) for match in matches})
        if missing:
            raise ValueError(f"{path}: lacks {len(missing)} of {count} parts, first recon_{missing[0]}_{count}.pt")
        return [path / f"recon_{i}_{count}.pt" for i in range(count)]

    def __len__(self) -> int:
        return sum(map(len, self._images))

    def load(self, index: int) -> Tensor:
        """Return image number `index`, uint8 [C, H, W]. Raises ValueError naming the file if it is not finite."""
        place = index
        for file, images in zip(self.files, self._images, strict=True):
            if place < len(images):
                image = images[place]
                if not image.isfinite().all():
                    raise ValueError(f"{file}: image {place} holds values that are not finite")
                return to_uint8(image)
            place -= len(images)
        raise IndexError(index)


def _read(file: Path) -> dict[str, Any]:
    try:
        part = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # bytes that are no such file can raise anything in the reader
        reason = " ".join(str(error).split())[:100]
        if reason.startswith("Weights only"):
            reason = "it holds more than tensors and plain values"
        raise ValueError(f"{file}: cannot be read ({reason})") from None
    images = part.get("arr") if isinstance(part, dict) else None
    labels = part.get("label_arr") if isinstance(part, dict) else None
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise ValueError(f"{file}: holds no restored images (a dict of the tensors arr and label_arr is wanted)")
    fits = images.ndim == 4 and images.dtype == torch.float32 and labels.shape == images.shape[:1]
    if not fits or labels.dtype != torch.int64:
        raise ValueError(
            f"{file}: arr is {images.dtype} {list(images.shape)}, label_arr {labels.dtype} {list(labels.shape)}; "
            "float32 [M, 3, H, W] and int64 [M] are wanted"
        )
    return part
