"""The optimizer and its learning rate, as published: AdamW and a step-wise decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR


def build_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> AdamW:
    """Return AdamW over `parameters`, fused, so that `guard_update` can stop it."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def guard_update(optimizer: AdamW, grad_clip: float) -> tuple[Tensor, Tensor]:
    """Clip the gradients to the norm `grad_clip` (0: not at all); if they are not finite the next update does nothing.

    Returns the norm before clipping and whether it is infinite or NaN, on the gradients' device: nothing here waits
    for a GPU. Processes that share their gradients agree.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
    bad = ~norm.isfinite()
    # How torch's own gradient scaler tells a fused optimizer to change nothing; it has no public name.
    vars(optimizer)["found_inf"] = bad.float()
    return norm, bad


def build_scheduler(optimizer: AdamW, *, gamma: float, iterations: int) -> StepLR | None:
    """Return what multiplies the learning rate by `gamma` after so many iterations each; None if it never changes."""
    return StepLR(optimizer, step_size=iterations, gamma=gamma) if gamma < 1.0 else None


@contextmanager
def scaled_rate(optimizer: AdamW, factor: float) -> Iterator[float]:
    """For the length of a `with` block, scale the learning rate by `factor`; hands out the scaled rate."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = factor * rate
    try:
        yield factor * rates[0]
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
