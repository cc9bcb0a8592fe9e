"""Exported weights: one .safetensors file with the network's tensors and, as text, the settings they were trained with.

Such a file can hold nothing but tensors and text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from i2sb.config import TrainConfig
from i2sb.errors import FileError
from i2sb.files import check_regular, write_atomically
from i2sb.parsing import from_yaml, to_yaml

ENDING = ".safetensors"

# Before the names of what belongs to the regression of a bridge that has one.
_MEAN = "x1_from."


@dataclass(frozen=True)
class Exported:
    """Weights named as in a checkpoint's `net`, averaged or raw, as they stood after `iteration`.

    mean: those of the regression whose outputs the bridge begins at, if it does (`x1_from`). checksum: what identifies
    the contents of the file that they were read from; "" if they were not.
    """

    weights: dict[str, Tensor]
    config: TrainConfig
    iteration: int
    averaged: bool
    mean: Exported | None = None
    checksum: str = ""

    @property
    def digest(self) -> str:
        """What identifies the files that all its weights were read from, in hexadecimal."""
        files = self.checksum + (self.mean.digest if self.mean else "")
        return hashlib.sha256(files.encode()).hexdigest()[:16]


def write_export(path: Path, exported: Exported, *, overwrite: bool = False) -> None:
    """Write a .safetensors file. Raises UserError if it has another ending, or is there already."""
    from safetensors.torch import save

    if path.suffix != ENDING:
        raise FileError(path, f"the name must end in {ENDING}")
    if path.exists() and not overwrite:
        raise FileError(path, "exists already; delete it first, or allow it with `overwrite`")
    metadata = {"format": "pt"}
    tensors: dict[str, Tensor] = {}
    for prefix, part in (("", exported), (_MEAN, exported.mean)):
        if part is not None:
            metadata[f"{prefix}config"] = to_yaml(part.config)
            metadata[f"{prefix}iteration"] = str(part.iteration)
            metadata[f"{prefix}weights"] = "averaged" if part.averaged else "raw"
            tensors |= {f"{prefix}{name}": tensor.contiguous() for name, tensor in part.weights.items()}
    write_atomically(path, lambda file: file.write(save(tensors, metadata=metadata)))


def read_export(path: Path) -> Exported:
    """Read what `write_export` wrote; its tensors come into memory as they are used.

    Raises UserError naming the file if it is missing, broken, or without the settings.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except FileNotFoundError:
        raise FileError(path, "there is no such file") from None
    except SafetensorError as error:
        raise FileError(path, f"broken file of weights ({' '.join(str(error).split())[:100]})") from None
    mean = {name.removeprefix(_MEAN): weights.pop(name) for name in list(weights) if name.startswith(_MEAN)}
    described = {key.removeprefix(_MEAN): text for key, text in metadata.items() if key.startswith(_MEAN)}
    return _make_part(weights, metadata, path, mean=_make_part(mean, described, path) if mean else None)


def _make_part(weights: dict[str, Tensor], metadata: Mapping[str, str], path: Path, **more: Any) -> Exported:
    iteration, kind = metadata.get("iteration", ""), metadata.get("weights")
    if "config" not in metadata or not iteration.isdecimal() or kind not in ("averaged", "raw"):
        raise FileError(path, "lacks the settings that scripts/export.py writes, so its network is unknown")
    config = from_yaml(TrainConfig, metadata["config"], path)
    return Exported(weights, config, int(iteration), averaged=kind == "averaged", **more)
