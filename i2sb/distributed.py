"""Where this process stands among others: one process, or one of many that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """rank and world_size as torchrun counts them; the device this process computes on."""

    rank: int
    world_size: int
    device: torch.device
    # Carries flags between the processes' CPUs, so that GPUs need not be waited for; None: the only group does.
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all processes."""
        return self.sum(value) / self.world_size

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has it set; all must ask at the same place."""
        if self.world_size == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return values.bool().tolist()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def find_device(device: str = "auto") -> torch.device:
    """Return the device that --device names: "cpu", "cuda", or "auto", the GPU if there is one.

    Under torchrun each process of a machine has a GPU of its own. Raises ValueError if there are not so many.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise ValueError("--device cuda: torch finds no GPU here; use --device cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local_rank >= gpus:
        raise ValueError(f"torchrun --nproc-per-node: more processes were started than the {gpus} GPUs here")
    return torch.device("cuda", local_rank) if gpus else torch.device("cpu")


def join_world(device: str = "auto") -> World:
    """Find the device and, under torchrun, join the other processes (NCCL on GPUs, gloo on CPUs).

    Raises ValueError like `find_device`.
    """
    place = find_device(device)
    on_gpu = place.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(place)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=place if on_gpu else None)
    control = dist.new_group(backend="gloo") if world_size > 1 and on_gpu else None
    return World(rank, world_size, place, control)


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
