"""What is trained and how it is reversed: what every formulation says of itself, and the bridge.

Each says what x_t and the network's target are in training, what the network is told besides, and how the way back goes
in sampling. The loop, the data, the network and the scores are the same for all. What the bridge is compared to stands
in i2sb.baselines.formulations, the names of all in i2sb.formulation_table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from corruption import Corruption
from i2sb.batch import Batch
from i2sb.bridge import Bridge, Randn
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.errors import require
from i2sb.loss import bridge_loss
from i2sb.sampler import Refine, StepTaken, Trajectory
from i2sb.sampler import sample as sample_bridge
from i2sb.sampler import step_grid as bridge_grid
from i2sb.steps import SAMPLERS, advise

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
    sees_noise: whether it also sees noise that is drawn for every evaluation, behind all other channels.
    sees_degradation: whether training depends on the degradation; if not, one run serves all of them.
    can_teach: whether students of few evaluations can be made of what was trained (i2sb.distillation).
    """

    samplers: Mapping[str, float | None]
    cond_x1 = False
    sees_noise = False
    sees_degradation = True
    can_teach = False

    @classmethod
    def from_config(cls, config: TrainConfig) -> Formulation:
        """Build it as a run's settings say."""
        raise NotImplementedError

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

    def warn_of(self) -> str:
        """Return what a user should know before training; empty if nothing."""
        return ""

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

    def draws_noise(self, options: SamplingOptions) -> bool:
        """Say whether restoring with these options, settled, draws noise on the way back, wherever it begins."""
        raise NotImplementedError

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

    samplers = {name: sampler.usual_eta for name, sampler in SAMPLERS.items()}
    can_teach = True

    def __init__(self, bridge: Bridge, *, ot_ode: bool = False, cond_x1: bool = False) -> None:
        super().__init__()
        self.bridge, self.ot_ode, self.cond_x1 = bridge, ot_ode, cond_x1

    @classmethod
    def from_config(cls, config: TrainConfig) -> SchroedingerBridge:
        bridge = Bridge(config.interval, config.beta_max, t0=config.t0, T=config.T)
        return cls(bridge, ot_ode=config.ot_ode, cond_x1=config.cond_x1)

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

    def draws_noise(self, options: SamplingOptions) -> bool:
        # No step draws on its way to index 0.
        return options.evaluations > 1 and not (self.ot_ode or SAMPLERS[options.sampler].noise_free)

    def list_samplers(self) -> list[SamplingOptions]:
        samplers = super().list_samplers()
        return [s for s in samplers if not (self.ot_ode and SAMPLERS[s.sampler].needs_noise)]

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        return bridge_loss(
            self.bridge,
            net,
            step,
            batch.clean,
            batch.x1,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.ot_ode,
            randn=randn,
        )

    def sample(
        self,
        net: Net,
        batch: Batch,
        options: SamplingOptions,
        randn: Randn,
        hooks: Hooks = NO_HOOKS,
        *,
        gradients: bool = False,
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
            gradients=gradients,
            **hooks._asdict(),
        )
