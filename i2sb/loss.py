"""The training objective: regress the network onto (x_t - x0) / σ_t at a random place on the bridge."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from i2sb.bridge import Bridge, Randn


def bridge_loss(
    bridge: Bridge,
    net: Callable[..., Tensor],
    step: Tensor,
    x0: Tensor,
    x1: Tensor,
    *,
    mask: Tensor | None = None,
    cond: Tensor | None = None,
    ot_ode: bool = False,
    randn: Randn = torch.randn_like,
) -> Tensor:
    """Return the mean squared error (a scalar) of net(xt, step, cond=cond) at `step` [B], drawn from {0 … N - 1}.

    x0, x1 are [B, C, H, W] in [-1, 1]. With a mask (1 inside the hole) only the hole counts, yet the mean is taken
    over all pixels, as published: the loss of a small hole is small.
    """
    xt = bridge.q_sample(step, x0, x1, ot_ode=ot_ode, randn=randn)
    return matching_error(bridge, net, step, x0, xt, mask=mask, cond=cond)


def matching_error(
    bridge: Bridge,
    net: Callable[..., Tensor],
    step: Tensor,
    x0: Tensor,
    xt: Tensor,
    *,
    mask: Tensor | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """Return `bridge_loss` at a state xt [B, C, H, W] that was drawn already."""
    # eq. 12
    label = bridge.compute_label(step, x0, xt)
    pred = net(xt, step, cond=cond)
    if mask is not None:
        pred, label = mask * pred, mask * label
    return F.mse_loss(pred, label)
