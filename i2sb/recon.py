"""The released program's file of restored images: recon.pt, or recon_{i}_{n}.pt for a part, made from a sample folder.

It holds `arr`, float32 [M, C, H, W] in [-1, 1] in the order of the data set, and `label_arr`, int64 [M].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from i2sb.files import PARTIAL, write_atomically
from i2sb.sample_folder import SampleFolder


def write_recon(path: Path, folder: SampleFolder, indices: Sequence[int], labels: Tensor) -> None:
    """Write the images `indices` of a folder, all there, and their labels int64 [M].

    An 8-bit value stands for the middle of the numbers that it was cut down from, so that cutting again gives it back.
    The array grows in a file beside `path`, as large as itself, and not in memory. Raises ValueError if an image is
    unreadable.
    """
    shape = (len(indices), *folder.load(indices[0]).shape)
    pixels = path.with_name(f".{path.name}.pixels{PARTIAL}")
    try:
        pixels.unlink(missing_ok=True)
        arr = torch.from_file(str(pixels), shared=True, size=math.prod(shape))
        arr = arr.view(shape)
        for place, index in enumerate(indices):
            arr[place] = ((folder.load(index).float() + 0.5) / 127.5 - 1).clamp(max=1)
        write_atomically(path, lambda file: torch.save({"arr": arr, "label_arr": labels}, file))
    finally:
        pixels.unlink(missing_ok=True)


def recon_path(folder: Path, partition: str) -> Path:
    """Return where the file of a --partition, or of the whole split, lies."""
    return folder / (f"recon_{partition}.pt" if partition else "recon.pt")
