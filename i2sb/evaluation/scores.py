"""Scores of degraded and restored images, taken in batch by batch: what is kept of an image is a few numbers.

Each meter sees its share of the images; `reduce`, which adds up tensors over all processes, then makes the shares one,
so that any number of processes comes to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i2sb.metrics.features import FeatureNetwork
from i2sb.metrics.frechet import Gaussian, Moments, frechet_distance
from i2sb.metrics.kid import KernelDistance, kernel_distance

COLUMNS = ("degraded", "restored")
CLEAN = "clean"
Reduce = Callable[[Tensor], Tensor]


class Scored(NamedTuple):
    """Images to score: uint8 [B, C, H, W] each, C of 1 or 3, on one device; numbers: their indices in the split."""

    degraded: Tensor
    restored: Tensor
    clean: Tensor
    numbers: list[int]


@dataclass(frozen=True)
class Result:
    """A metric's values and what they mean. details: what else belongs to them (spread, reference, weights)."""

    title: str
    degraded: float
    restored: float
    n: int
    definition: str
    unit: str = ""
    digits: int = 2
    higher_is_better: bool = True
    details: dict[str, Any] = field(default_factory=dict)


class PairMeter:
    """A number for each image, from it and its clean partner; images over `count` in all."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], count: int, *, colour: bool = False) -> None:
        self.compute, self.colour = compute, colour
        self._values = torch.zeros(len(COLUMNS), count, dtype=torch.float64)

    def add(self, scored: Scored) -> None:
        """Take in a batch."""
        for row, name in enumerate(COLUMNS):
            images, clean = (_as_colour(x) if self.colour else x for x in (getattr(scored, name), scored.clean))
            self._values[row, scored.numbers] = self.compute(images, clean).double().cpu()

    def reduce(self, reduce: Reduce) -> None:
        """Bring in what the other processes saw."""
        self._values = reduce(self._values)

    def values(self, column: str) -> Tensor:
        """Return the numbers of all images, float64 [count]."""
        return self._values[COLUMNS.index(column)]

    def mean(self, column: str) -> float:
        """Return the mean over images."""
        return self.values(column).mean().item()


class NetworkMeter:
    """What a network says of the images: moments of its features, features of a pool of images, top-1 classes.

    count: images in all. reference: the distribution to compare with; None to take the clean images. pool: indices of
    the images whose features are kept for the kernel distance, or None.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        count: int,
        *,
        reference: Gaussian | None = None,
        pool: Tensor | None = None,
        compare_with_clean: bool = True,
    ) -> None:
        self.network, self.reference = network, reference
        self.columns = (*COLUMNS, CLEAN) if compare_with_clean or reference is None or pool is not None else COLUMNS
        self._classes = torch.zeros(len(self.columns), count, dtype=torch.int64)
        self._moments = {name: Moments() for name in self.columns}
        self._gaussians: dict[str, Gaussian] = {}
        self._place = {} if pool is None else {number: place for place, number in enumerate(pool.tolist())}
        self._pool: dict[str, Tensor] = {}

    def add(self, scored: Scored) -> None:
        """Take in a batch."""
        for row, name in enumerate(self.columns):
            seen = self.network(_as_colour(getattr(scored, name)))
            if seen.scores is not None:
                self._classes[row, scored.numbers] = seen.scores.argmax(dim=1).cpu()
            if seen.features is not None:
                self._moments[name].add(seen.features)
                self._keep(name, seen.features.float().cpu(), scored.numbers)

    def _keep(self, name: str, features: Tensor, numbers: Sequence[int]) -> None:
        for feature, number in zip(features, numbers, strict=True):
            place = self._place.get(number)
            if place is not None:
                if name not in self._pool:
                    self._pool[name] = torch.zeros(len(self._place), len(feature))
                self._pool[name][place] = feature

    def reduce(self, reduce: Reduce) -> None:
        """Bring in what the other processes saw."""
        self._classes = reduce(self._classes)
        if self._moments[COLUMNS[0]].sum is not None and self._classes.shape[1] > 1:
            self._gaussians = {name: moments.gaussian(reduce) for name, moments in self._moments.items()}
            dim = len(self._gaussians[COLUMNS[0]].mean)
            for name in self.columns if self._place else ():
                self._pool[name] = reduce(self._pool.get(name, torch.zeros(len(self._place), dim)))

    @property
    def dim(self) -> int:
        """The number of features."""
        return len(self._gaussians[COLUMNS[0]].mean)

    def frechet(self, column: str) -> float:
        """Return the Fréchet distance of a column's features from the reference's."""
        return frechet_distance(self._gaussians[column], self.reference or self._gaussians[CLEAN])

    def kernel(self, column: str, seed: int) -> KernelDistance:
        """Return the kernel distance of a column's features from the clean images'."""
        return kernel_distance(self._pool[column], self._pool[CLEAN], seed=seed)

    def accuracy(self, column: str, labels: Tensor) -> float:
        """Return the share of images, in %, whose class of the highest score is their label, int64 [count]."""
        return 100 * (self.classes(column) == labels).double().mean().item()

    def agreement(self, column: str) -> float:
        """Return the share of images, in %, whose class of the highest score is that of their clean partner."""
        return self.accuracy(column, self.classes(CLEAN))

    def classes(self, column: str) -> Tensor:
        """Return the class of the highest score of all images, int64 [count]."""
        return self._classes[self.columns.index(column)]


def _as_colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)
