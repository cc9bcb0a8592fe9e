"""The way back over the bridge: from the degraded image at index N - 1 to the restored one at index 0.

The network and the source of noise are handed in; this module opens no file and knows no device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from i2sb.bridge import Bridge, Randn, space_indices
from i2sb.steps import make_step


@dataclass(frozen=True)
class Trajectory:
    """What a reverse pass returns.

    x0: the state at index 0, [B, C, H, W] (the last step's mean, not clamped).
    states, pred_x0s: the logged states and the clean images predicted on the way to each, [B, L, C, H, W], cleanest
    first; None unless logging was asked for.
    """

    x0: Tensor
    states: Tensor | None = None
    pred_x0s: Tensor | None = None


def step_grid(interval: int, nfe: int) -> list[int]:
    """Return the nfe + 1 indices, rising from 0 to interval - 1, between which `nfe` evaluations step.

    Raises ValueError unless 1 <= nfe <= interval - 1.
    """
    if not 1 <= nfe <= interval - 1:
        raise ValueError(f"--nfe {nfe}: a bridge of {interval} steps takes between 1 and {interval - 1} evaluations")
    return space_indices(interval, nfe + 1)


@torch.no_grad()
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
) -> Trajectory:
    """Restore x1 [B, C, H, W] with `nfe` evaluations of net(xt, step [B], cond=cond).

    `sampler` ("posterior", "eta", "second_order") and `eta` say how a step back is taken (i2sb.steps).
    Given a mask [B or 1, 1, H, W] (1 inside the hole), the known region is put back after every step.
    `log_count` asks for at most that many intermediate states, evenly spaced, index 0 always among them.
    `randn` is called once per draw, in the order the maths needs it: the step's noise, then the known region's.

    Raises ValueError if `nfe` does not fit the bridge, or for an unknown sampler.
    """
    steps = step_grid(bridge.interval, nfe)
    step_back = make_step(sampler, bridge, x1, ot_ode=ot_ode, eta=eta, randn=randn)
    logged = set()
    if log_count is not None:
        logged = {steps[i] for i in space_indices(nfe, min(nfe, log_count))}

    xt, states, pred_x0s = x1, [], []
    for n, nprev in pairwise(reversed(steps)):
        step = torch.full((len(x1),), n, dtype=torch.long, device=x1.device)
        pred_x0 = bridge.compute_pred_x0(step, xt, net(xt, step, cond=cond), clip_denoise=clip_denoise)
        xt = step_back(nprev, n, xt, pred_x0)
        if mask is not None:
            known = x1 if ot_ode else x1 + bridge.std_sb[nprev] * randn(x1)
            xt = (1.0 - mask) * known + mask * xt
        if nprev in logged:
            states.append(xt)
            pred_x0s.append(pred_x0)

    if not logged:
        return Trajectory(xt)
    return Trajectory(xt, torch.stack(states[::-1], dim=1), torch.stack(pred_x0s[::-1], dim=1))
