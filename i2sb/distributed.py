"""The processes that share the work: this one alone, or one of several that torchrun started."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from i2sb.errors import UserError

# How long a process waits for the others, which may have a larger share of the images left or a network to compile.
# Waiting is left to the CPUs' process group: NCCL gives up after ten minutes, for the whole job.
PATIENCE = timedelta(hours=2)

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """rank and world_size as torchrun counts them; the device this process computes on."""

    rank: int
    world_size: int
    device: torch.device
    # A process group between CPUs, for all but gradients; None: the default group, which is of CPUs.
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes, for as long as PATIENCE; it is on the device it was on."""
        if self.world_size == 1:
            return value
        total = value.to("cpu", copy=True)
        dist.all_reduce(total, group=self.control)
        return total.to(value.device)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has it set. All processes must call this together."""
        if self.world_size == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return values.bool().tolist()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def try_together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns here, if it raises nowhere.

        Where it raises, the error goes on; the processes without one end with status 1 and no word of their own: a
        process that went on alone would wait for the others, and a message for each says no more than one.
        """
        error = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        (failed,) = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            sys.exit(1)
        return result

    def barrier(self) -> None:
        """Wait for all processes, for as long as PATIENCE."""
        if self.world_size > 1:
            dist.barrier(group=self.control)


def find_device(device: str = "auto") -> torch.device:
    """Return the device that the setting names: "cpu", "cuda", or "auto", the GPU if there is one.

    Under torchrun each process of a machine has a GPU of its own; some launchers show each process that one alone.
    Raises UserError if there are too few.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise UserError("device", device, "torch finds no GPU here; use `device` cpu")
    local_rank = _read_number("LOCAL_RANK", 0) if gpus != 1 else 0
    if gpus and local_rank >= gpus:
        raise UserError("", None, f"torchrun --nproc-per-node: more processes were started than the {gpus} GPUs here")
    return torch.device("cuda", local_rank) if gpus else torch.device("cpu")


def check_architecture(capability: tuple[int, int], built_for: list[str]) -> None:
    """Raise UserError if a GPU of this compute capability is older than all that torch was built for ("sm_80", …)."""
    known = [int(name.removeprefix("sm_").rstrip("af")) for name in built_for if name.startswith("sm_")]
    if known and 10 * capability[0] + capability[1] < min(known):
        raise UserError(
            "device",
            "cuda",
            f"this GPU is of sm_{capability[0]}{capability[1]}, this torch was built for sm_{min(known)} and later; "
            "install one built for older GPUs (for a V100: from pytorch.org's index for CUDA 12.6)",
        )


def read_place() -> tuple[int, int]:
    """Return the rank and the number of processes that a launcher told this one; (0, 1) if none did.

    Raises UserError for what no launcher tells, such as one of its variables that was left over in a shell: a process
    would do a share of the work for others that are not there.
    """
    needed = ("RANK", "WORLD_SIZE")
    missing = [name for name in needed if name not in os.environ]
    if missing == list(needed):
        return 0, 1
    rank, world_size = _read_number("RANK", -1), _read_number("WORLD_SIZE", 0)
    if world_size > 1:
        missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not 0 <= rank < world_size:
        told = " and ".join(f"{name} {os.environ[name]}" for name in needed if name in os.environ)
        raise UserError("", None, _leftover(f"{told}{' without ' * bool(missing)}{', '.join(missing)}"))
    return rank, world_size


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError("", None, _leftover(f"{name} {text}")) from None


def _leftover(found: str) -> str:
    return f"the environment holds {found}, which no launcher sets so: unset it, or start with torchrun"


def join_world(device: str = "auto") -> World:
    """Find the device and, under torchrun, join the other processes (NCCL on GPUs, gloo on CPUs).

    Raises UserError like `find_device` and `read_place`.
    """
    rank, world_size = read_place()
    own_device = find_device(device)
    on_gpu = own_device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(own_device)
        check_architecture(torch.cuda.get_device_capability(own_device), torch.cuda.get_arch_list())
    if world_size > 1 and not dist.is_initialized():
        if not dist.is_torchelastic_launched():  # nobody has seen to it that the others are started
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            told = f"RANK {rank} and WORLD_SIZE {world_size} in the environment"
            print(f"waiting at {where} until {world_size} processes have started this ({told})", file=sys.stderr)
        # Addresses that a dead process left in torchrun's store must not be taken for its successor's.
        store, _, _ = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(agree_on_start(store, rank, world_size), store)
        if on_gpu:
            refuse_shared_gpu(store, rank, world_size, str(torch.cuda.get_device_properties(own_device).uuid))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=None if on_gpu else PATIENCE,
            device_id=own_device if on_gpu else None,
        )
    control = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 and on_gpu else None
    return World(rank, world_size, own_device, control)


def agree_on_start(store: dist.Store, rank: int, world_size: int, *, patience: timedelta = PATIENCE) -> str:
    """Return a name that all processes of this start have and none of an earlier one had.

    There is no number to take for it: the launchers of several machines count their restarts apart, and a store may
    hold what processes wrote that are dead now. So each process asks under a name made just now, the main one answers
    whatever questions it finds with its own, and knows who is alive by who has thanked for that answer.
    Raises TimeoutError if a process has not come within `patience`.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"question of {rank}", own)
        store.wait([f"answer to {own}"], patience)
        start = store.get(f"answer to {own}").decode()
        store.set(f"thanks for {start} of {rank}", "")
        return start
    asking, deadline = set(range(1, world_size)), time.monotonic() + patience.total_seconds()
    while asking:
        for other in sorted(asking):
            if store.check([f"thanks for {own} of {other}"]):
                asking.remove(other)
            elif store.check([f"question of {other}"]):
                store.set(f"answer to {store.get(f'question of {other}').decode()}", own)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(asking)} have not come within {patience}")
        time.sleep(0.02)
    return own


def refuse_shared_gpu(store: dist.Store, rank: int, world_size: int, gpu: str) -> None:
    """Raise UserError if another process has the same `gpu`, by its unique name."""
    store.set(f"gpu of {rank}", gpu)
    gpus = [store.get(f"gpu of {other}").decode() for other in range(world_size)]
    sharing = [other for other in range(world_size) if gpus[other] == gpu]
    if len(sharing) > 1:
        raise UserError("", None, f"processes {sharing} were given the same GPU ({gpu}): start one process a GPU")


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
