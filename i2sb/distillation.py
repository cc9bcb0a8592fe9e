"""Few-step students of a trained bridge, by inverse bridge matching distillation.

A student is a generator x0 = G(x1, z), with noise z ~ N(0, I), such that the bridge between its own pairs (x0, x1) is
the teacher's. It learns from degraded images alone. Numbers of results are those of Gushchin et al., "Inverse Bridge
Matching Distillation" (ICML 2025); docs/distillation.md says how they come about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from i2sb.batch import Batch
from i2sb.bridge import Bridge, Randn
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.formulation import NO_HOOKS, Hooks, Net, SchroedingerBridge
from i2sb.loss import matching_error
from i2sb.sampler import Trajectory


class Judges(NamedTuple):
    """The two networks that a student learns from, neither of which its loss may move.

    teacher: of the bridge that is distilled. inner: of the bridge between the student's own pairs, kept up with the
    student by `Student.inner_loss`.
    """

    teacher: Net
    inner: Net


class Student(SchroedingerBridge):
    """A bridge's generator of few evaluations: the chain of predictions and posterior steps, its network told z.

    It is a formulation like any other, but that its loss needs `judges`. z comes in as channels behind all others.
    """

    samplers = {"posterior": None}  # the chain that is trained
    can_teach = False

    def __init__(
        self, bridge: Bridge, *, nfe: int = 1, sees_noise: bool = True, ot_ode: bool = False, cond_x1: bool = False
    ) -> None:
        super().__init__(bridge, ot_ode=ot_ode, cond_x1=cond_x1)
        self.check_nfe(nfe)
        self.nfe, self.sees_noise = nfe, sees_noise
        self.judges: Judges | None = None

    @classmethod
    def from_config(cls, config: TrainConfig) -> Student:
        bridge = Bridge(config.interval, config.beta_max, t0=config.t0, T=config.T)
        return cls(
            bridge, nfe=config.nfe, sees_noise=config.student_noise, ot_ode=config.ot_ode, cond_x1=config.cond_x1
        )

    @property
    def default_nfe(self) -> int:
        return self.nfe

    def describe(self) -> str:
        noise = "told noise" if self.sees_noise else "without noise of its own"
        return f"{super().describe()}; a student of it, NFE {self.nfe}, {noise}"

    def warn_of(self) -> str:
        if not (self.ot_ode and self.cond_x1):
            return ""
        return (
            "the bridge is without noise (`ot_ode`) and told x1 (`cond_x1`), from which x_t tells x0 exactly: its loss "
            "says next to nothing of the student's images"
        )

    def advise(self, options: SamplingOptions) -> str:
        if options.nfe == self.nfe:
            return ""
        return f"`nfe` {options.nfe}: this student was trained to restore in {self.nfe}, and never saw other steps"

    def draws_noise(self, options: SamplingOptions) -> bool:
        return self.sees_noise or super().draws_noise(options)

    def generate(self, net: Net, batch: Batch, randn: Randn, *, gradients: bool) -> Tensor:
        """Return x0 = G(x1, z), [B, C, H, W], with `gradients` of the whole chain; outside a hole it is x1."""
        x0 = self.sample(net, batch, self.settle(SamplingOptions()), randn, gradients=gradients).x0
        return x0 if batch.mask is None else (1.0 - batch.mask) * batch.x1 + batch.mask * x0

    def loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        """Return what a student descends, at `step` [B]: how much worse the teacher predicts its images than `inner`.

        It is 0 where the bridge between the student's pairs is the teacher's; its estimate may be below. The subtracted
        term keeps the student's images as diverse as the teacher's: without it they would be what the teacher finds
        easiest. Of the batch, x0 is not used. The loss of a hole is as in `bridge_loss`.
        """
        assert self.judges is not None, "a student without judges cannot learn"
        x0 = self.generate(net, batch, randn, gradients=True)
        xt = self.bridge.q_sample(step, x0, batch.x1, ot_ode=self.ot_ode, randn=randn)
        # Prop. 3.3; with a condition, Theorem 3.4
        teacher, inner = (
            matching_error(self.bridge, judge, step, x0, xt, mask=batch.mask, cond=batch.cond) for judge in self.judges
        )
        return teacher - inner

    def inner_loss(self, net: Net, step: Tensor, batch: Batch, randn: Randn, *, inner: Callable[..., Tensor]) -> Tensor:
        """Return the bridge loss of the network `inner` on the student's present pairs; nothing flows into `net`."""
        pairs = replace(batch, x0=self.generate(net, batch, randn, gradients=False))
        return super().loss(inner, step, pairs, randn)

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
        def told_noise(xt: Tensor, step: Tensor, cond: Tensor | None = None) -> Tensor:
            z = randn(xt)
            return net(xt, step, cond=z if cond is None else torch.cat([cond, z], dim=1))

        told = told_noise if self.sees_noise else net
        return super().sample(told, batch, options, randn, hooks, gradients=gradients)
