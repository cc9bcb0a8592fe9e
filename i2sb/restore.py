"""A trained network, ready to restore images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from corruption import Corrupted, Corruption, is_custom
from i2sb.batch import Batch, begin_bridge
from i2sb.bridge import Bridge
from i2sb.config import TrainConfig
from i2sb.consistency import check_consistency, make_consistency
from i2sb.formulation import Formulation, Way
from i2sb.network import BridgeNetwork, build_network
from i2sb.network_sizes import check_image_size, find_preset
from i2sb.parsing import read_config
from i2sb.randomness import ImageNoise, Purpose
from i2sb.sampler import StepTaken, Trajectory
from i2sb.storage.checkpoint import PARTS, averaged_weights, find_checkpoint, read_checkpoint
from i2sb.storage.exported import ENDING, Exported, read_export
from i2sb.storage.released import PARTS as RELEASED_PARTS
from i2sb.storage.released import is_released, read_options, recognise_network
from i2sb.tasks import build_formulation, build_task_corruption
from i2sb.tensor_files import load_weights
from i2sb.tiles import pad_reflect, tiled

# Sides that every degradation takes: blocks of 16 pixels are JPEG's, those of 4 super-resolution's.
DEGRADABLE = 16

# Bytes at whose multiples torch puts every tensor that it makes on a CPU.
ALIGNMENT = 64


@dataclass(frozen=True)
class RestorationModel:
    """A network with what it was trained for; config is the training run's, iteration where its weights stood."""

    network: BridgeNetwork
    formulation: Formulation
    config: TrainConfig
    iteration: int

    @property
    def bridge(self) -> Bridge:
        """The bridge of a run that has one. Raises ValueError if it has none."""
        bridge = getattr(self.formulation, "bridge", None)
        if bridge is None:
            raise ValueError(f"--formulation {self.config.formulation}: such a run has no bridge")
        return bridge

    @property
    def device(self) -> torch.device:
        return self.formulation.noise_levels.device

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
        consistency: str = "none",
        consistency_weight: float = 1.0,
        corruption: Corruption | None = None,
        tile: int = 0,
        overlap: int = 32,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
    ) -> Tensor:
        """Restore `degraded` [B, C, H, W] in [-1, 1]; returns the same shape and range, not clamped, on its device.

        mask: [B, 1, H, W], 1 inside the hole of an inpainting image (what the image holds there is ignored).
        cond: [B, C, H, W], what a conditioned network sees at every step, if not the degraded image (its hole filled).
        nfe: network evaluations, by default 10 or as many as there are.
        seed, numbers: image i draws its noise from (seed, numbers[i]), by default (seed, i); in a split that sample.py
        restores, an image's number is its place there.
        sampler, eta: how steps are taken (i2sb.steps for the bridge), by default the formulation's own.
        consistency: "project" or "gradient" keeps predictions in line with the degraded image (i2sb.consistency).
        corruption: the degradation, if not the run's own, where it is used: for consistency, and by formulations
        whose training saw none.
        tile: side of the tiles in which the network sees the image (0: whole), which share `overlap` pixels and of
        which `tiles_at_once` go through it together. Sides that the network cannot take are mirrored to such as it can.
        callback: is called after every step with an i2sb.sampler.StepTaken.

        Raises ValueError if a setting does not fit the formulation, the network or the degradation.
        """
        return self.follow(
            degraded,
            mask=mask,
            cond=cond,
            nfe=nfe,
            seed=seed,
            numbers=numbers,
            clip_denoise=clip_denoise,
            sampler=sampler,
            eta=eta,
            consistency=consistency,
            consistency_weight=consistency_weight,
            corruption=corruption,
            tile=tile,
            overlap=overlap,
            tiles_at_once=tiles_at_once,
            callback=callback,
            states=None,
        ).x0

    def follow(
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
        consistency: str = "none",
        consistency_weight: float = 1.0,
        corruption: Corruption | None = None,
        tile: int = 0,
        overlap: int = 32,
        tiles_at_once: int = 16,
        callback: Callable[[StepTaken], object] | None = None,
        states: int | None = 10,
    ) -> Trajectory:
        """Restore as `restore` does, and return the way too: at most `states` of its states, the last always."""
        height, width = degraded.shape[-2:]
        needs_operator = self.formulation.needs_operator(consistency)
        if corruption is None and needs_operator:
            corruption = self._build_own_corruption(*self.padded_sides(height, width, degradable=True))
        check_consistency(consistency, self.config.corrupt, corruption)
        self.formulation.check_degradation(corruption)
        multiple = self.multiple(degradable=needs_operator)
        degraded_there, mask, cond = (
            None if x is None else pad_reflect(x.to(self.device), multiple) for x in (degraded, mask, cond)
        )
        if cond is not None and not (
            self.formulation.sees_degradation and (self.config.cond_x1 or self.formulation.cond_x1)
        ):
            raise ValueError("cond: this run's network takes no condition (it was trained without --cond-x1)")
        if numbers is not None and len(numbers) != len(degraded):
            raise ValueError(f"numbers: {len(numbers)} for {len(degraded)} images; give one for each")
        noise = ImageNoise(seed, Purpose.SAMPLE, range(len(degraded)) if numbers is None else numbers)
        x1, own_cond = begin_bridge(
            Corrupted(degraded_there, mask),
            noise,
            cond_x1=self.config.cond_x1,
            add_x1_noise=self.config.add_x1_noise,
        )
        batch = Batch(x0=None, x1=x1, mask=mask, cond=own_cond if cond is None else cond, shown=degraded_there)
        way = Way(
            min(10, self.formulation.default_nfe) if nfe is None else nfe,
            self.formulation.choose_sampler(sampler, eta),
            clip_denoise,
            corruption,
            refine=make_consistency(consistency, corruption, batch.shown, mask, weight=consistency_weight),
            callback=callback,
            log_count=states,
        )
        path = self.follow_batch(batch, noise, way, tile=tile, overlap=overlap, tiles_at_once=tiles_at_once)
        x0, logged, pred_x0s = (
            None if x is None else x[..., :height, :width].to(degraded.device)
            for x in (path.x0, path.states, path.pred_x0s)
        )
        return Trajectory(x0, logged, pred_x0s)

    def multiple(self, *, degradable: bool = False) -> int:
        """Return what the sides of images must be multiples of; `degradable`: for every degradation, too."""
        downsampling = find_preset(self.config.network).downsampling
        return math.lcm(downsampling, DEGRADABLE) if degradable else downsampling

    def padded_sides(self, height: int, width: int, *, degradable: bool = False) -> tuple[int, int]:
        """Return the sides of what `restore` computes on for images of these sides."""
        multiple = self.multiple(degradable=degradable)
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _build_own_corruption(self, height: int, width: int) -> Corruption | None:
        if is_custom(self.config.corrupt):
            raise ValueError(
                f"the run's degradation {self.config.corrupt} is needed and is code, which is not run unasked: "
                "name it as --corrupt, or build it and give it as `corruption`, if you trust that file"
            )
        corruption = build_task_corruption(self.config, height, self.device)
        if corruption is not None:
            corruption.check_shape(self.config.image_channels, height, width)
        return corruption

    def restore_batch(self, batch: Batch, noise: ImageNoise, way: Way) -> Tensor:
        """Restore a batch that was made with the same `noise`."""
        return self.follow_batch(batch, noise, way).x0

    def follow_batch(
        self, batch: Batch, noise: ImageNoise, way: Way, *, tile: int = 0, overlap: int = 32, tiles_at_once: int = 16
    ) -> Trajectory:
        """Restore a batch and return the way too: at most `way.log_count` of its states, if asked for."""
        net = self.network
        if tile:
            check_image_size(self.config.network, tile, "tile")
            if not 0 <= overlap < tile:
                raise ValueError(f"--overlap {overlap}: must be from 0 to {tile - 1}, below --tile {tile}")
            net = tiled(net, tile, overlap, tiles_at_once)
        return self.formulation.sample(net, batch, way, noise.randn_like)


def load_model(
    run_dir: str | Path,
    device: str | torch.device = "cpu",
    ema: bool = True,
    checkpoint: str | Path | None = None,
) -> RestorationModel:
    """Load a run, "results/NAME", for restoring: its averaged weights, or with ema=False the raw ones.

    Takes this project's runs, those of the released program (latest.pt with options.pkl), and files that
    scripts/export.py wrote (FILE.safetensors, whose weights are the one kind that was exported). On the CPU a
    checkpoint's weights stay in the file and come into memory as they are used: leave it in place meanwhile.
    checkpoint: one of the run's, by its name or its path, if not the newest that is whole.
    Raises ValueError naming the file if the run, its settings or all its checkpoints are missing or broken.
    """
    place = Path(run_dir)
    alone = place.suffix == ENDING and not place.is_dir()
    if alone and checkpoint is not None:
        raise ValueError(f"--ckpt-file {checkpoint}: {place} is one file of weights and has no checkpoints")
    loaded = _read_file(place, ema) if alone else _read_run(place, ema, checkpoint)
    config = loaded.config
    formulation = build_formulation(config)
    with torch.device("meta"):  # shapes only: the weights are not drawn, nor copied
        network = build_network(
            config.network,
            formulation.noise_levels,
            image_channels=config.image_channels,
            cond_x1=formulation.cond_x1,
        )
    weights = {name: _align(tensor.float()) for name, tensor in loaded.weights.items()}
    load_weights(network, weights, place, assign=True)
    network.eval().requires_grad_(False)
    return RestorationModel(network.to(device), formulation.to(device), config, loaded.iteration)


def _align(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where torch would put it: elsewhere kernels may add up in another order.

    Weights in a checkpoint lie at multiples of ALIGNMENT, those in a .safetensors file anywhere.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def read_run_config(run_dir: Path) -> TrainConfig:
    """Read a run's settings: its config.yaml, or options.pkl (which does not know the network's size) if released.

    Raises ValueError naming the file if that fails.
    """
    return read_options(run_dir) if is_released(run_dir) else read_config(TrainConfig, run_dir / "config.yaml")


def read_averaged(place: Path) -> Exported:
    """Return the averaged weights of whatever `load_model` takes, with their settings."""
    return _read_file(place, True) if place.suffix == ENDING else _read_run(place, True)


def _read_file(path: Path, ema: bool) -> Exported:
    exported = read_export(path)
    if exported.averaged and not ema:
        raise ValueError(f"{path}: holds averaged weights; the raw ones are written by scripts/export.py --raw")
    return exported


def _read_run(run_dir: Path, ema: bool, checkpoint: str | Path | None = None) -> Exported:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: there is no such run")
    released = is_released(run_dir)
    config = read_run_config(run_dir)
    parts = RELEASED_PARTS if released else PARTS
    if checkpoint is None:
        found = find_checkpoint(run_dir, mmap=True, parts=parts)
        if found is None:
            raise ValueError(f"{run_dir}: holds no checkpoint yet")
        path, state = found
    else:
        path = next((p for p in (run_dir / checkpoint, Path(checkpoint)) if p.is_file()), None)
        if path is None:
            there = ", ".join(sorted(p.name for p in run_dir.glob("*.pt"))) or "none"
            raise ValueError(f"--ckpt-file {checkpoint}: there is no such file; checkpoints in {run_dir}: {there}")
        state = read_checkpoint(path, mmap=True, parts=parts)
    weights = averaged_weights(state, path) if ema else state["net"]
    if released:
        config = replace(config, network=recognise_network(weights, path))
        iteration = state["ema"].get("num_updates")
        if type(iteration) is not int:
            raise ValueError(f"{path}: its averaged weights (ema) lack num_updates, the number of iterations")
    else:
        iteration = state["progress"]["iteration"]
    return Exported(weights, config, iteration, averaged=ema)
