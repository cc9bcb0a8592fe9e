"""Measure how long the full-size network takes to load and to restore one image, and how much memory that needs.

    python scripts/benchmark.py                     ADM-256 with random weights, as a run of the released program
    python scripts/benchmark.py --run results/NAME  a run that is there

Without --run, a run of 4.4 GB is written to a temporary folder first and deleted at the end. Loading and restoring is
done in a process of its own, whose largest resident memory (the mapped file's pages included) is printed.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def write_released_run(run_dir: Path, network: str, image_size: int) -> None:
    """Write a run in the released format: random weights and other random ones as their average."""
    import torch

    from i2sb.bridge import Bridge
    from i2sb.network import build_network

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


def measure(run_dir: Path, image_size: int, nfe: int, precision: str, device: str) -> None:
    """Load a run and restore one image in this process; print what it took as JSON."""
    import torch

    from i2sb import load_model
    from i2sb.precision import prepare

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
    print(json.dumps({"parameters": parameters, **seconds, "peak_resident_gb": peak / 1e9, "finite": finite}))


def run_alone(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a fresh process, which this one's memory does not count for. Exits if it fails."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run to measure (default: one with random weights)")
    parser.add_argument("--network", default="adm256", help="size of the random network")
    parser.add_argument("--image-size", type=int, default=256, help="side of the image, in pixels")
    parser.add_argument("--nfe", type=int, default=2, help="network evaluations")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = options.run or Path(folder)
        if options.run is None:
            run_alone(write_released_run, run_dir, options.network, options.image_size)
        run_alone(measure, run_dir, options.image_size, options.nfe, options.precision, options.device)


if __name__ == "__main__":
    main()
