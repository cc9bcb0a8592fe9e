"""Restoring with a diffusion that never saw a degradation: its predictions are made to agree with what was measured.

For measurements y = A x0 + σ_y n of a linear degradation. Without noise, σ_y = 0, all that either method needs of A is
the projection A⁺A onto what is known of an image, and that part of the clean image itself, A⁺y (i2sb.consistency). With
noise it needs A's singular values s too: the component of A⁺y to a value s is known up to noise of σ_y/s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from i2sb.baselines.diffusion import CLEAN, Diffusion
from i2sb.bridge import Randn
from i2sb.consistency import Measurement
from i2sb.errors import require


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

    def lack(self, x0: Tensor) -> Tensor:
        """Return A⁺y − x0, float64: of it only what A sees has a meaning."""
        return self.measurement.find_known(torch.float64) - x0


class DDNM(InverseMethod):
    """Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (2023): of every prediction
    the known part is replaced by what was measured, then a DDIM step is taken. The last state agrees with y exactly.

    With measurement noise it is their DDNM+ (section 3.3): the noise of y takes the place of a step's fresh noise, and
    x̂0 moves towards y as far as there is room. With σ_t for the fresh noise and a for the weight of x̂0 in the next
    state, for each singular value s > 0 (elsewhere all is as without a measurement)

        x̂0 ← x̂0 + λ (A⁺y − x̂0),  λ = min(1, σ_t s / (a σ_y)),  variance of the fresh noise σ_t² − (a λ σ_y / s)².

    Theirs are a and σ_t of DDPM's posterior, here those of DDIM's step; at η = 1 they are the same. The last step has
    no fresh noise: its state is the prediction.
    """

    def __init__(self, diffusion: Diffusion, measurement: Measurement, eta: float, randn: Randn) -> None:
        super().__init__(diffusion, measurement, eta, randn)
        must = "must be above 0 with `degradation_noise`, which takes the place of fresh noise; or give `sampler` ddrm"
        require(eta > 0 or not measurement.noise, "eta", eta, must)

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        diffusion, σ_y = self.diffusion, self.measurement.noise
        if not σ_y:
            # range and null space put together: A⁺y + (I − A⁺A) x̂0
            return diffusion.ddim_step(nprev, n, x_n, self.measurement.project(x0), eta=self.eta, randn=self.randn)
        kept, std = diffusion.ddim_noise(nprev, n, self.eta)
        if std == 0:
            return diffusion.ddim_mean(nprev, n, x_n, x0, kept)
        alpha_bar = diffusion.alpha_bar[n]
        a = math.sqrt(diffusion.find_alpha_bar(nprev)) - kept * math.sqrt(alpha_bar / (1 - alpha_bar))

        def weigh_lack(s: Tensor) -> Tensor:
            return (std * s / (a * σ_y)).clamp(max=1.0)

        def weigh_fresh(s: Tensor) -> Tensor:
            of_y = torch.where(s > 0, a * σ_y * weigh_lack(s) / s, 0.0)
            return (std**2 - of_y**2).clamp(min=0.0).sqrt()

        x0 = x0 + self.measurement.reweigh(self.lack(x0), weigh_lack).to(x0.dtype)
        x_prev = diffusion.ddim_mean(nprev, n, x_n, x0, kept)
        return x_prev + self.measurement.reweigh(self.randn(x_prev), weigh_fresh)


class DDRM(InverseMethod):
    """Kawar et al., "Denoising Diffusion Restoration Models" (2022), with η_b = 1.

    The paper's variance-exploding x_t is x_t/√ᾱ_t here, with σ_t² = (1 − ᾱ_t)/ᾱ_t. Every singular component of A is
    stepped on its own (section 3.2), towards the noise level σ_t. Components of a value s whose measurement has less
    noise than that, σ_y/s <= σ_t, are drawn anew around A⁺y, with variance σ_t² − σ_y²/s². The others keep a share of
    their deviation from x̂0, and are given η σ_t of fresh noise: what A does not see keeps √(1 − η²) σ_t/σ_{t+1} of the
    state's, and what was measured with more noise √(1 − η²) σ_t/(σ_y/s) of that of A⁺y.

    Without measurement noise only whether s is zero is left of that, so the known part and the rest are all the
    components there are. With it the last state is the prediction.
    """

    def start(self, like: Tensor) -> Tensor:
        # p(x_T | y): noise around the known part
        alpha_bar = self.diffusion.alpha_bar[-1]
        if not self.measurement.noise:
            known = self.measurement.find_known(like.dtype)
            return math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * self.randn(like)
        # where y has more noise than x_T, which the paper rules out, it is as if A saw nothing
        return math.sqrt(alpha_bar) * self._draw(torch.zeros_like(like), self.randn(like), alpha_bar, 1.0)

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        if self.measurement.noise:
            return self._step_in_noise(nprev, n, x_n, x0)
        pred = self.measurement.project(x0)
        if nprev == CLEAN:
            return pred
        # p(x_t | x_{t+1}, y): the known part is drawn anew around y; the rest keeps √(1 − η²) of its noise
        noise, fresh = self.diffusion.compute_noise(n, x_n, x0), self.randn(x_n)
        rest = math.sqrt(1 - self.eta**2) * noise + self.eta * fresh
        alpha_bar = self.diffusion.alpha_bar[nprev]
        drawn = rest + self.measurement.keep_known(fresh - rest)
        return math.sqrt(alpha_bar) * pred + math.sqrt(1 - alpha_bar) * drawn

    def _step_in_noise(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        if nprev == CLEAN:
            return x0
        alpha_bar = self.diffusion.alpha_bar[nprev]
        kept = math.sqrt(1 - self.eta**2) * math.sqrt((1 - alpha_bar) / alpha_bar)
        noise = self.diffusion.compute_noise(n, x_n, x0)
        unseen = self.measurement.reweigh(noise, lambda s: kept * (s == 0).to(s.dtype))
        return math.sqrt(alpha_bar) * (self._draw(x0, self.randn(x_n), alpha_bar, self.eta) + unseen)

    def _draw(self, x0: Tensor, fresh: Tensor, alpha_bar: float, eta: float) -> Tensor:
        """Draw x_t/√ᾱ_t around x̂0 and what was measured, but for the noise that unseen components keep."""
        σ_t, σ_y = math.sqrt((1 - alpha_bar) / alpha_bar), self.measurement.noise

        def weigh_lack(s: Tensor) -> Tensor:
            level = σ_y / s  # infinite where A sees nothing
            return torch.where(level <= σ_t, 1.0, math.sqrt(1 - eta**2) * σ_t / level)

        def weigh_fresh(s: Tensor) -> Tensor:
            level = σ_y / s
            return torch.where(level <= σ_t, (σ_t**2 - level**2).clamp(min=0.0).sqrt(), eta * σ_t)

        towards_y = self.measurement.reweigh(self.lack(x0), weigh_lack).to(x0.dtype)
        return x0 + towards_y + self.measurement.reweigh(fresh, weigh_fresh)
