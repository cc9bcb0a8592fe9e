"""Averaged weights: an exponential moving average of all parameters, with warm-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ExponentialMovingAverage:
    """A float32 shadow of `parameters`, in their order.

    At update k = 1, 2, … the shadow keeps min(decay, (1 + k) / (10 + k)) of itself. The state dict is laid out as in
    the released checkpoints: decay, num_updates, shadow_params (a list in parameter order), collected_params (None).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.num_updates = 0
        self.shadow_params = [p.detach().clone().float() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the parameters as they stand."""
        self.num_updates += 1
        keep = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        # One call for all tensors, a kernel for many; torch's own averages (torch.optim.swa_utils) use it as well.
        torch._foreach_lerp_(self.shadow_params, [p.detach().float() for p in self.parameters], 1.0 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights in the parameters' place for the length of a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, shadow in zip(self.parameters, self.shadow_params, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {
            "decay": self.decay,
            "num_updates": self.num_updates,
            "shadow_params": self.shadow_params,
            "collected_params": None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved average. The decay stays the one given now. Raises ValueError if it does not match."""
        saved = state["shadow_params"]
        if [s.shape for s in saved] != [s.shape for s in self.shadow_params]:
            raise ValueError("the averaged weights (ema) are not those of this network")
        for shadow, value in zip(self.shadow_params, saved, strict=True):
            shadow.copy_(value)
        self.num_updates = state["num_updates"]
