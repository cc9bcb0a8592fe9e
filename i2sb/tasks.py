"""From a run's settings to the parts that both training and restoring need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from corruption import Corruption, CorruptionError, ShapeError, build_corruption, find_multiple, is_custom
from i2sb.batch import Batch, make_batch
from i2sb.config import PAIRED, TrainConfig
from i2sb.data.dataset import ImageDataset, open_split
from i2sb.data.loading import Images
from i2sb.errors import FileError, UserError
from i2sb.formulation import Formulation
from i2sb.formulation_table import FORMULATIONS
from i2sb.randomness import ImageNoise


def build_formulation(config: TrainConfig) -> Formulation:
    """Build a run's formulation. Raises ValueError if the settings do not fit it."""
    return resolve_name(FORMULATIONS[config.formulation].location).from_config(config)


def build_task_corruption(
    config: TrainConfig, image_size: int, device: torch.device | str = "cpu", *, setting: str = ""
) -> Corruption | None:
    """Build the degradation of a run for images of this size; None if its data set brings degraded images itself.

    setting: what gave the size, if one did. Raises UserError naming it if the size does not suit the degradation, and
    naming the degradation, its noise or its file of masks if that cannot be built.
    """
    if config.corrupt == PAIRED:
        return None
    options: dict[str, Any] = {"mask_file": config.mask_file} if config.mask_file else {}
    try:
        corruption = build_corruption(
            config.corrupt,
            image_size,
            image_channels=config.image_channels,
            degradation_noise=config.degradation_noise,
            **options,
        )
        return corruption.to(device)
    except ShapeError as error:
        raise UserError(setting, image_size if setting else None, str(error)) from None
    except CorruptionError as error:
        raise UserError(error.setting, error.value, error.must) from error


def check_depth(corruption: Corruption | None, name: str, *, plain: bool) -> None:
    """Raise UserError if the degradation of this name is one of plain images (i2sb.images), and these are others."""
    if corruption is not None and corruption.is_8_bit and not plain:
        raise UserError("corrupt", name, "is made of 8-bit images; these are of another type, or have a `value_range`")


def task_multiple(corrupt: str) -> int:
    """Return what sides of pictures are brought to multiples of for a degradation; 1 where none is made.

    Raises UserError like `build_task_corruption`.
    """
    if corrupt == PAIRED:
        return 1
    try:
        return find_multiple(corrupt)
    except CorruptionError as error:
        raise UserError(error.setting, error.value, error.must) from error


def choose_degradation(
    config: TrainConfig, corrupt: str, mask_file: str, source: Path, noise: float | None = None
) -> TrainConfig:
    """Return the run's settings with the degradation that the user asks for, if any, in place of its own.

    mask_file, noise: of the degradation; if not given ("", None), the run's own where its degradation is the run's.
    Raises UserError if the settings, read from `source`, name a Python file: code runs only for who asks for it.
    """
    if not corrupt and is_custom(config.corrupt):
        raise FileError(
            source,
            "its degradation is code, which is not run unasked: "
            f"give `corrupt` {config.corrupt} if you trust that file",
        )
    same = corrupt in ("", config.corrupt)
    return replace(
        config,
        corrupt=corrupt or config.corrupt,
        mask_file=mask_file or (config.mask_file if same else ""),
        degradation_noise=noise if noise is not None else config.degradation_noise if same else 0.0,
    )


def make_task_batch(
    config: TrainConfig,
    images: Images,
    corruption: Corruption | None,
    noise: ImageNoise,
    device: torch.device | str = "cpu",
    *,
    evaluation: bool = False,
    degraded_alone: bool = False,
) -> Batch:
    """Make a batch of loaded images as the settings of the run that was trained say.

    corruption: what degrades them, its own or another. In `evaluation` an image's number fixes its mask.
    degraded_alone: the images are degraded already, and the clean ones unknown. Raises UserError like `check_depth`.
    """
    check_depth(corruption, config.corrupt, plain=not images.image.is_floating_point())
    batch = make_batch(
        images.image,
        images.image if degraded_alone else images.degraded,
        images.label,
        corruption,
        noise,
        index=images.numbers if evaluation else None,
        device=device,
        cond_x1=config.cond_x1,
        add_x1_noise=config.add_x1_noise,
        hole_fill=config.hole_fill,
        denoises=config.degradation_noise > 0,
    )
    return replace(batch, x0=None) if degraded_alone else batch


def open_task_split(config: TrainConfig, dataset_dir: str, split: str, image_size: int) -> ImageDataset:
    """Open a split as a run needs it. Raises UserError if it holds pairs and the run makes its own, or vice versa."""
    images = open_split(
        dataset_dir,
        split,
        image_size=image_size,
        image_channels=config.image_channels,
        native=config.crop == "random",
        value_range=config.value_range,
    )
    if images.paired != (config.corrupt == PAIRED):
        found = "pairs (degraded/ with clean/)" if images.paired else "single images"
        raise UserError("corrupt", config.corrupt, f"but {images.clean.describe()} holds {found}")
    return images
