"""Blur: rows and columns are multiplied by a matrix made of a kernel, in [0, 1], where black lies beyond the border.

The published blur is not the blur it names, but all published checkpoints were made with it. So there are two of each:
`blur-uni` and `blur-gauss` as published, faults included, and `blur-uni-exact` and `blur-gauss-exact` without them.
"""

import torch
from torch import Tensor

from corruption.base import Corrupted, Draws, LinearCorruption, Weigh, cached_table

UNIFORM = (1 / 9,) * 9
GAUSSIAN_TAPS, GAUSSIAN_SIGMA = 5, 10.0  # σ in pixels: nearly flat over its five taps
_weights = [torch.exp(torch.tensor(-0.5 * (i / GAUSSIAN_SIGMA) ** 2, dtype=torch.float64)).item() for i in range(-2, 3)]
GAUSSIAN = tuple(weight / sum(_weights) for weight in _weights)


class Blur(LinearCorruption):
    """Y = A(X) in [0, 1], so in [-1, 1], with X = (x + 1) / 2 and y = 2Y - 1: y = A(x) + (A(1) - 1).

    What is added, the darkening, lies mostly near the border and is the same for all images. The published order,
    A(x + 1) - 1, is another pass over them and rounds otherwise, by less than 1e-5.
    """

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(self.A(clean).add_(self.darkening(clean)))

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        return degraded - self.darkening(degraded)

    def show(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return y + self.darkening(y)

    def darkening(self, like: Tensor) -> Tensor:
        """Return A(1) - 1 for images [B, C, H, W] of this shape, device and type."""
        raise NotImplementedError


class PublishedBlur(Blur):
    """The published operator for 3-channel images of `side` x `side` pixels.

    The matrix lacks the kernel's last tap; of its singular value decomposition U diag(s) Vᵀ values below 0.03 are
    dropped; and the H² products s_i s_j, in descending order, are dealt out wrongly: channel c of the p-th largest
    component gets the product at place (3p + c) mod H². So Y_c = U ((Vᵀ X_c V) ∘ W_c) Uᵀ.
    U, V: float32 [H, H]; W, and C, the components of the darkening: float32 [3, H, H]. Ties s_i s_j = s_j s_i are
    broken by a sort in float32 on the CPU, so all are built there; their last bits are those of the machine's LAPACK.
    """

    SMALLEST_SINGULAR_VALUE = 3e-2

    U: Tensor
    V: Tensor
    W: Tensor
    C: Tensor

    def __init__(self, kernel: tuple[float, ...], side: int) -> None:
        super().__init__()
        self.side = side
        with torch.device("cpu"):
            U, s, Vt = torch.linalg.svd(_toeplitz(kernel[:-1], len(kernel) // 2, side).float())
            s = torch.where(s < self.SMALLEST_SINGULAR_VALUE, 0.0, s)
            products, component = torch.outer(s, s).flatten().sort(descending=True)
            rank = 3 * torch.arange(side**2) + torch.arange(3)[:, None]
            W = torch.empty(3, side**2, dtype=torch.float32)
            W[:, component] = products[rank % side**2]
        self.register_buffer("U", U.contiguous(), persistent=False)
        self.register_buffer("V", Vt.T.contiguous(), persistent=False)
        self.register_buffer("W", W.view(3, side, side), persistent=False)
        # U is orthogonal, so the darkening can be added to the components, in one pass with their weights.
        U64 = U.double()
        darkening = self.darkening(torch.ones(1, 3, side, side, dtype=torch.float64, device="cpu"))
        self.register_buffer("C", (U64.T @ darkening[0] @ U64).float(), persistent=False)

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if (channels, height, width) != (3, self.side, self.side):
            raise ValueError(
                f"images of {height}x{width} pixels, {channels} channels: the published blur is defined for square "
                f"colour images and was built for {self.side}x{self.side}; blur-uni-exact and blur-gauss-exact take any"
            )

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return _sandwich(self.U.to(x.dtype), self.V.to(x.dtype), self.W.to(x.dtype), x)

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(_sandwich(self.U, self.V, self.W, clean, self.C))

    def darkening(self, like: Tensor) -> Tensor:
        return self.A(torch.ones_like(like[:1])) - 1

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return _sandwich(self.V.to(y.dtype), self.U.to(y.dtype), self.W.to(y.dtype), y)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        W = self.W.to(y.dtype)
        return _sandwich(self.V.to(y.dtype), self.U.to(y.dtype), torch.where(W == 0, 0.0, 1 / W), y)

    def reweigh(self, x: Tensor, weigh: Weigh, mask: Tensor | None = None) -> Tensor:
        V = self.V.to(x.dtype)
        return _sandwich(V, V, weigh(self.W.to(x.dtype)), x)


class ExactBlur(Blur):
    """The blur that is meant: Y = A X Aᵀ with all taps and zeros beyond the border, for images of any shape.

    The kernels are symmetric, so A = Q diag(λ) Qᵀ. The pseudo-inverse leaves out components that A shrinks below
    a ten-thousandth, where float32 holds nothing to bring back.
    """

    SMALLEST_PRODUCT = 1e-4

    def __init__(self, kernel: tuple[float, ...]) -> None:
        super().__init__()
        self.kernel = kernel

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = (_matrix(self.kernel, side, like=x) for side in x.shape[-2:])
        return height @ x @ width.T

    def darkening(self, like: Tensor) -> Tensor:
        return torch.outer(*(_matrix(self.kernel, side, like=like).sum(1) for side in like.shape[-2:])) - 1

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.A(y)

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        Q_height, Q_width, products = self._decompose(y)
        inverse = torch.where(products == 0, 0.0, 1 / products)
        return Q_height @ (Q_height.T @ y @ Q_width).mul_(inverse) @ Q_width.T

    def reweigh(self, x: Tensor, weigh: Weigh, mask: Tensor | None = None) -> Tensor:
        Q_height, Q_width, products = self._decompose(x)
        return Q_height @ (Q_height.T @ x @ Q_width).mul_(weigh(products.abs())) @ Q_width.T

    def _decompose(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q for rows and for columns, and the products of their λ, [H, W], 0 where they are too small."""
        Q_height, Q_width = (_eigenvectors(self.kernel, side, like=like) for side in like.shape[-2:])
        λ_height, λ_width = (_eigenvalues(self.kernel, side, like=like) for side in like.shape[-2:])
        products = torch.outer(λ_height, λ_width)
        return Q_height, Q_width, torch.where(products.abs() < self.SMALLEST_PRODUCT, 0.0, products)


def _sandwich(left: Tensor, right: Tensor, weights: Tensor, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return L ((Rᵀ x R) ∘ W + C) Lᵀ for square images x; C = 0 if not given."""
    first = right.T @ x.contiguous()  # matmul writes its `out` in this layout alone
    second = first @ right
    if second.requires_grad:
        second = second * weights
        return left @ (second if offset is None else second + offset) @ left.T
    # Without gradients, in place: fresh memory for each product would take a third of the time.
    if offset is None:
        second.mul_(weights)
    else:
        torch.addcmul(offset, second, weights, out=second)
    torch.matmul(left, second, out=first)
    return torch.matmul(first, left.T, out=second)


def _toeplitz(taps: tuple[float, ...], before: int, side: int) -> Tensor:
    """Return the banded matrix [side, side], float64, whose row i weighs inputs i - before, i - before + 1, …"""
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for offset, tap in enumerate(taps, -before):
        if abs(offset) < side:
            matrix += torch.diag(torch.full((side - abs(offset),), tap, dtype=torch.float64), offset)
    return matrix


@cached_table
def _matrix(kernel: tuple[float, ...], side: int) -> Tensor:
    return _toeplitz(kernel, len(kernel) // 2, side)


@cached_table
def _eigenvectors(kernel: tuple[float, ...], side: int) -> Tensor:
    return torch.linalg.eigh(_toeplitz(kernel, len(kernel) // 2, side)).eigenvectors


@cached_table
def _eigenvalues(kernel: tuple[float, ...], side: int) -> Tensor:
    return torch.linalg.eigh(_toeplitz(kernel, len(kernel) // 2, side)).eigenvalues
