"""The published freeform masks, in the file that was published or in one made from it; kept packed in memory."""

import math
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from corruption.base import CorruptionError, send

SIDE = 256
KEY = "{}-{}% freeform"  # the two percents
CACHED = "mask"
LARGEST = 1 << 30  # bytes of packed masks; the published ones have 82 million
_AT_ONCE = 256  # masks


class MaskFile(nn.Module):
    """Masks of 256x256 pixels whose hole is `percents` of the area, kept in an eighth of a byte a pixel.

    The published file's key "10-20% freeform" (or "20-30% freeform") holds uint8, np.packbits of [M, 256, 256], 1 in
    the hole; 10,000 masks are 82 MB. The released program keeps the masks of one kind in a file of its own as well, as
    data/imagenet_freeform2030_masks.npz, under the key "mask". How they lie there is an assumption, as no such file
    was at hand: [M, 256, 256] or [M, 1, 256, 256], numbers or booleans, 1 in the hole and 0 elsewhere; or bits as in
    the other. The holes' mean share must be within `percents`, so that neither the other kind nor masks the other way
    round pass.
    Raises CorruptionError naming the file if it is missing, broken, without either key, or holds other masks.
    """

    packed: Tensor
    shifts: Tensor

    def __init__(self, path: str, percents: tuple[int, int]) -> None:
        super().__init__()
        self.path = path
        wrong = partial(CorruptionError, "mask_file", path)
        key = KEY.format(*percents)
        if not Path(path).is_file():
            raise wrong("there is no such file")
        try:
            key, packed = _read(path, (key, CACHED))
        except Exception as error:  # a broken file can make the readers raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise wrong(f"cannot be read as .npz of '{key}' or '{CACHED}' ({reason})") from None
        if packed.dtype != np.uint8 or packed.size == 0 or packed.size % (SIDE * SIDE // 8):
            raise wrong(
                f"'{key}' must be masks of {SIDE}x{SIDE} pixels, [M, {SIDE}, {SIDE}] or bit-packed (uint8, a multiple "
                f"of {SIDE * SIDE // 8}), found {packed.dtype} of {packed.size}"
            )
        packed = packed.reshape(-1, SIDE * SIDE // 8)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
        share = 100 * bits[packed].sum(dtype=np.int64) / (packed.size * 8)
        if not percents[0] <= share < percents[1]:
            raise wrong(
                f"the holes of '{key}' cover {share:.1f} % of the area on average, not {percents[0]} to {percents[1]} %"
            )
        self.register_buffer("packed", torch.from_numpy(packed), persistent=False)
        self.register_buffer("shifts", torch.arange(7, -1, -1, dtype=torch.uint8), persistent=False)

    def __len__(self) -> int:
        return len(self.packed)

    def describe(self) -> str:
        """Say in a run's log where masks come from."""
        return f"from {self.path}, {len(self)} of them"

    def check_shape(self, height: int, width: int) -> None:
        """Raise CorruptionError if the masks do not fit images of this size."""
        if (height, width) != (SIDE, SIDE):
            raise CorruptionError(
                "mask_file",
                self.path,
                f"its masks are {SIDE}x{SIDE} pixels, the images {height}x{width}; "
                "without it, masks of any size are drawn",
            )

    def unpack(self, number: Tensor) -> Tensor:
        """Return the masks of these numbers [B] (modulo the number of masks), float32 [B, 1, 256, 256]."""
        rows = self.packed[send(number % len(self), self.packed.device)]
        return ((rows.unsqueeze(-1) >> self.shifts) & 1).view(-1, 1, SIDE, SIDE).float()


def _read(path: str, keys: Sequence[str]) -> tuple[str, np.ndarray]:
    """Read the first of these arrays that an .npz has; returns its key, and pixels packed into bits.

    Nothing is unpickled, and what cannot be masks is not unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        key = next((key for key in keys if key in names), "")
        if not key:
            raise ValueError(f"it holds {', '.join(names) or 'nothing'}")
        with archive.open(f"{key}.npy") as file:
            shape, in_order, dtype = _read_header(file)
            are_pixels = shape[1:] in ((SIDE, SIDE), (1, SIDE, SIDE)) and in_order
            size, largest = archive.getinfo(f"{key}.npy").file_size, LARGEST * (8 if are_pixels else 1)
            if size > largest:
                raise ValueError(f"{size} bytes are more than {largest}")
            if are_pixels:
                return key, _pack(file, shape, dtype)
        with archive.open(f"{key}.npy") as file:
            return key, np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the last index changes fastest, and type of the array in a .npy."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran_order, dtype = readers[np.lib.format.read_magic(file)](file)
    return shape, not fortran_order, dtype


def _pack(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Read what comes after the header of a .npy of zeros and ones, a few masks at a time, as np.packbits of them."""
    if dtype.kind not in "buif":
        raise ValueError(f"its values are of type {dtype}")
    packed = []
    while block := file.read(_AT_ONCE * SIDE * SIDE * dtype.itemsize):
        pixels = np.frombuffer(block, dtype)
        if not ((pixels == 0) | (pixels == 1)).all():
            raise ValueError("its values are not 0 and 1")
        packed.append(np.packbits(pixels != 0))
    bits = np.concatenate(packed) if packed else np.empty(0, np.uint8)
    if 8 * bits.size != math.prod(shape):
        raise ValueError(f"{8 * bits.size} of {math.prod(shape)} pixels are there")
    return bits
