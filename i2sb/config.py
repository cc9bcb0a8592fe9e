"""What the three programs can be told: one frozen dataclass each, flags being the field names with dashes.

Building one validates it, without touching the disk; a wrong value is a ValueError that names the flag. Nothing here
imports torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from i2sb.errors import UserError, require
from i2sb.metrics.table import METRICS
from i2sb.network_sizes import find_network

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Consistency = Literal["none", "project", "gradient"]
_PRECISION_HELP = (
    "what the network computes in: fp32; tf32 (GPUs); bf16 or fp16 (autocast, weights stay fp32), which processors "
    "without such instructions emulate, many times slower"
)
_CHANNELS_LAST_HELP = "keep images with their channels innermost, which some GPUs like better"
_COMPILE_HELP = "compile the network with torch.compile: minutes at the start, faster then"

# `--corrupt paired`: the data set holds degraded images itself.
PAIRED = "paired"


# Which formulations use a setting; a setting that says nothing is used by all of them.
BRIDGE = ("bridge",)
REGRESSION = ("regression",)
DIFFUSIONS = ("conditional_diffusion", "diffusion")
STEPWISE = (*BRIDGE, *DIFFUSIONS)
SHOWN_X1 = (*BRIDGE, "conditional_diffusion", *REGRESSION)


def option(
    default: Any,
    help: str,
    *,
    later: bool = False,
    older: Any = None,
    may_change: bool = False,
    used_by: tuple[str, ...] = (),
) -> Any:
    """A field with its default and the line that `--help` prints for it.

    later: older versions did not have it and saved no such line; their runs are as the default says, or as `older`.
    may_change: it may differ when a run goes on: it changes neither what the weights mean nor the order of the data.
    used_by: the formulations that use it, if not all.
    """
    metadata = {"help": help, "later": later, "older": older, "may_change": may_change, "used_by": used_by}
    return field(default=default, metadata=metadata)


_NAME_A_RUN = "name the run that was trained; runs live in results/NAME"
_NAME_A_FOLDER = "name a folder of restored images inside the run, such as samples_nfe10"


def _require_finite(config: Any) -> None:
    for f in fields(config):
        value = getattr(config, f.name)
        require(not isinstance(value, float) or math.isfinite(value), f.name, value, "must be finite")


def _require_name(setting: str, value: str, missing: str = "give the run a name; it lives in results/NAME") -> None:
    require(bool(value), setting, None, f"is missing; {missing}")
    require(
        re.fullmatch(r"\w[\w.+=-]*(/\w[\w.+=-]*)*", value) is not None and max(map(len, value.split("/"))) <= 100,
        setting,
        value,
        "begin with a letter or digit, go on with those or . _ - + =, 100 at most "
        "(it becomes a folder under `results_dir`)",
    )


def _require_place(config: Any) -> None:
    for name in ("n_gpu_per_node", "num_proc_node"):
        require(getattr(config, name) >= 1, name, getattr(config, name), "must be at least 1")
    require(
        0 <= config.node_rank < config.num_proc_node,
        "node_rank",
        config.node_rank,
        f"must be from 0 to {config.num_proc_node - 1}, below `num_proc_node`",
    )
    require(0 < config.master_port < 65536, "master_port", config.master_port, "must be from 1 to 65535")


@dataclass(frozen=True)
class TrainConfig:
    """Train a bridge, or a baseline; running the same command again resumes it."""

    name: str = option("", "name of the run, which lives in results/NAME; required", may_change=True)
    results_dir: str = option("results", "folder of all runs", may_change=True)
    ckpt: str = option(
        "", "go on from another run, by its name in --results-dir; what follows is saved under --name", may_change=True
    )
    seed: int = option(0, "seed of data order, degradations, noise and initial weights")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one", may_change=True)
    n_gpu_per_node: int = option(
        1, "processes to start here, one a GPU, as torchrun --nproc-per-node does", later=True, may_change=True
    )
    num_proc_node: int = option(
        1, "machines that take part; start the same command on each", later=True, may_change=True
    )
    node_rank: int = option(0, "number of this machine among them", later=True, may_change=True)
    master_address: str = option("localhost", "address of the machine with number 0", later=True, may_change=True)
    master_port: int = option(29500, "a free port on it, if several machines take part", later=True, may_change=True)

    dataset_dir: str = option(
        "",
        "folder with train and val data (LMDB, class folders, flat, or degraded/ with clean/); required",
        may_change=True,
    )
    image_size: int = option(256, "side of the square training images, in pixels")
    image_channels: Literal[1, 3] = option(3, "3: colour, 1: grey")
    crop: Literal["center", "random"] = option(
        "center",
        "center: shrink images to --image-size and crop the middle, as published; random: train on crops from anywhere "
        "at the images' own scale (validation: the middle at that scale)",
        later=True,
    )
    crops_per_image: int = option(
        1,
        "crops of --crop random used of every file that is decoded, in consecutive batches: more are faster to load "
        "and less varied",
        later=True,
    )
    workers: int = option(
        4,
        "processes that decode images, per GPU, at most one a core (0: decode in the program itself)",
        may_change=True,
    )
    prefetch: int = option(2, "microbatches that each of the --workers prepares ahead", later=True, may_change=True)
    max_bad_images: int = option(
        100, "unreadable training images to skip, each named, before the run stops", later=True, may_change=True
    )

    corrupt: str = option(
        "",
        "degradation to restore, several with commas between for one of them an image, or 'paired' if the data set "
        "holds degraded images itself; 'help' lists them; required",
    )
    mask_file: str = option(
        "", "npz of the published freeform masks (default: masks drawn by this program)", later=True
    )
    cond_x1: bool = option(False, "show the degraded image to the bridge's network at every step", used_by=SHOWN_X1)
    add_x1_noise: bool = option(
        False, "add unit noise to the degraded image that the way back starts from (for decolor)", used_by=SHOWN_X1
    )

    formulation: Literal["bridge", "conditional_diffusion", "regression", "diffusion"] = option(
        "bridge",
        "what the network is trained for: the bridge, or a baseline: a diffusion that is shown x1, a regression from "
        "x1 to x0, a diffusion of clean images alone (restores with --sampler ddnm or ddrm)",
        later=True,
    )
    regression_target: Literal["difference", "image"] = option(
        "difference",
        "what a regression's network predicts: how x1 differs from x0, as a bridge's does, or x0 itself",
        later=True,
        older="image",
        used_by=REGRESSION,
    )
    schedule: Literal["linear", "cosine"] = option(
        "linear", "noise of the two diffusions, over --interval steps", later=True, used_by=DIFFUSIONS
    )
    interval: int = option(1000, "number of steps of the bridge or diffusion, even", used_by=STEPWISE)
    beta_max: float = option(0.3, "diffusion strength: 0.3 for stochastic tasks, 1.0 with --ot-ode", used_by=BRIDGE)
    t0: float = option(1e-4, "time input of the network at the clean end", used_by=BRIDGE)
    T: float = option(1.0, "time input of the network at the degraded end", used_by=BRIDGE)
    ot_ode: bool = option(False, "bridge without noise (optimal-transport ODE)", used_by=BRIDGE)
    clip_denoise: bool = option(
        False, "clamp predicted clean images to [-1, 1] while sampling for validation", may_change=True
    )

    network: str = option(
        "adm256",
        "a U-Net: adm256 (published, 553 M parameters), base64, small64, compact96, compact, mini or tiny; or a class "
        "of your own, path/to/file.py:ClassName",
    )
    init: str = option(
        "none",
        "weights of a new run: none (random), adm (scripts/download.py adm256), a .pt or .safetensors file, or a run",
        later=True,
    )
    precision: Precision = option("fp32", _PRECISION_HELP, later=True, may_change=True)
    grad_checkpoint: bool = option(
        False, "compute blocks again in the backward pass, to need less memory", later=True, may_change=True
    )
    channels_last: bool = option(False, _CHANNELS_LAST_HELP, later=True, may_change=True)
    compile: bool = option(False, _COMPILE_HELP, later=True, may_change=True)
    batch_size: int = option(256, "images an optimizer iteration, over all GPUs")
    microbatch: int = option(2, "images a forward pass, per GPU", may_change=True)
    num_itr: int = option(1_000_000, "optimizer iterations in all", may_change=True)
    lr: float = option(5e-5, "learning rate of AdamW")
    lr_gamma: float = option(0.99, "factor on the learning rate every --lr-step iterations")
    lr_step: int = option(1000, "iterations between two cuts of the learning rate")
    start_share: float = option(
        0.0,
        "share of the training images put at the degraded end, where every restoration begins; the others are put "
        "anywhere, as published",
        later=True,
        used_by=STEPWISE,
    )
    lr_cooldown: int = option(
        0,
        "iterations before --num-itr in which the learning rate falls to zero, in a line (0: it does not); may be "
        "decided when a run goes on",
        later=True,
        may_change=True,
    )
    l2_norm: float = option(0.0, "weight decay of AdamW")
    ema: float = option(0.99, "decay of the averaged weights")
    grad_clip: float = option(
        0.0, "largest norm of the gradient, beyond which it is scaled down (0: no limit)", later=True, may_change=True
    )
    max_bad_steps: int = option(
        20,
        "iterations in a row with an infinite or NaN loss or gradient, skipped, before the run stops",
        later=True,
        may_change=True,
    )

    save_every: int = option(
        5000, "iterations between two checkpoints; the last iteration is always saved", may_change=True
    )
    keep_last: int = option(2, "checkpoints kept", may_change=True)
    log_every: int = option(10, "iterations between two lines of log.jsonl", may_change=True)
    log_writer: Literal["tensorboard", "wandb", "none"] = option(
        "tensorboard", "where curves go besides log.jsonl", may_change=True
    )
    wandb_project: str = option(
        "i2sb", "project of --log-writer wandb; its key is never a setting", later=True, may_change=True
    )
    wandb_user: str = option(
        "", "user or team of --log-writer wandb (default: whose key it is)", later=True, may_change=True
    )
    log_dir: str = option("", "folder of the TensorBoard logs (default: results/NAME/tensorboard)", may_change=True)
    eval_every: int = option(5000, "iterations between two validations (0: never)", may_change=True)
    eval_nfe: int = option(10, "network evaluations per validation image (a regression: 1)", may_change=True)
    eval_images: int = option(16, "validation images, spread evenly over the val split", may_change=True)
    eval_image_size: int | None = option(
        None, "side of validation images, if another than --image-size", may_change=True
    )
    weights_dir: str = option(
        "data/weights",
        "folder where ResNet-50's weights may lie, for the accuracy of validation images",
        later=True,
        may_change=True,
    )

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_name("name", self.name)
        if self.ckpt:
            _require_name("ckpt", self.ckpt)
        _require_place(self)
        require(
            bool(self.dataset_dir), "dataset_dir", None, "is missing; name the folder that holds the train and val data"
        )
        require(bool(self.corrupt), "corrupt", None, "is missing; name the degradation to restore, or 'paired'")
        find_network(self.network)
        require(
            self.interval >= 2 and self.interval % 2 == 0,
            "interval",
            self.interval,
            f"must be even and at least 2, such as {max(2, self.interval + 1)}",
        )
        require(self.interval <= 1_000_000, "interval", self.interval, "must be at most 1000000 (published: 1000)")
        require(self.beta_max > 0, "beta_max", self.beta_max, "must be positive (0.3 and 1.0 are the published ones)")
        require(0 < self.t0 < self.T, "t0", self.t0, f"must be above 0 and below `T` {self.T}")
        for name in (
            "image_size",
            "batch_size",
            "microbatch",
            "num_itr",
            "lr_step",
            "save_every",
            "keep_last",
            "log_every",
            "eval_images",
            "max_bad_steps",
            "prefetch",
            "crops_per_image",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("workers", "eval_every", "l2_norm", "seed", "grad_clip", "max_bad_images", "lr_cooldown"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(
            self.batch_size % self.microbatch == 0,
            "batch_size",
            self.batch_size,
            f"must be a multiple of `microbatch` {self.microbatch}",
        )
        require(
            self.crop == "random" or self.crops_per_image == 1,
            "crops_per_image",
            self.crops_per_image,
            "only `crop` random uses it",
        )
        require(
            self.lr_cooldown <= self.num_itr,
            "lr_cooldown",
            self.lr_cooldown,
            f"must not be more than `num_itr` {self.num_itr}",
        )
        require(
            self.eval_image_size is None or self.eval_image_size >= 1,
            "eval_image_size",
            self.eval_image_size,
            "must be at least 1",
        )
        require(self.lr > 0, "lr", self.lr, "must be positive")
        require(0 < self.lr_gamma <= 1, "lr_gamma", self.lr_gamma, "must be above 0 and at most 1")
        require(0 <= self.start_share <= 1, "start_share", self.start_share, "must be between 0 and 1")
        require(0 <= self.ema < 1, "ema", self.ema, "must be at least 0 and below 1")
        require(
            not self.eval_every or 1 <= self.eval_nfe < self.interval,
            "eval_nfe",
            self.eval_nfe,
            f"must be between 1 and {self.interval - 1} with `interval` {self.interval}; "
            "or train without validation, `eval_every` 0",
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.results_dir) / self.name

    @property
    def restored_size(self) -> int:
        """Side of the images that validation, and sampling unless told otherwise, restore."""
        return self.eval_image_size or self.image_size


@dataclass(frozen=True)
class RunOptions:
    """Which run: what sample.py and compute_metrices.py are both told."""

    ckpt: str = option("", "name of the run in --results-dir; required")
    results_dir: str = option("results", "folder of all runs")

    @property
    def run_dir(self) -> Path:
        return Path(self.results_dir) / self.ckpt


# From options and the usual ones, both settled, to a piece of the folder's name.
NamePart = Callable[["SamplingOptions", "SamplingOptions"], str]


def sampling_option(default: Any, help: str, *, older: Any = None, named: NamePart | None = None) -> Any:
    """A field of SamplingOptions.

    older: what None stands for in the settings of restored images, and a line that older versions did not write: an
    option that is new needs it, or what they restored could not be continued.
    named: how the option shows in the name of the folder, if it does.
    """
    return field(default=default, metadata={"help": help, "later": older is not None, "older": older, "named": named})


@dataclass(frozen=True)
class SamplingOptions:
    """How images are restored: all that decides, with the network and the degraded image, what each will look like.

    Every option is defined here alone. The flags of sample.py, the name of a folder of restored images, its settings
    and manifest, and the comparison with images that exist already follow from these fields. Options that are None, or
    a `sampler` that is empty, are left to the formulation (`Formulation.settle`).
    """

    nfe: int | None = sampling_option(
        None,
        "network evaluations per image (default: as many as there are steps; on a bridge that is interval - 1)",
        named=lambda options, usual: f"_nfe{options.nfe}",
    )
    clip_denoise: bool = sampling_option(
        False,
        "clamp predicted clean images to [-1, 1] at every step",
        named=lambda options, usual: "_clip" if options.clip_denoise else "",
    )
    sampler: str = sampling_option(
        "",
        "way to step back (default: the first): of a bridge posterior (published), eta (less noise), second_order or "
        "ot_ode (no noise); of a conditional diffusion ancestral or ddim; of a diffusion of clean images ddnm or ddrm",
        older="posterior",
        named=lambda options, usual: "" if options.steps_as(usual) else f"_{options.sampler}",
    )
    eta: float | None = sampling_option(
        None,
        "share of noise in a step, 0 to 1, with --sampler eta (default: 0), ddim (0), ddnm or ddrm (0.85)",
        older=1.0,
        named=lambda options, usual: "" if options.steps_as(usual) or options.eta is None else f"{options.eta:g}",
    )
    consistency: Consistency = sampling_option(
        "none",
        "keep predictions in line with the degraded image, if it was made by the run's degradation (--corrupt)",
        older="none",
        named=lambda options, usual: "" if options.consistency == "none" else f"_{options.consistency}",
    )
    consistency_weight: float = sampling_option(
        1.0,
        "length of the steps of --consistency gradient",
        older=1.0,
        named=lambda options, usual: f"{options.consistency_weight:g}" if options.consistency == "gradient" else "",
    )
    seed: int = sampling_option(0, "seed of the noise; every image has its own, made from this and its index")
    tile: int | None = sampling_option(
        None,
        "side of the tiles in which the network sees pictures of --input (0: whole; default: large ones by 256)",
        older=0,
    )
    overlap: int = sampling_option(32, "pixels that neighbouring tiles share at least", older=32)

    def __post_init__(self) -> None:
        _require_finite(self)
        require(self.nfe is None or self.nfe >= 1, "nfe", self.nfe, "must be at least 1")
        require(self.eta is None or 0 <= self.eta <= 1, "eta", self.eta, "must be between 0 and 1")
        require(self.consistency_weight > 0, "consistency_weight", self.consistency_weight, "must be positive")
        require(
            self.consistency == "gradient" or self.consistency_weight == 1,
            "consistency_weight",
            self.consistency_weight,
            "only `consistency` gradient uses it",
        )
        require(self.seed >= 0, "seed", self.seed, "must not be negative")
        require(self.tile is None or self.tile >= 0, "tile", self.tile, "must not be negative")
        require(self.overlap >= 0, "overlap", self.overlap, "must not be negative")
        require(not self.tile or self.overlap < self.tile, "overlap", self.overlap, f"must be below `tile` {self.tile}")

    @property
    def evaluations(self) -> int:
        """The number of network evaluations, once it is settled."""
        assert self.nfe is not None
        return self.nfe

    @property
    def noise_share(self) -> float:
        """η once it is settled: 1, as of the posterior, where the sampler has none."""
        return 1.0 if self.eta is None else self.eta

    def steps_as(self, other: SamplingOptions) -> bool:
        """Say whether these options take the same steps as others; both are settled."""
        return (self.sampler, self.eta) == (other.sampler, other.eta)

    def folder_name(self, usual: SamplingOptions) -> str:
        """Return the name of a folder for images restored so: what is not as usual; both are settled."""
        parts = (f.metadata["named"] for f in fields(self))
        return "samples" + "".join(part(self, usual) for part in parts if part is not None)

    def record(self) -> dict[str, Any]:
        """Return the options, settled, as settings.yaml and manifest.jsonl tell them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {f.name: f.metadata["older"] if values[f.name] is None else values[f.name] for f in fields(self)}


@dataclass(frozen=True)
class SampleConfig(SamplingOptions, RunOptions):
    """Restore the val split of a data set with a trained run; images go to results/NAME/samples_nfe{NFE}.

    With --input, restore pictures of one's own instead; they go to --output.
    """

    ckpt_file: str = option("", "checkpoint of the run, by its name in results/NAME or its path (default: the newest)")
    network: str = option(
        "", "the run's network, to be given where it is a Python file, or where a released run's has other heads"
    )
    input: str = option("", "a degraded picture of your own, or a folder of such, to restore instead of the val split")
    mask: str = option("", "picture, or folder of such named as those of --input, white where theirs are missing")
    output: str = option("", "folder for the restored pictures of --input")
    overwrite: bool = option(False, "let --input replace pictures that are in --output already")
    dataset_dir: str = option("", "folder with the val data (default: the one the run was trained on)")
    subset: str = option("", "text file that lists the images to restore, a path a line (default: the whole split)")
    limit: int | None = option(None, "restore at most this many images, the first ones")
    image_size: int | None = option(None, "side of the square images, in pixels (default: the run's validation size)")
    corrupt: str = option(
        "", "degradation (default: the run's, but none with --input; must be given where it is a Python file)"
    )
    mask_file: str = option("", "npz of the published freeform masks (default: as in training)")
    sample_dir: str = option("", "folder for the images inside the run (default: samples_nfe{NFE} and the like)")
    save_pt: bool = option(False, "also write recon.pt, the file of the released program, at the end")
    save_trajectory: bool = option(False, "also draw every image's way over the bridge, as a strip and an animation")
    partition: str = option("", "i_n: restore only the i-th of n parts, i from 0 to n - 1")
    batch_size: int = option(16, "images restored at once, per GPU (of --input: tiles)")
    use_fp16: bool = option(False, "convolutions in half precision as the released program has it (see --precision)")
    precision: Precision = option("fp32", _PRECISION_HELP)
    channels_last: bool = option(False, _CHANNELS_LAST_HELP)
    compile: bool = option(False, _COMPILE_HELP)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    n_gpu_per_node: int = option(1, "processes to start here, one a GPU, as torchrun --nproc-per-node does", later=True)
    num_proc_node: int = option(1, "machines that take part; start the same command on each", later=True)
    node_rank: int = option(0, "number of this machine among them", later=True)
    master_address: str = option("localhost", "address of the machine with number 0", later=True)
    master_port: int = option(29500, "a free port on it, if several machines take part", later=True)
    workers: int = option(4, "processes that decode images, per GPU, at most one a core")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_name("ckpt", self.ckpt, _NAME_A_RUN)
        if self.network:
            find_network(self.network)
        require(
            not self.sample_dir or re.fullmatch(r"\w[\w.+=-]*", self.sample_dir) is not None,
            "sample_dir",
            self.sample_dir,
            "name a folder inside the run, such as samples_nfe10",
        )
        for name in ("image_size", "limit", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(self.workers >= 0, "workers", self.workers, "must not be negative")
        require(
            not self.use_fp16 or self.precision == "fp32",
            "precision",
            self.precision,
            "cannot go together with `use_fp16`; choose one of the two",
        )
        self._check_pictures()
        self.part  # noqa: B018 - validates
        _require_place(self)

    def _check_pictures(self) -> None:
        """Refuse settings of the split for pictures of one's own, and the other way round."""
        if self.input:
            require(bool(self.output), "output", None, "is missing; name a folder for the restored pictures of `input`")
            for name in ("dataset_dir", "subset", "image_size", "partition", "save_pt", "mask_file", "sample_dir"):
                value = getattr(self, name)
                require(not value, name, value, "is about the val split and does nothing for `input`")
            require(self.corrupt != PAIRED, "corrupt", PAIRED, "pictures of `input` are degraded already; leave it out")
            require(
                not (self.mask and self.corrupt),
                "mask",
                self.mask,
                f"choose it or `corrupt` {self.corrupt}; a degradation brings its own holes",
            )
            return
        for f in fields(self):
            if f.name in ("mask", "output", "overwrite", "tile", "overlap"):
                value = getattr(self, f.name)
                require(value == f.default, f.name, value, "needs `input`, your pictures")

    @property
    def sampling(self) -> SamplingOptions:
        """How images are to be restored, as the flags say it."""
        return SamplingOptions(**{f.name: getattr(self, f.name) for f in fields(SamplingOptions)})

    @property
    def part(self) -> tuple[int, int]:
        """The part to restore and the number of parts."""
        if not self.partition:
            return 0, 1
        match = re.fullmatch(r"(\d+)_(\d+)", self.partition)
        index, count = (int(match[1]), int(match[2])) if match else (0, 0)
        require(
            index < count, "partition", self.partition, "write i_n with 0 <= i < n, such as 0_4 for the first of four"
        )
        return index, count


@dataclass(frozen=True)
class EvalConfig(RunOptions):
    """Score restored images against the clean ones; writes metrics.json, report.html and comparison.png beside them."""

    ckpt: str = option("", "name of the run in --results-dir; required, but for --make-reference")
    sample_dir: str = option(
        "", "folder of restored images inside the run, such as samples_nfe10; required with --ckpt"
    )
    dataset_dir: str = option("", "folder with the val data (default: the one the images were restored from)")
    subset: str = option("", "text file that lists the images (default: the one they were restored by, if any)")
    corrupt: str = option("", "degradation, where the run does not say it, or its own is a Python file")
    mask_file: str = option("", "npz of the published freeform masks, if it has moved since the images were restored")
    metrics: str = option(
        "", f"what to compute, with commas between, psnr in any case: {', '.join(METRICS)} (default: all)"
    )
    require: str = option("", "metrics, with commas between, without which the program exits with status 3")
    mode: Literal["legacy_pytorch", "legacy_tensorflow", "clean"] = option(
        "legacy_pytorch", "how images are resized for FID and KID; legacy_pytorch: as published"
    )
    reference: str = option("", "npz of reference statistics for FID (default: the clean images that are scored)")
    reference_split: Literal["", "train", "val"] = option(
        "", "split the reference is made from (default, as published: train for sr4x-*, val for all others)"
    )
    make_reference: str = option("", "write reference statistics of --dataset-dir to this npz, score nothing")
    image_size: int = option(256, "side of the square images, in pixels, for --make-reference")
    crop: Literal["center", "random"] = option(
        "center", "how images become square for --make-reference: as the run's --crop does it for validation"
    )
    weights_dir: str = option("data/weights", "folder of the networks' weights, looked into before torch's own cache")
    features: str = option(
        "",
        "feature function of your own, path/to/file.py:function, run on images [B, 3, H, W] in [-1, 1], returns [B, D]",
    )
    seed: int = option(0, "seed of the subsets that KID draws")
    batch_size: int = option(16, "images scored at once, per process")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    workers: int = option(4, "processes that decode images, per GPU, at most one a core")

    def __post_init__(self) -> None:
        if self.make_reference:
            for holds, must in (
                (self.make_reference.endswith(".npz"), "name a file that ends in .npz"),
                (bool(self.dataset_dir), "give `dataset_dir`, the data it is to be made from"),
                (not self.ckpt and not self.sample_dir, "scores nothing, so leave out `ckpt`, `sample_dir`"),
                (not self.reference, "leave out `reference`, which is for scoring"),
            ):
                require(holds, "make_reference", self.make_reference, must)
        else:
            require(self.crop == "center", "crop", self.crop, "is for `make_reference`; scoring takes the run's own")
            _require_name("ckpt", self.ckpt, _NAME_A_RUN)
            require(bool(self.sample_dir), "sample_dir", None, f"is missing; {_NAME_A_FOLDER}")
            require(
                Path(self.sample_dir).name == self.sample_dir.rstrip("/"),
                "sample_dir",
                self.sample_dir,
                f"{_NAME_A_FOLDER}",
            )
        for setting, listed in (("metrics", self.metrics), ("require", self.require)):
            for name in _split(listed):
                require(name in METRICS, setting, name, f"unknown metric; there are {', '.join(METRICS)}")
        require(
            re.fullmatch(r"(.+\.py:[A-Za-z_]\w*)?", self.features) is not None,
            "features",
            self.features,
            "name file and function, as path/to/file.py:function",
        )
        for name in _split(f"{self.metrics},{self.require}"):
            require(
                bool(self.features) or not METRICS[name].uses_function,
                "features",
                None,
                f"is missing; {name} needs the function, as path/to/file.py:function",
            )
        for name in _split(self.require):
            require(name in self.wanted, "require", name, f"is not among `metrics` {self.metrics}")
        for name in ("batch_size", "image_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("workers", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics to compute, in the order of METRICS."""
        listed = ("psnr", *_split(self.metrics)) if self.metrics else tuple(METRICS)
        return tuple(
            name for name, metric in METRICS.items() if name in listed and (self.features or not metric.uses_function)
        )

    @property
    def required(self) -> tuple[str, ...]:
        """The metrics that must be computed."""
        return _split(self.require)


def _split(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def flag(field_name: str) -> str:
    """Return the flag that sets a field."""
    return "--" + field_name.replace("_", "-")


def write_flags(message: str) -> str:
    """Return a message for the command line: settings, which it has in backticks, become flags."""
    return re.sub(r"`([A-Za-z]\w*)`", lambda match: flag(match[1]), message)


def refuse_unused(config: TrainConfig) -> None:
    """Raise UserError for a setting that the run's formulation would not use, if it is not as it is by default."""
    for f in fields(TrainConfig):
        used_by, value = f.metadata["used_by"], getattr(config, f.name)
        if used_by and config.formulation not in used_by and value != f.default:
            raise UserError(f.name, value, f"`formulation` {config.formulation} does not use it; leave it out")


def check_resumable(saved: TrainConfig, wanted: TrainConfig, run_dir: Path) -> None:
    """Raise UserError if the run in `run_dir`, saved with other settings, cannot go on with the `wanted` ones."""
    differences = [
        f"`{f.name}` {getattr(saved, f.name)} there, {getattr(wanted, f.name)} now"
        for f in fields(TrainConfig)
        if not f.metadata["may_change"]
        and not _moved(f.name, saved, wanted)
        and getattr(saved, f.name) != getattr(wanted, f.name)
    ]
    if differences:
        raise UserError(
            run_dir,
            None,
            f"holds a run with other settings ({'; '.join(differences)}); "
            "give the same ones to resume it, or another `name` to start anew",
        )


def _moved(name: str, saved: TrainConfig, wanted: TrainConfig) -> bool:
    """Whether a setting is a file that was there and is there, if perhaps in another place."""
    return name == "mask_file" and bool(saved.mask_file) == bool(wanted.mask_file)
