"""Settings of a tiny run."""

from __future__ import annotations

from pathlib import Path

import torch

from i2sb.formulation_table import FORMULATIONS

# The smallest run that has every part: 16-pixel images, two microbatches an iteration, validation, checkpoints.
TINY = {
    "corrupt": "sr4x-pool",
    "image_size": 16,
    "network": "tiny",
    "batch_size": 4,
    "microbatch": 2,
    "num_itr": 6,
    "lr": 1e-3,
    "lr_step": 2,
    "save_every": 2,
    "log_every": 1,
    "eval_every": 4,
    "eval_nfe": 2,
    "eval_images": 3,
    "workers": 0,
    "log_writer": "none",
    "device": "cpu",
}

# Settings that formulations cannot do without; where training is meant, a student's teacher must be there, too.
NEEDED = {"student": {"distill": "teacher"}}
# What is trained from data alone.
WITHOUT_TEACHER = [name for name in FORMULATIONS if name not in NEEDED]


def train_anew(run: Path, results: Path) -> Path:
    """Write a run of the same name, settings and iteration into another folder of results, with other weights."""
    anew = results / run.name
    anew.mkdir(parents=True)
    (anew / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    state = torch.load(run / "latest.pt", weights_only=True)
    for weights in state["ema"]["shadow_params"]:
        weights *= 1.01
    torch.save(state, anew / (run / "latest.pt").resolve().name)
    return anew


def as_flags(settings: dict[str, object]) -> list[str]:
    """Turn settings into flags."""
    flags = []
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        flags += (
            [f"--{dashed}" if value else f"--no-{dashed}"] if isinstance(value, bool) else [f"--{dashed}", str(value)]
        )
    return flags
