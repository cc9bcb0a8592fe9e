"""From a run's settings to the parts that both training and restoring need."""

from __future__ import annotations

from corruption import Corruption, build_corruption
from i2sb.bridge import Bridge
from i2sb.config import PAIRED, TrainConfig


def build_bridge(config: TrainConfig) -> Bridge:
    """Build the bridge of a run."""
    return Bridge(config.interval, config.beta_max, t0=config.t0, T=config.T)


def build_task_corruption(config: TrainConfig) -> Corruption | None:
    """Build the degradation of a run; None if its data set brings degraded images itself."""
    return None if config.corrupt == PAIRED else build_corruption(config.corrupt, config.image_size)
