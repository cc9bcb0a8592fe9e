"""Batches of images, decoded ahead by other processes."""

from __future__ import annotations

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

from i2sb.data.dataset import ImageDataset, Unreadable, UnreadableImageError
from i2sb.data.order import TrainingPositions, TrainingStream
from i2sb.stopping import StopRequest


class Images(NamedTuple):
    """A batch as it leaves the loader: 8-bit, on the CPU.

    image: uint8 [B, C, H, W]; degraded: the same or None; label: int64 [B]; numbers: what each image is counted by (its
    place in the training run, or its index in the split), the source of its randomness; skipped: a message for each
    unreadable image that another one stands for; enlarged: how many come from files smaller than the crop.
    """

    image: Tensor
    degraded: Tensor | None
    label: Tensor
    numbers: list[int]
    skipped: tuple[str, ...] = ()
    enlarged: int = 0


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

    crops_per_image: as `TrainingStream` has it.
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
        _kill_loader_processes_at_exit()
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        # Not the forkserver of newer Pythons, which does not outlive such signals.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise UnreadableImageError(batch.message)
        yield batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Let a loader process live through what a cluster sends to all: the main process ends it when it is done."""
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_loader_processes_at_exit() -> None:
    """Have those killed that are left when the program ends, for Python would ask them by SIGTERM, and wait."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)


def _collate(items: list[Any]) -> Images | Unreadable:
    for item in items:
        if isinstance(item, Unreadable):
            return item
    images, partners, labels, numbers, skipped, enlarged = zip(*items, strict=True)
    degraded = None if partners[0] is None else torch.stack(partners)
    messages = tuple(message for several in skipped for message in several)
    return Images(torch.stack(images), degraded, torch.tensor(labels), list(numbers), messages, sum(enlarged))
