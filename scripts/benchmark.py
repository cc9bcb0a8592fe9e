"""Measure the program's parts on this machine, each beside a baseline timed in the same run.

    python scripts/benchmark.py corruption [--batch 16] [--size 256] [--repeats 15] [--device auto] [--json OUT]

corruption: time of each degradation for a batch, in units of one 2048 x 2048 x 2048 float32 matrix product. The
released program's figures beside it were measured on two CPU cores for a batch of 16 x 3 x 256 x 256.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from corruption import CORRUPTIONS, build_corruption
from i2sb.distributed import find_device
from i2sb.files import write_text

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["corruption"])
    parser.add_argument("--batch", type=int, default=16, help="images in a batch")
    parser.add_argument("--size", type=int, default=256, help="side of the images, in pixels, a multiple of 16")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median counts")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there too")
    options = parser.parse_args()
    try:
        for name in ("batch", "size", "repeats"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name} {getattr(options, name)}: must be at least 1")
        if options.json and options.json.exists():
            raise ValueError(f"--json {options.json}: is there already; remove it, or name another file")
        rows = benchmark_corruption(options, find_device(options.device))
    except ValueError as error:
        sys.exit(f"benchmark.py: error: {error}")
    if options.json:
        write_text(options.json, json.dumps({"torch": torch.__version__, "corruption": rows}, indent=2))


if __name__ == "__main__":
    main()
