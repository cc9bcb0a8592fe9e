"""Memory and time of loading a run and restoring one image, in a process of its own."""

import argparse
import multiprocessing
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.errors import FileError
from i2sb.network import build_network
from i2sb.options import write_flags
from i2sb.precision import advise_precision, prepare
from i2sb.training.memory import GB, find_peak_memory


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
    parameters = sum(p.numel() for p in model.network.parameters())
    seconds = {"load_seconds": loaded - begun, "restore_seconds": done - loaded}
    results.put({"parameters": parameters, **seconds, "peak_resident_gb": find_peak_memory() / GB, "finite": finite})


def benchmark_memory(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Load a run and restore an image in a fresh process, which this one's memory does not count for."""
    if advice := advise_precision(options.precision, device):
        print(f"warning: {write_flags(advice)}", file=sys.stderr)
    fresh = multiprocessing.get_context("spawn")
    results = fresh.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = options.run or Path(folder)
        if options.run is None:
            write_released_run(run_dir, options.preset, options.size)
        arguments = (run_dir, options.size, options.nfe, options.precision, str(device), results)
        process = fresh.Process(target=measure_run, args=arguments)
        process.start()
        process.join()
    if process.exitcode:
        raise FileError(run_dir, "could not be measured; the reason stands above")
    figures = results.get()
    for name, value in figures.items():
        print(f"{name:18}{value:.2f}" if isinstance(value, float) else f"{name:18}{value}")
    return figures
