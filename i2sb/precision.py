"""What numbers the network computes in, and what makes it faster or smaller without changing what it computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from i2sb.config import Precision
from i2sb.errors import UserError
from i2sb.network import BridgeNetwork

_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# A small product takes up to twice its time for reasons that say nothing (threads, noise). Processors without
# instructions for a type take thirty times as long as in float32, and more.
EMULATED = 4.0


def set_tf32(*, products: bool, convolutions: bool) -> None:
    """Say whether GPUs may round inputs of float32 matrix products and of convolutions to 10 bits of mantissa.

    The one place that sets torch's switches, which hold for the whole process. torch has two ways to set each, and
    raises RuntimeError when it finds them at odds: these two agree with each other, and with what degradations do.
    """
    torch.set_float32_matmul_precision("high" if products else "highest")
    torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def tf32(*, products: bool, convolutions: bool) -> Iterator[None]:
    """Set these switches as `set_tf32` does, and back when the context is left."""
    before = torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32
    set_tf32(products=products, convolutions=convolutions)
    try:
        yield
    finally:
        set_tf32(products=before[0], convolutions=before[1])


def prepare(
    network: BridgeNetwork,
    precision: str,
    *,
    channels_last: bool = False,
    compile: bool = False,
    grad_checkpoint: bool = False,
) -> None:
    """Set a network, on its device already, to compute in `precision`; parameters keep their names, and stay in float32
    if they are to be trained.

    precision: "fp32" and, on GPUs, "tf32" (10 bits of mantissa in matrix products and convolutions), "bf16" or "fp16"
    (autocast). The first two set torch's switches for the whole process. channels_last: keep images and kernels with
    their channels innermost. compile: compile the network at its first call. grad_checkpoint: keep fewer activations
    for the backward pass. Raises UserError for tf32 without a GPU, and for a network that cannot keep fewer.
    """
    device = network.noise_levels.device
    if precision == "tf32" and device.type != "cuda":
        raise UserError("precision", precision, f"only GPUs compute so, and this is a {device.type}; use fp32 or bf16")
    set_tf32(products=precision == "tf32", convolutions=precision == "tf32")
    network.autocast_dtype = _AUTOCAST[precision]
    if network.autocast_dtype is not None and not any(p.requires_grad for p in network.parameters()):
        network.cast_weights(network.autocast_dtype)  # once for all evaluations: nothing will change them
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if grad_checkpoint:
        network.checkpoint_gradients()
    if compile:
        network.compile()


def halve(network: BridgeNetwork, precision: str) -> None:
    """Turn a network that nobody trains to half precision for good: fp16 where all compute in it, else bf16."""
    network.autocast_dtype = _AUTOCAST["fp16" if precision == "fp16" else "bf16"]
    assert network.autocast_dtype is not None
    network.cast_weights(network.autocast_dtype)


def choose_precision(precision: Precision, capability: tuple[int, int] | None) -> Precision:
    """Return what "auto" stands for on a GPU of this compute capability, or on a CPU (None); others are as they are.

    Ampere (8.0) and later have bf16, which needs no scaling; Volta and Turing (7.x) have fp16.
    """
    if precision != "auto":
        return precision
    if capability is None or capability < (7, 0):
        return "fp32"
    return "bf16" if capability >= (8, 0) else "fp16"


def find_capability(device: torch.device) -> tuple[int, int] | None:
    """Return a GPU's compute capability; None of a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what keeps small gradients from vanishing in fp16; it does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def measure_slowdown(dtype: torch.dtype, *, side: int = 256, repeats: int = 5) -> float:
    """Return how many times as long as in float32 this processor takes for a matrix product in `dtype`.

    The best of some products of `side` each, with torch's present number of threads; a tenth of a second where they
    are slow. Draws no random numbers.
    """
    best = {}
    for kind in (torch.float32, dtype):
        matrix, times = torch.ones(side, side, dtype=kind), []
        for _ in range(1 + repeats):
            begun = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - begun)
        best[kind] = min(times[1:])  # the first call sets itself up
    return best[dtype] / best[torch.float32]


def advise_precision(precision: str, device: torch.device, setting: str = "") -> str:
    """Return a warning if this processor only emulates `precision`, with the factor measured, or is kept from its best.

    setting: what asked for it, if not `precision`. GPUs compute in all of them, and are not measured.
    """
    if precision == "fp32" and (better := choose_precision("auto", find_capability(device))) != "fp32":
        return f"`precision` fp32: this GPU computes many times as much in {better} (`precision` auto)"
    dtype = _AUTOCAST[precision]
    factor = measure_slowdown(dtype) if dtype is not None and device.type == "cpu" else 1.0
    if factor < EMULATED:
        return ""
    asked = f"`{setting}`" if setting else f"`precision` {precision}"
    return f"{asked}: this processor emulates it; a matrix product takes {factor:.0f} times as long as in fp32"
