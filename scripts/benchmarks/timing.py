"""Times and rates, always beside a baseline measured in the same run."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


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


def out_of_time(deadline: float) -> str:
    """Return a reason to skip a row if time.monotonic() has passed `deadline`, otherwise nothing."""
    return "no time left" if time.monotonic() > deadline else ""


def compare(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, deadline: float = math.inf
) -> dict[str, float]:
    """Return the median time of each, in seconds, of `repeats` calls or the fewer that end before the deadline.

    They are called in turn, so that all meet the same noise, each time after a call that is not timed, so that each
    finds its own data in the cache.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        if number and out_of_time(deadline):
            break
        for name, work in works.items():
            work()
            times[name].append(seconds(work, device))
    return {name: median(kept) for name, kept in times.items()}


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the measured rate of a large matrix product, in floating-point operations a second."""
    side = MATRIX_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    spent = compare({"product": lambda: a @ b}, repeats, device)["product"]
    return 2 * side**3 / spent


def print_table(title: str, columns: Mapping[str, str], rows: list[dict[str, object]]) -> None:
    """Print rows under a title. columns: name of a value to its format; a row that lacks a value shows a dash.

    A row that was not measured says why, under "skipped".
    """
    print(f"\n{title}")
    widths = {
        name: max(len(name), *(len(_show(row.get(name), form)) for row in rows)) for name, form in columns.items()
    }
    print("  ".join(f"{name:>{width}}" for name, width in widths.items()))
    for row in rows:
        cells = [f"{_show(row.get(name), form):>{widths[name]}}" for name, form in columns.items()]
        print("  ".join([*cells, *([row["skipped"]] if "skipped" in row else [])]), flush=True)


def _show(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)
