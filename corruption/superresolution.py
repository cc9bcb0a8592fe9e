"""Super-resolution by any whole factor: the image is shrunk, then shown at its old size by repeating pixels."""

import math
from functools import reduce

import torch
from torch import Tensor

from corruption.base import Corrupted, Draws, FlatCorruption, LinearCorruption, Weigh, cached_table


class SuperResolution(LinearCorruption):
    """Shrinks `factor` times with `A`, rows and columns alike, then repeats every small pixel as often both ways."""

    reference_split = "train"

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.multiple = math.lcm(type(self).multiple, factor)

    def check_shape(self, channels: int, height: int, width: int) -> None:
        factor = self.factor
        if height % factor or width % factor or min(height, width) < 2 * factor:
            raise ValueError(
                f"images of {height}x{width} pixels: sr{factor}x needs multiples of {factor} from {2 * factor} on"
            )

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(self.show(self.A(clean)))

    def show(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _repeat(y, self.factor)

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        return degraded[..., :: self.factor, :: self.factor]


class PoolSuperResolution(SuperResolution, FlatCorruption):
    """`srNx-pool`: the mean of each N x N block."""

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = x.unflatten(-2, (-1, self.factor)).unbind(-2)  # whole rows first: they are contiguous in memory
        return reduce(torch.add, rows) @ pool_matrix(x.shape[-1], self.factor, like=x).T

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _repeat(y, self.factor) / self.factor**2

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _repeat(y, self.factor)

    def singular_value(self) -> float:
        return 1 / self.factor  # A Aᵀ = I / factor²


class BicubicSuperResolution(SuperResolution):
    """`srNx-bicubic`: a separable cubic kernel (a = -0.5), 4N taps wide; the border mirrors, its edge pixel repeated.

    As matrices: Y = M X Mᵀ, with an M for the height and one for the width.
    """

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_matrix(side, self.factor, like=x) for side in x.shape[-2:])
        return height @ (x @ width.T)

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_matrix(side * self.factor, self.factor, like=y) for side in y.shape[-2:])
        return height.T @ (y @ width)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (bicubic_inverse(side * self.factor, self.factor, like=y) for side in y.shape[-2:])
        return height @ (y @ width.T)

    def reweigh(self, x: Tensor, weigh: Weigh, mask: Tensor | None = None) -> Tensor:
        V_height, V_width = (bicubic_vectors(side, self.factor, like=x) for side in x.shape[-2:])
        s_height, s_width = (bicubic_values(side, self.factor, like=x) for side in x.shape[-2:])
        weights = weigh(torch.outer(s_height, s_width))
        return V_height @ (V_height.T @ x @ V_width).mul_(weights) @ V_width.T


@cached_table
def pool_matrix(side: int, factor: int) -> Tensor:
    """Return the matrix [side / factor, side], float64, that adds neighbours of a row of added rows to their mean."""
    return torch.eye(side // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor**2


@cached_table
def bicubic_matrix(side: int, factor: int) -> Tensor:
    """Return the matrix [side / factor, side] that shrinks a column of pixels, float64.

    With s the factor, the centre of output k lies at s k + (s - 1) / 2 among the inputs: between two of them if s is
    even, as for the published 4, on one if it is odd. An input at distance d from it weighs cubic(d / s), which is zero
    from d = 2s on.
    """
    taps = 4 * factor
    i = torch.arange(taps)
    first = (factor + 1) // 2 - 2 * factor  # of the taps of output 0
    weights = _cubic((i.double() + (first - (factor - 1) / 2)) / factor)
    k = torch.arange(side // factor)[:, None]
    source = factor * k + first + i
    source = torch.where(source < 0, -1 - source, source)
    source = torch.where(source >= side, 2 * side - 1 - source, source)
    return torch.zeros(side // factor, side, dtype=torch.float64).scatter_add_(
        1, source, (weights / weights.sum()).expand(len(k), taps)
    )


@cached_table
def bicubic_inverse(side: int, factor: int) -> Tensor:
    """Return the pseudo-inverse [side, side / factor] of the shrinking matrix, float64."""
    return torch.linalg.pinv(bicubic_matrix(side, factor, like=torch.zeros((), dtype=torch.float64)))


@cached_table
def bicubic_vectors(side: int, factor: int) -> Tensor:
    """Return the right singular vectors [side, side] of the shrinking matrix, in columns, float64."""
    _, _, Vt = torch.linalg.svd(bicubic_matrix(side, factor, like=torch.zeros((), dtype=torch.float64)))
    return Vt.T


@cached_table
def bicubic_values(side: int, factor: int) -> Tensor:
    """Return the singular values [side] of the shrinking matrix, float64: 0 from the (side / factor)-th on."""
    s = torch.linalg.svdvals(bicubic_matrix(side, factor, like=torch.zeros((), dtype=torch.float64)))
    return torch.cat([s, s.new_zeros(side - len(s))])


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel, zero beyond |x| = 2."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _repeat(y: Tensor, factor: int) -> Tensor:
    """Repeat every pixel of y [..., H, W] `factor` times both ways."""
    return y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
