"""Several answers to one degraded image: their mean, how far they lie apart, and that as one number.

A degraded image may come from many clean ones, and a restoration that draws noise is one of them. Answer k of an image
is what its k-th stream of noise leads to (i2sb.randomness.ImageNoise); the degraded image is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """What K answers to each of B degraded images come to.

    first: answer 0, which `restore` gives without `samples`. mean: of all answers, the estimate of least squared error.
    std: their standard deviation (divisor K - 1). All [B, C, H, W], in units of [-1, 1] and not clamped.
    diversity: the mean of std over channels and pixels (over those of the hole, if there is one), [B].
    """

    first: Tensor
    mean: Tensor
    std: Tensor
    diversity: Tensor


class RunningMoments:
    """Mean and standard deviation of tensors that come one at a time, of which none is kept (Welford 1962).

    >>> moments = RunningMoments()
    >>> for x in (1.0, 2.0, 6.0):
    ...     moments.add(torch.tensor([x]))
    >>> moments.mean, moments.std
    (tensor([3.]), tensor([2.6458]))
    """

    mean: Tensor
    _squares: Tensor

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Take in a tensor, of the same shape as those before."""
        if self.count == 0:
            self.mean, self._squares = torch.zeros_like(x), torch.zeros_like(x)
        self.count += 1
        change = x - self.mean
        self.mean += change / self.count
        self._squares += change * (x - self.mean)

    @property
    def std(self) -> Tensor:
        """The standard deviation, with divisor count - 1."""
        assert self.count > 1, "one tensor has no standard deviation"
        return (self._squares / (self.count - 1)).sqrt()


def measure_diversity(std: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the mean of std [B, C, H, W] over channels and pixels, float64 [B].

    Only pixels count where region [B, 1, H, W] is 1; an image that has none there has no diversity, 0.
    """
    weights = torch.ones_like(std) if region is None else region.to(std).expand_as(std)
    return (std.double() * weights).sum((1, 2, 3)) / weights.double().sum((1, 2, 3)).clamp(min=1)
