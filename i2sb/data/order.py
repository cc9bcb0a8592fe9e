"""In which order the images of a training run come: resumable anywhere, and the same for any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from i2sb.data.dataset import ImageDataset, Item, Unreadable, View
from i2sb.randomness import ImageNoise, Purpose, make_seed


class TrainingStream(Dataset):
    """The endless training set: what stands at a position is a function of the seed, the position and the crops alone.

    Crops of images at their own scale lie anywhere, others in the centre. Of a file that was decoded,
    `crops_per_image` crops are used: the images of a global batch of `batch_size` stay for that many batches.
    Where an image cannot be read, the next in the epoch's order that can stands for it too.
    """

    ATTEMPTS = 20

    def __init__(self, dataset: ImageDataset, seed: int, *, batch_size: int = 1, crops_per_image: int = 1) -> None:
        self.dataset, self.seed = dataset, seed
        self.batch_size, self.crops_per_image = batch_size, crops_per_image
        self._ready: dict[int, Item | Unreadable] = {}  # crops cut ahead, by position

    def __getitem__(self, position: int) -> Item | Unreadable:
        if position not in self._ready:
            self._cut_ahead(position)
        return self._ready.pop(position)

    def _cut_ahead(self, position: int) -> None:
        """Make ready what stands at a position, and at those after it where the same file does."""
        batch, place = divmod(position, self.batch_size)
        turn = batch // self.crops_per_image
        first = turn * self.crops_per_image
        positions = [(first + i) * self.batch_size + place for i in range(self.crops_per_image)]
        wanted = [(p, self._view(p)) for p in positions if p >= position]
        epoch, place = divmod(turn * self.batch_size + place, len(self.dataset))
        order = _shuffle(len(self.dataset), self.seed, epoch)
        skipped: list[str] = []
        for attempt in range(self.ATTEMPTS):
            items = self.dataset.items(int(order[(place + attempt) % len(order)]), wanted)
            if isinstance(items[0], Item):
                items = [item._replace(skipped=tuple(skipped)) for item in items]
                break
            skipped.append(items[0].message)
        # Of several loader processes each meets only some of the positions: what was passed by is never asked for.
        self._ready = {p: item for p, item in self._ready.items() if p > position - self.batch_size}
        self._ready.update((p, item) for (p, _), item in zip(wanted, items, strict=True))

    def _view(self, position: int) -> View:
        noise = ImageNoise(self.seed, Purpose.AUGMENT, [position])
        flip = bool(noise.randint(2))
        return View(flip, tuple(noise.rand(2)[0].tolist()) if self.dataset.native else None)


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """Return the epoch's order, a permutation of {0 … count - 1}."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(make_seed(seed, Purpose.ORDER, epoch)))


class TrainingPositions(Sampler[list[int]]):
    """Deals positions to a rank, a microbatch at a time, for ever, from the `first` position on.

    Global batch i is the same images whatever the number of ranks; each rank has a slice of it, in microbatches.
    """

    def __init__(self, first: int, batch_size: int, microbatch: int, rank: int = 0, world_size: int = 1) -> None:
        self.first, self.batch_size, self.microbatch = first, batch_size, microbatch
        self.share = batch_size // world_size
        self.offset = rank * self.share

    def __iter__(self) -> Iterator[list[int]]:
        for batch_start in itertools.count(self.first + self.offset, self.batch_size):
            for start in range(batch_start, batch_start + self.share, self.microbatch):
                yield list(range(start, start + self.microbatch))
