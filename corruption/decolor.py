"""Decolouring: a colour image keeps its luma alone."""

import math

import torch
from torch import Tensor

from corruption.base import Corrupted, Draws, FlatCorruption

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and common grey conversions weigh colours


class Decoloring(FlatCorruption):
    """`decolor`: A is the luma [B, 1, H, W]; it is shown in all three channels."""

    adds_colour = True

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(LUMA, dtype=torch.float32)[:, None, None], persistent=False)

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if channels != 3:
            raise ValueError(f"images of {channels} channels: decolor needs colour images")

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(self.show(self.A(clean)))

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (x * self.weights.to(x.dtype)).sum(1, keepdim=True)

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return y * self.weights.to(y.dtype)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = self.weights.to(y.dtype)
        return y * weights / weights.square().sum()

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        return degraded[:, :1]

    def show(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return y.repeat(1, 3, 1, 1)

    def singular_value(self) -> float:
        return math.hypot(*LUMA)
