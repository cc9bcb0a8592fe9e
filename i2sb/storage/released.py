"""Runs of the released program: results/NAME with latest.pt and options.pkl, and no word on the network's size.

latest.pt is laid out like this project's checkpoints, without `progress`; options.pkl is a pickled argparse.Namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from i2sb.config import TrainConfig
from i2sb.errors import UserError
from i2sb.network_sizes import NETWORKS, UNetSize
from i2sb.unpickle import NAMESPACE, Bare, as_text, read_pickle

OPTIONS = "options.pkl"
# Parts of a released checkpoint.
PARTS = ("net", "ema", "optimizer", "sched")
# Flags that decide what the weights mean, so that no default may take their place.
NEEDED = ("corrupt", "image_size", "interval", "beta_max", "t0", "T", "ot_ode", "cond_x1", "add_x1_noise")
# Other flags that have the same name and meaning here, and may be missing.
TAKEN = ("seed", "batch_size", "num_itr", "lr", "lr_gamma", "lr_step", "l2_norm", "ema", "clip_denoise")

_MAX_OPTIONS_BYTES = 1 << 20


def is_released(run_dir: Path) -> bool:
    """Whether a folder is a run of the released program."""
    return (run_dir / OPTIONS).exists() and not (run_dir / "config.yaml").exists()


def read_options(run_dir: Path, network: str = "adm256") -> TrainConfig:
    """Read options.pkl, without running anything from it, into the settings of this project.

    The network's size is not among the flags: it is ADM-256 unless the weights say otherwise (`recognise_network`).
    Raises UserError naming the file and what is missing or of another type than it should be.
    """
    path = run_dir / OPTIONS
    options = read_pickle(path, NAMESPACE, max_bytes=_MAX_OPTIONS_BYTES)
    if not isinstance(options, Bare) or type(options).__name__ != "Namespace":
        raise UserError(path, None, "holds no argparse.Namespace, which the released program saves")
    given = options.attributes
    dataset_dir = as_text(given.get("dataset_dir"))
    missing = [name for name in ("name", *NEEDED) if name not in given] + ["dataset_dir"] * (dataset_dir is None)
    if missing:
        raise UserError(path, None, f"lacks {', '.join(missing)}; take the file that was saved with these weights")
    values: dict[str, Any] = {name: given[name] for name in ("name", *NEEDED, *TAKEN) if name in given}
    types = get_type_hints(TrainConfig)
    for name, value in values.items():
        fits = type(value) is types[name] or (types[name] is float and type(value) is int)
        if not fits:
            raise UserError(path, None, f"{name} is a {type(value).__name__}, {types[name].__name__} is wanted")
        values[name] = types[name](value)
    values |= {"results_dir": str(run_dir.parent), "dataset_dir": dataset_dir, "network": network}
    try:
        return TrainConfig(**values)
    except UserError as error:
        raise error.inside(path) from None


def recognise_network(net: Mapping[str, Tensor], source: Path) -> str:
    """Return the name of the network (TrainConfig.network) whose weights have the names and shapes of `net`.

    Shapes tell all but the heads of attention. A size that is in NETWORKS has those of its row; for any other they are
    a guess: ADM's 64 channels a head, fewer where attention would not have ADM's usual four heads. Raises UserError if
    `net` is no such U-Net.
    """
    shapes = {name.removeprefix("diffusion_model."): tuple(tensor.shape) for name, tensor in net.items()}
    try:
        return _describe(shapes)
    except (KeyError, IndexError, ZeroDivisionError):  # a tensor is missing or of another shape
        raise UserError(source, None, f"its {len(net)} tensors are no U-Net of ADM's kind") from None


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    model_channels = shapes["time_embed.0.weight"][1]
    blocks = _count(shapes, "input_blocks")
    # The last block of a level on the way up ends in a residual block of its own, which doubles the resolution.
    rising = [i for i in range(blocks) if any(f"output_blocks.{i}.{k}.in_layers.0.weight" in shapes for k in (1, 2))]
    levels = len(rising) + 1
    num_res_blocks = rising[0] if rising else blocks - 1
    firsts = [1 + level * (num_res_blocks + 1) for level in range(levels)]
    mult = tuple(Fraction(shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0], model_channels) for i in firsts)
    attention = {2**level: f"input_blocks.{i}.1.qkv.weight" for level, i in enumerate(firsts)}
    attention = {rate: name for rate, name in attention.items() if name in shapes}
    narrowest = min(shapes[name][1] for name in (*attention.values(), "middle_block.1.qkv.weight"))
    size = UNetSize(model_channels, mult, num_res_blocks, tuple(attention), num_head_channels=min(64, narrowest // 4))
    for name, known in NETWORKS.items():
        guessed = size.num_head_channels
        if isinstance(known, UNetSize) and replace(known, num_head_channels=guessed, num_heads=0) == size:
            return name
    return size.describe()


def _count(shapes: Mapping[str, tuple[int, ...]], blocks: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{blocks}.")})
