"""Training a bridge, read top to bottom: build the parts, resume, then step, log, validate and save."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from corruption import is_custom
from i2sb.config import TrainConfig, check_resumable, write_flags
from i2sb.data.dataset import UnreadableImageError
from i2sb.data.loading import Images, load_training
from i2sb.data.order import TrainingPositions
from i2sb.distributed import World, average_in_rank_order, join_world, leave_world
from i2sb.errors import UserError
from i2sb.files import PARTIAL, find_os_error, remove_partials, write_text
from i2sb.network import BridgeNetwork, build_network
from i2sb.network_sizes import check_image_size
from i2sb.parsing import read_config, to_yaml
from i2sb.precision import advise_precision, make_scaler, prepare
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.restore import RestorationModel
from i2sb.stopping import STOPPED, StoppedError, StopRequest
from i2sb.storage.checkpoint import find_checkpoint, save_checkpoint
from i2sb.storage.released import is_released
from i2sb.storage.run_lock import LOCK, RunLock
from i2sb.tasks import build_formulation, build_task_corruption, make_task_batch, open_task_split
from i2sb.tensor_files import load_weights
from i2sb.training.ema import ExponentialMovingAverage
from i2sb.training.initial_weights import begin_with, read_weights
from i2sb.training.optimizer import build_optimizer, build_scheduler, guard_step, scaled_rate
from i2sb.training.run_log import RunLog, choose_curves
from i2sb.training.validation import choose_images, choose_metrics, find_classifier, summarise, validate


@dataclass
class Progress:
    """How far a run has come: all that weights and optimizer do not hold.

    There is no random state to keep: every draw is made from the seed (a setting) and one of these numbers.
    bad_steps: iterations that were skipped; world_size, microbatch: by which floats were added.
    """

    iteration: int = 0
    num_images_seen: int = 0
    bad_steps: int = 0
    world_size: int = 0
    microbatch: int = 0


class Step(NamedTuple):
    """What an iteration tells: on the device, this process's mean loss and the gradient's norm before it was clipped;
    the learning rate."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float


class Trainer:
    """The parts of a run, as they stand after `progress.iteration` optimizer iterations."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        check_image_size(config.network, config.image_size)
        check_image_size(config.network, config.restored_size, "eval_image_size")
        step_images = config.microbatch * world.world_size
        if config.batch_size % step_images:
            raise ValueError(
                f"--batch-size {config.batch_size}: must be a multiple of --microbatch {config.microbatch} "
                f"times {world.world_size} processes, such as {-(-config.batch_size // step_images) * step_images}"
            )
        self.accumulation = config.batch_size // step_images
        self.formulation = build_formulation(config).to(world.device)
        self.train_corruption = build_task_corruption(config, config.image_size, world.device, setting="image_size")
        self.val_corruption = build_task_corruption(
            config, config.restored_size, world.device, setting="eval_image_size"
        )
        if config.eval_every:
            _check_validation(self)

        self.train_images = open_task_split(config, config.dataset_dir, "train", config.image_size)
        self.val_images = None
        if config.eval_every:
            self.val_images = open_task_split(config, config.dataset_dir, "val", config.restored_size)
        if self.val_images is not None:
            classifier = find_classifier(self.val_images, Path(config.weights_dir), world.device)
            (lacking,) = world.any(classifier is None)  # all machines compute the same metrics
            self.metrics = choose_metrics(None if lacking else classifier, self.val_images.image_size)
        if len(self.train_images) < config.batch_size and not self.train_images.native:
            raise ValueError(
                f"--batch-size {config.batch_size}: larger than the {len(self.train_images)} images "
                f"in {self.train_images.clean.describe()}"
            )

        torch.manual_seed(make_seed(config.seed, Purpose.WEIGHTS, 0))
        self.network: BridgeNetwork = build_network(
            config.network,
            self.formulation.noise_levels,
            image_channels=config.image_channels,
            cond_x1=self.formulation.cond_x1,
        ).to(world.device)
        prepare(
            self.network,
            config.precision,
            channels_last=config.channels_last,
            compile=config.compile,
            grad_checkpoint=config.grad_checkpoint,
        )
        self.ema = ExponentialMovingAverage(self.network.parameters(), config.ema)
        self.optimizer = build_optimizer(self.network.parameters(), lr=config.lr, weight_decay=config.l2_norm)
        self.scheduler = build_scheduler(self.optimizer, gamma=config.lr_gamma, step_size=config.lr_step)
        self.scaler = make_scaler(config.precision, world.device)
        self.progress = Progress()
        self.saved_iteration = 0
        # Iterations without an update, in a row and since the start: on the device, where nobody waits for them.
        self.bad_in_a_row = torch.zeros((), dtype=torch.int64, device=world.device)
        self.bad_steps = torch.zeros_like(self.bad_in_a_row)
        self.unreadable: set[str] = set()
        self.enlarged = 0  # crops, since the log last spoke
        self.warned_of_enlarged = False
        self.seconds_for_data = 0.0
        self.begun_with = ["random weights"]

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        self.progress.bad_steps = int(self.bad_steps)
        self.progress.world_size, self.progress.microbatch = self.world.world_size, self.config.microbatch
        return {
            "net": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sched": None if self.scheduler is None else self.scheduler.state_dict(),
            "progress": asdict(self.progress),
            "scaler": self.scaler.state_dict(),  # empty unless in fp16
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Take over a checkpoint read from `source`. Raises ValueError naming the file if it does not fit."""
        load_weights(self.network, state["net"], source)
        parts = {"ema": self.ema, "optimizer": self.optimizer}
        if self.scheduler is not None:
            parts["sched"] = self.scheduler
        if state.get("scaler") and self.scaler.is_enabled():  # older runs have none, nor those in other precisions
            parts["scaler"] = self.scaler
        part = ""
        try:
            for part, kept in parts.items():
                kept.load_state_dict(state[part])
            part = "progress"
            self.progress = Progress(**state[part])
            self.bad_steps.fill_(self.progress.bad_steps)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # of a file that was edited, or written by something else, anything can come
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{source}: its {part} does not fit this run ({reason})") from error

    def resume(self) -> Path | None:
        """Take up the newest whole checkpoint of this run, or of --ckpt; returns its path, None when starting anew.

        A new run takes the weights of --init. Raises ValueError if the run was made with settings that do not agree,
        or those weights do not fit.
        """
        config = self.config
        places = [config.run_dir]
        if config.ckpt:
            places.append(Path(config.results_dir) / config.ckpt)
        for run_dir in places:
            if is_released(run_dir):
                raise ValueError(
                    f"{run_dir}: a run of the released program, which cannot be gone on with; "
                    f"begin a run of another --name from its weights with --init {run_dir}"
                )
            found = find_checkpoint(run_dir)
            if found is None:
                continue
            path, state = found
            check_resumable(read_config(TrainConfig, run_dir / "config.yaml"), config, run_dir)
            self.load_state_dict(state, path)
            self.saved_iteration = self.progress.iteration if run_dir == config.run_dir else 0
            return path
        if config.ckpt:
            raise ValueError(f"--ckpt {config.ckpt}: there is no run {places[1]} with a checkpoint")
        there = {path.name for path in config.run_dir.glob("*") if path.suffix != PARTIAL and path.name != LOCK}
        if there and "config.yaml" not in there:
            raise ValueError(f"{config.run_dir} holds files but no config.yaml, so no run: give another --name")
        if config.init != "none":
            initial = read_weights(config.init, Path(config.results_dir))
            self.begun_with = [str(initial.source), *begin_with(self.network, initial)]
            self.ema = ExponentialMovingAverage(self.network.parameters(), config.ema)
        return None

    def save(self, log: RunLog, *, must: bool = True) -> None:
        """Write a checkpoint, unless this very state is on the disk already.

        If the disk refuses, older checkpoints stay as they are; unless it `must` be, that is a warning, and the next
        time is another chance. Raises ValueError saying what to do otherwise.
        """
        iteration = self.progress.iteration
        if self.saved_iteration == iteration:
            return
        try:
            save_checkpoint(self.config.run_dir, self.state_dict(), iteration, self.config.keep_last)
        except (OSError, RuntimeError) as error:
            refused = find_os_error(error)
            if refused is None:
                raise
            message = f"{self.config.run_dir}: the checkpoint of iteration {iteration} was not written ({refused})"
            if must:
                raise ValueError(
                    f"{message}; make room and run the same command again: it goes on from the last one"
                ) from None
            log.warn(f"{message}; the older ones are as they were, and the next --save-every tries again")
        else:
            self.saved_iteration = iteration

    # --- one iteration -----------------------------------------------------------------------------------------------

    def step(self, net: nn.Module, stream: Iterator[Images], log: RunLog) -> Step:
        """Make one optimizer iteration over the next global batch. It waits for the GPU nowhere.

        If the loss of any process, or the gradient, is infinite or NaN, nothing is learned from this batch.
        """
        # Nothing below draws from torch's global random state; what might (dropout, a degradation of the user's own)
        # draws the same after a restart.
        number = self.progress.iteration * self.world.world_size + self.world.rank
        torch.manual_seed(make_seed(self.config.seed, Purpose.GLOBAL, number))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for microstep in range(self.accumulation):
            images = self._next_images(stream, log)
            noise = ImageNoise(self.config.seed, Purpose.TRAIN, images.numbers, self.world.device)
            batch = make_task_batch(self.config, images, self.train_corruption, noise, self.world.device)
            # Gradients are averaged over the microbatches, and over the processes once, after the last of them.
            last = microstep == self.accumulation - 1
            with nullcontext() if last or self.world.world_size == 1 else net.no_sync():
                step = self._draw_steps(noise)
                loss = self.formulation.loss(net, step, batch, noise.randn_like)
                # One process's bad loss must spoil the gradient that all share, or they would part ways.
                loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
                self.scaler.scale(loss / self.accumulation).backward()
            total += loss.detach() / self.accumulation
        self.scaler.unscale_(self.optimizer)
        grad_norm, bad = guard_step(self.optimizer, self.config.grad_clip)
        self.bad_in_a_row = (self.bad_in_a_row + 1) * bad
        self.bad_steps += bad
        with scaled_rate(self.optimizer, self.cooldown) as lr:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self.ema.update()
        self.progress.iteration += 1
        self.progress.num_images_seen += self.config.batch_size
        return Step(total, grad_norm, lr)

    def _draw_steps(self, noise: ImageNoise) -> torch.Tensor:
        """Return a step for each image, int64 [B]: of all alike, but a share of them where restorations begin."""
        interval, share = self.formulation.interval, self.config.start_share
        step = noise.randint(interval)
        return torch.where(noise.rand() < share, interval - 1, step) if share else step

    @property
    def cooldown(self) -> float:
        """The share of the learning rate that is left, from 1 down to (never quite) 0 over the last iterations."""
        left = self.config.num_itr - self.progress.iteration
        return min(1.0, left / self.config.lr_cooldown) if self.config.lr_cooldown else 1.0

    def _next_images(self, stream: Iterator[Images], log: RunLog) -> Images:
        begun = time.perf_counter()
        images = next(stream)
        self.seconds_for_data += time.perf_counter() - begun
        if images.enlarged and self.train_images.native and not self.warned_of_enlarged:
            self.warned_of_enlarged = True
            log.warn(
                f"some training images are smaller than the crop of {self.config.image_size} pixels and are enlarged; "
                "log.jsonl counts such crops as enlarged_crops"
            )
        self.enlarged += images.enlarged
        for message in images.skipped:
            if message not in self.unreadable:
                self.unreadable.add(message)
                log.warn(f"{message}; skipped")
        return images

    def check_health(self) -> None:
        """Raise ValueError after too many iterations in a row without an update; waits for the GPU."""
        in_a_row = int(self.bad_in_a_row)
        if in_a_row >= self.config.max_bad_steps:
            good = self.progress.iteration - in_a_row
            raise ValueError(
                f"{self.config.run_dir}: {in_a_row} iterations in a row had an infinite or NaN loss or gradient; "
                f"nothing was learned after iteration {good}, and the checkpoints are good: try a lower --lr, "
                "--grad-clip 1, or --precision fp32"
            )

    def validate(self, log: RunLog) -> None:
        """Restore some validation images with the averaged weights; record how well, and draw them."""
        config, world, iteration = self.config, self.world, self.progress.iteration
        chosen = choose_images(len(self.val_images), config.eval_images)
        model = RestorationModel(self.network, self.formulation, config, iteration)
        self.network.eval()
        with self.ema.applied():
            found = validate(
                model,
                self.val_images,
                chosen[world.rank :: world.world_size],
                self.val_corruption,
                self.metrics,
                batch_size=config.microbatch,
                nfe=config.eval_nfe,
                clip_denoise=config.clip_denoise,
                seed=config.seed,
            )
        self.network.train()
        values, count = summarise(world.sum(found.sums), self.metrics)
        log.record("validation", iteration, values)
        log.say(
            f"iteration {iteration}: PSNR {values['psnr_restored']:.2f} dB restored, "
            f"{values['psnr_degraded']:.2f} dB degraded ({count} val images, NFE {config.eval_nfe})"
        )
        if world.is_main:
            for name, picture in (("iteration", found.grid), ("bridge", found.strip)):
                log.save_picture(picture, config.run_dir / "validation" / f"{name}_{iteration:08d}.png")
                log.picture(f"validation/{name}", iteration, picture)


def train(config: TrainConfig) -> None:
    """Train a bridge to `config.num_itr` iterations, from the newest checkpoint of the run if it has one.

    Leaves in results/NAME: config.yaml, checkpoints, log.jsonl, TensorBoard logs, validation pictures. Raises
    ValueError for settings or data that do not fit, before anything is written.
    """
    world = join_world(config.device)
    try:
        _train(config, world)
    finally:
        leave_world()


def _train(config: TrainConfig, world: World) -> None:
    trainer = Trainer(config, world)
    resumed_from = trainer.resume()
    curves = choose_curves(
        config.log_writer,
        Path(config.log_dir or config.run_dir / ("" if config.log_writer == "wandb" else config.log_writer)),
        name=config.name,
        project=config.wandb_project,
        user=config.wandb_user,
        settings=asdict(config),
    )
    lock = _take_lock(config, world)
    if world.is_main:
        remove_partials(config.run_dir)
        write_text(config.run_dir / "config.yaml", to_yaml(config))
    progress = trainer.progress

    with (
        RunLog(
            config.run_dir,
            curves=curves,
            iteration=progress.iteration,
            num_itr=config.num_itr,
            silent=not world.is_main,
        ) as log,
        StopRequest() as stop,
    ):
        _introduce(trainer, log, resumed_from)
        net: nn.Module = trainer.network
        if world.world_size > 1:
            with warnings.catch_warnings():  # newer versions of torch have another name for it
                warnings.simplefilter("ignore", FutureWarning)
                # The only buffer is a constant.
                net = DistributedDataParallel(trainer.network, broadcast_buffers=False, gradient_as_bucket_view=True)
            if world.device.type == "cpu" and world.world_size > 2:  # of two numbers there is one sum
                net.register_comm_hook(None, average_in_rank_order)
        stream = load_training(
            trainer.train_images,
            seed=config.seed,
            positions=TrainingPositions(
                progress.num_images_seen, config.batch_size, config.microbatch, world.rank, world.world_size
            ),
            workers=config.workers,
            prefetch=config.prefetch,
            pin_memory=world.device.type == "cuda",
            crops_per_image=config.crops_per_image,
        )
        meter = Meter(trainer)
        while progress.iteration < config.num_itr:
            try:
                step = trainer.step(net, stream, log)
                iteration = progress.iteration
                log.advance(iteration)
                last = iteration == config.num_itr
                logging = iteration % config.log_every == 0 or last
                if logging:
                    log.record("train", iteration, meter.read(step))
                if logging or world.device.type == "cpu":
                    trainer.check_health()
                if world.is_main and (iteration % config.save_every == 0 or last):
                    trainer.save(log, must=last)
                if config.eval_every and (iteration % config.eval_every == 0 or last):
                    trainer.validate(log)
                    meter.restart()
                asked, spoiled = world.any(stop.received is not None, len(trainer.unreadable) > config.max_bad_images)
            except UnreadableImageError:
                # Every process holds the same weights, and nothing of the failed iteration was applied: whichever
                # process met the file saves what was learned up to here.
                trainer.save(log)
                raise
            if asked or spoiled:
                if world.is_main:
                    trainer.save(log)
                world.barrier()
                _say_why(trainer, stop, spoiled)
        if world.is_main:
            trainer.save(log)  # a run continued from --ckpt that had nothing left to do
        log.say(f"done: {config.run_dir} is ready for {_next_command(trainer)}")
    if lock is not None:
        lock.release()


def _next_command(trainer: Trainer) -> str:
    """Return the command that restores with what was trained, and how to have it sooner if there is a choice."""
    config, slowest = trainer.config, trainer.formulation.default_nfe
    command = f"python sample.py --ckpt {config.name}"
    command += f" --results-dir {config.results_dir}" if config.results_dir != "results" else ""
    command += f" --corrupt {config.corrupt}" if is_custom(config.corrupt) else ""
    return command + (f" --nfe 10 (without --nfe: {slowest} evaluations an image)" if slowest > 10 else "")


def _take_lock(config: TrainConfig, world: World) -> RunLock | None:
    """Make the run this process's own, on the main process; all raise ValueError if it is another's."""
    lock, problem = None, None
    if world.is_main:
        try:
            lock = RunLock(config.run_dir)
        except ValueError as error:
            problem = error
    (refused,) = world.any(problem is not None)
    if refused:
        raise problem or ValueError(f"{config.run_dir}: the main process could not take this run")
    return lock


def _say_why(trainer: Trainer, stop: StopRequest, spoiled: bool) -> NoReturn:
    """End a run that stops before its last iteration, its state saved."""
    config, iteration = trainer.config, trainer.progress.iteration
    saved = f"{config.run_dir} is saved at iteration {iteration}"
    if spoiled:
        raise ValueError(
            f"--max-bad-images {config.max_bad_images}: more training images than that are unreadable, the names are "
            f"above; {saved}: mend them, or allow more"
        )
    name = stop.received.name if stop.received else "another process"
    status = 130 if stop.received == signal.SIGINT else STOPPED
    raise StoppedError(f"stopped by {name}; {saved}; the same command goes on from there", status)


class Meter:
    """What the log says about the iterations since it last spoke."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something that is not training."""
        self.begun, self.iteration = time.perf_counter(), self.trainer.progress.iteration
        self.trainer.seconds_for_data = 0.0
        self.trainer.enlarged = 0

    def read(self, step: Step) -> dict[str, float]:
        """Return the numbers of a record. Waits for the GPU."""
        trainer, world, device = self.trainer, self.trainer.world, self.trainer.world.device
        counts = step.loss.new_tensor([len(trainer.unreadable), trainer.enlarged], dtype=torch.float64)
        loss, unreadable, enlarged = world.sum(torch.cat([step.loss.double()[None], counts])).tolist()
        iterations = trainer.progress.iteration - self.iteration
        values = {
            "loss": loss / world.world_size,
            "lr": step.lr,
            "grad_norm": step.grad_norm.item(),
            "images_per_second": iterations * trainer.config.batch_size / (time.perf_counter() - self.begun),
            "seconds_for_data": trainer.seconds_for_data,
            "bad_steps": int(trainer.bad_steps),
            "unreadable_images": round(unreadable),
            "enlarged_crops": round(enlarged),
        }
        if device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self.restart()
        return values


def _check_validation(trainer: Trainer) -> None:
    """Raise UserError if validation cannot restore its images."""
    try:
        trainer.formulation.check_degradation(trainer.val_corruption)
        trainer.formulation.check_nfe(trainer.config.eval_nfe)
    except UserError as error:
        setting = "eval_nfe" if error.setting == "nfe" else error.setting
        raise UserError(setting, error.value, f"{error.must}; or train without validation, `eval_every` 0") from None


def _introduce(trainer: Trainer, log: RunLog, resumed_from: Path | None) -> None:
    """Say what is about to be trained, on what, and from where."""
    config, world = trainer.config, trainer.world
    parameters = sum(p.numel() for p in trainer.network.parameters())
    log.say(f"data      {len(trainer.train_images)} training images in {trainer.train_images.clean.describe()}")
    if trainer.train_corruption is not None and trainer.train_corruption.note:
        log.say(f"degraded  {config.corrupt}: {trainer.train_corruption.note}")
    log.say(f"network   {config.network}, {parameters / 1e6:.1f} M parameters, on {world.device}")
    more = trainer.network.count_condition_parameters()
    if more:
        log.say(f"          {more:,} of them look at the degraded image, which is shown beside the state")
    log.say(
        f"batch     {config.batch_size} = {world.world_size} processes x {config.microbatch} x "
        f"{trainer.accumulation} accumulated"
    )
    log.say(trainer.formulation.describe())
    before, now = (progress := trainer.progress).world_size, world.world_size
    if resumed_from and before and (before, progress.microbatch) != (now, config.microbatch):
        log.say(
            f"changed   {before} processes x {progress.microbatch} until now: the same images and noise, but "
            "floats are added in another order, so the last digits differ from a run that was never changed"
        )
    advice = advise_precision(config.precision, world.device) if world.is_main else ""
    if advice:
        log.warn(write_flags(advice))
    begun = f"resumed from {resumed_from}" if resumed_from else f"begun with {'; '.join(trainer.begun_with)}"
    log.say(f"run       {config.run_dir}, {begun}")
