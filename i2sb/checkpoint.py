"""Checkpoints on disk: written whole or not at all, read without running code.

A run directory holds checkpoint_{iteration}.pt files and latest.pt, a link to the newest. Each is a dict laid out as in
the released program: `net` (keys prefixed `diffusion_model.`), `ema`, `optimizer`, `sched`, and beside them `progress`.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2sb.files import PARTIAL, write_atomically

LATEST = "latest.pt"
PARTS = ("net", "ema", "optimizer", "sched", "progress")
_NAME = "checkpoint_{:08d}.pt"
_PATTERN = re.compile(r"checkpoint_(\d+)\.pt")


class BrokenCheckpointError(ValueError):
    """A checkpoint file that is cut off or no checkpoint at all."""


def save_checkpoint(run_dir: Path, state: dict[str, Any], iteration: int, keep_last: int) -> Path:
    """Write the state reached after `iteration`, point latest.pt to it, and keep the `keep_last` newest up to it."""
    path = run_dir / _NAME.format(iteration)
    write_atomically(path, lambda file: torch.save(state, file))
    link = run_dir / f".{LATEST}{PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, run_dir / LATEST)
    # Those beyond it are broken ones that were passed over: not ours to delete, nor to count.
    reached = [other for other in _list_checkpoints(run_dir) if _iteration(other) <= iteration]
    for old in reached[keep_last:]:
        old.unlink()
    return path


def find_checkpoint(run_dir: Path, *, mmap: bool = False) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest checkpoint of a run that is whole; None if it has none at all. `mmap` as in read_checkpoint.

    A broken one is named on standard error and passed over. Raises BrokenCheckpointError if all are broken.
    """
    candidates = _list_checkpoints(run_dir)
    if not candidates and (run_dir / LATEST).exists():
        candidates = [run_dir / LATEST]
    if not candidates and (run_dir / LATEST).is_symlink():
        raise BrokenCheckpointError(f"{run_dir / LATEST}: points to {os.readlink(run_dir / LATEST)}, which is gone")
    for path in candidates:
        try:
            return path, read_checkpoint(path, mmap=mmap)
        except BrokenCheckpointError as error:
            print(f"warning: {error}; passed over", file=sys.stderr)
    if candidates:
        raise BrokenCheckpointError(
            f"{run_dir}: none of its {len(candidates)} checkpoints is whole; restore one from a backup, "
            "or give another --name to start anew"
        )
    return None


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Load one checkpoint onto the CPU. Raises BrokenCheckpointError naming the file if it cannot be read.

    With `mmap` tensors come into memory as they are used: for taking some of them, while the file stays in place.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the check sums
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are no checkpoint can raise anything in the reader
        reason = " ".join(str(error).split())[:100]
        if reason.startswith("Weights only"):
            reason = "it holds more than tensors and plain values"
        raise BrokenCheckpointError(f"{path}: broken checkpoint ({reason})") from None
    missing = [part for part in PARTS if not isinstance(state, dict) or part not in state]
    if missing or not all(isinstance(state[part], dict) for part in ("net", "ema", "progress")):
        raise BrokenCheckpointError(
            f"{path}: is no checkpoint of this program (lacks {', '.join(missing) or 'tensors'})"
        )
    return state


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Copy `weights` into `module`. Raises ValueError listing what does not fit, ten names at most."""
    own = module.state_dict()
    misfits = [
        f"{name} {_shape(weights.get(name))} in the file, {_shape(own.get(name))} in the network"
        for name in sorted(own.keys() | weights.keys())
        if _shape(own.get(name)) != _shape(weights.get(name))
    ]
    if misfits:
        raise ValueError(f"{source}: holds another architecture, {len(misfits)} parameters differ: {_first(misfits)}")
    module.load_state_dict(weights)


def _shape(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return "missing" if tensor is None else type(tensor).__name__
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first(misfits: Iterable[str], count: int = 10) -> str:
    shortest = sorted(misfits, key=len)
    return "; ".join(shortest[:count]) + ("; …" if len(shortest) > count else "")


def _list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the run's checkpoint files, newest first."""
    found = [path for path in run_dir.glob("checkpoint_*.pt") if _PATTERN.fullmatch(path.name)]
    return sorted(found, key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(_PATTERN.fullmatch(path.name)[1])
