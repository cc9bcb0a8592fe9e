"""What the programs can be told: one frozen dataclass each, flags being the field names with dashes.

Building one validates it, without touching the disk; a wrong value is a ValueError that names the flag. Nothing here
imports torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from i2sb.errors import FileError, UserError, list_differences, require
from i2sb.formulation_table import FORMULATIONS, is_used
from i2sb.metrics.table import METRICS
from i2sb.network_sizes import find_network
from i2sb.options import check_bounds, older_values, option

if TYPE_CHECKING:
    FormulationName = str
else:
    FormulationName = Literal[tuple(FORMULATIONS)]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Consistency = Literal["none", "project", "gradient"]
HoleFill = Literal["noise", "grey"]
_PRECISION_HELP = (
    "what the network computes in: auto (bf16 on GPUs that have it, fp16 on V100 and the like, fp32 on CPUs); fp32; "
    "tf32 (GPUs); bf16 or fp16 (autocast, weights stay fp32), which processors without such instructions emulate, many "
    "times slower"
)
_CHANNELS_LAST_HELP = "keep images with their channels innermost, which some GPUs like better"
_COMPILE_HELP = "compile the network with torch.compile: minutes at the start, faster then"

# Sides of square images, in pixels, beyond which a number is a slip: one image would fill a GPU hundreds of times.
LARGEST_SIDE = 16384

# `--corrupt paired`: the data set holds degraded images itself.
PAIRED = "paired"

_NAME_A_RUN = "name the run that was trained, which lives in results/NAME, or an exported .safetensors file"
_NAME_A_FOLDER = "name a folder of restored images inside the run, such as samples_nfe10"


def _show_channels() -> Any:
    """The option of the three programs that says what people see of images."""
    return option(
        None,
        "one or three channels, counted from 1, that pictures for people show (default: the first three, or the first)",
        at_least=1,
        later=True,
        may_change=True,
    )


def _check_show_channels(wanted: tuple[int, ...] | None) -> None:
    shown = None if wanted is None else " ".join(map(str, wanted))
    require(wanted is None or len(wanted) in (1, 3), "show_channels", shown, "name one channel, or three")


def _require_name(setting: str, value: str) -> None:
    require(bool(value), setting, None, "is missing; give the run a name; it lives in results/NAME")
    require(
        re.fullmatch(r"\w[\w.+=-]*(/\w[\w.+=-]*)*", value) is not None and max(map(len, value.split("/"))) <= 100,
        setting,
        value,
        "begin with a letter or digit, go on with those or . _ - + =, 100 at most "
        "(it becomes a folder under `results_dir`)",
    )


def _require_place(config: TrainConfig | SampleConfig) -> None:
    last = config.num_proc_node - 1
    must = f"must be at most {last}, below `num_proc_node`"
    require(config.node_rank <= last, "node_rank", config.node_rank, must)


@dataclass(frozen=True)
class TrainConfig:
    """Train a bridge, or a baseline; running the same command again resumes it."""

    name: str = option(
        "", "name of the run, which lives in results/NAME; required", may_change=True, group="run", common=True
    )
    results_dir: str = option("results", "folder of all runs", may_change=True)
    ckpt: str = option(
        "", "go on from another run, by its name in --results-dir; what follows is saved under --name", may_change=True
    )
    seed: int = option(0, "seed of data order, degradations, noise and initial weights", at_least=0)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "auto: the GPU if there is one", may_change=True, group="computing"
    )
    n_gpu_per_node: int = option(
        1,
        "processes to start here, one a GPU, as torchrun --nproc-per-node does",
        at_least=1,
        at_most=64,
        later=True,
        may_change=True,
        common=True,
    )
    num_proc_node: int = option(
        1, "machines that take part; start the same command on each", at_least=1, later=True, may_change=True
    )
    node_rank: int = option(0, "number of this machine among them", at_least=0, later=True, may_change=True)
    master_address: str = option("localhost", "address of the machine with number 0", later=True, may_change=True)
    master_port: int = option(
        29500, "a free port on it, if several machines take part", above=0, below=65536, later=True, may_change=True
    )

    dataset_dir: str = option(
        "",
        "folder with train and val data (LMDB, class folders, flat, or degraded/ with clean/); required",
        may_change=True,
        group="data",
        common=True,
        of_teacher="usual",
    )
    image_size: int = option(
        256,
        "side of the square training images, in pixels",
        at_least=1,
        at_most=LARGEST_SIDE,
        common=True,
        of_teacher="usual",
    )
    image_channels: int = option(
        3, "channels of the images: 3: colour, 1: grey, or any number", at_least=1, of_teacher="always"
    )
    value_range: tuple[float, float] | None = option(
        None,
        "lowest and highest value of a pixel (default: all that the type of each file has, 0 to 1 for floats)",
        later=True,
        of_teacher="always",
    )
    show_channels: tuple[int, ...] | None = _show_channels()
    crop: Literal["center", "random"] = option(
        "center",
        "center: shrink images to --image-size and crop the middle, as published; random: train on crops from anywhere "
        "at the images' own scale (validation: the middle at that scale)",
        later=True,
        of_teacher="usual",
    )
    crops_per_image: int = option(
        1,
        "crops of --crop random used of every file that is decoded, in consecutive batches: more are faster to load "
        "and less varied",
        at_least=1,
        later=True,
        of_teacher="usual",
    )
    workers: int = option(
        4,
        "processes that decode images, per GPU, at most one a core (0: decode in the program itself)",
        at_least=0,
        may_change=True,
        of_teacher="usual",
    )
    prefetch: int = option(
        2, "microbatches that each of the --workers prepares ahead", at_least=1, later=True, may_change=True
    )
    allow_changed_data: bool = option(
        False, "go on with a run though its training images are not those it began with", later=True, may_change=True
    )
    max_bad_images: int = option(
        100,
        "unreadable training images to skip, each named, before the run stops",
        at_least=0,
        later=True,
        may_change=True,
    )

    corrupt: str = option(
        "",
        "degradation to restore, several with commas between for one of them an image, or 'paired' if the data set "
        "holds degraded images itself; 'help' lists them; required",
        group="degradation",
        common=True,
        of_teacher="always",
    )
    mask_file: str = option(
        "",
        "npz of the published freeform masks (default: masks drawn by this program)",
        later=True,
        of_teacher="usual",
    )
    degradation_noise: float = option(
        0.0,
        "standard deviation of the noise in what a linear degradation (super-resolution, blur, inpainting, decolor) "
        "measures of images in [-1, 1], before it is shown",
        at_least=0,
        at_most=1,
        later=True,
        of_teacher="always",
    )
    cond_x1: bool = option(
        False, "show the degraded image to the bridge's network at every step", group="bridge", of_teacher="always"
    )
    hole_fill: HoleFill = option(
        "noise",
        "what the bridge begins with in the hole of an inpainting image: unit noise, as published, or grey, from which "
        "small networks learn sooner and a bridge without noise has one answer",
        later=True,
        of_teacher="always",
    )
    add_x1_noise: bool = option(
        False,
        "add unit noise to the degraded image that the way back starts from (for decolor)",
        of_teacher="always",
    )

    x1_from: str = option(
        "",
        "a trained regression, by its name in --results-dir, its folder or its .safetensors file: the bridge begins at "
        "what that restores instead of at the degraded image; kept in the run",
        later=True,
        of_teacher="always",
    )

    formulation: FormulationName = option(
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
    )
    distill: str = option(
        "",
        "a trained bridge, by its name in --results-dir, its folder or its .safetensors file: train a student of it, "
        "which restores in --nfe evaluations; what is not said otherwise is as the bridge had it; kept in the run",
        later=True,
        group="student",
    )
    nfe: int = option(1, "network evaluations in which a student restores", at_least=1, later=True)
    student_noise: bool = option(
        True, "show a student noise of its own, without which one evaluation has one answer (default)", later=True
    )
    inner_updates: int = option(
        5, "updates of the bridge of a student's own pairs before each of the student", at_least=1, later=True
    )
    degraded_data: bool = option(
        False, "the training images of a student are degraded already: it needs no clean ones", later=True
    )
    half_teacher: bool = option(
        False,
        "keep a student's teacher in half precision, in half the memory: bf16, or fp16 where --precision is that",
        later=True,
        may_change=True,
    )
    schedule: Literal["linear", "cosine"] = option(
        "linear", "noise of the two diffusions, over --interval steps", later=True, group="bridge"
    )
    interval: int = option(
        1000, "number of steps of the bridge or diffusion, even", at_least=2, at_most=1_000_000, of_teacher="always"
    )
    beta_max: float = option(
        0.3, "diffusion strength: 0.3 for stochastic tasks, 1.0 with --ot-ode", above=0, of_teacher="always"
    )
    t0: float = option(1e-4, "time input of the network at the clean end", above=0, of_teacher="always")
    T: float = option(1.0, "time input of the network at the degraded end", of_teacher="always")
    ot_ode: bool = option(False, "bridge without noise (optimal-transport ODE)", of_teacher="always")
    clip_denoise: bool = option(
        False, "clamp predicted clean images to [-1, 1] while sampling for validation", may_change=True
    )

    network: str = option(
        "adm256",
        "a U-Net: adm256 (published, 553 M parameters), base64, small64, compact96, compact, mini or tiny; or a class "
        "of your own, path/to/file.py:ClassName",
        group="network",
        common=True,
        of_teacher="always",
    )
    init: str = option(
        "none",
        "weights of a new run: none (random), adm (scripts/download.py adm256), a .pt file, or what sample.py's --ckpt "
        "takes",
        later=True,
        common=True,
    )
    precision: Precision = option(
        "auto", _PRECISION_HELP, later=True, older="fp32", may_change=True, of_teacher="usual"
    )
    grad_checkpoint: bool = option(
        False,
        "compute blocks again in the backward pass, to need less memory",
        later=True,
        may_change=True,
        of_teacher="usual",
    )
    channels_last: bool = option(False, _CHANNELS_LAST_HELP, later=True, may_change=True, of_teacher="usual")
    compile: bool = option(False, _COMPILE_HELP, later=True, may_change=True)
    batch_size: int = option(
        256,
        "images an optimizer iteration, over all GPUs",
        at_least=1,
        group="optimisation",
        common=True,
        of_teacher="usual",
    )
    microbatch: int | Literal["auto"] = option(
        "auto",
        "images a forward pass, per GPU; auto: as many as its memory takes (on a CPU, 1 GB)",
        at_least=1,
        may_change=True,
    )
    num_itr: int = option(1_000_000, "optimizer iterations in all", at_least=1, may_change=True, common=True)
    lr: float = option(5e-5, "learning rate of AdamW", above=0, common=True)
    lr_gamma: float = option(0.99, "factor on the learning rate every --lr-step iterations", above=0, at_most=1)
    lr_step: int = option(1000, "iterations between two cuts of the learning rate", at_least=1)
    start_share: float = option(
        0.0,
        "share of the training images put at the degraded end, where every restoration begins; the others are put "
        "anywhere, as published",
        at_least=0,
        at_most=1,
        later=True,
    )
    lr_cooldown: int = option(
        0,
        "iterations before --num-itr in which the learning rate falls to zero, in a line (0: it does not); may be "
        "decided when a run goes on",
        at_least=0,
        later=True,
        may_change=True,
    )
    l2_norm: float = option(0.0, "weight decay of AdamW", at_least=0)
    ema: float = option(0.99, "decay of the averaged weights", at_least=0, below=1)
    grad_clip: float = option(
        0.0,
        "largest norm of the gradient, beyond which it is scaled down (0: no limit)",
        at_least=0,
        later=True,
        may_change=True,
    )
    max_bad_steps: int = option(
        20,
        "iterations in a row with an infinite or NaN loss or gradient, skipped, before the run stops",
        at_least=1,
        later=True,
        may_change=True,
    )

    save_every: int = option(
        5000,
        "iterations between two checkpoints; the last iteration is always saved",
        at_least=1,
        may_change=True,
        group="checkpoints and logs",
    )
    keep_last: int = option(2, "checkpoints kept", at_least=1, may_change=True)
    log_every: int = option(10, "iterations between two lines of log.jsonl", at_least=1, may_change=True)
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
    eval_every: int = option(
        5000, "iterations between two validations (0: never)", at_least=0, may_change=True, group="validation"
    )
    eval_nfe: int = option(10, "network evaluations per validation image (a regression: 1)", may_change=True)
    eval_images: int = option(
        16, "validation images, spread evenly over the val split", at_least=1, may_change=True, of_teacher="usual"
    )
    eval_image_size: int | None = option(
        None,
        "side of validation images, if another than --image-size",
        at_least=1,
        at_most=LARGEST_SIDE,
        may_change=True,
        of_teacher="usual",
    )
    weights_dir: str = option(
        "data/weights",
        "folder where ResNet-50's weights may lie, for the accuracy of validation images",
        later=True,
        may_change=True,
        of_teacher="usual",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        _require_name("name", self.name)
        if self.ckpt:
            _require_name("ckpt", self.ckpt)
        _require_place(self)
        data = "is missing; name the folder that holds the train and val data"
        require(bool(self.dataset_dir), "dataset_dir", None, data)
        require(bool(self.corrupt), "corrupt", None, "is missing; name the degradation to restore, or 'paired'")
        noisy = not self.degradation_noise or self.corrupt != PAIRED
        require(noisy, "degradation_noise", self.degradation_noise, "pairs are degraded already; leave it out")
        find_network(self.network)
        if self.value_range is not None:
            low, high = self.value_range
            require(low < high, "value_range", f"{low:g} {high:g}", "the first must be below the second")
        _check_show_channels(self.show_channels)
        even = f"must be even, such as {self.interval + 1}"
        require(self.interval % 2 == 0, "interval", self.interval, even)
        require(self.t0 < self.T, "t0", self.t0, f"must be below `T` {self.T}")
        multiple = self.microbatch == "auto" or self.batch_size % self.microbatch == 0
        require(multiple, "batch_size", self.batch_size, f"must be a multiple of `microbatch` {self.microbatch}")
        exact = not (self.x1_from and self.add_x1_noise)
        require(exact, "add_x1_noise", None, "cannot go together with `x1_from`, which says where the bridge begins")
        if is_used("distill", self.formulation):
            require(bool(self.distill), "distill", None, "is missing; name the bridge that the student is made of")
        if self.degraded_data:
            able = is_used("degraded_data", self.formulation)
            require(able, "degraded_data", None, "only students (`distill`) do without clean images; leave it out")
            require(self.corrupt != PAIRED, "degraded_data", None, "pairs hold their degraded images; leave it out")
        one = self.crop == "random" or self.crops_per_image == 1
        require(one, "crops_per_image", self.crops_per_image, "only `crop` random uses it")
        at_most = f"must not be more than `num_itr` {self.num_itr}"
        require(self.lr_cooldown <= self.num_itr, "lr_cooldown", self.lr_cooldown, at_most)
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

    ckpt: str = option(
        "",
        "a run, by its name in --results-dir or its path; an exported .safetensors file; weights that this package "
        "carries (photos-jpeg and others); or hf:ORG/NAME, weights on the Hugging Face Hub; required",
        group="run",
        common=True,
    )
    results_dir: str = option("results", "folder of all runs")
    show_channels: tuple[int, ...] | None = _show_channels()

    @property
    def run_dir(self) -> Path:
        """The folder of the run, where `ckpt` is a name."""
        return Path(self.results_dir) / self.ckpt


# From options and the usual ones, both settled, to a piece of the folder's name.
NamePart = Callable[["SamplingOptions", "SamplingOptions"], str]


def sampling_option(default: Any, help: str, *, older: Any = None, named: NamePart | None = None, **bounds: Any) -> Any:
    """A field of SamplingOptions.

    older: what None stands for in the settings of restored images, and a line that older versions did not write: an
    option that is new needs it, or what they restored could not be continued.
    named: how the option shows in the name of the folder, if it does.
    """
    return option(default, help, later=older is not None, older=older, named=named, **bounds)


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
        at_least=1,
        named=lambda options, usual: f"_nfe{options.nfe}",
        group="restoring",
        common=True,
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
        common=True,
    )
    eta: float | None = sampling_option(
        None,
        "share of noise in a step, 0 to 1, with --sampler eta (default: 0), ddim (0), ddnm or ddrm (0.85)",
        at_least=0,
        at_most=1,
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
        above=0,
        older=1.0,
        named=lambda options, usual: f"{options.consistency_weight:g}" if options.consistency == "gradient" else "",
    )
    seed: int = sampling_option(
        0, "seed of the noise; every image has its own, made from this and its index", at_least=0, common=True
    )
    tile: int | None = sampling_option(
        None,
        "side of the tiles in which the network sees pictures of --input (0: whole; default: large ones by 256)",
        at_least=0,
        older=0,
        group="pictures of your own",
    )
    overlap: int = sampling_option(32, "pixels that neighbouring tiles share at least", at_least=0, older=32)

    def __post_init__(self) -> None:
        check_bounds(self)
        used = self.consistency == "gradient" or self.consistency_weight == 1
        require(used, "consistency_weight", self.consistency_weight, "only `consistency` gradient uses it")
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
        older = older_values(SamplingOptions)
        return {name: older.get(name) if value is None else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class SampleConfig(SamplingOptions, RunOptions):
    """Restore the val split of a data set with a trained run; images go to results/NAME/samples_nfe{NFE}.

    With --input, restore pictures of one's own instead; they go to --output.
    """

    ckpt_file: str = option(
        "", "checkpoint of the run, by its name in results/NAME or its path (default: the newest)", group="run"
    )
    network: str = option(
        "", "the run's network, to be given where it is a Python file, or where a released run's has other heads"
    )
    input: str = option(
        "",
        "a degraded picture of your own, or a folder of such, to restore instead of the val split",
        group="pictures of your own",
        common=True,
    )
    mask: str = option("", "picture, or folder of such named as those of --input, white where theirs are missing")
    output: str = option("", "folder for the restored pictures of --input", common=True)
    overwrite: bool = option(False, "let --input replace pictures that are in --output already")
    skip_bad: bool = option(False, "restore what can be restored of --input, and warn of the others")
    dataset_dir: str = option(
        "", "folder with the val data (default: the one the run was trained on)", group="val split", common=True
    )
    subset: str = option("", "text file that lists the images to restore, a path a line (default: the whole split)")
    limit: int | None = option(None, "restore at most this many images, the first ones", at_least=1, common=True)
    samples: int = option(
        1,
        "answers to each image, each with noise of its own; from 2 on also their mean, and a map of their standard "
        "deviation; the same folder may be asked for more later",
        at_least=1,
        group="restoring",
        common=True,
    )
    image_size: int | None = option(
        None,
        "side of the square images, in pixels (default: the run's validation size)",
        at_least=1,
        at_most=LARGEST_SIDE,
        group="val split",
    )
    corrupt: str = option(
        "",
        "degradation (default: the run's, but none with --input; must be given where it is a Python file)",
        group="degradation",
    )
    mask_file: str = option("", "npz of the published freeform masks (default: as in training)")
    degradation_noise: float | None = option(
        None,
        "standard deviation of the noise in the degradation's measurement (default: the run's; 0 with another "
        "--corrupt)",
        at_least=0,
        at_most=1,
    )
    sample_dir: str = option(
        "", "folder for the images inside the run (default: samples_nfe{NFE} and the like)", group="output"
    )
    save_pt: bool = option(False, "also write recon.pt, the file of the released program, at the end")
    save_trajectory: bool = option(False, "also draw every image's way over the bridge, as a strip and an animation")
    partition: str = option("", "i_n: restore only the i-th of n parts, i from 0 to n - 1", group="computing")
    batch_size: int = option(16, "images restored at once, per GPU (of --input: tiles)", at_least=1, common=True)
    use_fp16: bool = option(False, "convolutions in half precision as the released program has it (see --precision)")
    precision: Precision = option("fp32", _PRECISION_HELP)
    channels_last: bool = option(False, _CHANNELS_LAST_HELP)
    compile: bool = option(False, _COMPILE_HELP)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    n_gpu_per_node: int = option(
        1, "processes to start here, one a GPU, as torchrun --nproc-per-node does", at_least=1, at_most=64, later=True
    )
    num_proc_node: int = option(1, "machines that take part; start the same command on each", at_least=1, later=True)
    node_rank: int = option(0, "number of this machine among them", at_least=0, later=True)
    master_address: str = option("localhost", "address of the machine with number 0", later=True)
    master_port: int = option(
        29500, "a free port on it, if several machines take part", above=0, below=65536, later=True
    )
    workers: int = option(4, "processes that decode images, per GPU, at most one a core", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.ckpt), "ckpt", None, f"is missing; {_NAME_A_RUN}")
        if self.network:
            find_network(self.network)
        plain = not self.sample_dir or re.fullmatch(r"\w[\w.+=-]*", self.sample_dir) is not None
        require(plain, "sample_dir", self.sample_dir, "name a folder inside the run, such as samples_nfe10")
        _check_show_channels(self.show_channels)
        one = not self.use_fp16 or self.precision == "fp32"
        require(one, "precision", self.precision, "cannot go together with `use_fp16`; choose one of the two")
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
            either = f"choose it or `corrupt` {self.corrupt}; a degradation brings its own holes"
            require(not (self.mask and self.corrupt), "mask", self.mask, either)
            return
        for f in fields(self):
            if f.name in ("mask", "output", "overwrite", "skip_bad", "tile", "overlap"):
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
        wanted = "write i_n with 0 <= i < n, such as 0_4 for the first of four"
        require(index < count, "partition", self.partition, wanted)
        return index, count


@dataclass(frozen=True)
class EvalConfig(RunOptions):
    """Score restored images against the clean ones; writes metrics.json, report.html and comparison.png beside them."""

    ckpt: str = option(
        "",
        "run or exported file, as sample.py was told it; required, but for --make-reference",
        group="run",
        common=True,
    )
    sample_dir: str = option(
        "",
        "folder of restored images inside the run, such as samples_nfe10; required with --ckpt",
        group="run",
        common=True,
    )
    dataset_dir: str = option(
        "", "folder with the val data (default: the one the images were restored from)", group="data"
    )
    subset: str = option("", "text file that lists the images (default: the one they were restored by, if any)")
    corrupt: str = option("", "degradation, where the run does not say it, or its own is a Python file")
    mask_file: str = option("", "npz of the published freeform masks, if it has moved since the images were restored")
    metrics: str = option(
        "",
        f"what to compute, with commas between, psnr in any case: {', '.join(METRICS)} (default: all)",
        group="metrics",
        common=True,
    )
    require: str = option("", "metrics, with commas between, without which the program exits with status 3")
    mode: Literal["legacy_pytorch", "legacy_tensorflow", "clean"] = option(
        "legacy_pytorch", "how images are resized for FID and KID; legacy_pytorch: as published"
    )
    reference: str = option(
        "",
        "npz of reference statistics for FID (default: the clean images that are scored)",
        group="reference statistics",
        common=True,
    )
    reference_split: Literal["", "train", "val"] = option(
        "", "split the reference is made from (default, as published: train for super-resolution, val for all others)"
    )
    make_reference: str = option("", "write reference statistics of --dataset-dir to this npz, score nothing")
    image_size: int = option(
        256, "side of the square images, in pixels, for --make-reference", at_least=1, at_most=LARGEST_SIDE
    )
    crop: Literal["center", "random"] = option(
        "center", "how images become square for --make-reference: as the run's --crop does it for validation"
    )
    weights_dir: str = option(
        "data/weights", "folder of the networks' weights, looked into before torch's own cache", group="metrics"
    )
    features: str = option(
        "",
        "feature function of your own, path/to/file.py:function, run on images [B, 3, H, W] in [-1, 1], returns [B, D]",
    )
    seed: int = option(
        0,
        "seed of the subsets that KID draws, and of the 10,000 images that it, precision and the like look at where "
        "there are more",
        at_least=0,
    )
    batch_size: int = option(16, "images scored at once, per process", at_least=1, group="computing", common=True)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    workers: int = option(4, "processes that decode images, per GPU, at most one a core", at_least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        _check_show_channels(self.show_channels)
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
            require(bool(self.ckpt), "ckpt", None, f"is missing; {_NAME_A_RUN}")
            require(bool(self.sample_dir), "sample_dir", None, f"is missing; {_NAME_A_FOLDER}")
            plain = Path(self.sample_dir).name == self.sample_dir.rstrip("/")
            require(plain, "sample_dir", self.sample_dir, _NAME_A_FOLDER)
        function = re.fullmatch(r"(.+\.py:[A-Za-z_]\w*)?", self.features) is not None
        require(function, "features", self.features, "name file and function, as path/to/file.py:function")
        for setting, listed in (("metrics", self.metrics), ("require", self.require)):
            for name in _split(listed):
                require(name in METRICS, setting, name, f"unknown metric; there are {', '.join(METRICS)}")
                able = bool(self.features) or not METRICS[name].uses_function
                require(able, "features", None, f"is missing; {name} needs the function, as path/to/file.py:function")
        for name in _split(self.require):
            require(name in self.wanted, "require", name, f"is not among `metrics` {self.metrics}")

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


@dataclass(frozen=True)
class PageConfig:
    """Serve a page on which pictures are restored in the browser, until it is stopped with Ctrl-C."""

    ckpt: tuple[str, ...] | None = option(
        None,
        "runs to offer, by their names in --results-dir, and .safetensors files (default: all runs in --results-dir "
        "and all such files in --exported-dir)",
    )
    results_dir: str = option("results", "folder of all runs")
    exported_dir: str = option("weights", "folder of .safetensors files to offer besides the runs")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one")
    host: str = option(
        "127.0.0.1",
        "address to serve the page at; at another, others may use it too",
    )
    port: int = option(7860, "port to serve the page at (0: any that is free)", at_least=0, below=65536)
    max_megapixels: float = option(16.0, "largest picture that is taken, in megapixels", above=0, at_most=1000)
    max_megabytes: float = option(32.0, "largest file that is taken, in megabytes", above=0, at_most=1000)

    def __post_init__(self) -> None:
        check_bounds(self)
        require(bool(self.host), "host", None, "is missing; 127.0.0.1 is this machine")


def _split(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def refuse_unused(config: TrainConfig) -> None:
    """Raise UserError for a setting that the run's formulation would not use, if it is not as it is by default."""
    for f in fields(TrainConfig):
        value = getattr(config, f.name)
        if value != f.default and not is_used(f.name, config.formulation):
            raise UserError(f.name, value, f"`formulation` {config.formulation} does not use it; leave it out")


def fixed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a run keeps for ever, those its formulation uses: what its checkpoints hold of them."""
    return {
        f.name: getattr(config, f.name)
        for f in fields(TrainConfig)
        if not f.metadata["may_change"] and is_used(f.name, config.formulation)
    }


def check_resumable(saved: TrainConfig, wanted: TrainConfig, run_dir: Path) -> None:
    """Raise UserError if the run in `run_dir`, saved with other settings, cannot go on with the `wanted` ones."""
    differences = _list_changed(asdict(saved), wanted)
    if differences:
        again = "give the same ones to resume it, or another `name` to start anew"
        raise FileError(run_dir, f"holds a run with other settings ({differences}); {again}")


def check_unedited(trained_with: dict[str, Any], config: TrainConfig, checkpoint: Path) -> None:
    """Raise UserError if a run's `config`, read from its config.yaml, is not what a checkpoint was trained with.

    trained_with: the `fixed_settings` that it holds; empty if an older version wrote it.
    """
    differences = _list_changed(asdict(config) | trained_with, config)
    if differences:
        must = f"was edited: {checkpoint.name} was trained with other settings ({differences}); put them back"
        raise FileError(checkpoint.parent / "config.yaml", must)


def _list_changed(before: dict[str, Any], config: TrainConfig) -> str:
    """Say which of a run's fixed settings are not as they were before; "" if all are."""
    now = fixed_settings(config)
    if before["mask_file"] and config.mask_file:  # it may have moved
        now["mask_file"] = before["mask_file"]
    before, now = ({f"`{name}`": value for name, value in settings.items()} for settings in (before, now))
    return list_differences(before, now)
