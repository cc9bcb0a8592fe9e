"""A trained bridge, ready to restore images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from corruption import Corrupted
from i2sb.batch import Batch, begin_bridge
from i2sb.bridge import Bridge
from i2sb.checkpoint import find_checkpoint, load_weights
from i2sb.config import TrainConfig
from i2sb.ema import load_shadow
from i2sb.network import BridgeNetwork, build_network
from i2sb.parsing import read_config
from i2sb.randomness import ImageNoise, Purpose
from i2sb.sampler import sample
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
        return sample(
            self.bridge,
            self.network,
            batch.x1,
            nfe=nfe,
            mask=batch.mask,
            cond=batch.cond,
            ot_ode=self.config.ot_ode,
            clip_denoise=clip_denoise,
            randn=noise.randn_like,
        ).x0


def load_model(run_dir: str | Path, device: str | torch.device = "cpu", ema: bool = True) -> RestorationModel:
    """Load a run, "results/NAME", for restoring: its averaged weights, or with ema=False the raw ones.

    Raises ValueError naming the file if the run, its settings or all its checkpoints are missing or broken.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: there is no such run")
    config = read_config(TrainConfig, run_dir / "config.yaml")
    found = find_checkpoint(run_dir, mmap=True)
    if found is None:
        raise ValueError(f"{run_dir}: holds no checkpoint yet")
    path, state = found
    bridge = build_bridge(config)
    network = build_network(
        config.network, bridge.noise_levels, image_channels=config.image_channels, cond_x1=config.cond_x1
    )
    load_weights(network, state["net"], path)
    if ema:
        load_shadow(network.parameters(), state["ema"]["shadow_params"])
    network.eval().requires_grad_(False)
    return RestorationModel(network.to(device), bridge.to(device), config, state["progress"]["iteration"])
