"""The optimizer and its learning rate, as published: AdamW and a step-wise decay."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR


def build_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> AdamW:
    """Return AdamW over `parameters`."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


def build_scheduler(optimizer: AdamW, *, gamma: float, step_size: int) -> StepLR | None:
    """Return what multiplies the learning rate by `gamma` every `step_size` iterations; None if it never changes."""
    return StepLR(optimizer, step_size=step_size, gamma=gamma) if gamma < 1.0 else None
