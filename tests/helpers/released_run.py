"""Runs as the released program leaves them."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch

from helpers.formula_network import formula_network

# The flags that the released program saved with a run, and what it added to them.
OPTIONS = {
    "name": "small",
    "image_size": 16,
    "corrupt": "sr4x-pool",
    "interval": 100,
    "beta_max": 0.3,
    "t0": 1e-4,
    "T": 1.0,
    "ot_ode": False,
    "cond_x1": False,
    "add_x1_noise": False,
    "lr": 5e-5,
    "num_itr": 1000000,
    "dataset_dir": Path("/dataset"),
    "log_writer": None,
    "device": "cuda",
    "distributed": True,
    "ckpt_path": Path("results/small"),
    "global_size": 16,
}


def write_released_run(run_dir: Path, case: str = "tiny", **changes) -> Path:
    """A run in the released format: raw weights of noise, the golden formula's averaged; ... removes a flag."""
    run_dir.mkdir(parents=True)
    net = formula_network(case)[0]
    shadow = [p.detach() for p in net.parameters()]
    noise = {f"diffusion_model.{name}": torch.randn_like(p) for name, p in net.state_dict().items()}
    ema = {"decay": 0.99, "num_updates": 12, "shadow_params": shadow, "collected_params": None}
    torch.save({"net": noise, "ema": ema, "optimizer": {}, "sched": None}, run_dir / "latest.pt")
    options = {name: value for name, value in {**OPTIONS, **changes}.items() if value is not ...}
    (run_dir / "options.pkl").write_bytes(pickle.dumps(argparse.Namespace(**options)))
    return run_dir
