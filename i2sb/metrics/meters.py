"""Meters take in images batch by batch, and keep a few numbers of each.

Every process has meters of its own, which see its share of the images; `reduce`, which adds up tensors over all
processes, then makes the shares one, so that any number of processes comes to the same result.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from i2sb.metrics.feature_networks import FeatureNetwork, as_colour
from i2sb.metrics.frechet import Gaussian, Moments, frechet_distance
from i2sb.metrics.kid import KernelDistance, kernel_distance
from i2sb.metrics.neighbours import Overlap, find_overlap
from i2sb.metrics.reference import Reference
from i2sb.metrics.table import CLEAN, COLUMNS

Reduce = Callable[[Tensor], Tensor]

POOL_SIZE = 10_000  # images whose features are kept, at most: memory does not grow with the data set


class EvaluationBatch(NamedTuple):
    """Images to score: [B, C, H, W] each, on one device; numbers: their indices in the split.

    uint8 where they are of 8 bits, all of which are used; else float64, their range of values put to 0 to 255.
    """

    degraded: Tensor
    restored: Tensor
    clean: Tensor
    numbers: list[int]


class ImageMeter:
    """A number for each image, from `compare` of it and its clean partner.

    compare: of two such [B, C, H, W], returns [B]. count: images in all, over all processes.
    """

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor], count: int) -> None:
        self.compare = compare
        self._values = torch.zeros(len(COLUMNS), count, dtype=torch.float64)

    def add(self, batch: EvaluationBatch) -> None:
        """Take in a batch."""
        for row, column in enumerate(COLUMNS):
            values = self.compare(getattr(batch, column), batch.clean)
            if values.shape != (len(batch.numbers),):  # one number would be taken for every image's
                name = getattr(self.compare, "__name__", "compare")
                raise TypeError(f"{name}: returned {tuple(values.shape)} for {len(batch.numbers)} images, not one each")
            self._values[row, batch.numbers] = values.double().cpu()

    def reduce(self, reduce: Reduce) -> None:
        """Bring in what the other processes saw."""
        self._values = reduce(self._values)

    def values(self, column: str) -> Tensor:
        """Return the numbers of all images, float64 [count]."""
        return self._values[COLUMNS.index(column)]

    def mean(self, column: str) -> float:
        """Return the mean over images."""
        return self.values(column).mean().item()


def choose_pool(count: int, seed: int, size: int = POOL_SIZE) -> Tensor:
    """Return the indices of the images whose features are kept, ascending, int64 [min(count, size)].

    All `count`, or where they are more, `size` of them drawn by the seed.
    """
    if count <= size:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values


class NetworkMeter:
    """What a network says of the images: moments of its features, features of a pool of them, classes.

    count: images in all, over all processes. reference: statistics to compare with instead of the clean images.
    uses_clean: whether the network sees the clean images even so. pool: the indices of the images whose features are
    kept for the kernel distance and the overlap, int64 [pool_size], or None. seed: of the kernel distance's subsets.
    labels: the class of each image, int64 [count], for the accuracy.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        count: int,
        *,
        reference: Reference | None = None,
        uses_clean: bool = True,
        pool: Tensor | None = None,
        seed: int = 0,
        labels: Tensor | None = None,
    ) -> None:
        self.network, self.count, self.reference, self.seed, self.labels = network, count, reference, seed, labels
        self.columns = (*COLUMNS, CLEAN) if uses_clean or reference is None else COLUMNS
        self._classes = torch.zeros(len(self.columns), count, dtype=torch.int64)
        self._moments = {column: Moments() for column in self.columns}
        self._gaussians: dict[str, Gaussian] = {}
        self._pool_rows = {} if pool is None else {number: row for row, number in enumerate(pool.tolist())}
        self._pool: dict[str, Tensor] = {}
        self._overlaps: dict[str, Overlap] = {}

    def add(self, batch: EvaluationBatch) -> None:
        for row, column in enumerate(self.columns):
            output = self.network(as_colour(getattr(batch, column)))
            if output.scores is not None:
                self._classes[row, batch.numbers] = output.scores.argmax(dim=1).cpu()
            if output.features is not None:
                self._moments[column].add(output.features)
                self._keep(column, output.features.float().cpu(), batch.numbers)

    def _keep(self, column: str, features: Tensor, numbers: Sequence[int]) -> None:
        for feature, number in zip(features, numbers, strict=True):
            row = self._pool_rows.get(number)
            if row is not None:
                if column not in self._pool:
                    self._pool[column] = torch.zeros(self.pool_size, len(feature))
                self._pool[column][row] = feature

    def reduce(self, reduce: Reduce) -> None:
        self._classes = reduce(self._classes)
        if self._moments[COLUMNS[0]].sum is not None and self.count > 1:
            self._gaussians = {column: moments.gaussian(reduce) for column, moments in self._moments.items()}
            for column in self.columns if self._pool_rows else ():
                self._pool[column] = reduce(self._pool.get(column, torch.zeros(self.pool_size, self.dim)))

    @property
    def dim(self) -> int:
        """The number of features."""
        return len(self._gaussians[COLUMNS[0]].mean)

    @property
    def pool_size(self) -> int:
        """The number of images whose features are kept."""
        return len(self._pool_rows)

    def frechet(self, column: str) -> float:
        """Return the Fréchet distance of a column's features from the reference's."""
        reference = self.reference.gaussian if self.reference else self._gaussians[CLEAN]
        return frechet_distance(self._gaussians[column], reference)

    def kernel(self, column: str) -> KernelDistance:
        """Return the kernel distance of a column's features from the clean images'."""
        return kernel_distance(self._pool[column], self._pool[CLEAN], seed=self.seed)

    def overlap(self, column: str) -> Overlap:
        """Return how a column's features overlap with the clean images'; computed once, for the four metrics of it."""
        if column not in self._overlaps:
            self._overlaps[column] = find_overlap(self._pool[column], self._pool[CLEAN])
        return self._overlaps[column]

    def classes(self, column: str) -> Tensor:
        """Return the class of the highest score of all images, int64 [count]."""
        return self._classes[self.columns.index(column)]

    def accuracy(self, column: str) -> float:
        """Return the share of images, in %, whose class of the highest score is their label."""
        assert self.labels is not None, "give the meter the labels"
        return self._share(column, self.labels)

    def agreement(self, column: str) -> float:
        """Return the share of images, in %, whose class of the highest score is that of their clean partner."""
        return self._share(column, self.classes(CLEAN))

    def _share(self, column: str, labels: Tensor) -> float:
        return 100 * (self.classes(column) == labels).double().mean().item()
