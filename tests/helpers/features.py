"""Features that the tests of distances share."""

from __future__ import annotations

import torch


def draw(count: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Features whose dimensions depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + shift
