"""How much memory a training run is going to take, told before it does: a CPU's processes are killed without a word.

And how much it took, told after.
"""

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode  # the documented way to fake tensors is in this private package

from i2sb.batch import Batch
from i2sb.distillation import Judges, Student
from i2sb.network import BridgeNetwork, build_network
from i2sb.tasks import build_formulation

if TYPE_CHECKING:
    from i2sb.training.trainer import Trainer

GB = 1e9
# Of activations, for `microbatch` auto on a CPU, however much is free: the same command computes the same sums.
CPU_BUDGET = 1.0 * GB
PROGRAM = 0.8 * GB  # what torch and its libraries take on a CPU before anything is trained


def estimate_memory(trainer: "Trainer") -> float:
    """Return the bytes that weights, gradients, optimizers, average, activations and the program itself take."""
    program = PROGRAM if trainer.world.device.type == "cpu" else 0
    learning = sum(4 * _size(learner.network) for learner in trainer.learners) + _size(trainer.network)
    constant = sum(_size(model) for model in (trainer.teacher, trainer.mean and trainer.mean.network) if model)
    return program + learning + constant + measure_activations(trainer, trainer.microbatch)


def _size(network: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def measure_activations(trainer: "Trainer", microbatch: int) -> float:
    """Return the bytes that autograd keeps in a forward pass; with tensors that have shapes and no contents."""
    config, device = trainer.config, trainer.world.device

    def build(*, sees_noise: bool = False) -> BridgeNetwork:
        network = build_network(
            config.network,
            formulation.noise_levels,
            image_channels=config.image_channels,
            cond_x1=formulation.cond_x1,
            sees_noise=sees_noise,
        )
        network.autocast_dtype = trainer.network.autocast_dtype
        if config.grad_checkpoint:
            network.checkpoint_gradients()
        return network

    # Not on the meta device, where attention would keep whole matrices that the kernels of this device do not.
    with FakeTensorMode(), device:
        formulation = build_formulation(config).to(device)
        network = build(sees_noise=formulation.sees_noise)
        networks = [network]
        if isinstance(formulation, Student):
            networks += [build().requires_grad_(False) for _ in Judges._fields]
            formulation.judges = Judges(*networks[1:])
        x = torch.zeros(microbatch, config.image_channels, config.image_size, config.image_size)
        batch = Batch(x0=x, x1=x, mask=None, cond=x if formulation.cond_x1 else None, shown=x)
        step = torch.zeros(microbatch, dtype=torch.int64)
        kept: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t):
            formulation.loss(network, step, batch, torch.zeros_like)
        parameters = {id(p) for network in networks for p in network.parameters()}
        return sum(t.numel() * t.element_size() for t in kept.values() if id(t) not in parameters)


def advise_memory(needed: float, free: float | None) -> str:
    """Return a warning if a run needs more bytes than are free, with what would lower it; "" if not."""
    if free is None or needed < free:
        return ""
    return (
        f"this run needs about {needed / GB:.1f} GB of memory, and {free / GB:.1f} GB are free; lower `microbatch` or "
        "`image_size`, give `grad_checkpoint`, or choose a smaller `network`"
    )


def find_free_memory(device: torch.device) -> float | None:
    """Return the bytes that a process can still take on a device; None where this system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:  # of a container or a cluster's job
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    return float(free)


def find_peak_memory() -> int:
    """Return the most bytes of main memory that this process has held so far, pages shared with others included.

    Linux counts the program that started it, too, if that one was larger.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
