"""Training, read top to bottom: build the parts, resume, then for each iteration train, log, validate and save."""

from __future__ import annotations

import signal
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from i2sb.config import TrainConfig
from i2sb.data.dataset import UnreadableImageError
from i2sb.data.loading import load_training
from i2sb.data.order import TrainingPositions
from i2sb.distributed import World, average_in_rank_order, join_world, leave_world
from i2sb.errors import FileError, UserError
from i2sb.files import remove_partials, write_text
from i2sb.parsing import to_yaml
from i2sb.stopping import STOPPED, StoppedError, StopRequest
from i2sb.storage.exported import write_export
from i2sb.storage.run_lock import RunLock
from i2sb.storage.runs import kept_file
from i2sb.tensor_files import read_checksum
from i2sb.training.data_record import check_images
from i2sb.training.introduction import introduce, next_command
from i2sb.training.memory import GB, find_peak_memory
from i2sb.training.meter import Meter
from i2sb.training.run_log import RunLog, choose_curves
from i2sb.training.trainer import Trainer


def train(config: TrainConfig) -> None:
    """Train to `config.num_itr` iterations, from the newest checkpoint of the run if it has one.

    Leaves in results/NAME: config.yaml, checkpoints, log.jsonl, TensorBoard logs, validation pictures. Raises UserError
    for settings or data that do not fit, before anything is written; StoppedError when asked to stop.
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
    resumed, allowed = trainer.saved_iteration > 0, config.allow_changed_data
    changed = world.try_together(
        lambda: (
            check_images(config.run_dir, trainer.train_images, resumed=resumed, allowed=allowed)
            if world.is_main
            else ""
        )
    )
    if world.is_main:
        remove_partials(config.run_dir)
        write_text(config.run_dir / "config.yaml", to_yaml(config))
        for setting, weights in trainer.kept.items() if not resumed else ():
            write_export(path := kept_file(config.run_dir, setting), weights, overwrite=True)
            trainer.kept_checksums[setting] = read_checksum(path)
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
        introduce(trainer, log, resumed_from)
        if changed:
            log.warn(changed)
        for learner in trainer.learners:
            with learner.learning():
                learner.net = _share_gradients(learner.network, world)
        meter = Meter(trainer, log)
        images = load_training(
            trainer.train_images,
            seed=config.seed,
            positions=TrainingPositions(
                progress.num_images_seen, config.batch_size, trainer.microbatch, world.rank, world.world_size
            ),
            workers=config.workers,
            prefetch=config.prefetch,
            pin_memory=world.device.type == "cuda",
            crops_per_image=config.crops_per_image,
        )
        stream = meter.watch(images)
        while progress.iteration < config.num_itr:
            try:
                result = trainer.iterate(stream)
                iteration = progress.iteration
                log.advance(iteration)
                last = iteration == config.num_itr
                logging = iteration % config.log_every == 0 or last
                if logging:
                    log.record("train", iteration, meter.read(result))
                if logging or world.device.type == "cpu":
                    trainer.check_health()
                if world.is_main and (iteration % config.save_every == 0 or last):
                    trainer.save(log, must=last)
                if config.eval_every and (iteration % config.eval_every == 0 or last):
                    trainer.validate(log)
                    meter.restart()
                asked, spoiled = world.any(stop.received is not None, len(meter.unreadable) > config.max_bad_images)
            except UnreadableImageError:
                # Every process holds the same weights, and nothing of the failed iteration was applied, so whichever
                # process met the file saves what was learned until here.
                trainer.save(log)
                raise
            if asked or spoiled:
                if world.is_main:
                    trainer.save(log)
                world.barrier()
                _end_early(trainer, stop, spoiled)
        if world.is_main:
            trainer.save(log)  # a run continued from `ckpt` that had nothing left to do
        log.say(f"memory    {find_peak_memory() / GB:.1f} GB at most in this process")
        log.say(f"done: {config.run_dir} is ready for {next_command(trainer)}")
    if lock is not None:
        lock.release()


def _share_gradients(network: nn.Module, world: World) -> nn.Module:
    """Return the network; among several processes with all gradients averaged over them."""
    if world.world_size == 1:
        return network
    with warnings.catch_warnings():  # newer versions of torch have another name for it
        warnings.simplefilter("ignore", FutureWarning)
        # The only buffer is a constant.
        net = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    if world.device.type == "cpu" and world.world_size > 2:  # two numbers have the same sum in either order
        net.register_comm_hook(None, average_in_rank_order)
    return net


def _take_lock(config: TrainConfig, world: World) -> RunLock | None:
    """Lock the run, on the main process; all processes raise UserError if another program has it."""
    lock, problem = None, None
    if world.is_main:
        try:
            lock = RunLock(config.run_dir)
        except (UserError, OSError) as error:
            problem = error
    (refused,) = world.any(problem is not None)
    if refused:
        raise problem or FileError(config.run_dir, "the main process could not take this run")
    return lock


def _end_early(trainer: Trainer, stop: StopRequest, spoiled: bool) -> NoReturn:
    """End a run that stops before its last iteration, its state saved."""
    config, iteration = trainer.config, trainer.progress.iteration
    saved = f"{config.run_dir} is saved at iteration {iteration}"
    if spoiled:
        raise UserError(
            "max_bad_images",
            config.max_bad_images,
            f"more training images than that are unreadable, the names are above; {saved}: mend them and go on with "
            "`allow_changed_data`, or allow more",
        )
    name = stop.received.name if stop.received else "another process"
    status = 130 if stop.received == signal.SIGINT else STOPPED
    raise StoppedError(f"stopped by {name}; {saved}; the same command goes on from there", status)
