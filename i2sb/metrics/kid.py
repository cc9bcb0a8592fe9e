"""The kernel distance between two sets of features (KID, Bińkowski et al. 2018, where they are Inception's)."""

from typing import NamedTuple

import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000


class KernelDistance(NamedTuple):
    """Mean and standard deviation (over N) of the distance over `subsets` subsets of `subset_size` images."""

    mean: float
    spread: float
    subsets: int
    subset_size: int


def kernel_distance(
    features: Tensor, reference: Tensor, *, seed: int, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy of features [N, D] and [M, D], N and M of 2 or more.

    Kernel (xᵀy/D + 1)³ (Bińkowski et al. 2018), estimate of Gretton et al. 2012, eq. 3. Each subset takes `subset_size`
    (at most N, M) of both, drawn independently of each other and without replacement.
    """
    from torchmetrics.image.kid import poly_mmd

    features, reference = features.double(), reference.double()
    size = min(subset_size, len(features), len(reference))
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        one = features[torch.randperm(len(features), generator=generator)[:size]]
        other = reference[torch.randperm(len(reference), generator=generator)[:size]]
        distances.append(poly_mmd(other, one))
    values = torch.stack(distances)
    return KernelDistance(values.mean().item(), values.std(correction=0).item(), subsets, size)
