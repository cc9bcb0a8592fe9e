"""Measure the program's parts on this machine, each beside a baseline timed in the same run.

    python scripts/benchmark.py corruption [--batch 16] [--size 256] [--repeats 15] [--device auto] [--json OUT]
    python scripts/benchmark.py memory [--run results/NAME] [--network adm256] [--size 256] [--nfe 2] [--json OUT]

corruption: time of each degradation for a batch, in units of one 2048 x 2048 x 2048 float32 matrix product. The
released program's figures beside it were measured on two CPU cores for a batch of 16 x 3 x 256 x 256.

memory: how long a run takes to load and to restore one image, and the largest resident memory that needs (the mapped
file's pages included), in a process of its own. Without --run, a run of the released format with random weights (4.4 GB
for adm256) is written to a temporary folder first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from corruption import CORRUPTIONS, build_corruption
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.distributed import find_device
from i2sb.files import write_text
from i2sb.network import build_network
from i2sb.precision import prepare

RELEASED = {
    "blur-uni": 0.76,
    "blur-gauss": 0.76,
    "sr4x-pool": 0.42,
    "sr4x-bicubic": 0.33,
    "jpeg-5": 0.72,
    "jpeg-10": 0.72,
}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call: with events on a GPU, by the clock on a CPU."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(
    work: Callable[[], object], baseline: Callable[[], object], repeats: int, device: torch.device
) -> tuple[float, float]:
    """Return the median times of both, in seconds.

    They are called in turn, so that both meet the same noise, each time after a call that is not timed, so that neither
    finds the other's leavings in the cache.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, kept in zip((work, baseline), times, strict=True):
            call()
            kept.append(seconds(call, device))
    return median(times[0]), median(times[1])


@torch.no_grad()
def benchmark_corruption(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Time every degradation of random images."""
    clean = torch.rand(options.batch, 3, options.size, options.size, device=device) * 2 - 1
    square = torch.randn(2048, 2048, device=device)
    print(f"batch {list(clean.shape)}, {device}, {torch.get_num_threads()} threads")
    print(f"{'degradation':24}{'ms':>9}{'units':>9}{'released':>10}{'ratio':>8}")
    rows: list[dict[str, object]] = []
    for name in CORRUPTIONS:
        corruption, generator = build_corruption(name, options.size).to(device), torch.Generator().manual_seed(0)

        def degrade(corruption=corruption, generator=generator) -> object:
            return corruption(clean, generator)

        spent, unit = compare(degrade, lambda: square @ square, options.repeats, device)
        row = {"name": name, "milliseconds": spent * 1000, "units": spent / unit, "released_units": RELEASED.get(name)}
        rows.append(row)
        line = f"{name:24}{row['milliseconds']:9.2f}{row['units']:9.3f}"
        released = RELEASED.get(name)
        print(line + (f"{released:10.2f}{row['units'] / released:8.2f}" if released else ""), flush=True)
    return rows


def write_released_run(run_dir: Path, network: str, image_size: int) -> None:
    """Write a run in the released format: random weights and other random ones as their average."""
    with torch.device("meta"):
        shapes = build_network(network, Bridge().noise_levels).state_dict()
    net = {name: torch.randn(tensor.shape).mul_(0.02) for name, tensor in shapes.items()}
    shadow = [torch.randn(tensor.shape).mul_(0.02) for tensor in shapes.values()]
    ema = {"decay": 0.99, "num_updates": 1, "shadow_params": shadow, "collected_params": None}
    torch.save({"net": net, "ema": ema, "optimizer": {}, "sched": None}, run_dir / "latest.pt")
    options = {"name": "random", "corrupt": "sr4x-pool", "image_size": image_size, "interval": 1000, "beta_max": 0.3}
    options |= {"t0": 1e-4, "T": 1.0, "ot_ode": False, "cond_x1": False, "add_x1_noise": False}
    namespace = argparse.Namespace(**options, dataset_dir=Path("/dataset"))
    (run_dir / "options.pkl").write_bytes(pickle.dumps(namespace))


def measure_run(run_dir: Path, image_size: int, nfe: int, precision: str, device: str, results: Any) -> None:
    """Load a run and restore one image in this process; put what it took into `results`."""
    begun = time.perf_counter()
    model = load_model(run_dir, device)
    prepare(model.network, precision)
    loaded = time.perf_counter()
    image = torch.rand(1, model.config.image_channels, image_size, image_size) * 2 - 1
    finite = bool(model.restore(image, nfe=nfe).isfinite().all())
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    parameters = sum(p.numel() for p in model.network.parameters())
    seconds = {"load_seconds": loaded - begun, "restore_seconds": done - loaded}
    results.put({"parameters": parameters, **seconds, "peak_resident_gb": peak / 1e9, "finite": finite})


def benchmark_memory(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Load a run and restore an image in a fresh process, which this one's memory does not count for."""
    fresh = multiprocessing.get_context("spawn")
    results = fresh.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = options.run or Path(folder)
        if options.run is None:
            write_released_run(run_dir, options.network, options.size)
        arguments = (run_dir, options.size, options.nfe, options.precision, str(device), results)
        process = fresh.Process(target=measure_run, args=arguments)
        process.start()
        process.join()
    if process.exitcode:
        raise ValueError(f"{run_dir}: could not be measured; the reason stands above")
    figures = results.get()
    for name, value in figures.items():
        print(f"{name:18}{value:.2f}" if isinstance(value, float) else f"{name:18}{value}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--size", type=int, default=256, help="side of the images, in pixels")
    common.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    common.add_argument("--json", type=Path, metavar="OUT", help="write the figures there too")
    what = parser.add_subparsers(dest="what", required=True)
    corruption = what.add_parser("corruption", parents=[common], help="time of each degradation")
    corruption.add_argument("--batch", type=int, default=16, help="images in a batch")
    corruption.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median counts")
    memory = what.add_parser("memory", parents=[common], help="memory and time of loading a run and restoring an image")
    memory.add_argument("--run", type=Path, help="run to measure (default: one with random weights)")
    memory.add_argument("--network", default="adm256", help="size of the random network")
    memory.add_argument("--nfe", type=int, default=2, help="network evaluations")
    memory.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16", "fp16"])
    options = parser.parse_args()
    benchmark = {"corruption": benchmark_corruption, "memory": benchmark_memory}[options.what]
    try:
        for name, value in vars(options).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"--{name} {value}: must be at least 1")
        if options.json and options.json.exists():
            raise ValueError(f"--json {options.json}: is there already; remove it, or name another file")
        figures = benchmark(options, find_device(options.device))
    except ValueError as error:
        sys.exit(f"benchmark.py: error: {error}")
    if options.json:
        write_text(options.json, json.dumps({"torch": torch.__version__, options.what: figures}, indent=2))


if __name__ == "__main__":
    main()
