"""Restoring with a diffusion that never saw a degradation: its predictions are made to agree with what was measured.

For measurements y = A x0 of a linear degradation, without noise: all that either method then needs of A is the
projection A⁺A onto what is known of an image, and that part of the clean image itself, A⁺y (i2sb.consistency).
"""

from __future__ import annotations

import math

from torch import Tensor

from i2sb.baselines.diffusion import CLEAN, Diffusion
from i2sb.bridge import Randn
from i2sb.consistency import Measurement


class InverseMethod:
    """Where the way back starts, and an i2sb.steps.Step of it. eta: the share of fresh noise in a step, from 0 to 1."""

    def __init__(self, diffusion: Diffusion, measurement: Measurement, eta: float, randn: Randn) -> None:
        self.diffusion, self.measurement, self.eta, self.randn = diffusion, measurement, eta, randn

    def start(self, like: Tensor) -> Tensor:
        """Return the state at the last index for images [B, C, H, W] like these: noise, unless a method knows more."""
        return self.randn(like)

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        """Return the state at nprev, given the one at n and the clean image predicted from it."""
        raise NotImplementedError


class DDNM(InverseMethod):
    """Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (2023): of every prediction
    the known part is replaced by what was measured, then a DDIM step is taken. The last state agrees with y exactly.
    """

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        # range and null space put together: A⁺y + (I − A⁺A) x̂0
        return self.diffusion.ddim_step(nprev, n, x_n, self.measurement.project(x0), eta=self.eta, randn=self.randn)


class DDRM(InverseMethod):
    """Kawar et al., "Denoising Diffusion Restoration Models" (2022), for measurements without noise (σ_y = 0), η_b = 1.

    In the paper every singular component of A is stepped on its own, in the noise level σ_y/s_i. Without measurement
    noise only whether s_i is zero is left of that, so the known part and the rest are all the components there are.
    The paper's variance-exploding x_t is x_t/√ᾱ_t here, with σ_t² = (1 − ᾱ_t)/ᾱ_t.
    """

    def start(self, like: Tensor) -> Tensor:
        # p(x_T | y): noise around the known part
        alpha_bar = self.diffusion.alpha_bar[-1]
        known = self.measurement.find_known(like.dtype)
        return math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * self.randn(like)

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        pred = self.measurement.project(x0)
        if nprev == CLEAN:
            return pred
        # p(x_t | x_{t+1}, y): the known part is drawn anew around y; the rest keeps √(1 − η²) of its noise
        noise, fresh = self.diffusion.compute_noise(n, x_n, x0), self.randn(x_n)
        rest = math.sqrt(1 - self.eta**2) * noise + self.eta * fresh
        alpha_bar = self.diffusion.alpha_bar[nprev]
        drawn = rest + self.measurement.keep_known(fresh - rest)
        return math.sqrt(alpha_bar) * pred + math.sqrt(1 - alpha_bar) * drawn
