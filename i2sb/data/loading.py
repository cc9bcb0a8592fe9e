"""Batches of images, which worker processes decode ahead of time."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from i2sb.data.dataset import ImageDataset, Item, Unreadable
from i2sb.data.order import TrainingPositions, TrainingStream
from i2sb.image_files import Form
from i2sb.images import as_signal
from i2sb.stopping import StopRequest


class Images(NamedTuple):
    """A batch as it leaves the loader, on the CPU.

    image: [B, C, H, W], uint8 where all are plain (i2sb.images), else float32 in [-1, 1]. degraded: the same, or None.
    label: int64 [B]. numbers: the number from which each image gets its randomness: its position in the training run,
    or its index in the split. skipped: a message for each unreadable image that was replaced. enlarged: how many images
    come from files smaller than the crop. forms: how each, of pairs the clean one, was stored.
    """

    image: Tensor
    degraded: Tensor | None
    label: Tensor
    numbers: list[int]
    skipped: tuple[str, ...] = ()
    enlarged: int = 0
    forms: Sequence[Form] = ()


def load_training(
    dataset: ImageDataset,
    *,
    seed: int,
    positions: TrainingPositions,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    crops_per_image: int = 1,
) -> Iterator[Images]:
    """Yield microbatches for ever; each of the `workers` prepares `prefetch` of them ahead.

    crops_per_image: as in `TrainingStream`.
    Raises UnreadableImageError if many files in a row cannot be decoded; a few are replaced (`Images.skipped`).
    """
    stream = TrainingStream(dataset, seed, batch_size=positions.batch_size, crops_per_image=crops_per_image)
    return _load(stream, positions, workers, pin_memory, prefetch)


def load_in_order(
    dataset: ImageDataset, indices: Sequence[int], *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Images]:
    """Yield the images at `indices` in batches. Raises UnreadableImageError at a file that cannot be decoded."""
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return _load(dataset, batches, min(workers, len(batches)), pin_memory)


def _load(dataset: Dataset, batches: Any, workers: int, pin_memory: bool, prefetch: int = 2) -> Iterator[Images]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    if workers:
        _kill_workers_at_exit()
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
        # Newer Pythons would start a fork server, which a stop signal would kill.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise batch.error
        yield batch


def _ignore_stop_signals(worker: int) -> None:
    """Let a worker survive a signal that a cluster sends to all processes: the main one ends it when it is done."""
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    """Kill the workers that are left when the program ends: Python would send SIGTERM, which they ignore, and wait."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch's handler would report their end as a failure
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)


def _collate(items: list[Item | Unreadable]) -> Images | Unreadable:
    """Make a batch of its images, or hand on the first that cannot be decoded."""
    readable: list[Item] = []
    for item in items:
        if isinstance(item, Unreadable):
            return item
        readable.append(item)
    partners = [item.degraded for item in readable if item.degraded is not None]
    return Images(
        _stack([item.image for item in readable]),
        _stack(partners) if partners else None,
        torch.tensor([item.label for item in readable]),
        [item.number for item in readable],
        tuple(message for item in readable for message in item.skipped),
        sum(item.enlarged for item in readable),
        [item.form for item in readable],
    )


def _stack(images: list[Tensor]) -> Tensor:
    """Make a batch of images, [B, C, H, W]: of plain ones alone uint8, else all in [-1, 1]."""
    mixed = any(image.is_floating_point() for image in images)
    return torch.stack([as_signal(image) for image in images] if mixed else images)
