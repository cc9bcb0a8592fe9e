"""In which order the images of a training run come: resumable anywhere, and the same for any number of processes."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from i2sb.data.dataset import ImageDataset, Item, Unreadable, View
from i2sb.randomness import ImageNoise, Purpose, make_seed


class TrainingStream(Dataset):
    """The endless training set: the image at a position depends on nothing but the seed, the position and the settings.

    Images at their own scale are cropped anywhere, others in the middle. Each file that is decoded gives
    `crops_per_image` crops, one in each of as many consecutive global batches of `batch_size` images.
    An image that cannot be read is replaced by the next in the epoch's order that can.
    """

    ATTEMPTS = 20  # unreadable images in a row

    def __init__(self, dataset: ImageDataset, seed: int, *, batch_size: int = 1, crops_per_image: int = 1) -> None:
        self.dataset, self.seed = dataset, seed
        self.batch_size, self.crops_per_image = batch_size, crops_per_image
        self._ready: dict[int, Item | Unreadable] = {}  # crops that were cut ahead, by position

    def __getitem__(self, position: int) -> Item | Unreadable:
        if position not in self._ready:
            self._cut_ahead(position)
        return self._ready.pop(position)

    def _cut_ahead(self, position: int) -> None:
        """Make ready the image at a position, and the later crops of the same file."""
        batch, slot = divmod(position, self.batch_size)
        group = batch // self.crops_per_image  # number of the group of batches that crop the same files
        first = group * self.crops_per_image
        positions = [(first + i) * self.batch_size + slot for i in range(self.crops_per_image)]
        wanted = [(p, self._view(p)) for p in positions if p >= position]
        epoch, rank_in_epoch = divmod(group * self.batch_size + slot, len(self.dataset))
        order = _shuffle(len(self.dataset), self.seed, epoch)
        skipped: list[str] = []
        for attempt in range(self.ATTEMPTS):
            items = self.dataset.items(int(order[(rank_in_epoch + attempt) % len(order)]), wanted)
            if isinstance(items[0], Unreadable):
                skipped.append(str(items[0].error))
            else:
                items = [item._replace(skipped=tuple(skipped)) for item in items if isinstance(item, Item)]
                break
        # A loader process is asked for some of the positions only: those a batch ago will not be asked for any more.
        self._ready = {p: item for p, item in self._ready.items() if p > position - self.batch_size}
        self._ready.update((p, item) for (p, _), item in zip(wanted, items, strict=True))

    def _view(self, position: int) -> View:
        noise = ImageNoise(self.seed, Purpose.AUGMENT, [position])
        flip = bool(noise.randint(2))
        return View(flip, tuple(noise.rand(2)[0].tolist()) if self.dataset.native else None)


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, a permutation of {0 … count - 1}."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(make_seed(seed, Purpose.ORDER, epoch)))


class TrainingPositions(Sampler[list[int]]):
    """Deals out positions to one of several processes, a microbatch at a time, for ever, from the `first` position on.

    A global batch holds the same images whatever the number of processes; each has a slice of it, in microbatches.
    """

    def __init__(self, first: int, batch_size: int, microbatch: int, rank: int = 0, world_size: int = 1) -> None:
        self.first, self.batch_size, self.microbatch = first, batch_size, microbatch
        self.share = batch_size // world_size
        self.offset = rank * self.share

    def __iter__(self) -> Iterator[list[int]]:
        for batch_start in itertools.count(self.first + self.offset, self.batch_size):
            for start in range(batch_start, batch_start + self.share, self.microbatch):
                yield list(range(start, start + self.microbatch))
