"""A trained bridge, ready to restore images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from corruption import Corrupted
from i2sb.batch import Batch, begin_bridge
from i2sb.bridge import Bridge
from i2sb.checkpoint import PARTS, averaged_weights, find_checkpoint, load_weights
from i2sb.config import TrainConfig
from i2sb.exported import ENDING, Exported, read_export
from i2sb.network import BridgeNetwork, build_network
from i2sb.parsing import read_config
from i2sb.randomness import ImageNoise, Purpose
from i2sb.released import PARTS as RELEASED_PARTS
from i2sb.released import is_released, read_options, recognise_network
from i2sb.sampler import Trajectory, sample
from i2sb.tasks import build_bridge


@dataclass(frozen=True)
class RestorationModel:
    """A network with the bridge it was trained on; config is the training run's, iteration where its weights stood."""

    network: BridgeNetwork
    bridge: Bridge
    config: TrainConfig
    iteration: int

    @property
    def device(self) -> torch.device:
        return self.bridge.betas.device

    def restore(
        self,
        degraded: Tensor,
        *,
        mask: Tensor | None = None,
        nfe: int = 10,
        seed: int = 0,
        clip_denoise: bool = False,
    ) -> Tensor:
        """Restore `degraded` [B, C, H, W] in [-1, 1]; returns the same shape and range, not clamped, on its device.

        mask: [B, 1, H, W], 1 inside the hole of an inpainting image (what the image holds there is ignored).
        nfe: network evaluations. seed: image i draws its noise from (seed, i).
        Raises ValueError if `nfe` does not fit the bridge or the sides are no multiples of the network's rate.
        """
        noise = ImageNoise(seed, Purpose.SAMPLE, range(len(degraded)))
        x1, cond = begin_bridge(
            Corrupted(degraded.to(self.device), None if mask is None else mask.to(self.device)),
            noise,
            cond_x1=self.config.cond_x1,
            add_x1_noise=self.config.add_x1_noise,
        )
        batch = Batch(x0=None, x1=x1, mask=mask if mask is None else mask.to(self.device), cond=cond, shown=degraded)
        return self.restore_batch(batch, noise, nfe=nfe, clip_denoise=clip_denoise).to(degraded.device)

    def restore_batch(self, batch: Batch, noise: ImageNoise, *, nfe: int, clip_denoise: bool = False) -> Tensor:
        """Restore a batch whose bridge was begun with the same `noise`."""
        return self.follow_batch(batch, noise, nfe=nfe, clip_denoise=clip_denoise).x0

    def follow_batch(
        self, batch: Batch, noise: ImageNoise, *, nfe: int, clip_denoise: bool = False, log_count: int | None = None
    ) -> Trajectory:
        """Restore a batch and return the way too: at most `log_count` of its states, if asked for."""
        return sample(
            self.bridge,
            self.network,
            batch.x1,
            nfe=nfe,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.config.ot_ode,
            clip_denoise=clip_denoise,
            log_count=log_count,
            randn=noise.randn_like,
        )


def load_model(run_dir: str | Path, device: str | torch.device = "cpu", ema: bool = True) -> RestorationModel:
    """Load a run, "results/NAME", for restoring: its averaged weights, or with ema=False the raw ones.

    Takes this project's runs, those of the released program (latest.pt with options.pkl), and files that
    scripts/export.py wrote (FILE.safetensors, whose weights are the one kind that was exported). On the CPU the weights
    stay in the file and come into memory as they are used: leave it in place meanwhile.
    Raises ValueError naming the file if the run, its settings or all its checkpoints are missing or broken.
    """
    place = Path(run_dir)
    loaded = _read_file(place, ema) if place.suffix == ENDING and not place.is_dir() else _read_run(place, ema)
    config = loaded.config
    bridge = build_bridge(config)
    with torch.device("meta"):  # shapes only: the weights are not drawn, nor copied
        network = build_network(
            config.network, bridge.noise_levels, image_channels=config.image_channels, cond_x1=config.cond_x1
        )
    weights = {name: tensor.float() for name, tensor in loaded.weights.items()}
    load_weights(network, weights, place, assign=True)
    network.eval().requires_grad_(False)
    return RestorationModel(network.to(device), bridge.to(device), config, loaded.iteration)


def read_run_config(run_dir: Path) -> TrainConfig:
    """Read a run's settings: its config.yaml, or options.pkl (which does not know the network's size) if released.

    Raises ValueError naming the file if that fails.
    """
    return read_options(run_dir) if is_released(run_dir) else read_config(TrainConfig, run_dir / "config.yaml")


def read_averaged(place: Path) -> dict[str, Tensor]:
    """Return the averaged weights of whatever `load_model` takes, under the names of a checkpoint's `net`."""
    return (_read_file(place, True) if place.suffix == ENDING else _read_run(place, True)).weights


def _read_file(path: Path, ema: bool) -> Exported:
    exported = read_export(path)
    if exported.averaged and not ema:
        raise ValueError(f"{path}: holds averaged weights; the raw ones are written by scripts/export.py --raw")
    return exported


def _read_run(run_dir: Path, ema: bool) -> Exported:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: there is no such run")
    released = is_released(run_dir)
    config = read_run_config(run_dir)
    found = find_checkpoint(run_dir, mmap=True, parts=RELEASED_PARTS if released else PARTS)
    if found is None:
        raise ValueError(f"{run_dir}: holds no checkpoint yet")
    path, state = found
    weights = averaged_weights(state, path) if ema else state["net"]
    if released:
        config = replace(config, network=recognise_network(weights, path))
        iteration = state["ema"].get("num_updates")
        if type(iteration) is not int:
            raise ValueError(f"{path}: its averaged weights (ema) lack num_updates, the number of iterations")
    else:
        iteration = state["progress"]["iteration"]
    return Exported(weights, config, iteration, averaged=ema)
