"""Training and sampling: images a second, variant by variant, beside the released program's settings."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.released import MICROBATCH, use_released_settings
from benchmarks.timing import compare, matrix_peak, out_of_time, print_table
from corruption import build_corruption
from i2sb.bridge import Bridge
from i2sb.loss import bridge_loss
from i2sb.network import BridgeNetwork, build_network
from i2sb.options import write_flags
from i2sb.precision import advise_precision, prepare, tf32
from i2sb.sampler import sample
from i2sb.training.ema import ExponentialMovingAverage
from i2sb.training.optimizer import build_optimizer, guard_update


@dataclass(frozen=True)
class Variant:
    """A way to compute the same network. released: with the released settings, half convolutions in sampling."""

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    released: bool = False

    @property
    def name(self) -> str:
        if self.released:
            return "released"
        return "+".join([self.precision, *["channels-last"] * self.channels_last, *["compile"] * self.compile])

    @property
    def matrix_type(self) -> torch.dtype:
        """The type its matrix products take."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)

    def switches(self) -> AbstractContextManager[None]:
        """Return a context in which torch computes as this variant wants; it is one for the whole process."""
        return tf32(products=self.precision == "tf32", convolutions=self.released or self.precision == "tf32")


def choose_variants(options: argparse.Namespace, device: torch.device) -> list[Variant]:
    """Return what is measured on this device, the baseline first."""
    variants = [Variant(released=True), Variant(), Variant(channels_last=True), Variant("bf16")]
    if device.type == "cuda":
        variants[3:] = [
            Variant("tf32"),
            Variant("bf16"),
            Variant("bf16", channels_last=True),
            Variant("bf16", compile=True),
            Variant("bf16", channels_last=True, compile=True),
        ]
    elif options.compile:
        variants.append(Variant(compile=True))
    # Compiling a single network can take minutes.
    return [variant for variant in variants if not (options.quick and variant.compile)]


def find_reason_to_skip(variant: Variant, options: argparse.Namespace, device: torch.device) -> str:
    """Return why a variant is not measured, or nothing: time is over, or this processor only emulates its numbers."""
    return out_of_time(options.deadline) or write_flags(advise_precision(variant.precision, device))


def make_network(options: argparse.Namespace, device: torch.device) -> tuple[Bridge, BridgeNetwork]:
    """Return a bridge and, on the CPU, a network with random weights, none of them zero."""
    torch.manual_seed(0)
    bridge = Bridge()
    network = build_network(options.preset, bridge.noise_levels)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # ADM begins with zeros at the end of each block
                parameter.normal_(std=0.02)
    return bridge.to(device), network


def vary(network: BridgeNetwork, variant: Variant, device: torch.device) -> BridgeNetwork:
    """Return a copy of a network, on the device, that computes as the variant says inside its `switches`."""
    varied = deepcopy(network).to(device)
    if variant.released:
        use_released_settings(varied)
    else:
        prepare(varied, variant.precision, channels_last=variant.channels_last, compile=variant.compile)
    return varied


def count_flops(bridge: Bridge, network: BridgeNetwork, options: argparse.Namespace) -> int:
    """Return the floating-point operations (multiply and add are two) of one evaluation of one image."""
    device = bridge.betas.device
    image, step = _images(options, bridge, 1), torch.zeros(1, dtype=torch.long, device=device)
    varied = vary(network, Variant(), device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        varied(image, step)
    return counter.get_total_flops()


Work = Callable[[], object]


def compare_networks(
    makers: Sequence[Callable[[], dict[str, Work]]], options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, float], float | None]:
    """Return the median seconds of the calls that each makes around a network, and on a GPU the "variant"'s memory, GB.

    On a CPU, where other programs disturb, all are called in turn; on a GPU one network's after another's, each freed
    before the next is made, so that memory for one is enough.
    """
    spent, memory = {}, None
    for together in [makers] if device.type == "cpu" else [[make] for make in makers]:
        works = {name: work for make in together for name, work in make().items()}
        if "variant" in works:
            memory = _measure_memory(works["variant"], device)
        spent |= compare(works, options.repeats, device, options.deadline)
        del works
    return spent, memory


def benchmark_train(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Time an optimizer iteration over `options.batch` images: degradation, noise, network, update, average."""
    bridge, network = make_network(options, device)
    flops = 3 * count_flops(bridge, network, options)  # the backward pass takes twice the forward one
    images = _images(options, bridge, options.batch)
    rows = []
    for variant in choose_variants(options, device):
        if reason := find_reason_to_skip(variant, options, device):
            rows.append({"variant": variant.name, "skipped": reason})
            continue
        sizes = [MICROBATCH] if variant.released else [MICROBATCH * 2**i for i in range(10)]
        for microbatch in [size for size in sizes if size <= options.batch and options.batch % size == 0]:
            try:
                rows.append(_time_training(options, bridge, network, images, variant, microbatch))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
    return _report("train", rows, flops, options, device)


def _time_training(
    options: argparse.Namespace,
    bridge: Bridge,
    network: BridgeNetwork,
    images: Tensor,
    variant: Variant,
    microbatch: int,
) -> dict[str, object]:
    device = images.device
    corruption = build_corruption("sr4x-pool", options.size).to(device)

    def make(name: str, how: Variant, size: int) -> dict[str, Work]:
        varied = vary(network, how, device)
        optimizer = build_optimizer(varied.parameters(), lr=1e-5, weight_decay=0.0)
        average = ExponentialMovingAverage(varied.parameters(), 0.99)

        def iterate() -> None:
            with how.switches():
                optimizer.zero_grad(set_to_none=True)
                for part in images.split(size):
                    step = torch.randint(bridge.interval, (size,), device=device)
                    loss = bridge_loss(bridge, varied, step, part, corruption(part).image)
                    (loss if how.released else loss * size / len(images)).backward()
                guard_update(optimizer, 0.0)
                optimizer.step()
                average.update()
                if how.released:
                    loss.item()

        return {name: iterate}

    makers = [partial(make, "variant", variant, microbatch)]
    if not variant.released:
        makers.append(partial(make, "released", Variant(released=True), MICROBATCH))
    spent, memory = compare_networks(makers, options, device)
    errors = _numerics(options, bridge, network, variant)
    return _row(variant, microbatch, spent, len(images), memory) | errors


@torch.no_grad()
def benchmark_sample(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Time restoring `options.batch` images with `options.nfe` evaluations."""
    bridge, network = make_network(options, device)
    network.requires_grad_(False)  # as loaded models are, whose weights `prepare` casts once
    flops = options.nfe * count_flops(bridge, network, options)
    x1 = _images(options, bridge, options.batch)
    step = torch.full((len(x1),), bridge.interval - 1, dtype=torch.long, device=device)

    def make_released(name: str) -> dict[str, Work]:
        how = Variant(released=True)
        varied = vary(network, how, device)
        if device.type == "cuda":
            varied.half_convolutions()

        def restore() -> None:
            with how.switches():
                path = sample(bridge, varied, x1, nfe=options.nfe, log_count=10)
                path.states.cpu(), path.pred_x0s.cpu()  # the whole trajectory goes to the CPU

        return {name: restore}

    def make(how: Variant) -> dict[str, Work]:
        varied = vary(network, how, device)

        def restore() -> None:
            with how.switches():
                sample(bridge, varied, x1, nfe=options.nfe)

        def evaluate() -> None:
            with how.switches():
                varied(x1, step)

        return {"variant": restore, "network": evaluate}

    rows = []
    for variant in choose_variants(options, device):
        if reason := find_reason_to_skip(variant, options, device):
            rows.append({"variant": variant.name, "skipped": reason})
            continue
        makers = [partial(make_released, "variant")]
        if not variant.released:
            makers = [partial(make, variant), partial(make_released, "released")]
        spent, memory = compare_networks(makers, options, device)
        row = _row(variant, len(x1), spent, len(x1), memory)
        if not variant.released:
            row["overhead %"] = 100 * max(0.0, 1 - options.nfe * spent["network"] / spent["variant"])
        rows.append(row)
    return _report("sample", rows, flops, options, device)


def _numerics(
    options: argparse.Namespace, bridge: Bridge, network: BridgeNetwork, variant: Variant
) -> dict[str, float]:
    """Return how far a variant's output and gradient are from float32's, as norms relative to its."""
    device = bridge.betas.device

    def compute(how: Variant) -> tuple[Tensor, Tensor]:
        varied = vary(network, how, device)
        torch.manual_seed(1)
        x, step = _images(options, bridge, 2), torch.tensor([3, 700], device=device)
        with how.switches():
            out = varied(x, step)
            out.float().square().mean().backward()
        return out.detach().float(), torch.cat([p.grad.float().flatten() for p in varied.parameters()])

    (want, want_gradient), (out, gradient) = compute(Variant()), compute(variant)
    return {
        "output error": ((out - want).norm() / want.norm()).item(),
        "gradient error": ((gradient - want_gradient).norm() / want_gradient.norm()).item(),
    }


def _images(options: argparse.Namespace, bridge: Bridge, count: int) -> Tensor:
    return torch.rand(count, 3, options.size, options.size, device=bridge.betas.device) * 2 - 1


def _measure_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Do the work once; returns the most GB it had allocated on a GPU, None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / 1e9


def _row(
    variant: Variant, microbatch: int, spent: dict[str, float], images: int, memory: float | None
) -> dict[str, object]:
    return {
        "variant": variant.name,
        "microbatch": microbatch,
        "ms": 1000 * spent["variant"],
        "images/s": images / spent["variant"],
        "times released": spent.get("released", spent["variant"]) / spent["variant"],
        "memory GB": memory,
        "matrix_type": variant.matrix_type,
    }


def _report(
    what: str, rows: list[dict[str, object]], flops: int, options: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    measured = [row for row in rows if "skipped" not in row]
    peaks = {dtype: matrix_peak(device, dtype) for dtype in {row["matrix_type"] for row in measured}}
    for row in measured:
        row["% of peak"] = 100 * flops * row["images/s"] / peaks[row.pop("matrix_type")]
    columns = {"variant": "", "microbatch": "", "ms": ".1f", "images/s": ".2f", "times released": ".2f"}
    columns |= {"% of peak": ".0f", "memory GB": ".1f", "output error": ".1e", "gradient error": ".1e"}
    columns |= {"overhead %": ".1f"}
    columns = {name: form for name, form in columns.items() if any(row.get(name) is not None for row in rows)}
    rates = ", ".join(f"{str(dtype).removeprefix('torch.')} {peak / 1e12:.2f} TFLOP/s" for dtype, peak in peaks.items())
    print_table(
        f"{what}: {options.preset} at {options.size} px, batch {options.batch}, {flops / 1e9:.1f} GFLOP an image; "
        f"matrix products {rates}",
        columns,
        rows,
    )
    return rows
