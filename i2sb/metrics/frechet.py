"""The Fréchet distance between two sets of features, from moments summed up batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution: mean [D] and covariance [D, D], float64, on the CPU."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The covariance's square root Σ^½, [D, D], computed once."""
        # Σ = V diag(s) Vᵀ, so Σ^½ = V diag(√s) Vᵀ; what is below rounding error is zero.
        values, vectors = torch.linalg.eigh(self.covariance)
        values = torch.where(values > values[-1] * len(values) * torch.finfo(values.dtype).eps, values, 0.0)
        return (vectors * values.sqrt()) @ vectors.T


class Moments:
    """Running sums of features in float64: their memory does not grow with the number of images."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None
        self.outer: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in features [B, D], B of 1 or more; they and the sums stay on their device."""
        features = features.double()
        if self.sum is None or self.outer is None:
            dim = features.shape[1]
            self.sum = features.new_zeros(dim)
            self.outer = features.new_zeros(dim, dim)
        self.count += len(features)
        self.sum += features.sum(dim=0)
        self.outer.addmm_(features.T, features)

    def gaussian(self, reduce: Callable[[Tensor], Tensor] = lambda value: value) -> Gaussian:
        """Return mean and unbiased covariance of all features; `reduce` adds up a tensor over all processes.

        Every process must have added some features, and all together two or more (else ValueError).
        """
        assert self.sum is not None and self.outer is not None
        count = int(reduce(torch.tensor([self.count], device=self.sum.device)))
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {count}")
        mean = reduce(self.sum) / count
        covariance = (reduce(self.outer) - count * torch.outer(mean, mean)) / (count - 1)
        return Gaussian(mean.cpu(), ((covariance + covariance.T) / 2).cpu())


def frechet_distance(one: Gaussian, reference: Gaussian) -> float:
    """Return |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Dowson and Landau 1982); of Inception features, it is the FID.

    The eigenvalues of Σ₁ Σ₂ are those of the symmetric Σ₂^½ Σ₁ Σ₂^½, so nothing is complex, and singular covariances
    need no offset.
    """
    # Heusel et al. 2017, eq. 6
    product = torch.linalg.eigvalsh(reference.root @ one.covariance @ reference.root)
    traces = one.covariance.trace() + reference.covariance.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return ((one.mean - reference.mean).square().sum() + traces).item()
