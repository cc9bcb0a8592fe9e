"""Inpainting: part of the image is missing. What is shown has a white hole; noise fills it where the bridge begins."""

import torch
from torch import Tensor

from corruption.base import Corrupted, Draws, FlatCorruption
from corruption.mask_file import MaskFile
from corruption.strokes import count_bounds, draw_strokes


class Inpainting(FlatCorruption):
    """Subclasses say where the hole is; A sets it to zero, and is its own transpose and pseudo-inverse."""

    makes_holes = True

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        mask = self.hole(clean, draws)
        return Corrupted(self.show(clean, mask), mask)

    def hole(self, clean: Tensor, draws: Draws) -> Tensor:
        """Return the mask [B, 1, H, W] for a batch: 1 inside the hole, 0 outside."""
        raise NotImplementedError

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            raise ValueError("an inpainting operator needs the mask of its images")
        return x * (1 - mask.to(x.dtype))

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.A(y, mask)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.A(y, mask)

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.A(degraded, mask)

    def show(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        return y.masked_fill(mask > 0, 1.0)

    def singular_value(self) -> float:
        return 1.0


class CenterInpainting(Inpainting):
    """`inpaint-center`: the hole is the middle half of the rows and columns, a quarter of the area."""

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < 4:
            raise ValueError(f"images of {height}x{width} pixels: inpaint-center needs at least 4 pixels a side")

    def hole(self, clean: Tensor, draws: Draws) -> Tensor:
        return self._center(clean)

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().A(x, self._center(x) if mask is None else mask)

    @staticmethod
    def _center(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        mask = torch.zeros_like(x[:, :1])
        top, left = height // 4, width // 4
        mask[..., top : top + height // 2, left : left + width // 2] = 1.0
        return mask


class FreeformInpainting(Inpainting):
    """`inpaint-freeform1020`, `inpaint-freeform2030`: the hole is brush strokes, its share in a range of percents.

    percents: (low, high); the share of the area is at least low and below high.
    mask_file: the published masks; without it strokes are drawn by `draw_strokes`.
    In training each image draws a mask. In evaluation image i has mask i: of the file (modulo their number), or the
    i-th that is drawn, the same in every run.
    """

    def __init__(self, percents: tuple[int, int], mask_file: str = "") -> None:
        super().__init__()
        self.percents = percents
        self.masks = MaskFile(mask_file, percents) if mask_file else None
        self.draws_masks = self.masks is None
        self.note = f"masks {self.masks.describe() if self.masks else 'drawn by this program'}"

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if self.masks is not None:
            self.masks.check_shape(height, width)
        least, beyond = count_bounds(self.percents, height * width)
        if least >= beyond:
            raise ValueError(f"images of {height}x{width} pixels: too small for a hole of {self.percents} percent")

    def hole(self, clean: Tensor, draws: Draws) -> Tensor:
        height, width = clean.shape[-2:]
        if self.masks is not None:
            number = draws.index if draws.index is not None else (draws.rand() * len(self.masks)).long()
            return self.masks.unpack(torch.as_tensor(number))
        return draw_strokes(draws, height, width, self.percents, clean.device)
