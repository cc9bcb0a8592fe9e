"""The ways a network is put to work between a clean image x0 and a degraded x1: the bridge, and what it is compared to.

Each says what x_t and the network's target are in training, what the network is told besides, and how the way back goes
in sampling. The loop, the data, the network and the scores are the same for all. Their names stand in i2sb.tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corruption import Corruption, LinearCorruption
from i2sb.baselines.diffusion import CLEAN, Diffusion
from i2sb.baselines.diffusion import sample as sample_diffusion
from i2sb.baselines.diffusion import step_grid as diffusion_grid
from i2sb.baselines.inverse import DDNM, DDRM
from i2sb.batch import Batch
from i2sb.bridge import Bridge, Randn
from i2sb.config import SamplingOptions
from i2sb.consistency import measure
from i2sb.errors import UserError, require
from i2sb.loss import bridge_loss
from i2sb.sampler import Refine, StepTaken, Trajectory, walk_back
from i2sb.sampler import sample as sample_bridge
from i2sb.sampler import step_grid as bridge_grid
from i2sb.steps import Step, advise

Net = Callable[..., Tensor]


class Hooks(NamedTuple):
    """What takes part in restoring a batch besides the formulation: see i2sb.sampler.sample."""

    refine: Refine | None = None
    callback: Callable[[StepTaken], object] | None = None
    log_count: int | None = None


NO_HOOKS = Hooks()


class Formulation(nn.Module):
    """What a formulation is; subclasses say the rest. Their tables are buffers, so that `.to(device)` moves them.

    samplers: names and the η each takes by default, None where there is none to choose; the first is the default.
    cond_x1: whether the network sees the degraded image beside the state (twice the channels in its first layer).
    sees_degradation: whether training depends on the degradation; if not, one run serves all of them.
    """

    samplers: Mapping[str, float | None]
    cond_x1 = False
    sees_degradation = True

    @property
    def noise_levels(self) -> Tensor:
        """The network's time input at each step, [interval]."""
        raise NotImplementedError

    @property
    def interval(self) -> int:
        """Number of steps that training draws from."""
        return len(self.noise_levels)

    @property
    def default_nfe(self) -> int:
        """Network evaluations a restored image takes unless told otherwise: as many as there are steps."""
        return self.interval

    def describe(self) -> str:
        """Say in a line what is trained."""
        raise NotImplementedError

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError if an image cannot be restored with `nfe` evaluations."""
        raise NotImplementedError

    def check_degradation(self, corruption: Corruption | None) -> None:
        """Raise ValueError if images of this degradation (None: of pairs) cannot be restored; all can, by default."""

    def advise(self, options: SamplingOptions) -> str:
        """Return what a user should know who asks for these options, settled; empty if nothing."""
        return ""

    def list_samplers(self) -> list[SamplingOptions]:
        """Return the options of those that differ: each of `samplers`, where it has an η with 0, 0.5 and its own."""
        return [
            SamplingOptions(sampler=name, eta=eta)
            for name, usual in self.samplers.items()
            for eta in ([None] if usual is None else sorted({0.0, 0.5, usual}))
        ]

    def needs_operator(self, consistency: str) -> bool:
        """Say whether restoring, with this kind of `consistency`, needs to know how images were degraded."""
        return consistency != "none" or not self.sees_degradation

    def settle(self, options: SamplingOptions) -> SamplingOptions:
        """Return the options with this formulation's own nfe, sampler and η where none is given.

        Options that are settled stay as they are. Raises UserError for a number of evaluations and a sampler that this
        formulation does not have, and for an η that the sampler has no use for.
        """
        require(
            options.sampler in ("", *self.samplers),
            "sampler",
            options.sampler,
            f"unknown to this run, which has {', '.join(self.samplers)}",
        )
        sampler = options.sampler or next(iter(self.samplers))
        eta = self.samplers[sampler]
        if options.eta is not None:
            able = [name for name, usual in self.samplers.items() if usual is not None]
            instead = f"ask for `sampler` {' or '.join(able)}" if able else "leave it out"
            require(eta is not None, "eta", options.eta, f"`sampler` {sampler} does not use it; {instead}")
            eta = float(options.eta)
        nfe = self.default_nfe if options.nfe is None else options.nfe
        self.check_nfe(nfe)
        return replace(options, nfe=nfe, sampler=sampler, eta=eta)

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        """Return the training loss of net(xt, step, cond=cond), a scalar, at `step` [B], drawn from {0 … interval - 1}.

        With a mask only the hole counts, the mean being over all pixels.
        """
        raise NotImplementedError

    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        """Restore a batch, whose x0 may be unknown, with net(xt, step, cond=cond); the options are settled.

        Raises UserError if the batch's degradation does not fit.
        """
        raise NotImplementedError


class SchroedingerBridge(Formulation):
    """Liu et al., I²SB (2023): from x1 to x0 over the bridge between them."""

    samplers = {"posterior": None, "eta": 0.0, "second_order": None, "ot_ode": None}  # i2sb.steps

    def __init__(self, bridge: Bridge, *, ot_ode: bool = False, cond_x1: bool = False) -> None:
        super().__init__()
        self.bridge, self.ot_ode, self.cond_x1 = bridge, ot_ode, cond_x1

    @property
    def noise_levels(self) -> Tensor:
        return self.bridge.noise_levels

    @property
    def default_nfe(self) -> int:
        return self.interval - 1

    def describe(self) -> str:
        kind = "OT-ODE" if self.ot_ode else "SDE"
        return f"bridge    {self.interval} steps, total variance {self.bridge.betas.sum():.4f}, {kind}"

    def check_nfe(self, nfe: int) -> None:
        bridge_grid(self.interval, nfe)

    def advise(self, options: SamplingOptions) -> str:
        return advise(options.sampler, options.noise_share, options.evaluations, ot_ode=self.ot_ode)

    def list_samplers(self) -> list[SamplingOptions]:
        samplers = super().list_samplers()
        # Where there is no noise to leave out, these are the posterior.
        return [s for s in samplers if s.sampler not in ("eta", "ot_ode")] if self.ot_ode else samplers

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        return bridge_loss(
            self.bridge,
            net,
            step,
            batch.x0,
            batch.x1,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.ot_ode,
            randn=randn,
        )

    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        return sample_bridge(
            self.bridge,
            net,
            batch.x1,
            nfe=options.evaluations,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.ot_ode,
            clip_denoise=options.clip_denoise,
            sampler=options.sampler,
            eta=options.noise_share,
            randn=randn,
            **hooks._asdict(),
        )


class Regression(Formulation):
    """The network maps x1 to x0 at once, by mean squared error: towards the mean of all answers."""

    samplers = {"direct": None}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("time", torch.zeros(1))

    @property
    def noise_levels(self) -> Tensor:
        return self.time

    def describe(self) -> str:
        return "regression from x1 to x0, in one evaluation"

    def check_nfe(self, nfe: int) -> None:
        require(nfe == 1, "nfe", nfe, "a regression restores in one evaluation, so give 1")

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        return _masked_mse(net(_seen(batch), step, cond=None), batch.x0, batch.mask)

    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        self.check_nfe(options.evaluations)
        mask = batch.mask

        def predict(n: int, seen: Tensor) -> Tensor:
            pred_x0 = net(seen, torch.full((len(seen),), n, dtype=torch.long, device=seen.device), cond=None)
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

    @property
    def noise_levels(self) -> Tensor:
        return self.diffusion.noise_levels

    def describe(self) -> str:
        told = "told the degraded image" if self.cond_x1 else "of clean images alone"
        return f"diffusion {self.interval} steps, {self.diffusion.schedule} schedule, {told}; predicts the noise"

    def check_nfe(self, nfe: int) -> None:
        diffusion_grid(self.interval, nfe)

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
        **known: Tensor | None,
    ) -> Trajectory:
        return sample_diffusion(
            self.diffusion,
            net,
            start,
            step_back,
            nfe=options.evaluations,
            clip_denoise=options.clip_denoise,
            randn=randn,
            **hooks._asdict(),
            **known,
        )


class ConditionalDiffusion(_DiffusionFormulation):
    """In the manner of Saharia et al., Palette (2022): a diffusion from noise whose network sees x1 at every step.

    As on the bridge, the loss of an inpainting image counts its hole alone, and sampling puts the known region back.
    """

    samplers = {"ancestral": None, "ddim": 0.0}
    cond_x1 = True

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        noise = randn(batch.x0)
        pred = net(self.diffusion.q_sample(step, batch.x0, noise), step, cond=_seen(batch))
        return _masked_mse(pred, noise, batch.mask)

    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        step_back = {
            "ancestral": partial(self.diffusion.ancestral_step, randn=randn),
            "ddim": partial(self.diffusion.ddim_step, eta=options.noise_share, randn=randn),
        }[options.sampler]
        known = {"cond": _seen(batch), "mask": batch.mask, "known": batch.shown}
        return self._sample(net, randn(batch.x1), step_back, options, randn, hooks, **known)


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

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        noise = randn(batch.x0)
        return F.mse_loss(net(self.diffusion.q_sample(step, batch.x0, noise), step, cond=None), noise)

    @torch.no_grad()
    def sample(
        self, net: Net, batch: Batch, options: SamplingOptions, randn: Randn, hooks: Hooks = NO_HOOKS
    ) -> Trajectory:
        self.check_degradation(batch.corruption)
        measurement = measure(batch.corruption, batch.shown, batch.mask)
        method = {"ddnm": DDNM, "ddrm": DDRM}[options.sampler]
        step_back = method(self.diffusion, measurement, options.noise_share, randn)
        return self._sample(net, step_back.start(batch.x1), step_back, options, randn, hooks)


def _seen(batch: Batch) -> Tensor:
    """Return the degraded images as a network is shown them: free of `--add-x1-noise` where there is a condition."""
    return batch.x1 if batch.cond is None else batch.cond


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    return F.mse_loss(pred, target) if mask is None else F.mse_loss(mask * pred, mask * target)
