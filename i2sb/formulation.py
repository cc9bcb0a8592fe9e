"""The ways a network is put to work between a clean image x0 and a degraded x1: the bridge, and what it is compared to.

Each says what x_t and the network's target are in training, what the network is told besides, and how the way back goes
in sampling. The loop, the data, the network and the scores are the same for all. Their names stand in i2sb.tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from i2sb.consistency import measure
from i2sb.loss import bridge_loss
from i2sb.sampler import Refine, StepTaken, Trajectory, walk_back
from i2sb.sampler import sample as sample_bridge
from i2sb.sampler import step_grid as bridge_grid
from i2sb.steps import Step, advise

Net = Callable[..., Tensor]


class Sampler(NamedTuple):
    """How the steps back are taken: a name of the formulation's `samplers`, and its η, 1 where it has none."""

    name: str
    eta: float


@dataclass(frozen=True)
class Way:
    """How a batch is to be restored.

    nfe: network evaluations. sampler: from the formulation's `choose_sampler`. clip_denoise: whether predicted clean
    images are clamped to [-1, 1]. corruption: the degradation, for formulations whose training did not see it.
    refine, callback, log_count: as i2sb.sampler.sample has them.
    """

    nfe: int
    sampler: Sampler
    clip_denoise: bool = False
    corruption: Corruption | None = None
    refine: Refine | None = None
    callback: Callable[[StepTaken], object] | None = None
    log_count: int | None = None


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

    def advise(self, sampler: Sampler, nfe: int, clip_denoise: bool) -> str:
        """Return what a user should know who asks for this way back; empty if nothing."""
        return ""

    def list_samplers(self) -> list[Sampler]:
        """Return those that differ: each of `samplers`, where it has an η with 0, 0.5 and its own."""
        return [
            Sampler(name, 1.0 if eta is None else eta)
            for name, own in self.samplers.items()
            for eta in ([None] if own is None else sorted({0.0, 0.5, own}))
        ]

    def needs_operator(self, consistency: str) -> bool:
        """Say whether restoring, with this kind of `consistency`, needs to know how images were degraded."""
        return consistency != "none" or not self.sees_degradation

    def choose_sampler(self, name: str = "", eta: float | None = None) -> Sampler:
        """Return the sampler of that name (none: the default one) with its η.

        Raises ValueError for a name this formulation does not have, and an η that the sampler has no use for.
        """
        if name and name not in self.samplers:
            raise ValueError(f"--sampler {name}: unknown to this run, which has {', '.join(self.samplers)}")
        name = name or next(iter(self.samplers))
        default = self.samplers[name]
        if eta is not None and default is None:
            able = [other for other, its_eta in self.samplers.items() if its_eta is not None]
            instead = f"ask for --sampler {' or '.join(able)}" if able else "leave it away"
            raise ValueError(f"--eta {eta}: --sampler {name} does not use it; {instead}")
        if eta is not None and not 0 <= eta <= 1:
            raise ValueError(f"--eta {eta}: must be between 0 and 1")
        chosen = default if eta is None else eta
        return Sampler(name, 1.0 if chosen is None else float(chosen))

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        """Return the training loss of net(xt, step, cond=cond), a scalar, at `step` [B], drawn from {0 … interval - 1}.

        With a mask only the hole counts, the mean being over all pixels.
        """
        raise NotImplementedError

    def sample(self, net: Net, batch: Batch, way: Way, randn: Randn) -> Trajectory:
        """Restore a batch, whose x0 may be unknown, with net(xt, step, cond=cond).

        Raises ValueError if way.nfe or way.corruption does not fit.
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

    def advise(self, sampler: Sampler, nfe: int, clip_denoise: bool) -> str:
        return advise(sampler.name, sampler.eta, nfe, ot_ode=self.ot_ode)

    def list_samplers(self) -> list[Sampler]:
        samplers = super().list_samplers()
        # Where there is no noise to leave out, these are the posterior.
        return [s for s in samplers if s.name not in ("eta", "ot_ode")] if self.ot_ode else samplers

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

    def sample(self, net: Net, batch: Batch, way: Way, randn: Randn) -> Trajectory:
        return sample_bridge(
            self.bridge,
            net,
            batch.x1,
            nfe=way.nfe,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.ot_ode,
            clip_denoise=way.clip_denoise,
            sampler=way.sampler.name,
            eta=way.sampler.eta,
            log_count=way.log_count,
            randn=randn,
            refine=way.refine,
            callback=way.callback,
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
        if nfe != 1:
            raise ValueError(f"--nfe {nfe}: a regression restores in one evaluation, so give 1")

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        return _masked_mse(net(_seen(batch), step, cond=None), batch.x0, batch.mask)

    def sample(self, net: Net, batch: Batch, way: Way, randn: Randn) -> Trajectory:
        self.check_nfe(way.nfe)
        mask = batch.mask

        def predict(n: int, seen: Tensor) -> Tensor:
            pred_x0 = net(seen, torch.full((len(seen),), n, dtype=torch.long, device=seen.device), cond=None)
            return pred_x0.clamp(-1.0, 1.0) if way.clip_denoise else pred_x0

        return walk_back(
            [CLEAN, 0],
            _seen(batch),
            predict,
            lambda nprev, n, x_n, pred_x0: pred_x0,
            keep_known=lambda nprev, x0: x0 if mask is None else (1.0 - mask) * batch.shown + mask * x0,
            share=lambda nprev, n: 1.0,
            refine=way.refine,
            callback=way.callback,
            log_count=way.log_count,
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

    def advise(self, sampler: Sampler, nfe: int, clip_denoise: bool) -> str:
        if clip_denoise:
            return ""
        times = 1 / self.diffusion.std_signal[-1].item()
        return f"--clip-denoise is wise here: in the first predicted image the network's error counts {times:.0f} times"

    def _sample(
        self, net: Net, start: Tensor, step_back: Step, way: Way, randn: Randn, **known: Tensor | None
    ) -> Trajectory:
        return sample_diffusion(
            self.diffusion,
            net,
            start,
            step_back,
            nfe=way.nfe,
            clip_denoise=way.clip_denoise,
            log_count=way.log_count,
            randn=randn,
            refine=way.refine,
            callback=way.callback,
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

    def sample(self, net: Net, batch: Batch, way: Way, randn: Randn) -> Trajectory:
        step_back = {
            "ancestral": partial(self.diffusion.ancestral_step, randn=randn),
            "ddim": partial(self.diffusion.ddim_step, eta=way.sampler.eta, randn=randn),
        }[way.sampler.name]
        known = {"cond": _seen(batch), "mask": batch.mask, "known": batch.shown}
        return self._sample(net, randn(batch.x1), step_back, way, randn, **known)


class UnconditionalDiffusion(_DiffusionFormulation):
    """A diffusion of clean images alone; the degradation's operator comes in at sampling (i2sb.baselines.inverse)."""

    samplers = {"ddnm": 0.85, "ddrm": 0.85}  # the published η of both
    sees_degradation = False

    def check_degradation(self, corruption: Corruption | None) -> None:
        if not isinstance(corruption, LinearCorruption):
            what = "pairs" if corruption is None else type(corruption).__name__
            raise ValueError(
                f"--formulation diffusion: restores with the operator A of a linear degradation, and {what} has none; "
                "give --corrupt sr4x-pool, sr4x-bicubic, a blur, an inpainting or decolor"
            )

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        noise = randn(batch.x0)
        return F.mse_loss(net(self.diffusion.q_sample(step, batch.x0, noise), step, cond=None), noise)

    @torch.no_grad()
    def sample(self, net: Net, batch: Batch, way: Way, randn: Randn) -> Trajectory:
        self.check_degradation(way.corruption)
        measurement = measure(way.corruption, batch.shown, batch.mask)
        method = {"ddnm": DDNM, "ddrm": DDRM}[way.sampler.name]
        step_back = method(self.diffusion, measurement, way.sampler.eta, randn)
        return self._sample(net, step_back.start(batch.x1), step_back, way, randn)


def _seen(batch: Batch) -> Tensor:
    """Return the degraded images as a network is shown them: free of `--add-x1-noise` where there is a condition."""
    return batch.x1 if batch.cond is None else batch.cond


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    return F.mse_loss(pred, target) if mask is None else F.mse_loss(mask * pred, mask * target)
