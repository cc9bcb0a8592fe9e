"""4x super-resolution: the image is shrunk four times, then shown at its old size by repeating pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from corruption.base import Corrupted, Corruption, Generators

FACTOR = 4


class SuperResolution(Corruption):
    """Shrinks with `A`, then repeats every small pixel 4x4 times."""

    def check_size(self, height: int, width: int) -> None:
        if height % FACTOR or width % FACTOR or min(height, width) < 2 * FACTOR:
            raise ValueError(
                f"images of {height}x{width} pixels: sr4x needs multiples of {FACTOR} from {2 * FACTOR} on"
            )

    def degrade(self, clean: Tensor, generator: Generators) -> Corrupted:
        return Corrupted(F.interpolate(self.A(clean), scale_factor=FACTOR, mode="nearest"))

    def A(self, x: Tensor) -> Tensor:
        """Shrink x [B, C, H, W] to [B, C, H / 4, W / 4]."""
        raise NotImplementedError


class PoolSuperResolution(SuperResolution):
    """`sr4x-pool`: the mean of each 4x4 block."""

    def A(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, FACTOR)


class BicubicSuperResolution(SuperResolution):
    """`sr4x-bicubic`: a separable 16-tap cubic kernel (a = -0.5); the border mirrors, its edge pixel repeated."""

    TAPS = 16
    PADDING = 6

    def __init__(self) -> None:
        super().__init__()
        # Tap i of output k stands on input 4k + 2 - 8 + i, half a pixel off the output's centre.
        positions = (torch.arange(self.TAPS, dtype=torch.float64) - self.TAPS / 2 + 0.5) / FACTOR
        kernel = _cubic(positions)
        self.register_buffer("kernel", (kernel / kernel.sum()).float())

    def A(self, x: Tensor) -> Tensor:
        return self._shrink_rows(self._shrink_rows(x).transpose(-1, -2)).transpose(-1, -2)

    def _shrink_rows(self, x: Tensor) -> Tensor:
        pad = self.PADDING
        x = torch.cat([x[..., :pad].flip(-1), x, x[..., -pad:].flip(-1)], dim=-1)
        return x.unfold(-1, self.TAPS, FACTOR) @ self.kernel


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel, zero beyond |x| = 2."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
