"""The published freeform masks: an .npz of bits, kept packed in memory."""

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from corruption.base import CorruptionError, send

SIDE = 256
KEY = "{}-{}% freeform"  # the two percents
LARGEST = 1 << 30  # bytes; the published masks have 82 million


class MaskFile(nn.Module):
    """Masks of 256x256 pixels whose hole is `percents` of the area, an eighth of a byte a pixel (82 MB for 10,000).

    The file's key "10-20% freeform" (or "20-30% freeform") holds uint8, np.packbits of [M, 256, 256], 1 in the hole.
    Raises CorruptionError naming the file if it is missing, broken, without the key, or holds other masks.
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
            packed = _read(path, f"{key}.npy")
        except Exception as error:  # a broken file can make the readers raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise wrong(f"cannot be read as .npz of '{key}' ({reason})") from None
        if packed.dtype != np.uint8 or packed.size == 0 or packed.size % (SIDE * SIDE // 8):
            raise wrong(
                f"'{key}' must be bit-packed masks of {SIDE}x{SIDE} pixels (uint8, a multiple of "
                f"{SIDE * SIDE // 8}), found {packed.dtype} of {packed.size}"
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


def _read(path: str, member: str) -> np.ndarray:
    """Read one array of an .npz, without unpickling, and without unpacking what cannot be masks."""
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            keys = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise ValueError(f"it holds {keys or 'nothing'}")
        size = archive.getinfo(member).file_size
        if size > LARGEST:
            raise ValueError(f"{size} bytes are more than {LARGEST}")
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
