"""The processes that share the work: this one alone, or one of several that torchrun started."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from i2sb.errors import UserError


@dataclass(frozen=True)
class World:
    """rank and world_size as torchrun counts them; the device this process computes on."""

    rank: int
    world_size: int
    device: torch.device
    # A process group for flags, between CPUs, so that nobody waits for GPUs; None: the default group, which is of CPUs.
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has it set. All processes must call this together."""
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
    """Return the device that the setting names: "cpu", "cuda", or "auto", the GPU if there is one.

    Under torchrun each process of a machine has a GPU of its own. Raises UserError if there are too few.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise UserError("device", device, "torch finds no GPU here; use `device` cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local_rank >= gpus:
        raise UserError("", None, f"torchrun --nproc-per-node: more processes were started than the {gpus} GPUs here")
    return torch.device("cuda", local_rank) if gpus else torch.device("cpu")


def join_world(device: str = "auto") -> World:
    """Find the device and, under torchrun, join the other processes (NCCL on GPUs, gloo on CPUs).

    Raises UserError like `find_device`.
    """
    own_device = find_device(device)
    on_gpu = own_device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(own_device)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1 and not dist.is_initialized():
        # Addresses that a dead process left in torchrun's store must not be taken for its successor's.
        store, _, _ = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            device_id=own_device if on_gpu else None,
        )
    control = dist.new_group(backend="gloo") if world_size > 1 and on_gpu else None
    return World(rank, world_size, own_device, control)


def average_in_rank_order(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of DistributedDataParallel's over the processes: a communication hook for CPUs.

    Each number is added up in the order of the ranks. In gloo's own average the order depends on where in the bucket
    the number lies, and buckets are filled anew after the first iteration, also of a resumed run: its last digits would
    differ from those of a run that was never stopped.
    """
    share = bucket.buffer()
    parts = [torch.empty_like(share) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, share, group=group)
    total = parts[0]
    for part in parts[1:]:
        total += part
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(total / len(parts))
    return done


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
