"""Measure the program's parts on this machine, each beside a baseline timed in the same run.

    python scripts/benchmark.py corruption|train|sample|data|all [--quick] [--preset adm256] [--json OUT] …
    python scripts/benchmark.py memory [--run results/NAME] [--preset adm256] [--size 256] [--nfe 2] [--json OUT]

corruption: time of each degradation for a batch, in units of one 2048 x 2048 x 2048 float32 matrix product. The
released program's figures beside it were measured on two CPU cores for a batch of 16 x 3 x 256 x 256.
train, sample: images a second of each way to compute the network, beside the released program's settings (written from
their description, scripts/benchmarks/released.py); the share of the measured rate of matrix products; how far output
and gradient are from float32's. data: images a second out of an LMDB.
memory: how long a run takes to load and to restore one image, and the largest resident memory that needs (the mapped
file's pages included), in a process of its own. Without --run, a run of the released format with random weights (4.4 GB
for adm256) is written to a temporary folder first.
Numbers that the processor only emulates (bf16 on many) are not measured; a row says so.
--quick: small sizes, for minutes on two CPU cores, and under five minutes anywhere: nothing is compiled, and what has
not begun after three minutes is left out, with a row that says so.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

import torch
from benchmarks.corruption import benchmark_corruption
from benchmarks.data import benchmark_data
from benchmarks.memory import benchmark_memory
from benchmarks.network import benchmark_sample, benchmark_train

from i2sb.distributed import find_device
from i2sb.errors import UserError
from i2sb.files import write_text
from i2sb.network_sizes import find_network
from i2sb.parsing import expand_homes

BENCHMARKS = {
    "corruption": benchmark_corruption,
    "train": benchmark_train,
    "sample": benchmark_sample,
    "data": benchmark_data,
    "memory": benchmark_memory,
}
# Options that are not given: in general, with --quick, and for one benchmark.
DEFAULTS = {
    "preset": "adm256",
    "size": 256,
    "batch": 16,
    "repeats": 15,
    "nfe": 10,
    "images": 512,
    "workers": [1, 2, 4, 8],
}
QUICK = {"preset": "mini", "size": 64, "batch": 4, "repeats": 3, "nfe": 5, "images": 64, "workers": [1, 2]}
QUICK_SECONDS = 180
OF_BENCHMARK = {"corruption": {"size": 256, "batch": 16}, "data": {"size": 256}, "memory": {"nfe": 2}}


def fill_in(given: argparse.Namespace, what: str) -> argparse.Namespace:
    """Return the options of one benchmark. Raises UserError for what it cannot take."""
    values = DEFAULTS | (QUICK if given.quick else {}) | OF_BENCHMARK.get(what, {})
    values |= {name: value for name, value in vars(given).items() if value is not None}
    for name in ("size", "batch", "repeats", "nfe", "images"):
        if values[name] < 1:
            raise UserError(name, values[name], "must be at least 1")
    if what in ("train", "sample", "memory"):
        find_network(values["preset"])
    return argparse.Namespace(**{**vars(given), **values})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHMARKS, "all"], help="all: everything but memory")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--preset", help="size of the network, as --network of train.py")
    parser.add_argument("--size", type=int, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, help="images in a batch")
    parser.add_argument("--repeats", type=int, help="timed calls, of which the median counts")
    parser.add_argument("--nfe", type=int, help="network evaluations")
    parser.add_argument("--images", type=int, help="images in the LMDB of the data benchmark")
    parser.add_argument("--workers", type=int, nargs="+", help="processes that decode images")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile on a CPU too: minutes more")
    parser.add_argument("--run", type=Path, help="run to measure the memory of (default: one with random weights)")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "tf32", "bf16", "fp16"],
        help="what memory's network computes in (default: fp32)",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: the GPU if there is one"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there too")
    given = argparse.Namespace(**expand_homes(vars(parser.parse_args())))
    with report_errors():
        run(given)


def run(given: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError or OSError naming what is wrong."""
    if given.json and given.json.exists():
        raise UserError("json", given.json, "is there already; remove it, or name another file")
    chosen = [name for name in BENCHMARKS if name != "memory"] if given.what == "all" else [given.what]
    if given.quick and given.compile:
        raise UserError("compile", None, "takes minutes, so not with `quick`; give the sizes instead")
    given.deadline = time.monotonic() + QUICK_SECONDS if given.quick else math.inf
    device = find_device(given.device)
    figures: dict[str, object] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    print(f"{figures['device']}, {figures['threads']} threads, torch {torch.__version__}")
    for what in chosen:
        figures[what] = BENCHMARKS[what](fill_in(given, what), device)
    if given.json:
        write_text(given.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
