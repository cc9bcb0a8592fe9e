"""Training a bridge, read top to bottom: build the parts, resume, then step, log, validate and save."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from i2sb.checkpoint import find_checkpoint, load_weights, save_checkpoint
from i2sb.config import TrainConfig, check_resumable
from i2sb.data import TrainingPositions, UnreadableImageError, load_in_order, load_training
from i2sb.distributed import World, join_world, leave_world
from i2sb.ema import ExponentialMovingAverage
from i2sb.files import PARTIAL, remove_partials, write_text
from i2sb.images import draw_grid, save_png, to_uint8
from i2sb.loss import bridge_loss
from i2sb.metrics import psnr
from i2sb.network import BridgeNetwork, build_network, check_image_size
from i2sb.optim import build_optimizer, build_scheduler
from i2sb.parsing import read_config, to_yaml
from i2sb.precision import make_scaler, prepare
from i2sb.pretrained import begin_with, read_weights
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.released import is_released
from i2sb.restore import RestorationModel
from i2sb.run_log import RunLog
from i2sb.tasks import build_bridge, build_task_corruption, make_task_batch, open_task_split


@dataclass
class Progress:
    """How far a run has come: all that weights and optimizer do not hold.

    There is no random state to keep: every draw is made from the seed (a setting) and one of these numbers.
    """

    iteration: int = 0
    num_images_seen: int = 0


class Trainer:
    """The parts of a run, as they stand after `progress.iteration` optimizer iterations."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        check_image_size(config.network, config.image_size)
        check_image_size(config.network, config.restored_size, "--eval-image-size")
        step_images = config.microbatch * world.world_size
        if config.batch_size % step_images:
            raise ValueError(
                f"--batch-size {config.batch_size}: must be a multiple of --microbatch {config.microbatch} "
                f"times {world.world_size} processes, such as {-(-config.batch_size // step_images) * step_images}"
            )
        self.accumulation = config.batch_size // step_images
        self.bridge = build_bridge(config).to(world.device)
        self.train_corruption = build_task_corruption(config, config.image_size, world.device)
        self.val_corruption = build_task_corruption(config, config.restored_size, world.device)

        self.train_images = open_task_split(config, config.dataset_dir, "train", config.image_size)
        self.val_images = None
        if config.eval_every:
            self.val_images = open_task_split(config, config.dataset_dir, "val", config.restored_size)
        if len(self.train_images) < config.batch_size:
            raise ValueError(
                f"--batch-size {config.batch_size}: larger than the {len(self.train_images)} images "
                f"in {self.train_images.clean.describe()}"
            )

        torch.manual_seed(make_seed(config.seed, Purpose.WEIGHTS, 0))
        self.network: BridgeNetwork = build_network(
            config.network, self.bridge.noise_levels, image_channels=config.image_channels, cond_x1=config.cond_x1
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
        self.begun_with = ["random weights"]

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        state = {
            "net": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sched": None if self.scheduler is None else self.scheduler.state_dict(),
            "progress": asdict(self.progress),
        }
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Take over a checkpoint read from `source`. Raises ValueError naming the file if it does not fit."""
        load_weights(self.network, state["net"], source)
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["sched"])
        if "scaler" in state and self.scaler.is_enabled():  # the run may have been in another precision so far
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])

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
        there = {path.name for path in config.run_dir.glob("*") if path.suffix != PARTIAL}
        if there and "config.yaml" not in there:
            raise ValueError(f"{config.run_dir} holds files but no config.yaml, so no run: give another --name")
        if config.init != "none":
            weights, source = read_weights(config.init, Path(config.results_dir))
            self.begun_with = [str(source), *begin_with(self.network, weights, source)]
            self.ema = ExponentialMovingAverage(self.network.parameters(), config.ema)
        return None

    def save(self) -> None:
        """Write a checkpoint, unless this very state is on the disk already."""
        iteration = self.progress.iteration
        if self.saved_iteration != iteration:
            save_checkpoint(self.config.run_dir, self.state_dict(), iteration, self.config.keep_last)
            self.saved_iteration = iteration

    # --- one iteration -----------------------------------------------------------------------------------------------

    def step(self, net: nn.Module, stream: Any) -> torch.Tensor:
        """Make one optimizer iteration over the next global batch; returns this process's mean loss, on its device."""
        # Nothing below draws from torch's global random state; what might (dropout, a degradation of the user's own)
        # draws the same after a restart.
        number = self.progress.iteration * self.world.world_size + self.world.rank
        torch.manual_seed(make_seed(self.config.seed, Purpose.GLOBAL, number))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for microstep in range(self.accumulation):
            images = next(stream)
            noise = ImageNoise(self.config.seed, Purpose.TRAIN, images.numbers, self.world.device)
            batch = make_task_batch(self.config, images, self.train_corruption, noise, self.world.device)
            # Gradients are averaged over the microbatches, and over the processes once, after the last of them.
            last = microstep == self.accumulation - 1
            with nullcontext() if last or self.world.world_size == 1 else net.no_sync():
                loss = bridge_loss(
                    self.bridge,
                    net,
                    noise.randint(self.config.interval),
                    batch.x0,
                    batch.x1,
                    mask=batch.mask,
                    cond=batch.cond,
                    ot_ode=self.config.ot_ode,
                    randn=noise.randn_like,
                )
                self.scaler.scale(loss / self.accumulation).backward()
            total += loss.detach() / self.accumulation
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self.ema.update()
        self.progress.iteration += 1
        self.progress.num_images_seen += self.config.batch_size
        return total

    # --- validation --------------------------------------------------------------------------------------------------

    def validate(self, log: RunLog) -> None:
        """Restore some validation images with the averaged weights; record their PSNR and draw them."""
        config, world, images = self.config, self.world, self.val_images
        count = min(config.eval_images, len(images))
        chosen = [i * len(images) // count for i in range(count)]
        sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        drawn: list[tuple[torch.Tensor, ...]] = []
        model = RestorationModel(self.network, self.bridge, config, self.progress.iteration)
        self.network.eval()
        with self.ema.applied():
            for part in load_in_order(images, chosen[world.rank :: world.world_size], batch_size=config.microbatch):
                noise = ImageNoise(config.seed, Purpose.SAMPLE, part.numbers)
                batch = make_task_batch(config, part, self.val_corruption, noise, world.device)
                restored = model.restore_batch(batch, noise, nfe=config.eval_nfe, clip_denoise=config.clip_denoise)
                columns = (to_uint8(batch.shown), to_uint8(restored), part.image.to(world.device))
                before, after = psnr(columns[0], columns[2]), psnr(columns[1], columns[2])
                sums += torch.stack([before.sum(), after.sum(), sums.new_tensor(len(batch))])
                drawn.append(columns)
        self.network.train()

        degraded_psnr, restored_psnr, total = world.sum(sums).tolist()
        iteration = self.progress.iteration
        values = {"psnr_degraded": degraded_psnr / total, "psnr_restored": restored_psnr / total}
        log.record("validation", iteration, values)
        log.say(
            f"iteration {iteration}: PSNR {values['psnr_restored']:.2f} dB restored, "
            f"{values['psnr_degraded']:.2f} dB degraded ({total:.0f} val images, NFE {config.eval_nfe})"
        )
        if world.is_main:
            titles = ("degraded", "restored", "clean")
            grid = draw_grid([(t, torch.cat(c)) for t, c in zip(titles, zip(*drawn, strict=True), strict=True)])
            save_png(grid, config.run_dir / "validation" / f"iteration_{iteration:08d}.png")
            log.picture("validation", iteration, grid)


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
    world.barrier()
    if world.is_main:
        remove_partials(config.run_dir)
        write_text(config.run_dir / "config.yaml", to_yaml(config))
    progress = trainer.progress

    with RunLog(
        config.run_dir,
        writer=config.log_writer,
        writer_dir=Path(config.log_dir) if config.log_dir else config.run_dir / "tensorboard",
        iteration=progress.iteration,
        num_itr=config.num_itr,
        silent=not world.is_main,
    ) as log:
        _introduce(trainer, log, resumed_from)
        net: nn.Module = trainer.network
        if world.world_size > 1:
            # The only buffer is a constant.
            net = DistributedDataParallel(trainer.network, broadcast_buffers=False, gradient_as_bucket_view=True)
        stream = load_training(
            trainer.train_images,
            seed=config.seed,
            positions=TrainingPositions(
                progress.num_images_seen, config.batch_size, config.microbatch, world.rank, world.world_size
            ),
            workers=config.workers,
            pin_memory=world.device.type == "cuda",
        )
        clock, logged_at = time.perf_counter(), progress.iteration
        while progress.iteration < config.num_itr:
            try:
                loss = trainer.step(net, stream)
                iteration = progress.iteration
                log.advance(iteration)
                last = iteration == config.num_itr
                if iteration % config.log_every == 0 or last:
                    value = world.mean(loss).item()
                    elapsed = time.perf_counter() - clock
                    speed = (iteration - logged_at) * config.batch_size / elapsed
                    lr = trainer.optimizer.param_groups[0]["lr"]
                    log.record("train", iteration, {"loss": value, "lr": lr, "images_per_second": speed})
                    clock, logged_at = time.perf_counter(), iteration
                if world.is_main and (iteration % config.save_every == 0 or last):
                    trainer.save()
                if config.eval_every and (iteration % config.eval_every == 0 or last):
                    trainer.validate(log)
                    clock, logged_at = time.perf_counter(), iteration
            except UnreadableImageError:
                # Every process holds the same weights, and nothing of the failed iteration was applied: whichever
                # process met the file saves what was learned up to here.
                trainer.save()
                raise
        if world.is_main:
            trainer.save()  # a run continued from --ckpt that had nothing left to do
        log.say(f"done: {config.run_dir} is ready for python sample.py --ckpt {config.name}")


def _introduce(trainer: Trainer, log: RunLog, resumed_from: Path | None) -> None:
    """Say what is about to be trained, on what, and from where."""
    config, world = trainer.config, trainer.world
    parameters = sum(p.numel() for p in trainer.network.parameters())
    kind = "OT-ODE" if config.ot_ode else "SDE"
    log.say(f"data      {len(trainer.train_images)} training images in {trainer.train_images.clean.describe()}")
    log.say(f"network   {config.network}, {parameters / 1e6:.1f} M parameters, on {world.device}")
    log.say(
        f"batch     {config.batch_size} = {world.world_size} processes x {config.microbatch} x "
        f"{trainer.accumulation} accumulated"
    )
    log.say(f"bridge    {config.interval} steps, total variance {trainer.bridge.betas.sum():.4f}, {kind}")
    begun = f"resumed from {resumed_from}" if resumed_from else f"begun with {'; '.join(trainer.begun_with)}"
    log.say(f"run       {config.run_dir}, {begun}")
