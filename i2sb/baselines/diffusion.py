"""Diffusion from noise, beside the bridge: a clean image x0 drowns in noise, and the network is asked for the noise.

Equation numbers are those of Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM, 2020), and of Song et al.,
"Denoising Diffusion Implicit Models" (DDIM, 2021, whose α is ᾱ here). The time line has `interval` steps: index 0 has
the least noise, interval - 1 the most; -1 stands for the clean image itself. Images are [B, C, H, W] in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from i2sb.bridge import Randn, space_indices
from i2sb.errors import UserError
from i2sb.sampler import Refine, StepTaken, Trajectory, walk_back
from i2sb.steps import Step

SCHEDULES = ("linear", "cosine")
CLEAN = -1
# The published linear schedule is for a thousand steps; with others β is scaled, so that ᾱ ends where it did.
_LINEAR_STEPS, _LINEAR_FIRST, _LINEAR_LAST = 1000, 1e-4, 0.02
_COSINE_OFFSET, _COSINE_LARGEST = 0.008, 0.999


def make_betas(interval: int, schedule: str) -> np.ndarray:
    """Return the variances β of the forward steps, float64 [interval].

    linear: from 1e-4 to 0.02 over 1000 steps (Ho et al.), scaled for other numbers of them. cosine: from
    ᾱ_t = cos²((t/N + 0.008)/1.008 · π/2), β at most 0.999 (Nichol & Dhariwal, 2021, eq. 17).
    Raises UserError for an unknown schedule, or where the linear one has too few steps.
    """
    if schedule not in SCHEDULES:
        raise UserError("schedule", schedule, f"unknown; choose one of {', '.join(SCHEDULES)}")
    if schedule == "cosine":
        t = np.arange(interval + 1, dtype=np.float64) / interval
        alpha_bar = np.cos((t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], _COSINE_LARGEST)
    scale = _LINEAR_STEPS / interval
    if scale * _LINEAR_LAST >= 1:
        raise UserError(
            "interval",
            interval,
            f"`schedule` linear needs more than {round(_LINEAR_STEPS * _LINEAR_LAST)} steps; "
            "give more, or `schedule` cosine",
        )
    return np.linspace(scale * _LINEAR_FIRST, scale * _LINEAR_LAST, interval, dtype=np.float64)


def step_grid(interval: int, nfe: int) -> list[int]:
    """Return the nfe + 1 indices, rising from -1 to interval - 1, between which `nfe` evaluations step.

    Raises UserError unless 1 <= nfe <= interval.
    """
    if not 1 <= nfe <= interval:
        raise UserError("nfe", nfe, f"a diffusion of {interval} steps takes between 1 and {interval} evaluations")
    return [index - 1 for index in space_indices(interval + 1, nfe + 1)]


class Diffusion(nn.Module):
    """Marginals q(x_t | x0), the reverse steps, and how noise and clean image stand for each other.

    Buffers, each [interval]: std_signal = √ᾱ_t and std_noise = √(1 − ᾱ_t), the weights of x0 and of the noise;
    noise_levels, the network's time input: the index, scaled to a thousand steps as ADM's networks know it.
    """

    std_signal: Tensor
    std_noise: Tensor
    noise_levels: Tensor

    def __init__(self, interval: int = 1000, schedule: str = "linear", *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.interval, self.schedule = interval, schedule
        # Kept in float64 for the reverse steps, whose variances are differences of nearly equal numbers.
        self.alpha_bar: list[float] = np.cumprod(1 - make_betas(interval, schedule)).tolist()
        alpha_bar = torch.tensor(self.alpha_bar, dtype=torch.float64)
        self.register_buffer("std_signal", alpha_bar.sqrt().to(dtype))
        self.register_buffer("std_noise", (1 - alpha_bar).sqrt().to(dtype))
        levels = torch.arange(interval, dtype=torch.float64) * (_LINEAR_STEPS / interval)
        self.register_buffer("noise_levels", levels.to(dtype))

    def q_sample(self, step: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x_t at `step` [B] for standard normal `noise` of x0's shape."""
        # DDPM eq. 4
        return _per_image(self.std_signal, step) * x0 + _per_image(self.std_noise, step) * noise

    def compute_pred_x0(self, step: Tensor, xt: Tensor, noise: Tensor, *, clip_denoise: bool = False) -> Tensor:
        """Return the clean image that a predicted `noise` stands for, clamped to [-1, 1] if asked."""
        # DDPM eq. 15
        pred_x0 = (xt - _per_image(self.std_noise, step) * noise) / _per_image(self.std_signal, step)
        return pred_x0.clamp(-1.0, 1.0) if clip_denoise else pred_x0

    def compute_noise(self, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        """Return the noise that lies between x0 and x_n; inverts `compute_pred_x0`."""
        alpha_bar = self.alpha_bar[n]
        return (x_n - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)

    def find_alpha_bar(self, n: int) -> float:
        """Return ᾱ at an index, 1 at that of the clean image."""
        return 1.0 if n == CLEAN else self.alpha_bar[n]

    def posterior(self, nprev: int, n: int) -> tuple[float, float, float]:
        """Return the weights of x0 and x_n in the mean of q(x_nprev | x_n, x0), and its standard deviation."""
        self._check_step(nprev, n)
        alpha_bar, alpha_bar_prev = self.alpha_bar[n], self.find_alpha_bar(nprev)
        alpha = alpha_bar / alpha_bar_prev  # of the whole way from nprev to n
        # DDPM eq. 7, with the steps between left out
        of_x0 = math.sqrt(alpha_bar_prev) * (1 - alpha) / (1 - alpha_bar)
        of_x_n = math.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        return of_x0, of_x_n, math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha))

    def ancestral_step(self, nprev: int, n: int, x_n: Tensor, x0: Tensor, *, randn: Randn = torch.randn_like) -> Tensor:
        """Draw x_nprev ~ q(x_nprev | x_n, x0); no noise is added on the step to the clean image.

        Raises ValueError unless -1 <= nprev < n < interval.
        """
        of_x0, of_x_n, std = self.posterior(nprev, n)
        x_prev = of_x0 * x0 + of_x_n * x_n
        return x_prev if nprev == CLEAN else x_prev + std * randn(x_prev)

    def ddim_step(
        self, nprev: int, n: int, x_n: Tensor, x0: Tensor, *, eta: float, randn: Randn = torch.randn_like
    ) -> Tensor:
        """Take DDIM's step from n to nprev: eta 0 adds no noise, eta 1 as much as the posterior does.

        Raises ValueError unless -1 <= nprev < n < interval.
        """
        kept, std = self.ddim_noise(nprev, n, eta)
        x_prev = self.ddim_mean(nprev, n, x_n, x0, kept)
        return x_prev if std == 0 else x_prev + std * randn(x_prev)

    def ddim_noise(self, nprev: int, n: int, eta: float) -> tuple[float, float]:
        """Return how much of the noise predicted at n DDIM's step keeps, and how much fresh noise it adds."""
        self._check_step(nprev, n)
        alpha_bar, alpha_bar_prev = self.alpha_bar[n], self.find_alpha_bar(nprev)
        # DDIM eq. 16 and 12
        std = eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        return math.sqrt(max(1 - alpha_bar_prev - std**2, 0.0)), std

    def ddim_mean(self, nprev: int, n: int, x_n: Tensor, x0: Tensor, kept: float) -> Tensor:
        """Return DDIM's step that keeps so much of the noise at n, without fresh noise."""
        return math.sqrt(self.find_alpha_bar(nprev)) * x0 + kept * self.compute_noise(n, x_n, x0)

    def share(self, nprev: int, n: int) -> float:
        """Return how much of the clean image predicted at n enters the state at nprev, beside that at n."""
        # with σ² = (1 − ᾱ)/ᾱ, the noise of x_t/√ᾱ_t, this is the bridge's (σ_n² − σ_nprev²)/σ_n²
        before, after = ((1 - alpha_bar) / alpha_bar for alpha_bar in map(self.find_alpha_bar, (nprev, n)))
        return 1 - before / after

    def _check_step(self, nprev: int, n: int) -> None:
        if not CLEAN <= nprev < n < self.interval:
            raise ValueError(f"cannot step from index {n} to {nprev}: -1 <= nprev < n < {self.interval} must hold")


@torch.no_grad()
def sample(
    diffusion: Diffusion,
    net: Callable[..., Tensor],
    start: Tensor,
    step_back: Step,
    *,
    nfe: int,
    cond: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    clip_denoise: bool = False,
    log_count: int | None = None,
    randn: Randn = torch.randn_like,
    refine: Refine | None = None,
    callback: Callable[[StepTaken], object] | None = None,
) -> Trajectory:
    """Go from `start` [B, C, H, W], at index interval - 1, to the clean end: `nfe` evaluations of net(xt, step, cond=).

    step_back(nprev, n, x_n, pred_x0) takes one step. Given a mask [B or 1, 1, H, W] (1 inside the hole), the `known`
    image is put back outside of it after every step, with the noise that belongs there; `randn` is called for that
    after each step's own noise. log_count, refine, callback: as in the bridge's way back (i2sb.sampler.sample).
    Raises ValueError if `nfe` does not fit.
    """

    def predict(n: int, xt: Tensor) -> Tensor:
        step = torch.full((len(start),), n, dtype=torch.long, device=start.device)
        return diffusion.compute_pred_x0(step, xt, net(xt, step, cond=cond), clip_denoise=clip_denoise)

    def keep_known(nprev: int, xt: Tensor) -> Tensor:
        if mask is None or known is None:
            return xt
        shown = known
        if nprev != CLEAN:
            alpha_bar = diffusion.alpha_bar[nprev]
            shown = math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * randn(known)
        return (1.0 - mask) * shown + mask * xt

    return walk_back(
        step_grid(diffusion.interval, nfe),
        start,
        predict,
        step_back,
        keep_known=keep_known,
        share=diffusion.share,
        refine=refine,
        callback=callback,
        log_count=log_count,
    )


def _per_image(values: Tensor, step: Tensor) -> Tensor:
    """Pick values[step], shaped [B, 1, 1, 1] to scale images."""
    return values[step].view(-1, 1, 1, 1)
