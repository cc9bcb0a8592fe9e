"""What a training run says before its first iteration and after its last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corruption import is_custom
from i2sb.images import whole_range
from i2sb.network_sizes import is_own
from i2sb.precision import advise_precision
from i2sb.training.memory import GB, advise_memory, estimate_memory, find_free_memory

if TYPE_CHECKING:
    from i2sb.training.run_log import RunLog
    from i2sb.training.trainer import Trainer


def introduce(trainer: Trainer, log: RunLog, resumed_from: Path | None) -> None:
    """Say what is about to be trained, on what, and from where."""
    config, world = trainer.config, trainer.world
    parameters = sum(p.numel() for p in trainer.network.parameters())
    log.say(f"data      {len(trainer.train_images)} training images in {trainer.train_images.clean.path}")
    low, high = config.value_range or whole_range(trainer.train_images.dtype)
    channels = f"{config.image_channels} channel{'s' * (config.image_channels > 1)}"
    log.say(f"          {channels}, the first image {trainer.train_images.dtype}, values from {low:g} to {high:g}")
    if trainer.train_corruption is not None and trainer.train_corruption.note:
        log.say(f"degraded  {config.corrupt}: {trainer.train_corruption.note}")
    log.say(
        f"network   {config.network}, {parameters / 1e6:.1f} M parameters, in {trainer.precision} on {world.device}"
    )
    more = trainer.network.count_condition_parameters()
    if more:
        log.say(f"          {more:,} of them look at the degraded image, which is shown beside the state")
    log.say(
        f"batch     {config.batch_size} = {world.world_size} processes x {trainer.microbatch} x "
        f"{trainer.accumulation} accumulated"
    )
    if world.is_main and not is_own(config.network):
        needed = estimate_memory(trainer)
        log.say(f"memory    about {needed / GB:.1f} GB a process")
        if advice := advise_memory(needed, find_free_memory(world.device)):
            log.warn(advice)
    log.say(trainer.formulation.describe())
    if advice := trainer.formulation.warn_of():
        log.warn(advice)
    if trainer.teacher is not None:
        taught = trainer.kept["distill"]
        half = "in half precision, " if config.half_teacher else ""
        log.say(f"teacher   {config.distill}, {half}after {taught.iteration} iterations")
        log.say(f"          {config.inner_updates} batches for the bridge of the student's pairs, one for the student")
    if trainer.mean is not None:
        log.say(f"begins at {config.x1_from}, a regression after {trainer.mean.iteration} iterations")
    before, now = (progress := trainer.progress).world_size, world.world_size
    if resumed_from and before and (before, progress.microbatch) != (now, trainer.microbatch):
        log.say(
            f"changed   {before} processes x {progress.microbatch} until now: the same images and noise, but "
            "floats are added in another order, so the last digits differ from a run that was never changed"
        )
    advice = advise_precision(trainer.precision, world.device) if world.is_main else ""
    if advice:
        log.warn(advice)
    begun = f"resumed from {resumed_from}" if resumed_from else f"begun with {'; '.join(trainer.begun_with)}"
    log.say(f"run       {config.run_dir}, {begun}")


def next_command(trainer: Trainer) -> str:
    """Return the command that restores with what was trained, and how to have it sooner if there is a choice."""
    config, slowest = trainer.config, trainer.formulation.default_nfe
    command = f"python sample.py --ckpt {config.name}"
    command += f" --results-dir {config.results_dir}" if config.results_dir != "results" else ""
    command += f" --corrupt {config.corrupt}" if is_custom(config.corrupt) else ""
    command += f" --network {config.network}" if is_own(config.network) else ""
    return command + (f" --nfe 10 (without --nfe: {slowest} evaluations an image)" if slowest > 10 else "")
