"""The way back over the bridge: from the degraded image at index N - 1 to the restored one at index 0.

The baselines walk the same way with steps of their own (`walk_back`).

The network and the source of noise are handed in; this module opens no file and knows no device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from i2sb.bridge import Bridge, Randn, space_indices
from i2sb.errors import UserError
from i2sb.steps import SAMPLERS, Step, make_step


@dataclass(frozen=True)
class Trajectory:
    """What a reverse pass returns.

    x0: the state at the clean end, [B, C, H, W] (the last step's mean, not clamped).
    states, pred_x0s: the logged states and the clean images predicted on the way to each, [B, L, C, H, W], cleanest
    first; None unless logging was asked for.
    """

    x0: Tensor
    states: Tensor | None = None
    pred_x0s: Tensor | None = None


@dataclass(frozen=True)
class StepTaken:
    """One step back, as a callback sees it.

    number: from 1 to `count`, one an evaluation. n, nprev: the indices it went from and to. state: the state at nprev,
    pred_x0: the clean image predicted at n, both [B, C, H, W]; neither may be changed.
    """

    number: int
    count: int
    n: int
    nprev: int
    state: Tensor
    pred_x0: Tensor


# refine(pred_x0, share) -> pred_x0: brings a predicted clean image into line with what is known about it. share:
# how much of the prediction enters the next state, (σ_n² − σ_nprev²) / σ_n²; 0 for the finished image, refined last.
Refine = Callable[[Tensor, float], Tensor]


def logged_steps(nfe: int, log_count: int) -> list[int]:
    """Return the numbers, 1 to nfe, of the steps that a log of at most `log_count` states keeps: the last always.

    >>> logged_steps(10, 4)
    [1, 4, 7, 10]
    """
    return [nfe - i for i in reversed(space_indices(nfe, min(nfe, log_count)))]


def step_grid(interval: int, nfe: int) -> list[int]:
    """Return the nfe + 1 indices, rising from 0 to interval - 1, between which `nfe` evaluations step.

    Raises UserError unless 1 <= nfe <= interval - 1.

    >>> step_grid(1000, 2)
    [0, 500, 999]
    """
    if not 1 <= nfe <= interval - 1:
        raise UserError("nfe", nfe, f"a bridge of {interval} steps takes between 1 and {interval - 1} evaluations")
    return space_indices(interval, nfe + 1)


def sample(
    bridge: Bridge,
    net: Callable[..., Tensor],
    x1: Tensor,
    *,
    nfe: int,
    mask: Tensor | None = None,
    cond: Tensor | None = None,
    ot_ode: bool = False,
    clip_denoise: bool = False,
    sampler: str = "posterior",
    eta: float = 1.0,
    log_count: int | None = None,
    randn: Randn = torch.randn_like,
    refine: Refine | None = None,
    callback: Callable[[StepTaken], object] | None = None,
    gradients: bool = False,
) -> Trajectory:
    """Restore x1 [B, C, H, W] with `nfe` evaluations of net(xt, step [B], cond=cond).

    `sampler`, a name of i2sb.steps.SAMPLERS, and `eta` say how a step back is taken.
    Given a mask [B or 1, 1, H, W] (1 inside the hole), the known region is put back after every step.
    `log_count` asks for at most that many intermediate states, evenly spaced, index 0 always among them.
    `randn` is called once per draw, in the order the maths needs it: the step's noise, then the known region's.
    `refine` is applied to every predicted clean image, before the step back, and to the finished one.
    `callback` is called after every step. With `gradients` autograd follows the whole way (i2sb.distillation).

    Raises UserError if `nfe` does not fit the bridge, or for an unknown sampler.

    A network that knows the clean images leads back to them, nearly: index 0 is not quite clean.

    >>> bridge, (x0, x1) = Bridge(interval=1000), torch.rand(2, 4, 3, 16, 16)
    >>> net = lambda xt, step, cond=None: bridge.compute_label(step, x0, xt)
    >>> trajectory = sample(bridge, net, x1, nfe=10, log_count=5)
    >>> torch.allclose(trajectory.x0, x0, atol=0.01)
    True
    >>> trajectory.states.shape
    torch.Size([4, 5, 3, 16, 16])
    """
    step_back = make_step(sampler, bridge, x1, ot_ode=ot_ode, eta=eta, randn=randn)
    ot_ode = ot_ode or SAMPLERS[sampler].noise_free
    std_fwd = bridge.std_fwd if refine is None else bridge.std_fwd.cpu()  # once, not in every step

    def predict(n: int, xt: Tensor) -> Tensor:
        step = torch.full((len(x1),), n, dtype=torch.long, device=x1.device)
        return bridge.compute_pred_x0(step, xt, net(xt, step, cond=cond), clip_denoise=clip_denoise)

    def keep_known(nprev: int, xt: Tensor) -> Tensor:
        if mask is None:
            return xt
        known = x1 if ot_ode else x1 + bridge.std_sb[nprev] * randn(x1)
        return (1.0 - mask) * known + mask * xt

    with torch.set_grad_enabled(gradients):
        return walk_back(
            step_grid(bridge.interval, nfe),
            x1,
            predict,
            step_back,
            keep_known=keep_known,
            share=lambda nprev, n: 1 - float(std_fwd[nprev] / std_fwd[n]) ** 2,
            refine=refine,
            callback=callback,
            log_count=log_count,
        )


def walk_back(
    steps: Sequence[int],
    start: Tensor,
    predict: Callable[[int, Tensor], Tensor],
    step_back: Step,
    *,
    keep_known: Callable[[int, Tensor], Tensor],
    share: Callable[[int, int], float],
    refine: Refine | None = None,
    callback: Callable[[StepTaken], object] | None = None,
    log_count: int | None = None,
) -> Trajectory:
    """Go back over the indices `steps`, which rise from the clean end, from `start` [B, C, H, W] at the last of them.

    A step from n to nprev: predict(n, x_n) is the clean image; step_back(nprev, n, x_n, pred_x0) the state at nprev;
    keep_known(nprev, x_nprev) puts the known region of an inpainting image back. share(nprev, n) is what `refine` is
    told. Of states, `log_count` at most are kept, evenly spaced, the last always; none without it.
    """
    nfe = len(steps) - 1
    logged = set() if log_count is None else set(logged_steps(nfe, log_count))
    xt, states, pred_x0s = start, [], []
    for number, (n, nprev) in enumerate(pairwise(reversed(steps)), 1):
        pred_x0 = predict(n, xt)
        if refine is not None:
            pred_x0 = refine(pred_x0, share(nprev, n))
        xt = keep_known(nprev, step_back(nprev, n, xt, pred_x0))
        if refine is not None and number == nfe:
            xt = refine(xt, 0.0)
        if number in logged:
            states.append(xt)
            pred_x0s.append(pred_x0)
        if callback is not None:
            callback(StepTaken(number, nfe, n, nprev, xt, pred_x0))

    if not logged:
        return Trajectory(xt)
    return Trajectory(xt, torch.stack(states[::-1], dim=1), torch.stack(pred_x0s[::-1], dim=1))
