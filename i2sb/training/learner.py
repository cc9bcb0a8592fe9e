"""A network that learns, with what moves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from i2sb.config import TrainConfig
from i2sb.errors import FileError
from i2sb.network import BridgeNetwork
from i2sb.tensor_files import load_weights
from i2sb.training.optimizer import build_optimizer, build_scheduler


class Learner:
    """A network with its optimizer and learning rate.

    net: what forward passes go through when it learns: the network, or what shares its gradients with other processes.
    """

    def __init__(self, network: BridgeNetwork, config: TrainConfig) -> None:
        self.network = network
        self.net: nn.Module = network
        self.optimizer = build_optimizer(network.parameters(), lr=config.lr, weight_decay=config.l2_norm)
        self.scheduler = build_scheduler(self.optimizer, gamma=config.lr_gamma, iterations=config.lr_step)

    def state_dict(self) -> dict[str, Any]:
        """Return its part of a checkpoint."""
        return {
            "net": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sched": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Take over what `state_dict` gave, read from the file `source`. Raises UserError if it does not fit."""
        load_weights(self.network, state["net"], source)
        load_part("optimizer", self.optimizer, state, source)
        if self.scheduler is not None:
            load_part("sched", self.scheduler, state, source)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Let gradients reach the weights for the length of a `with` block, if they are as constants otherwise."""
        before = all(p.requires_grad for p in self.network.parameters())
        self.network.requires_grad_(True)
        try:
            yield
        finally:
            self.network.requires_grad_(before)


def load_part(name: str, part: Any, state: dict[str, Any], source: Path) -> None:
    """Let a `part` of the training take over its state, read from the file `source`. Raises UserError if it cannot."""
    try:
        part.load_state_dict(state[name])
    except torch.cuda.OutOfMemoryError:  # a RuntimeError
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FileError(source, f"its {name} does not fit this run ({reason})") from error
