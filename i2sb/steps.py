"""Ways to take one step back over the bridge, from index n to nprev < n, given the clean image predicted at n.

SAMPLERS has a row for each; docs/extending.md shows how another is added. `posterior` is the published one. The others
run from the same checkpoints in fewer evaluations: `eta` (Zheng et al., "Diffusion Bridge Implicit Models", 2024) with
less noise, `second_order` with the change of the prediction.
In S = σ²_{N−1}, stepping down from x1 gives x_n ~ N(a x1 + b x0, c²) with a = σ_n²/S, b = 1 − a, c² = σ_n²(S − σ_n²)/S.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from i2sb.bridge import Bridge, Randn
from i2sb.errors import UserError

# step(nprev, n, x_n, pred_x0) -> x_nprev; called from the degraded end to the clean one.
Step = Callable[[int, int, Tensor, Tensor], Tensor]


class ReversePass(NamedTuple):
    """What steps are built for: one reverse pass over the bridge from x1 [B, C, H, W].

    ot_ode: whether it is without noise, as bridges trained so are reversed. eta: share of the posterior's noise, from 0
    to 1, for those who have a use for it. randn(x): standard normal noise of the shape of x, drawn once a call.
    """

    bridge: Bridge
    x1: Tensor
    ot_ode: bool
    eta: float
    randn: Randn


class Sampler(NamedTuple):
    """A row of SAMPLERS.

    build: makes the step function of a reverse pass. usual_eta: the η it takes by default, None if it has no use for
    one. noise_free: whether the pass has no noise, however the bridge was trained. needs_noise: whether it steps as the
    posterior does on a bridge that was trained without noise.
    """

    build: Callable[[ReversePass], Step]
    usual_eta: float | None = None
    noise_free: bool = False
    needs_noise: bool = False


def advise(sampler: str, eta: float, nfe: int, *, ot_ode: bool) -> str:
    """Return what a user should know who asks for this way to step on a bridge that was trained so; empty if nothing.

    ot_ode: whether the bridge was trained without noise.
    """
    if sampler == "eta" and ot_ode:
        return "`sampler` eta: this run's bridge has no noise to leave out (OT-ODE), so it steps as posterior does"
    if sampler == "eta" and eta == 1:
        return "`sampler` eta with `eta` 1 is the posterior itself; 0 leaves out all noise after the first step"
    if sampler == "ot_ode" and not ot_ode:
        return "`sampler` ot_ode: this run was trained with noise; steps without it give blurry images"
    if sampler == "second_order" and ot_ode and 2 < nfe < 20:
        return f"`sampler` second_order with `nfe` {nfe}: without noise it may overshoot below 20 evaluations"
    return ""


def make_step(
    sampler: str, bridge: Bridge, x1: Tensor, *, ot_ode: bool, eta: float = 1.0, randn: Randn = torch.randn_like
) -> Step:
    """Return the step function of one reverse pass from x1.

    eta: for "eta", the share of the posterior's noise: from 0, none after the first step, to 1, the posterior itself.
    Raises UserError for an unknown sampler or an eta out of range.
    """
    if sampler not in SAMPLERS:
        raise UserError("sampler", sampler, f"unknown; choose one of {', '.join(SAMPLERS)}")
    if not 0 <= eta <= 1:
        raise UserError("eta", eta, "must be between 0 and 1")
    row = SAMPLERS[sampler]
    step_back = row.build(ReversePass(bridge, x1, ot_ode or row.noise_free, eta, randn))

    def checked(nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        x_nprev = step_back(nprev, n, x_n, x0)
        if not isinstance(x_nprev, Tensor) or x_nprev.shape != x_n.shape:
            found = list(x_nprev.shape) if isinstance(x_nprev, Tensor) else type(x_nprev).__name__
            raise UserError("sampler", sampler, f"its step from {n} to {nprev} returned {found}, not {list(x_n.shape)}")
        return x_nprev

    return checked


def build_posterior(reverse: ReversePass) -> Step:
    """The posterior, eq. 4; without noise its mean alone."""
    return partial(reverse.bridge.p_posterior, ot_ode=reverse.ot_ode, randn=reverse.randn)


def build_eta(reverse: ReversePass) -> Step:
    """The posterior with a share η of its noise; where there is no noise to leave out, the posterior itself."""
    if reverse.ot_ode:
        return build_posterior(reverse)
    bridge, x1, _, eta, randn = reverse
    return lambda nprev, n, x_n, x0: _eta_step(bridge, x1, nprev, n, x_n, x0, eta, randn)


def build_second_order(reverse: ReversePass) -> Step:
    """Steps that use the change of the prediction too."""
    if reverse.ot_ode:
        return _SecondOrderOde(reverse.bridge)
    return _SecondOrder(reverse.bridge, reverse.x1, reverse.randn)


class _Marginal(NamedTuple):
    a: Tensor
    b: Tensor
    c: Tensor


def _marginal(bridge: Bridge, n: int) -> _Marginal:
    var, total = bridge.std_fwd[n] ** 2, bridge.std_fwd[-1] ** 2
    return _Marginal(var / total, 1 - var / total, (var * (total - var) / total).sqrt())


def _eta_step(
    bridge: Bridge, x1: Tensor, nprev: int, n: int, x_n: Tensor, x0: Tensor, eta: float, randn: Randn
) -> Tensor:
    t, s = _marginal(bridge, n), _marginal(bridge, nprev)
    if n == bridge.interval - 1:  # c_t = 0: all noise of x_s is new
        omega, kept = s.c, torch.zeros_like(s.c)
    else:
        omega = eta * bridge.std_fwd[nprev] * (1 - bridge.std_fwd[nprev] ** 2 / bridge.std_fwd[n] ** 2).sqrt()
        kept = (s.c**2 - omega**2).clamp(min=0).sqrt() / t.c
    x_prev = s.a * x1 + s.b * x0 + kept * (x_n - t.a * x1 - t.b * x0)
    silent = nprev == 0 or (eta == 0 and n != bridge.interval - 1)
    return x_prev if silent else x_prev + omega * randn(x_n)


class _SecondOrder:
    """Exponential integrator in λ = log(b/c) that extrapolates x̂0 from its last change; first order at both ends."""

    def __init__(self, bridge: Bridge, x1: Tensor, randn: Randn) -> None:
        self.bridge, self.x1, self.randn = bridge, x1, randn
        self.last: tuple[Tensor, Tensor] | None = None  # λ and x̂0 of the step before

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        if n == self.bridge.interval - 1:
            return _eta_step(self.bridge, self.x1, nprev, n, x_n, x0, 0.0, self.randn)
        t, s = _marginal(self.bridge, n), _marginal(self.bridge, nprev)
        lambda_t = (t.b / t.c).log()
        h = (s.b / s.c).log() - lambda_t
        change = torch.zeros_like(x0)
        if self.last is not None and nprev > 0:
            lambda_u, x0_u = self.last
            change = ((-h).exp() + h - 1) * (x0 - x0_u) / (lambda_t - lambda_u)
        self.last = (lambda_t, x0)
        ratio = s.c / t.c
        return ratio * x_n + (s.a - t.a * ratio) * self.x1 + s.b * ((1 - (-h).exp()) * x0 + change)


class _SecondOrderOde:
    """The same for the bridge without noise, in λ = −log σ².

    The last step to σ_0, a small fraction of what comes before, is so long in λ that extrapolating would overshoot.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, nprev: int, n: int, x_n: Tensor, x0: Tensor) -> Tensor:
        lambda_t = -2 * self.bridge.std_fwd[n].log()
        h = -2 * self.bridge.std_fwd[nprev].log() - lambda_t
        change = torch.zeros_like(x0)
        if self.last is not None and nprev > 0:
            lambda_u, x0_u = self.last
            change = ((-h).exp() + h - 1) * (x0 - x0_u) / (lambda_t - lambda_u)
        self.last = (lambda_t, x0)
        return (-h).exp() * x_n + (1 - (-h).exp()) * x0 + change


# The first is the default.
SAMPLERS: dict[str, Sampler] = {
    "posterior": Sampler(build_posterior),
    "eta": Sampler(build_eta, usual_eta=0.0, needs_noise=True),
    "second_order": Sampler(build_second_order),
    "ot_ode": Sampler(build_posterior, noise_free=True, needs_noise=True),
}
