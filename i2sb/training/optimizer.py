"""The optimizer and its learning rate, as published: AdamW and a step-wise decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR


def build_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> AdamW:
    """Return AdamW over `parameters`, fused: it changes nothing in a step where its `found_inf` is 1 (`guard_step`)."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def guard_step(optimizer: AdamW, grad_clip: float) -> tuple[Tensor, Tensor]:
    """Clip the gradients to the norm `grad_clip` (0: not at all); if they are not finite the next step does nothing.

    Returns the norm before clipping and whether it is infinite or NaN, on the gradients' device: nothing here waits
    for a GPU. Processes that share their gradients agree.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
    bad = ~norm.isfinite()
    optimizer.found_inf = bad.float()  # as torch's own gradient scaler tells a fused optimizer
    return norm, bad


def build_scheduler(optimizer: AdamW, *, gamma: float, step_size: int) -> StepLR | None:
    """Return what multiplies the learning rate by `gamma` every `step_size` iterations; None if it never changes."""
    return StepLR(optimizer, step_size=step_size, gamma=gamma) if gamma < 1.0 else None


@contextmanager
def scaled_rate(optimizer: AdamW, factor: float) -> Iterator[float]:
    """Take the optimizer's step within at `factor` times its learning rate, which is handed out."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = factor * rate
    try:
        yield factor * rates[0]
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
