"""The Schrödinger bridge between a clean image x0 and a degraded image x1, in closed form.

Equation numbers are those of Liu et al., "I²SB: Image-to-Image Schrödinger Bridge" (ICML 2023). The time line has
`interval` steps: index 0 is clean, index interval - 1 is degraded. Images are [B, C, H, W] in [-1, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from i2sb.errors import UserError

Randn = Callable[[Tensor], Tensor]


def make_betas(interval: int, beta_max: float) -> np.ndarray:
    """Return the diffusion coefficients β, float64 [interval], symmetric in time.

    √β rises linearly from √1e-4 towards √(beta_max / interval); only the first half of that ramp is used, and its
    mirror image follows. So the peak stays below beta_max / interval, and the total variance depends on `interval`.

    Raises UserError if `interval` is odd or below 2, or `beta_max` is not positive.

    >>> betas = make_betas(1000, 0.3)
    >>> len(betas), f"{betas[0]:.4f}", bool((betas == betas[::-1]).all())
    (1000, '0.0001', True)
    """
    if interval < 2 or interval % 2:
        raise UserError("interval", interval, "the schedule is two mirrored halves, so it must be even and at least 2")
    if not beta_max > 0:
        raise UserError("beta_max", beta_max, "must be positive (the published tasks use 0.3 and 1.0)")
    ramp = np.linspace(1e-4**0.5, (beta_max / interval) ** 0.5, interval, dtype=np.float64) ** 2
    rising = ramp[: interval // 2]
    return np.concatenate([rising, rising[::-1]])


def space_indices(num_steps: int, count: int) -> list[int]:
    """Return `count` indices from 0 to num_steps - 1, evenly spaced (count 1 gives [0]).

    The stride is a float added up from 0.0 and rounded half to even, as published: other roundings give other grids.

    >>> space_indices(1000, 5)
    [0, 250, 500, 749, 999]
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"cannot space {count} indices over {num_steps} steps: between 1 and {num_steps} fit")
    stride = 1.0 if count == 1 else (num_steps - 1) / (count - 1)
    indices, position = [], 0.0
    for _ in range(count):
        indices.append(round(position))
        position += stride
    return indices


class Bridge(nn.Module):
    """Marginals q(x_t | x0, x1), the reverse posterior, and the network's target.

    Buffers, each [interval]: betas; std_fwd = σ_t and std_bwd = σ̄_t, the variance collected from the clean and from the
    degraded end (both inclusive); mu_x0, mu_x1, std_sb, the marginal's two weights and its standard deviation;
    noise_levels, the network's time input. They are computed in float64 and kept in `dtype`.

    >>> bridge = Bridge(interval=1000, beta_max=0.3)
    >>> x0, x1 = torch.rand(2, 4, 3, 16, 16)  # clean and degraded images
    >>> step = torch.tensor([0, 10, 500, 999])
    >>> xt = bridge.q_sample(step, x0, x1)
    >>> label = bridge.compute_label(step, x0, xt)  # what the network learns to return for xt
    >>> torch.allclose(bridge.compute_pred_x0(step, xt, label), x0, atol=1e-5)
    True
    """

    betas: Tensor
    std_fwd: Tensor
    std_bwd: Tensor
    std_sb: Tensor
    mu_x0: Tensor
    mu_x1: Tensor
    noise_levels: Tensor

    def __init__(
        self,
        interval: int = 1000,
        beta_max: float = 0.3,
        *,
        t0: float = 1e-4,
        T: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.interval = interval
        betas = make_betas(interval, beta_max)
        var_fwd = np.cumsum(betas)
        var_bwd = np.cumsum(betas[::-1])[::-1]
        total = var_fwd + var_bwd
        buffers = {
            "betas": betas,
            "std_fwd": np.sqrt(var_fwd),
            "std_bwd": np.sqrt(var_bwd),
            "std_sb": np.sqrt(var_fwd * var_bwd / total),
            "mu_x0": var_bwd / total,
            "mu_x1": var_fwd / total,
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.from_numpy(values.copy()).to(dtype))
        # In `dtype` from the start, as published: rounding a float64 grid differs from it in the last bit.
        self.register_buffer("noise_levels", torch.linspace(t0, T, interval, dtype=dtype) * interval)

    def q_sample(
        self, step: Tensor, x0: Tensor, x1: Tensor, *, ot_ode: bool = False, randn: Randn = torch.randn_like
    ) -> Tensor:
        """Draw x_t ~ q(x_t | x0, x1) at `step` [B]; with `ot_ode` return its mean, the deterministic limit."""
        # eq. 11
        xt = _per_image(self.mu_x0, step) * x0 + _per_image(self.mu_x1, step) * x1
        if not ot_ode:
            xt = xt + _per_image(self.std_sb, step) * randn(xt)
        return xt

    def p_posterior(
        self,
        nprev: int,
        n: int,
        x_n: Tensor,
        x0: Tensor,
        *,
        ot_ode: bool = False,
        randn: Randn = torch.randn_like,
    ) -> Tensor:
        """Draw x_nprev ~ p(x_nprev | x0, x_n), the step back from index n to nprev < n.

        No noise is added on the step to index 0, nor with `ot_ode`. Raises ValueError unless 0 <= nprev < n < interval.
        """
        if not 0 <= nprev < n < self.interval:
            raise ValueError(f"cannot step from index {n} to {nprev}: 0 <= nprev < n < {self.interval} must hold")
        # eq. 4
        var_n, var_prev = self.std_fwd[n] ** 2, self.std_fwd[nprev] ** 2
        var_delta = var_n - var_prev
        x_prev = (var_delta * x0 + var_prev * x_n) / var_n
        if nprev > 0 and not ot_ode:
            x_prev = x_prev + (var_prev * var_delta / var_n).sqrt() * randn(x_prev)
        return x_prev

    def compute_label(self, step: Tensor, x0: Tensor, xt: Tensor) -> Tensor:
        """Return the network's target at `step` [B]: (x_t - x0) / σ_t."""
        # eq. 12
        return (xt - x0) / _per_image(self.std_fwd, step)

    def compute_pred_x0(self, step: Tensor, xt: Tensor, net_out: Tensor, *, clip_denoise: bool = False) -> Tensor:
        """Return the clean image that `net_out` stands for, clamped to [-1, 1] if asked; inverts `compute_label`."""
        pred_x0 = xt - _per_image(self.std_fwd, step) * net_out
        return pred_x0.clamp(-1.0, 1.0) if clip_denoise else pred_x0


def _per_image(values: Tensor, step: Tensor) -> Tensor:
    """Pick values[step], shaped [B, 1, 1, 1] to scale images."""
    return values[step].view(-1, 1, 1, 1)
