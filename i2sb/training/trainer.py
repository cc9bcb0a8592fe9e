"""The parts of a training run: how they are built, taken up again, saved, and moved on by an iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from corruption import Corruption
from i2sb.batch import Batch
from i2sb.bridge import Randn
from i2sb.config import TrainConfig, check_resumable, check_unedited, fixed_settings
from i2sb.data.loading import Images
from i2sb.distillation import Judges, Student
from i2sb.distributed import World
from i2sb.errors import FileError, UserError, require
from i2sb.files import PARTIAL
from i2sb.images import choose_shown
from i2sb.network import BridgeNetwork, build_network, check_network
from i2sb.network_sizes import check_image_size, is_own
from i2sb.parsing import read_config
from i2sb.precision import choose_precision, find_capability, halve, make_scaler, prepare
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.restore import RestorationModel, build_model
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint, save_checkpoint
from i2sb.storage.exported import Exported
from i2sb.storage.released import is_released
from i2sb.storage.run_lock import LOCK
from i2sb.storage.runs import kept_file
from i2sb.tasks import build_formulation, build_task_corruption, check_depth, make_task_batch, open_task_split
from i2sb.tensor_files import load_weights, read_checksum
from i2sb.training.ema import ExponentialMovingAverage
from i2sb.training.initial_weights import InitialWeights, begin_with, read_initial_weights
from i2sb.training.learner import Learner, load_part
from i2sb.training.mean import read_mean
from i2sb.training.memory import CPU_BUDGET, measure_activations
from i2sb.training.microbatch import find_microbatch, fits_gpu
from i2sb.training.optimizer import guard_update, scaled_rate
from i2sb.training.run_log import RunLog
from i2sb.training.teacher import read_teacher
from i2sb.training.validation import ValidationSet, choose_images, choose_metrics, find_classifier, summarise, validate


@dataclass
class Progress:
    """How far a run has come: all that weights and optimizer do not hold. Checkpoints keep it under these names.

    There is no random state to keep: every draw is made from the seed (a setting) and one of these numbers.
    bad_steps: iterations without an update so far. world_size, microbatch: how the last batches were divided, which
    decides in what order their losses were added.
    """

    iteration: int = 0
    num_images_seen: int = 0
    bad_steps: int = 0
    world_size: int = 0
    microbatch: int = 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what a checkpoint holds. Raises TypeError for other names."""
        vars(self).update(asdict(Progress(**state)))


# Of processes whose checkpoints are not those of the main one.
_APART = "may have another disk, or an old view of it: `results_dir` must be a folder that all machines share"


class UpdateResult(NamedTuple):
    """loss: this process's mean loss, and grad_norm: the gradient's norm before it was clipped, both on the device;
    lr: the learning rate."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


class IterationResult(NamedTuple):
    """Of an iteration: the update of the network, and of a student's inner bridge the last of them before it."""

    update: UpdateResult
    inner: UpdateResult | None = None


# Of a network on a batch, at a step for each image, with a source of noise.
Loss = Callable[[nn.Module, Tensor, Batch, Randn], Tensor]


class Trainer:
    """The parts of a run, as they stand after `progress.iteration` optimizer iterations."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        check_image_size(config.network, config.image_size)
        check_image_size(config.network, config.restored_size, "eval_image_size")
        images_at_once = (1 if config.microbatch == "auto" else config.microbatch) * world.world_size
        if config.batch_size % images_at_once:
            raise UserError(
                "batch_size",
                config.batch_size,
                f"must be a multiple of {world.world_size} processes times `microbatch` {config.microbatch}, "
                f"such as {-(-config.batch_size // images_at_once) * images_at_once}",
            )
        self.precision = choose_precision(config.precision, find_capability(world.device))
        self.formulation = build_formulation(config).to(world.device)
        self.train_corruption = build_task_corruption(config, config.image_size, world.device, setting="image_size")
        val_corruption = build_task_corruption(config, config.restored_size, world.device, setting="eval_image_size")
        if config.eval_every:
            self._check_validation(val_corruption)

        self.train_images = open_task_split(config, config.dataset_dir, "train", config.image_size)
        if config.degraded_data:
            self._check_degraded_data()
        choose_shown(config.show_channels, config.image_channels)
        check_depth(self.train_corruption, config.corrupt, plain=self.train_images.plain)
        self.validation: ValidationSet | None = None
        if config.eval_every:
            val_images = open_task_split(config, config.dataset_dir, "val", config.restored_size)
            classifier = find_classifier(val_images, Path(config.weights_dir), world.device)
            (lacking,) = world.any(classifier is None)  # all machines compute the same metrics
            metrics = choose_metrics(None if lacking else classifier, val_images.image_size)
            self.validation = ValidationSet(val_images, val_corruption, metrics)
        if len(self.train_images) < config.batch_size and not self.train_images.native:
            raise UserError(
                "batch_size",
                config.batch_size,
                f"larger than the {len(self.train_images)} images in {self.train_images.clean.path}",
            )

        torch.manual_seed(make_seed(config.seed, Purpose.WEIGHTS, 0))
        self.network = self._build_network(sees_noise=self.formulation.sees_noise)
        check_network(self.network, config.network, config.image_channels, config.image_size)
        check_network(self.network, config.network, config.image_channels, config.restored_size, "eval_image_size")
        # Of a student: its teacher, and the bridge of its own pairs, which learns beside it.
        self.teacher: BridgeNetwork | None = None
        inner: BridgeNetwork | None = None
        if isinstance(self.formulation, Student):
            self.teacher = self._build_network().requires_grad_(False)
            inner = self._build_network().requires_grad_(False)
            self.formulation.judges = Judges(self.teacher, inner)
        share = config.batch_size // world.world_size
        chosen = config.microbatch
        self.microbatch = find_microbatch(share, self._fits, world) if chosen == "auto" else chosen
        self.accumulation = share // self.microbatch
        if config.compile:  # for the microbatch that it is
            for network in self.networks:
                network.compile()
        self.ema = ExponentialMovingAverage(self.network.parameters(), config.ema)
        self.learner = Learner(self.network, config)
        self.inner = None if inner is None else Learner(inner, config)
        self.scaler = make_scaler(self.precision, world.device)
        self.progress = Progress()
        self.saved_iteration = 0
        # Iterations without an update, in a row and since the start: on the device, so that nobody waits for them.
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64, device=world.device)
        self.bad_iterations = torch.zeros_like(self.bad_in_a_row)
        self.begun_with = ["random weights"]
        # The regression whose outputs the bridge begins at, once `resume` has found it.
        self.mean: RestorationModel | None = None
        # The weights of other runs that this one keeps, by the setting that names them.
        self.kept: dict[str, Exported] = {}
        # What identifies the files that it keeps them in.
        self.kept_checksums: dict[str, str] = {}

    def _build_network(self, *, sees_noise: bool = False) -> BridgeNetwork:
        config = self.config
        network = build_network(
            config.network,
            self.formulation.noise_levels,
            image_channels=config.image_channels,
            cond_x1=self.formulation.cond_x1,
            sees_noise=sees_noise,
        ).to(self.world.device)
        prepare(network, self.precision, channels_last=config.channels_last, grad_checkpoint=config.grad_checkpoint)
        return network

    @property
    def learners(self) -> list[Learner]:
        """The networks that learn."""
        return [self.learner, *([] if self.inner is None else [self.inner])]

    @property
    def networks(self) -> list[BridgeNetwork]:
        """The network, and of a student its two judges."""
        judges = self.formulation.judges if isinstance(self.formulation, Student) else None
        return [self.network, *(network for network in judges or () if isinstance(network, BridgeNetwork))]

    def _check_validation(self, val_corruption: Corruption | None) -> None:
        """Raise UserError if validation cannot restore its images."""
        try:
            self.formulation.check_degradation(val_corruption)
            self.formulation.check_nfe(self.config.eval_nfe)
        except UserError as error:
            setting = "eval_nfe" if error.setting == "nfe" else error.setting
            raise UserError(
                setting, error.value, f"{error.must}; or train without validation, `eval_every` 0"
            ) from None

    def _check_degraded_data(self) -> None:
        """Raise UserError if images that are degraded already do not say all that the network is to be told."""
        corruption = self.train_corruption
        knows_holes = corruption is None or not corruption.makes_holes
        must = "images with holes do not say where these are: give clean images, which the run degrades itself"
        require(knows_holes, "degraded_data", None, must)

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        self.progress.bad_steps = int(self.bad_iterations)
        self.progress.world_size, self.progress.microbatch = self.world.world_size, self.microbatch
        more: dict[str, Any] = {} if self.inner is None else {"inner": self.inner.state_dict()}
        if self.kept_checksums:
            more["kept"] = self.kept_checksums
        return {
            **self.learner.state_dict(),
            "ema": self.ema.state_dict(),
            "progress": asdict(self.progress),
            "settings": fixed_settings(self.config),
            "scaler": self.scaler.state_dict(),  # empty unless in fp16
            **more,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Take over a checkpoint read from the file `source`. Raises UserError if it does not fit."""
        self.learner.load_state_dict(state, source)
        if self.inner is not None:
            if not isinstance(state.get("inner"), dict):
                raise FileError(source, "lacks the bridge of the student's own pairs (inner)")
            self.inner.load_state_dict(state["inner"], source)
        load_part("ema", self.ema, state, source)
        if state.get("scaler") and self.scaler.is_enabled():  # older runs have none, nor those in other precisions
            load_part("scaler", self.scaler, state, source)
        load_part("progress", self.progress, state, source)
        self.bad_iterations.fill_(self.progress.bad_steps)

    def resume(self) -> Path | None:
        """Take up the newest whole checkpoint of this run, or of `ckpt`; returns its path, None when starting anew.

        A new run takes the weights of `init`. Raises UserError if the run was made with settings that do not agree, its
        config.yaml was edited since, or those weights do not fit.
        """
        config = self.config
        run_dirs = [config.run_dir]
        if config.ckpt:
            run_dirs.append(Path(config.results_dir) / config.ckpt)
        for run_dir in run_dirs:
            if is_released(run_dir):
                raise FileError(
                    run_dir,
                    "a run of the released program, which cannot be gone on with; begin a run of another `name` from "
                    f"its weights with `init` {run_dir}",
                )
            newest = self._find_checkpoint(run_dir)
            if newest is None:
                continue
            path, state = newest
            saved = read_config(TrainConfig, run_dir / "config.yaml")
            check_unedited(state.get("settings", {}), saved, path)
            check_resumable(saved, config, run_dir)
            # Where tensors are taken as they are, copies: a file that is mapped may be deleted when others are saved.
            self.load_state_dict(deepcopy(state) if self.world.device.type == "cpu" else state, path)
            self.saved_iteration = self.progress.iteration if run_dir == config.run_dir else 0
            self._take_others(run_dir)
            self.kept_checksums = {setting: weights.checksum for setting, weights in self.kept.items()}
            for setting, checksum in state.get("kept", {}).items():
                if self.kept_checksums.get(setting) != checksum:
                    must = f"is not the file that {path.name} was trained with; put that one back"
                    raise FileError(kept_file(run_dir, setting), must)
            return path
        if config.ckpt:
            raise UserError("ckpt", config.ckpt, f"there is no run {run_dirs[1]} with a checkpoint")
        names = {path.name for path in config.run_dir.glob("*") if path.suffix != PARTIAL and path.name != LOCK}
        if names and "config.yaml" not in names:
            raise FileError(config.run_dir, "holds files but no config.yaml, so no run: give another `name`")
        self._take_others(None)
        initial = None
        if config.init != "none":
            initial = read_initial_weights(config.init, Path(config.results_dir))
        elif "distill" in self.kept:
            initial = InitialWeights(self.kept["distill"].weights, Path(config.distill), config.network)
        if initial is not None:
            if self.formulation.sees_noise:
                self.network.ignore_noise()
            self.begun_with = [str(initial.source), *begin_with(self.network, initial)]
            self.ema = ExponentialMovingAverage(self.network.parameters(), config.ema)
        return None

    def _take_others(self, gone_on_with: Path | None) -> None:
        """Take in what this run needs of others: those that it keeps itself if it is gone on with, or a new run's.

        They are the regression that the bridge begins at, and the bridge that a student is made of, with which its
        inner bridge begins, too.
        """
        config = self.config
        teacher = self.world.try_together(lambda: read_teacher(config, gone_on_with))
        mean = self.world.try_together(lambda: read_mean(config, gone_on_with, teacher))
        if mean is not None:
            self.kept["x1_from"] = mean
            self.mean = build_model(mean, Path(config.x1_from), self.world.device)
            prepare(self.mean.network, self.precision, channels_last=config.channels_last)
        if teacher is not None:
            assert self.teacher is not None and self.inner is not None, "only students have teachers"
            self.kept["distill"] = teacher
            load_weights(self.teacher, teacher.weights, Path(config.distill))
            if gone_on_with is None:
                load_weights(self.inner.network, teacher.weights, Path(config.distill))
            if config.half_teacher:
                halve(self.teacher, self.precision)

    def _find_checkpoint(self, run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
        """Find the newest whole checkpoint, which the main process chooses and all must find as it is.

        Raises UserError if they do not: processes would train on from different states.
        """
        world = self.world
        newest = world.try_together(lambda: find_checkpoint(run_dir, mmap=True) if world.is_main else None)
        (chosen, *_) = world.gather(newest[0].name if newest else "")
        if not chosen:
            return None
        path = run_dir / chosen

        def read() -> tuple[dict[str, Any], str]:
            if not path.exists():
                raise FileError(path, f"is where the main process goes on from, and process {world.rank} {_APART}")
            state = newest[1] if newest else read_checkpoint(path, mmap=True)
            return state, read_checksum(path) if world.world_size > 1 else ""

        state, checksum = world.try_together(read)
        checksums = world.gather(checksum)
        others = [rank for rank in range(world.world_size) if checksums[rank] != checksums[0]]

        def compare() -> None:
            if others and world.is_main:
                raise FileError(path, f"has other contents for processes {others}, which {_APART}")

        world.try_together(compare)
        return path, state

    def save(self, log: RunLog, *, must: bool = True) -> None:
        """Write a checkpoint, unless this very state is on the disk already.

        If the disk refuses, the older checkpoints stay as they are. With `must` that is a UserError saying what to do;
        without, it is a warning, and the next time is another chance.
        """
        iteration = self.progress.iteration
        if self.saved_iteration == iteration:
            return
        try:
            save_checkpoint(self.config.run_dir, self.state_dict(), iteration, self.config.keep_last)
        except OSError as error:
            message = f"the checkpoint of iteration {iteration} was not written ({error.strerror or error})"
            if must:
                raise FileError(
                    self.config.run_dir,
                    f"{message}; make room and run the same command again: it goes on from the last one",
                ) from None
            log.warn(
                f"{self.config.run_dir}: {message}; the older ones are as they were, and the next `save_every` tries "
                "again"
            )
        else:
            self.saved_iteration = iteration

    def _fits(self, microbatch: int) -> bool:
        """Say whether so many images can be computed at once."""
        if self.world.device.type != "cpu":
            return fits_gpu(lambda: self._rehearse(microbatch))
        return microbatch == 1 or (
            not is_own(self.config.network) and measure_activations(self, microbatch) <= CPU_BUDGET
        )

    def _rehearse(self, microbatch: int) -> None:
        """Compute a forward and a backward pass, beside as much memory as the optimizer and DDP are going to take."""
        config, formulation, device = self.config, self.formulation, self.world.device
        learning = [network for network in self.networks if network is not self.teacher]
        moments_and_buckets = 3 * sum(p.numel() for network in learning for p in network.parameters())
        reserved = torch.empty(moments_and_buckets, device=device)
        x = torch.zeros(microbatch, config.image_channels, config.image_size, config.image_size, device=device)
        batch = Batch(x0=x, x1=x, mask=None, cond=x if formulation.cond_x1 else None, shown=x)
        step = torch.zeros(microbatch, dtype=torch.int64, device=device)
        formulation.loss(self.network, step, batch, torch.zeros_like).backward()
        self.network.zero_grad(set_to_none=True)
        del reserved

    # --- one iteration -----------------------------------------------------------------------------------------------

    def iterate(self, stream: Iterator[Images]) -> IterationResult:
        """Make one optimizer iteration over the next global batch, without waiting for the GPU anywhere.

        Of a student, its inner bridge learns from `inner_updates` batches before.
        """
        # Nothing below draws from torch's global random state; what might (dropout, a degradation of the user's own)
        # draws the same after a restart.
        number = self.progress.iteration * self.world.world_size + self.world.rank
        torch.manual_seed(make_seed(self.config.seed, Purpose.GLOBAL, number))
        inner = None
        if self.inner is not None and isinstance(self.formulation, Student):
            loss_of_inner = partial(self._inner_loss, self.formulation)
            with self.inner.learning():  # Algorithm 1
                for _ in range(self.config.inner_updates):
                    inner = self._update(self.inner, loss_of_inner, stream)
        result = IterationResult(self._update(self.learner, self.formulation.loss, stream), inner)
        self.ema.update()
        self.progress.iteration += 1
        return result

    def _inner_loss(self, student: Student, net: nn.Module, step: Tensor, batch: Batch, randn: Randn) -> Tensor:
        return student.inner_loss(self.network, step, batch, randn, inner=net)

    def _update(self, learner: Learner, compute_loss: Loss, stream: Iterator[Images]) -> UpdateResult:
        """Let a network learn from the next global batch.

        If the loss of any process, or the gradient, is infinite or NaN, nothing is learned from this batch.
        """
        net, optimizer = learner.net, learner.optimizer
        # Gradients that are views of DDP's buckets stay so: new ones, added up over microbatches, would double them.
        optimizer.zero_grad(set_to_none=not isinstance(net, DistributedDataParallel))
        total = torch.zeros((), device=self.world.device)
        for count in range(1, self.accumulation + 1):
            images = next(stream)
            noise = ImageNoise(self.config.seed, Purpose.TRAIN, images.numbers, self.world.device)
            batch = make_task_batch(
                self.config,
                images,
                None if self.config.degraded_data else self.train_corruption,
                noise,
                self.world.device,
                degraded_alone=self.config.degraded_data,
            )
            if self.mean is not None:
                batch = self.mean.move_x1(batch, noise, tiles_at_once=self.microbatch)
            # Gradients are averaged over the microbatches, and over the processes once, after the last of them.
            with self._gradients_kept_here(net) if count < self.accumulation else nullcontext():
                step = self._draw_steps(noise)
                loss = compute_loss(net, step, batch, noise.randn_like)
                # One process's bad loss must spoil the gradient that all share, or their weights would differ.
                loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
                self.scaler.scale(loss / self.accumulation).backward()
            total += loss.detach() / self.accumulation
        self.scaler.unscale_(optimizer)
        grad_norm, bad = guard_update(optimizer, self.config.grad_clip)
        self.bad_in_a_row = (self.bad_in_a_row + 1) * bad
        self.bad_iterations += bad
        with scaled_rate(optimizer, self.cooldown) as lr:
            self.scaler.step(optimizer)
        self.scaler.update()
        if learner.scheduler is not None:
            learner.scheduler.step()
        self.progress.num_images_seen += self.config.batch_size
        return UpdateResult(total, grad_norm, lr)

    @staticmethod
    def _gradients_kept_here(net: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which no gradients are shared with other processes."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def _draw_steps(self, noise: ImageNoise) -> Tensor:
        """Return a step for each image, int64 [B]: any, but for a `start_share` that begins where restorations do."""
        interval, share = self.formulation.interval, self.config.start_share
        step = noise.randint(interval)
        return torch.where(noise.rand() < share, interval - 1, step) if share else step

    @property
    def cooldown(self) -> float:
        """The share of the learning rate that is left, from 1 down to (never quite) 0 over the last iterations."""
        left = self.config.num_itr - self.progress.iteration
        return min(1.0, left / self.config.lr_cooldown) if self.config.lr_cooldown else 1.0

    def check_health(self) -> None:
        """Raise UserError after too many iterations in a row without an update; waits for the GPU."""
        in_a_row = int(self.bad_in_a_row)
        if in_a_row >= self.config.max_bad_steps:
            good = self.progress.iteration - in_a_row
            raise FileError(
                self.config.run_dir,
                f"{in_a_row} iterations in a row had an infinite or NaN loss or gradient; nothing was learned after "
                f"iteration {good}, and the checkpoints are good: try a lower `lr`, `grad_clip` 1, or `precision` fp32",
            )

    def validate(self, log: RunLog) -> None:
        """Restore some validation images with the averaged weights; record how well, and draw them."""
        assert self.validation is not None, "a run without validation"
        config, world, iteration = self.config, self.world, self.progress.iteration
        kinds = self.validation.corruption.kinds if self.validation.corruption is not None else 1
        numbers = choose_images(len(self.validation.images), config.eval_images, kinds)
        model = RestorationModel(self.network, self.formulation, config, iteration, self.mean)
        self.network.eval()
        with self.ema.applied():
            result = validate(
                model,
                self.validation,
                numbers[world.rank :: world.world_size],
                batch_size=self.microbatch,
                nfe=config.eval_nfe,
                clip_denoise=config.clip_denoise,
                seed=config.seed,
            )
        self.network.train()
        values, count = summarise(world.sum(result.sums), self.validation.metrics)
        log.record("validation", iteration, values)
        log.say(
            f"iteration {iteration}: PSNR {values['psnr_restored']:.2f} dB restored, "
            f"{values['psnr_degraded']:.2f} dB degraded ({count} val images, NFE {config.eval_nfe})"
        )
        if world.is_main:
            for name, picture in (("iteration", result.grid), ("bridge", result.strip)):
                if picture is not None:
                    log.save_picture(picture, config.run_dir / "validation" / f"{name}_{iteration:08d}.png")
                    log.picture(f"validation/{name}", iteration, picture)
