"""A trained network, ready to restore images."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import index
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from corruption import Corrupted, Corruption, is_custom
from i2sb.answers import Answers, RunningMoments, measure_diversity
from i2sb.batch import Batch, begin_bridge, find_region
from i2sb.bridge import Bridge
from i2sb.config import PAIRED, Consistency, SamplingOptions, TrainConfig
from i2sb.consistency import check_consistency, make_consistency
from i2sb.errors import FileError, UserError, require
from i2sb.formulation import Formulation, Hooks, SchroedingerBridge
from i2sb.network import BridgeNetwork, build_network, check_network
from i2sb.network_sizes import NETWORKS, UNetSize, check_image_size, find_network, is_own
from i2sb.options import write_flags
from i2sb.randomness import ImageNoise, Purpose
from i2sb.sampler import StepTaken, Trajectory
from i2sb.storage.exported import Exported
from i2sb.storage.released import is_released
from i2sb.storage.runs import read_weights, resolve
from i2sb.tasks import build_formulation, build_task_corruption, choose_degradation, task_multiple
from i2sb.tensor_files import describe_shape, load_weights
from i2sb.tiles import pad_reflect, tiled

# Degraded images lie in [-1, 1], with noise of unit variance within ±6 or so. Beyond this they are of another scale.
LARGEST = 10.0

# torch puts every tensor that it makes on a CPU at a multiple of so many bytes.
ALIGNMENT = 64


@dataclass(frozen=True)
class RestorationModel:
    """A network with what it was trained for; config is the training run's, iteration where its weights stood.

    mean: the regression whose outputs its bridge begins at, if it does (`x1_from`). digest: as Exported has it.
    """

    network: BridgeNetwork
    formulation: Formulation
    config: TrainConfig
    iteration: int
    mean: "RestorationModel | None" = None
    digest: str = ""

    @property
    def bridge(self) -> Bridge:
        """The bridge of a run that has one. Raises UserError if it has none."""
        if not isinstance(self.formulation, SchroedingerBridge):
            raise UserError("formulation", self.config.formulation, "such a run has no bridge")
        return self.formulation.bridge

    @property
    def networks(self) -> list[BridgeNetwork]:
        """All networks that take part."""
        return [self.network, *(self.mean.networks if self.mean else ())]

    @property
    def device(self) -> torch.device:
        return self.formulation.noise_levels.device

    @overload
    def restore(
        self,
        degraded: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Tensor | None = None,
        nfe: int | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        clip_denoise: bool = False,
        sampler: str = "",
        eta: float | None = None,
        consistency: Consistency = "none",
        consistency_weight: float = 1.0,
        corruption: Corruption | None = None,
        tile: int | None = None,
        overlap: int = 32,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        samples: None = None,
        on_answer: None = None,
    ) -> Tensor: ...

    @overload
    def restore(
        self,
        degraded: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Tensor | None = None,
        nfe: int | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        clip_denoise: bool = False,
        sampler: str = "",
        eta: float | None = None,
        consistency: Consistency = "none",
        consistency_weight: float = 1.0,
        corruption: Corruption | None = None,
        tile: int | None = None,
        overlap: int = 32,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        samples: int,
        on_answer: Callable[[int, Tensor], object] | None = None,
    ) -> Answers: ...

    def restore(
        self,
        degraded: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Tensor | None = None,
        nfe: int | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        clip_denoise: bool = False,
        sampler: str = "",
        eta: float | None = None,
        consistency: Consistency = "none",
        consistency_weight: float = 1.0,
        corruption: Corruption | None = None,
        tile: int | None = None,
        overlap: int = 32,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        samples: int | None = None,
        on_answer: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor | Answers:
        """Restore `degraded` [B, C, H, W] in [-1, 1]; returns the same shape and range, not clamped, on its device.

        With `samples` it returns i2sb.answers.Answers: what that many answers to each image come to.

        i2sb.images.from_uint8 and to_uint8 turn 8-bit images to that range and back, from_pixels and to_pixels all
        others, given the run's `config.value_range`.

        mask: [B, 1, H, W], 1 or True inside the hole of an inpainting image (what the image holds there is ignored), 0
        elsewhere; a run that fills holes needs one, but for mixtures.
        cond: [B, C, H, W], what a conditioned network sees at every step, if not the degraded image (its hole filled).
        nfe: network evaluations, by default 10 or as many as there are.
        seed, numbers: image i draws its noise from (seed, numbers[i]), by default (seed, i); in a split that sample.py
        restores, an image's number is its index.
        sampler, eta: how steps are taken (i2sb.steps for the bridge), by default the formulation's own.
        consistency: "project" or "gradient" keeps predictions in line with the degraded image (i2sb.consistency).
        corruption: the degradation, if not the run's own, where it is used: for consistency, and by formulations
        whose training saw none.
        tile: side of the tiles in which the network sees the image (default: whole); they share `overlap` pixels, and
        `tiles_at_once` go through it together. Sides that the network cannot take are mirrored to such as it can.
        callback: is called after every step with an i2sb.sampler.StepTaken.
        samples: answers to each image, 2 or more; answer 0 is what is returned without it. Memory does not grow with
        their number, as only `first`, mean and std are kept.
        on_answer: is called with the number of each answer and the answer, [B, C, H, W], as soon as it is there.

        Raises UserError if a setting does not fit the formulation, the network or the degradation, if images are not
        finite floats of these shapes within ±LARGEST (noise may carry them beyond [-1, 1]), or if nothing would make
        one answer differ from another.

        >>> answers = load_model("results/NAME").restore(torch.zeros(1, 3, 16, 16), samples=4, nfe=3)
        >>> answers.mean.shape, answers.std.shape, answers.diversity.shape
        (torch.Size([1, 3, 16, 16]), torch.Size([1, 3, 16, 16]), torch.Size([1]))
        """
        if samples is None:
            require(on_answer is None, "on_answer", None, "is for several answers; give their number with `samples`")
        else:
            several = _is_whole(samples) and samples >= 2
            require(several, "samples", samples, "must be a whole number from 2 on; for one answer leave it out")
        self._check_shapes(degraded, mask, cond)
        for setting, images in (("degraded", degraded), ("cond", cond)):
            if images is not None:
                require(bool(images.isfinite().all()), setting, None, "holds values that are NaN or infinite")
                largest = float(images.abs().max())
                must = f"must be in [-1, 1], noise aside; it holds {largest:g}, beyond {LARGEST:g}"
                require(largest <= LARGEST, setting, None, must)
        trained = self.training_corruption if mask is None and corruption is None else None
        if trained is not None and trained.makes_holes and self.formulation.sees_degradation:
            must = f"is missing: this run fills holes ({self.config.corrupt}); it is 1 inside the hole, 0 elsewhere"
            require(trained.mixes_holes, "mask", None, must)
        if mask is not None:
            require(bool(((mask == 0) | (mask == 1)).all()), "mask", None, "must be 0 and 1, 1 inside the hole")
        for setting, number in (("nfe", nfe), ("seed", seed), ("tile", tile), ("overlap", overlap)):
            require(number is None or _is_whole(number), setting, number, "must be a whole number")
        options = SamplingOptions(
            nfe=min(10, self.formulation.default_nfe) if nfe is None else nfe,
            seed=seed,
            clip_denoise=clip_denoise,
            sampler=sampler,
            eta=eta,
            consistency=consistency,
            consistency_weight=consistency_weight,
            tile=tile,
            overlap=overlap,
        )
        answer = partial(
            self.follow,
            degraded,
            options,
            mask=mask,
            cond=cond,
            numbers=numbers,
            corruption=corruption,
            tiles_at_once=tiles_at_once,
            callback=callback,
            states=None,
        )
        if samples is not None:
            self.check_samples(samples, self.formulation.settle(options), holes=mask is not None)
        first = answer().x0
        if samples is None:
            return first
        moments = RunningMoments()
        for number in range(samples):
            x0 = answer(answer=number).x0 if number else first
            moments.add(x0)
            if on_answer is not None:
                on_answer(number, x0)
        diversity = measure_diversity(moments.std, self.find_region(mask, corruption))
        return Answers(first, moments.mean, moments.std, diversity)

    def check_samples(self, samples: int, options: SamplingOptions, *, holes: bool) -> None:
        """Raise UserError if so many answers to an image would all be the same; options are settled.

        holes: whether there are images with a hole, which noise fills unless the run says otherwise.
        """
        noisy_start = (holes and self.config.hole_fill == "noise") or self.config.add_x1_noise
        by_chance = noisy_start or self.formulation.draws_noise(options)
        nothing = f"no noise is drawn with `nfe` {options.nfe}, `sampler` {options.sampler} and no noise in a hole"
        must = f"{nothing}, so all answers would be the same; leave it out"
        require(samples == 1 or by_chance, "samples", samples, must)

    def follow(
        self,
        degraded: Tensor,
        options: SamplingOptions,
        *,
        mask: Tensor | None = None,
        cond: Tensor | None = None,
        numbers: Sequence[int] | None = None,
        corruption: Corruption | None = None,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        states: int | None = 10,
        answer: int = 0,
    ) -> Trajectory:
        """Restore as `restore` does, told how by `options`, and return the way too: at most `states` of its states.

        answer: which of several answers it is the way to.
        The last state is always among them; with None there are none. Of the images, shapes and types are checked, not
        pixels: for them the host would wait for the GPU.
        """
        self._check_shapes(degraded, mask, cond)
        is_one = corruption is None or isinstance(corruption, Corruption)
        require(is_one, "corruption", type(corruption).__name__, "must be what corruption.build_corruption returns")
        height, width = degraded.shape[-2:]
        needs_operator = self.formulation.needs_operator(options.consistency)
        if corruption is None and needs_operator:
            corruption = self._build_own_corruption(height, width)
        multiple = self.multiple
        if needs_operator and corruption is not None:
            multiple = math.lcm(multiple, corruption.multiple)
        shown = pad_reflect(degraded.float().to(self.device), multiple)
        mask, cond = (None if x is None else pad_reflect(x.float().to(self.device), multiple) for x in (mask, cond))
        takes_cond = self.formulation.sees_degradation and (self.config.cond_x1 or self.formulation.cond_x1)
        if cond is not None and not takes_cond:
            raise UserError("cond", None, "this run's network takes no condition (it was trained without `cond_x1`)")
        if numbers is None:
            numbers = range(len(degraded))
        if len(numbers) != len(degraded):
            raise UserError("numbers", None, f"{len(numbers)} for {len(degraded)} images; give one for each")
        are_whole = all(_is_whole(number) and number >= 0 for number in numbers)
        require(are_whole, "numbers", None, "must be whole numbers from 0 on")
        noise = ImageNoise(options.seed, Purpose.SAMPLE, [index(number) for number in numbers], answer=answer)
        x1, usual_cond = begin_bridge(
            Corrupted(shown, mask),
            noise,
            cond_x1=self.config.cond_x1,
            add_x1_noise=self.config.add_x1_noise,
            hole_fill=self.config.hole_fill,
        )
        batch = Batch(
            x0=None,
            x1=x1,
            mask=self.find_region(mask, corruption),
            cond=usual_cond if cond is None else cond,
            shown=shown,
            corruption=corruption,
            hole=mask,
        )
        trajectory = self.restore_batch(
            batch, noise, options, tiles_at_once=tiles_at_once, callback=callback, states=states
        )

        def unpad(x: Tensor) -> Tensor:
            return x[..., :height, :width].to(degraded.device)

        if trajectory.states is None or trajectory.pred_x0s is None:
            return Trajectory(unpad(trajectory.x0))
        return Trajectory(unpad(trajectory.x0), unpad(trajectory.states), unpad(trajectory.pred_x0s))

    def _check_shapes(self, degraded: Tensor, mask: Tensor | None, cond: Tensor | None) -> None:
        """Raise UserError unless these are images that the network can be shown, as far as their pixels do not tell."""
        for setting, images in (("degraded", degraded), ("mask", mask), ("cond", cond)):
            optional = images is None and setting != "degraded"
            require(optional or isinstance(images, Tensor), setting, type(images).__name__, "must be a torch.Tensor")
        channels = self.config.image_channels
        fits = degraded.ndim == 4 and degraded.shape[1] == channels and degraded.numel() > 0
        require(fits, "degraded", describe_shape(degraded), f"must be of shape [B, {channels}, H, W], none of them 0")
        wanted = {"degraded": degraded.shape, "mask": (len(degraded), 1, *degraded.shape[2:]), "cond": degraded.shape}
        for setting, images in (("degraded", degraded), ("mask", mask), ("cond", cond)):
            if images is not None:
                shape = list(wanted[setting])
                require(list(images.shape) == shape, setting, describe_shape(images), f"must be of shape {shape}")
                if setting != "mask":
                    floats = "must be floats in [-1, 1]; i2sb.images.from_uint8 makes them of 8-bit images"
                    require(images.is_floating_point(), setting, images.dtype, floats)

    def restore_batch(
        self,
        batch: Batch,
        noise: ImageNoise,
        options: SamplingOptions,
        *,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        states: int | None = None,
    ) -> Trajectory:
        """Restore a batch that was made with the same `noise`: the one call that all images are restored by.

        tiles_at_once, callback, states: as in `follow`. Raises UserError like `restore`.
        """
        if self.mean is not None:
            batch = self.mean.move_x1(batch, noise, options, tiles_at_once=tiles_at_once)
        options = self.formulation.settle(options)
        check_consistency(options.consistency, self.config.corrupt, batch.corruption)
        self.formulation.check_degradation(batch.corruption)
        refine = make_consistency(
            options.consistency, batch.corruption, batch.shown, batch.hole, weight=options.consistency_weight
        )
        net: Callable[..., Tensor] = self.network
        if options.tile:
            check_image_size(self.config.network, options.tile, "tile", self.network.multiple)
            net = tiled(net, options.tile, options.overlap, tiles_at_once)
        return self.formulation.sample(net, batch, options, noise.randn_like, Hooks(refine, callback, states))

    def move_x1(
        self, batch: Batch, noise: ImageNoise, options: SamplingOptions | None = None, *, tiles_at_once: int = 16
    ) -> Batch:
        """Return the batch as a bridge has it that begins at what this model, a regression, restores of it.

        options: its tiles are this model's, too. A condition stays the degraded image.
        """
        tiles = SamplingOptions() if options is None else SamplingOptions(tile=options.tile, overlap=options.overlap)
        restored = self.restore_batch(replace(batch, cond=None), noise, tiles, tiles_at_once=tiles_at_once)
        return replace(batch, x1=restored.x0)

    def find_region(self, mask: Tensor | None, corruption: Corruption | None) -> Tensor | None:
        """Return where this run restores something of images with these holes (i2sb.batch.find_region)."""
        return find_region(mask, corruption, denoises=self.config.degradation_noise > 0)

    def build_corruption(self, corrupt: str, height: int, width: int) -> Corruption:
        """Build a degradation for pictures of these sides: to `degrade` them, or for `restore`, which must know it.

        Its masks, if it has any, are drawn. Raises UserError if it cannot be built, or is code, which is not run
        unasked.
        """
        require(corrupt != PAIRED and not is_custom(corrupt), "corrupt", corrupt, "name a degradation that is known")
        task = replace(choose_degradation(self.config, corrupt, "", Path()), mask_file="")
        corruption = self._build_corruption(task, height, width)
        assert corruption is not None
        return corruption

    def degrade(self, clean: Tensor, corruption: Corruption, *, seed: int = 0) -> Corrupted:
        """Degrade a picture [1, C, H, W] in [-1, 1] as `sample.py --input` does with this seed.

        What comes back has the sides that network and degradation take, the picture mirrored at its bottom and right:
        restore that, and cut the picture out.
        """
        noise = ImageNoise(seed, Purpose.SAMPLE, [0])
        padded = pad_reflect(clean, math.lcm(self.multiple, corruption.multiple)).to(self.device)
        return corruption(padded, noise.degradation_generators(), [0])

    @property
    def multiple(self) -> int:
        """What the sides of images must be multiples of, for all networks."""
        return math.lcm(*(network.multiple for network in self.networks))

    def padded_sides(self, height: int, width: int, corrupt: str) -> tuple[int, int]:
        """Return the sides of what `restore` computes on with the operator of the degradation `corrupt`."""
        multiple = math.lcm(self.multiple, task_multiple(corrupt))
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    @cached_property
    def training_corruption(self) -> Corruption | None:
        """The degradation that the run was trained on; None for pairs, and for code, which is not run unasked."""
        if is_custom(self.config.corrupt):
            return None
        return build_task_corruption(replace(self.config, mask_file=""), self.config.restored_size)

    def _build_own_corruption(self, height: int, width: int) -> Corruption | None:
        """Build the run's degradation for images of these sides, once they are padded."""
        if is_custom(self.config.corrupt):
            raise UserError(
                "corruption",
                None,
                f"the run's degradation {self.config.corrupt} is needed and is code, which is not run unasked: "
                "build it and give it here, if you trust that file",
            )
        return self._build_corruption(self.config, height, width)

    def _build_corruption(self, task: TrainConfig, height: int, width: int) -> Corruption | None:
        height, width = self.padded_sides(height, width, task.corrupt)
        corruption = build_task_corruption(task, height, self.device)
        if corruption is not None:
            try:
                corruption.check_shape(task.image_channels, height, width)
            except ValueError as error:
                raise UserError("", None, str(error)) from None
        return corruption


def _is_whole(number: object) -> bool:
    """Whether it is an int, or one of numpy's or torch's."""
    try:
        index(number)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_restored(images: Tensor, names: Sequence[str]) -> None:
    """Raise UserError naming those of the restored images [B, C, H, W] that hold NaN or infinite values.

    In a file of 8 bits they would be black. The host waits for the device.
    """
    finite = images.isfinite().flatten(1).all(dim=1).tolist()
    broken = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
    if broken:
        named = ", ".join(broken[:5]) + ", …" * (len(broken) > 5)
        advice = "try `precision` fp32, or a smaller `consistency_weight`"
        raise UserError("", None, f"the restored images of {named} hold values that are NaN or infinite; {advice}")


def load_model(
    run_dir: str | Path,
    device: str | torch.device = "cpu",
    ema: bool = True,
    checkpoint: str | Path | None = None,
    network: str = "",
) -> RestorationModel:
    """Load a run, "results/NAME", for restoring: its averaged weights, or with ema=False the raw ones.

    Takes this project's runs, those of the released program (latest.pt with options.pkl), and files that
    scripts/export.py wrote (FILE.safetensors, whose weights are the one kind that was exported); where no such path
    is there, the name of weights that the package carries, as "photos-jpeg"; and "hf:ORG/NAME", or
    "hf:ORG/NAME@REVISION", weights on the Hugging Face Hub, which are fetched (needs the extra `hub`). On the CPU a
    checkpoint's weights stay in the file and come into memory as they are used: leave it in place meanwhile.
    checkpoint: one of the run's, by its name or its path, if not the newest that is whole.
    network: the run's, where the run does not say all of it (a released one: a warning tells of what is guessed), or
    where it is a class in a Python file, which is not run unless it is given here as path/to/file.py:ClassName.
    Raises UserError naming the file if the run, its settings or all its checkpoints are missing or broken, or if its
    weights do not fit the network, or are not finite.

    >>> model = load_model("results/NAME")
    >>> model.restore(torch.rand(2, 3, 16, 16) * 2 - 1, nfe=3).shape
    torch.Size([2, 3, 16, 16])
    >>> load_model("results/nowhere")
    Traceback (most recent call last):
    i2sb.errors.FileError: results/nowhere: there is no such run
    """
    path = resolve(run_dir)
    loaded = read_weights(path, ema=ema, checkpoint=checkpoint)
    config = replace(loaded.config, network=_choose_network(loaded, network, path, released=is_released(path)))
    return build_model(replace(loaded, config=config), path, device, asked=network)


def build_model(loaded: Exported, path: Path, device: str | torch.device, *, asked: str = "") -> RestorationModel:
    """Build a model around weights that were read from `path`.

    asked: the network, if the user gave it. Raises UserError if the weights do not fit.
    """
    config = loaded.config
    formulation = build_formulation(config)
    # Only the shapes of a U-Net, all of whose tensors are weights: none is drawn or copied.
    shapes_do = isinstance(find_network(config.network), UNetSize)
    with torch.device("meta") if shapes_do else torch.random.fork_rng(devices=[]):
        net = build_network(
            config.network,
            formulation.noise_levels,
            image_channels=config.image_channels,
            cond_x1=formulation.cond_x1,
            sees_noise=formulation.sees_noise,
        )
    weights = {name: _align(tensor.float()) for name, tensor in loaded.weights.items()}
    try:
        load_weights(net, weights, path, assign=True)
    except UserError as error:
        raise UserError("network", asked, error.marked) if asked else error from None
    net.eval().requires_grad_(False)
    if is_own(config.network):
        check_network(net, config.network, config.image_channels, config.image_size)
    mean = None if loaded.mean is None else build_model(loaded.mean, path, device)
    return RestorationModel(net.to(device), formulation.to(device), config, loaded.iteration, mean, loaded.digest)


def _choose_network(loaded: Exported, network: str, source: Path, *, released: bool) -> str:
    """Return the name of the network to build for loaded weights: the run's, or the one that the user gives.

    Raises UserError if the run's is a Python file and none is given: code runs only for who asks for it. Warns if the
    run is a released one, whose weights do not tell all of it.
    """
    own = loaded.config.network
    if network:
        require(released or is_own(own) or network == own, "network", network, f"the run's is {own}; leave it out")
        return network
    if is_own(own):
        unasked = "its network is code, which is not run unasked"
        raise FileError(source, f"{unasked}: give `network` {own} if you trust that file")
    if released and own not in NETWORKS:
        line = (
            f"{source}: its weights do not tell the heads of attention, so {own} is a guess; with wrong heads images "
            "come out wrong: if you know better, give `network` (heads8: of 8 channels each, heads4x: 4 of them)"
        )
        print(f"warning: {write_flags(line)}", file=sys.stderr)
    return own


def _align(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where torch would put it: elsewhere kernels may add up in another order.

    Weights in a checkpoint lie at multiples of ALIGNMENT, those in a .safetensors file anywhere.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
