"""Inpainting: part of the image is missing. What is shown has a white hole; noise fills it where the bridge begins."""

from __future__ import annotations

import torch
from torch import Tensor

from corruption.base import Corrupted, Corruption, Generators


class CenterInpainting(Corruption):
    """`inpaint-center`: the hole is the middle half of the rows and columns, a quarter of the area."""

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < 4:
            raise ValueError(f"images of {height}x{width} pixels: inpaint-center needs at least 4 pixels a side")

    def degrade(self, clean: Tensor, generator: Generators) -> Corrupted:
        height, width = clean.shape[-2:]
        mask = torch.zeros_like(clean[:, :1])
        top, left = height // 4, width // 4
        mask[..., top : top + height // 2, left : left + width // 2] = 1.0
        return Corrupted(clean * (1.0 - mask) + mask, mask)
