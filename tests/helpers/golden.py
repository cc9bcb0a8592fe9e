"""Golden vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def golden(name: str) -> dict[str, torch.Tensor]:
    """Load a golden .npz as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())
