"""4x super-resolution: the image is shrunk four times, then shown at its old size by repeating pixels."""

from functools import reduce

import torch
from torch import Tensor

from corruption.base import Corrupted, Draws, LinearCorruption, cached_table

FACTOR = 4


class SuperResolution(LinearCorruption):
    """Shrinks with `A`, rows and columns alike, then repeats every small pixel 4x4 times."""

    reference_split = "train"

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if height % FACTOR or width % FACTOR or min(height, width) < 2 * FACTOR:
            raise ValueError(
                f"images of {height}x{width} pixels: sr4x needs multiples of {FACTOR} from {2 * FACTOR} on"
            )

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(_repeat(self.A(clean)))

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        return degraded[..., ::FACTOR, ::FACTOR]


class PoolSuperResolution(SuperResolution):
    """`sr4x-pool`: the mean of each 4x4 block."""

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = x.unflatten(-2, (-1, FACTOR)).unbind(-2)  # whole rows first: they are contiguous in memory
        return reduce(torch.add, rows) @ pool_matrix(x.shape[-1], like=x).T

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _repeat(y) / FACTOR**2

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _repeat(y)


class BicubicSuperResolution(SuperResolution):
    """`sr4x-bicubic`: a separable 16-tap cubic kernel (a = -0.5); the border mirrors, its edge pixel repeated.

    As matrices: Y = M X Mᵀ, with an M for the height and one for the width.
    """

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_matrix(side, like=x) for side in x.shape[-2:])
        return height @ (x @ width.T)

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_matrix(side * FACTOR, like=y) for side in y.shape[-2:])
        return height.T @ (y @ width)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_inverse(side * FACTOR, like=y) for side in y.shape[-2:])
        return height @ (y @ width.T)


@cached_table
def pool_matrix(side: int) -> Tensor:
    """Return the matrix [side / 4, side] that adds four neighbours of a row of added rows up to their mean, float64."""
    return torch.eye(side // FACTOR, dtype=torch.float64).repeat_interleave(FACTOR, 1) / FACTOR**2


@cached_table
def bicubic_matrix(side: int) -> Tensor:
    """Return the matrix [side / 4, side] that shrinks a column of pixels, float64.

    Output k takes tap i from input 4k + 2 - 8 + i; the tap stands (i - 8 + 0.5) / 4 from the output's centre.
    """
    taps = 4 * FACTOR
    i = torch.arange(taps)
    weights = _cubic((i.double() - taps / 2 + 0.5) / FACTOR)
    k = torch.arange(side // FACTOR)[:, None]
    source = FACTOR * k + FACTOR // 2 - taps // 2 + i
    source = torch.where(source < 0, -1 - source, source)
    source = torch.where(source >= side, 2 * side - 1 - source, source)
    return torch.zeros(side // FACTOR, side, dtype=torch.float64).scatter_add_(
        1, source, (weights / weights.sum()).expand(len(k), taps)
    )


@cached_table
def bicubic_inverse(side: int) -> Tensor:
    """Return the pseudo-inverse [side, side / 4] of the shrinking matrix, float64."""
    return torch.linalg.pinv(bicubic_matrix(side, like=torch.zeros((), dtype=torch.float64)))


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel, zero beyond |x| = 2."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _repeat(y: Tensor) -> Tensor:
    """Repeat every pixel of y [..., H, W] FACTOR times both ways."""
    return y.repeat_interleave(FACTOR, -1).repeat_interleave(FACTOR, -2)
