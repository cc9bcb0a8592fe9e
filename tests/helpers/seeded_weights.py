"""Weights for the metrics' networks, of the right shapes and drawn from a seed."""

from __future__ import annotations

from pathlib import Path

import torch


def write_seeded(module: torch.nn.Module, path: Path, keep: str = "") -> dict[str, torch.Tensor]:
    """Give a module weights drawn from a seed, save those whose names begin with `keep`, and return them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    state = {name: value for name, value in module.state_dict().items() if name.startswith(keep)}
    torch.save(state, path)
    return state
