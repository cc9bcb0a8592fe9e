"""The kernel distance between two sets of features (KID, Bińkowski et al. 2018, where they are Inception's)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000
# Features of so many images at most are kept, so that memory does not grow with the data set.
POOL_SIZE = 10_000


class KernelDistance(NamedTuple):
    """Mean and standard deviation (over N) of the distance over subsets of `subset_size` images."""

    mean: float
    spread: float
    subset_size: int


def choose_pool(count: int, seed: int, size: int = POOL_SIZE) -> Tensor:
    """Return which of `count` images the subsets are drawn from, ascending: all, or `size` of them drawn by seed."""
    if count <= size:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def kernel_distance(
    features: Tensor, reference: Tensor, *, seed: int, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy of features [N, D] and [M, D], N and M of 2 or more.

    Kernel (xᵀy/D + 1)³. Each subset takes `subset_size` (at most N, M) of both, drawn apart and without replacement.
    """
    from torchmetrics.image.kid import poly_mmd

    features, reference = features.double(), reference.double()
    size = min(subset_size, len(features), len(reference))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        one = features[torch.randperm(len(features), generator=generator)[:size]]
        other = reference[torch.randperm(len(reference), generator=generator)[:size]]
        values.append(poly_mmd(other, one))
    values = torch.stack(values)
    return KernelDistance(values.mean().item(), values.std(correction=0).item(), size)
