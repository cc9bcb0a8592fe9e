"""Runs of the released program, read and written: results/NAME with latest.pt and options.pkl.

latest.pt is laid out like this project's checkpoints, without `progress`; options.pkl is a pickled argparse.Namespace.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from corruption import PUBLISHED
from i2sb.config import TrainConfig, fixed_settings
from i2sb.errors import FileError, UserError, require
from i2sb.files import write_atomically
from i2sb.network_sizes import NETWORKS, UNetSize, find_network
from i2sb.storage.checkpoint import LATEST
from i2sb.unpickle import NAMESPACE, Bare, as_text, read_pickle

OPTIONS = "options.pkl"
# Parts of a released checkpoint.
PARTS = ("net", "ema", "optimizer", "sched")
# Flags that decide what the weights mean, so that no default may take their place.
NEEDED = ("corrupt", "image_size", "interval", "beta_max", "t0", "T", "ot_ode", "cond_x1", "add_x1_noise")
# Other flags that have the same name and meaning here, and may be missing.
TAKEN = ("seed", "batch_size", "num_itr", "lr", "lr_gamma", "lr_step", "l2_norm", "ema", "clip_denoise")
# Settings that the released program has no flag for and needs none: they tell how weights were come by.
HISTORY = ("init", "start_share", "mask_file")
ADM = "adm256"  # the one network that it has

_MAX_OPTIONS_BYTES = 1 << 20


def is_released(run_dir: Path) -> bool:
    """Whether a folder is a run of the released program."""
    return (run_dir / OPTIONS).exists() and not (run_dir / "config.yaml").exists()


def read_options(run_dir: Path, network: str = ADM) -> TrainConfig:
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


# --- Writing ---------------------------------------------------------------------------------------------------------


def check_expressible(config: TrainConfig) -> None:
    """Raise UserError for a setting of a run that is not as all runs of the released program are."""
    size = NETWORKS[ADM]
    require(find_network(config.network) == size, "network", config.network, f"the released program has {ADM} alone")
    known = ", ".join(PUBLISHED)
    require(config.corrupt in PUBLISHED, "corrupt", config.corrupt, f"the released program has {known}")
    default = {f.name: f.default for f in fields(TrainConfig)}
    for name, value in fixed_settings(config).items():
        if name not in ("network", *NEEDED, *TAKEN, *HISTORY):
            must = f"the released program has no such setting, and works as with {default[name]}"
            require(value == default[name], name, value, must)


def check_place(out: Path, *, overwrite: bool = False) -> None:
    """Raise UserError if a released run cannot be written into the folder `out`, as it holds a run already."""
    if (out / "config.yaml").exists():
        raise FileError(out, "holds a run of this program; name another folder")
    for name in (LATEST, OPTIONS):
        if (out / name).exists() and not overwrite:
            raise FileError(out / name, "exists already; delete it first, or allow it with `overwrite`")


def write_released(out: Path, config: TrainConfig, state: Mapping[str, Any]) -> None:
    """Write a run that is expressible into the folder `out` as the released program keeps its own, named like it.

    state: a whole checkpoint of this project. Its optimizer goes along, so that the released program can go on with the
    run. Raises UserError if the folder's name is none for a run.
    """
    config = replace(config, name=out.resolve().name)
    # The fused optimizer of newer versions of torch is none of the released program's.
    groups = [{**group, "fused": None} for group in state["optimizer"]["param_groups"]]
    content = {**{part: state[part] for part in PARTS}, "optimizer": {**state["optimizer"], "param_groups": groups}}
    options = _make_options(config, state["progress"].get("microbatch") or 1)
    # Text alone names classes in protocol 2, where Python 3.13 gives the one of paths a name of its own.
    pickled = pickle.dumps(options, protocol=2).replace(b"cpathlib._local\n", b"cpathlib\n")
    write_atomically(out / LATEST, lambda file: torch.save(content, file))
    write_atomically(out / OPTIONS, lambda file: file.write(pickled))


def _make_options(config: TrainConfig, microbatch: int) -> Namespace:
    """Return the flags that the released program saves with a run, in its order, and what it adds to them."""
    processes = config.n_gpu_per_node * config.num_proc_node
    return Namespace(
        seed=config.seed,
        name=config.name,
        ckpt=None,
        gpu=None,
        n_gpu_per_node=config.n_gpu_per_node,
        master_address=config.master_address,
        node_rank=config.node_rank,
        num_proc_node=config.num_proc_node,
        image_size=config.image_size,
        corrupt=config.corrupt,
        t0=config.t0,
        T=config.T,
        interval=config.interval,
        beta_max=config.beta_max,
        ot_ode=config.ot_ode,
        clip_denoise=config.clip_denoise,
        cond_x1=config.cond_x1,
        add_x1_noise=config.add_x1_noise,
        batch_size=config.batch_size,
        microbatch=microbatch if config.microbatch == "auto" else config.microbatch,
        num_itr=config.num_itr,
        lr=config.lr,
        lr_gamma=config.lr_gamma,
        lr_step=config.lr_step,
        l2_norm=config.l2_norm,
        ema=config.ema,
        dataset_dir=Path(config.dataset_dir),
        log_dir=Path(config.log_dir or ".log"),
        log_writer=None if config.log_writer == "none" else config.log_writer,
        wandb_api_key=None,
        wandb_user=config.wandb_user or None,
        device="cuda",
        distributed=processes > 1,
        use_fp16=False,
        ckpt_path=Path("results") / config.name,
        load=None,
        local_rank=0,
        global_rank=0,
        global_size=processes,
    )
