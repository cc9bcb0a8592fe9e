"""What the bridge is compared to, in the bridge's own terms: a regression, and two diffusions from noise."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from corruption import Corruption, LinearCorruption
from i2sb.baselines.diffusion import CLEAN, Diffusion, sample, step_grid
from i2sb.baselines.inverse import DDNM, DDRM
from i2sb.batch import Batch
from i2sb.bridge import Randn
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.consistency import measure
from i2sb.errors import UserError, require
from i2sb.formulation import NO_HOOKS, Formulation, Hooks, Net
from i2sb.sampler import Trajectory, walk_back
from i2sb.steps import Step


class Regression(Formulation):
    """The network answers at once, by mean squared error: towards the mean of all x0 that x1 may come from.

    It predicts the difference, x̂0 = x1 − net(x1), as the bridge's network does; with `whole` it predicts x0 itself.
    """

    samplers = {"direct": None}

    time: Tensor

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("time", torch.zeros(1))

    @classmethod
    def from_config(cls, config: TrainConfig) -> Regression:
        return cls(whole=config.regression_target == "image")

    @property
    def noise_levels(self) -> Tensor:
        return self.time

    def describe(self) -> str:
        return f"regression from x1 to {'x0' if self.whole else 'its difference from x0'}, in one evaluation"

    def check_nfe(self, nfe: int) -> None:
        require(nfe == 1, "nfe", nfe, "a regression restores in one evaluation, so give 1")

    def draws_noise(self, options: SamplingOptions) -> bool:
        return False

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        target = batch.clean if self.whole else _seen(batch) - batch.clean
        return _masked_mse(net(_seen(batch), step, cond=None), target, batch.mask)

    @torch.no_grad()
    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        self.check_nfe(options.evaluations)
        mask = batch.mask

        def predict(n: int, seen: Tensor) -> Tensor:
            out = net(seen, torch.full((len(seen),), n, dtype=torch.long, device=seen.device), cond=None)
            pred_x0 = out if self.whole else seen - out
            return pred_x0.clamp(-1.0, 1.0) if options.clip_denoise else pred_x0

        return walk_back(
            [CLEAN, 0],
            _seen(batch),
            predict,
            lambda nprev, n, x_n, pred_x0: pred_x0,
            keep_known=lambda nprev, x0: x0 if mask is None else (1.0 - mask) * batch.shown + mask * x0,
            share=lambda nprev, n: 1.0,
            **hooks._asdict(),
        )


class _DiffusionFormulation(Formulation):
    """What the two diffusions have in common."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    @classmethod
    def from_config(cls, config: TrainConfig) -> _DiffusionFormulation:
        return cls(Diffusion(config.interval, config.schedule))

    @property
    def noise_levels(self) -> Tensor:
        return self.diffusion.noise_levels

    def describe(self) -> str:
        told = "told the degraded image" if self.cond_x1 else "of clean images alone"
        return f"diffusion {self.interval} steps, {self.diffusion.schedule} schedule, {told}; predicts the noise"

    def check_nfe(self, nfe: int) -> None:
        step_grid(self.interval, nfe)

    def draws_noise(self, options: SamplingOptions) -> bool:
        return True  # where it begins

    def advise(self, options: SamplingOptions) -> str:
        if options.clip_denoise:
            return ""
        times = 1 / self.diffusion.std_signal[-1].item()
        return f"`clip_denoise` is wise here: in the first predicted image the network's error counts {times:.0f} times"

    def _sample(
        self,
        net: Net,
        start: Tensor,
        step_back: Step,
        options: SamplingOptions,
        randn: Randn,
        hooks: Hooks,
        *,
        cond: Tensor | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Trajectory:
        return sample(
            self.diffusion,
            net,
            start,
            step_back,
            nfe=options.evaluations,
            clip_denoise=options.clip_denoise,
            randn=randn,
            cond=cond,
            mask=mask,
            known=known,
            **hooks._asdict(),
        )


class ConditionalDiffusion(_DiffusionFormulation):
    """In the manner of Saharia et al., Palette (2022): a diffusion from noise whose network sees x1 at every step.

    As on the bridge, the loss of an inpainting image counts its hole alone, and sampling puts the known region back.
    """

    samplers = {"ancestral": None, "ddim": 0.0}
    cond_x1 = True

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        noise = randn(batch.clean)
        pred = net(self.diffusion.q_sample(step, batch.clean, noise), step, cond=_seen(batch))
        return _masked_mse(pred, noise, batch.mask)

    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        step_back = {
            "ancestral": partial(self.diffusion.ancestral_step, randn=randn),
            "ddim": partial(self.diffusion.ddim_step, eta=options.noise_share, randn=randn),
        }[options.sampler]
        start = randn(batch.x1)
        return self._sample(
            net, start, step_back, options, randn, hooks, cond=_seen(batch), mask=batch.mask, known=batch.shown
        )


class UnconditionalDiffusion(_DiffusionFormulation):
    """A diffusion of clean images alone; the degradation's operator comes in at sampling (i2sb.baselines.inverse)."""

    samplers = {"ddnm": 0.85, "ddrm": 0.85}  # the published η of both
    sees_degradation = False

    def check_degradation(self, corruption: Corruption | None) -> None:
        if not isinstance(corruption, LinearCorruption):
            what = "pairs" if corruption is None else type(corruption).__name__
            raise UserError(
                "formulation",
                "diffusion",
                f"restores with the operator A of a linear degradation, and {what} has none; "
                "give `corrupt` sr4x-pool, sr4x-bicubic, a blur, an inpainting or decolor",
            )
        if corruption.noise and not corruption.knows_spectrum:
            lacks = f"{type(corruption).__name__} lacks its method reweigh(self, x, weigh, mask)"
            must = f"restoring needs the singular values of the degradation, and {lacks}"
            raise UserError("degradation_noise", corruption.noise, must)

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        noise = randn(batch.clean)
        return F.mse_loss(net(self.diffusion.q_sample(step, batch.clean, noise), step, cond=None), noise)

    @torch.no_grad()
    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        self.check_degradation(batch.corruption)
        assert isinstance(batch.corruption, LinearCorruption)
        measurement = measure(batch.corruption, batch.shown, batch.hole)
        method = {"ddnm": DDNM, "ddrm": DDRM}[options.sampler]
        step_back = method(self.diffusion, measurement, options.noise_share, randn)
        return self._sample(net, step_back.start(batch.x1), step_back, options, randn, hooks)


def _seen(batch: Batch) -> Tensor:
    """Return the degraded images as a network is shown them: free of `--add-x1-noise` where there is a condition."""
    return batch.x1 if batch.cond is None else batch.cond


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    return F.mse_loss(pred, target) if mask is None else F.mse_loss(mask * pred, mask * target)
