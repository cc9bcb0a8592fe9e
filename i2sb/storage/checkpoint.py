"""Checkpoints on disk: written whole or not at all, read without running code.

A run directory holds checkpoint_{iteration}.pt files, latest.pt, a link to the newest, and checkpoints.json, a manifest
of their sizes. Each is a dict laid out as in the released program: `net` (keys prefixed `diffusion_model.`), `ema`,
`optimizer`, `sched`, and beside them `progress`, `settings`, those that config.yaml must still tell, and `format`, the
version of this layout.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2sb.errors import FileError
from i2sb.files import PARTIAL, write_atomically, write_text
from i2sb.tensor_files import UnreadableFileError, describe_shape, is_named_tensors, read_tensors

LATEST = "latest.pt"
MANIFEST = "checkpoints.json"
FORMAT = 1
PARTS = ("net", "ema", "optimizer", "sched", "progress")
_NAME = "checkpoint_{:08d}.pt"
_PATTERN = re.compile(r"checkpoint_\d+\.pt")


class BrokenCheckpointError(FileError):
    """A checkpoint file that is cut off, damaged, or no checkpoint at all."""


def save_checkpoint(run_dir: Path, state: dict[str, Any], iteration: int, keep_last: int) -> Path:
    """Write the state reached after `iteration`, point latest.pt to it, and keep the `keep_last` newest up to it."""
    path = run_dir / _NAME.format(iteration)
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    link = run_dir / f".{LATEST}{PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, run_dir / LATEST)
    # Checkpoints of later iterations were broken and passed over: they are neither counted nor deleted.
    reached = [other for other in _list_checkpoints(run_dir) if _iteration(other) <= iteration]
    for old in reached[keep_last:]:
        old.unlink()
    sizes = {other.name: other.stat().st_size for other in _list_checkpoints(run_dir)}
    write_text(run_dir / MANIFEST, json.dumps({"format": FORMAT, "bytes": sizes}, indent=2))
    return path


def find_checkpoint(
    run_dir: Path, *, mmap: bool = False, parts: Sequence[str] = PARTS
) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest checkpoint of a run that is whole; None if the run has none yet. Arguments as `read_checkpoint`.

    A broken one is named on standard error and passed over. Raises BrokenCheckpointError if all are broken, OSError if
    the disk cannot read one.
    """
    candidates = _list_checkpoints(run_dir)
    if not candidates and (run_dir / LATEST).exists():
        candidates = [run_dir / LATEST]
    if not candidates and (run_dir / LATEST).is_symlink():
        raise BrokenCheckpointError(run_dir / LATEST, f"points to {os.readlink(run_dir / LATEST)}, which is gone")
    sizes = _read_manifest(run_dir)
    for path in candidates:
        try:
            size = path.stat().st_size
            if size != sizes.get(path.name, size):
                raise BrokenCheckpointError(path, f"broken checkpoint ({size} of {sizes[path.name]} bytes)")
            return path, read_checkpoint(path, mmap=mmap, parts=parts)
        except BrokenCheckpointError as error:
            print(f"warning: {error}; passed over", file=sys.stderr)
    if candidates:
        raise BrokenCheckpointError(
            run_dir,
            f"none of its {len(candidates)} checkpoints is whole; restore one from a backup, or give another `name` to "
            "start anew",
        )
    return None


def read_checkpoint(path: Path, *, mmap: bool = False, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Load one checkpoint onto the CPU; `parts` are what it must hold.

    With `mmap` tensors come into memory as they are used: for taking some of them, while the file stays in place.
    Raises BrokenCheckpointError if the file is damaged or no checkpoint, UserError if a newer version wrote it, OSError
    if the disk cannot read it.
    """
    try:
        state = read_tensors(path, mmap=mmap)
    except UnreadableFileError as error:
        raise BrokenCheckpointError(path, f"broken checkpoint ({error.reason})") from None
    if not isinstance(state, dict):
        state = {}
    version = state.get("format", FORMAT)
    if version != FORMAT:
        raise FileError(path, f"is of format {version}, this version of the program reads {FORMAT}: use a newer one")
    missing = [part for part in parts if part not in state]
    dicts = [state[part] for part in ("net", "ema", "progress", "settings") if part in state and not missing]
    if missing or not all(isinstance(part, dict) for part in dicts) or not is_named_tensors(state["net"]):
        lacking = ", ".join(missing) or "tensors"
        raise BrokenCheckpointError(path, f"is no checkpoint of this program (lacks {lacking})")
    return state


def averaged_weights(state: dict[str, Any], source: Path) -> dict[str, Tensor]:
    """Return a checkpoint's averaged weights under the names of `net`, in whose order they are kept.

    Raises UserError naming the file `source` if they are not there or are of other shapes.
    """
    shadow = state["ema"].get("shadow_params")
    shapes = [describe_shape(p) for p in state["net"].values()]
    if not isinstance(shadow, list) or [describe_shape(p) for p in shadow] != shapes:
        raise FileError(source, "its averaged weights (ema) are not those of its network (net)")
    return dict(zip(state["net"], shadow, strict=True))


def _read_manifest(run_dir: Path) -> dict[str, int]:
    """Return the sizes of checkpoints by name; none if the manifest is gone or spoiled: the files can do without it."""
    try:
        manifest = json.loads((run_dir / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    sizes = manifest.get("bytes") if isinstance(manifest, dict) else None
    return {name: size for name, size in sizes.items() if type(size) is int} if isinstance(sizes, dict) else {}


def _list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the run's checkpoint files, newest first."""
    files = [path for path in run_dir.glob("checkpoint_*.pt") if _PATTERN.fullmatch(path.name)]
    return sorted(files, key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint_"))
