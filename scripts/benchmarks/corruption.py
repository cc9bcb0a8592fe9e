"""Degradations, in units of one 2048 x 2048 x 2048 float32 matrix product."""

import argparse

import torch

from benchmarks.timing import compare, out_of_time, print_table
from corruption import CORRUPTIONS, build_corruption

# The released program's, measured on two CPU cores for a batch of 16 x 3 x 256 x 256.
RELEASED = {
    "blur-uni": 0.76,
    "blur-gauss": 0.76,
    "sr4x-pool": 0.42,
    "sr4x-bicubic": 0.33,
    "jpeg-5": 0.72,
    "jpeg-10": 0.72,
}


@torch.no_grad()
def benchmark_corruption(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Time every degradation of a batch of random images."""
    clean = torch.rand(options.batch, 3, options.size, options.size, device=device) * 2 - 1
    square = torch.randn(2048, 2048, device=device)
    rows: list[dict[str, object]] = []
    for name in CORRUPTIONS:
        if reason := out_of_time(options.deadline):
            rows.append({"degradation": name, "skipped": reason})
            continue
        corruption, generator = build_corruption(name, options.size).to(device), torch.Generator().manual_seed(0)
        works = {
            "degrade": lambda corruption=corruption, generator=generator: corruption(clean, generator),
            "unit": lambda: square @ square,
        }
        spent = compare(works, options.repeats, device, options.deadline)
        units, released = spent["degrade"] / spent["unit"], RELEASED.get(name)
        rows.append(
            {
                "degradation": name,
                "ms": spent["degrade"] * 1000,
                "units": units,
                "released": released,
                "ratio": units / released if released else None,
            }
        )
    columns = {"degradation": "", "ms": ".2f", "units": ".3f", "released": ".2f", "ratio": ".2f"}
    print_table(f"corruption: batch {list(clean.shape)}, one unit is a 2048³ product", columns, rows)
    return rows
