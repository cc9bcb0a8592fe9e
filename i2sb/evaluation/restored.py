"""Restored images with the clean and degraded ones they belong to: what there is to score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corruption import Corruption
from i2sb.config import EvalConfig, TrainConfig
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.evaluation.scores import Scored
from i2sb.images import to_uint8
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import read_run_config
from i2sb.storage.recon import ReconFiles
from i2sb.storage.released import is_released
from i2sb.storage.sample_folder import SETTINGS, SampleFolder
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split


@dataclass(frozen=True)
class RestoredImages:
    """Restored images, the data set they came from, and how its degraded images are made anew.

    run_config: the training run's, with the degradation of these images. settings: what metrics.json tells of them.
    """

    source: SampleFolder | ReconFiles
    images: ImageDataset
    run_config: TrainConfig
    corruption: Corruption | None
    image_size: int
    seed: int
    settings: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.source.path

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> Tensor:
        """Return the class of each image, int64 [N], -1 where it has none."""
        return _labels(self.images)

    def read(self, numbers: Iterable[int], config: EvalConfig, device: torch.device) -> Iterator[Scored]:
        """Yield degraded, restored and clean images in batches."""
        loaded = load_in_order(self.images, list(numbers), batch_size=config.batch_size, workers=config.workers)
        for part in loaded:
            noise = ImageNoise(self.seed, Purpose.SAMPLE, part.numbers)
            batch = make_task_batch(self.run_config, part, self.corruption, noise, evaluation=True)
            restored = torch.stack([self.source.load(index) for index in part.numbers])
            if restored.shape != part.image.shape:
                raise ValueError(
                    f"{self.path}: images {part.numbers} are not of the shape of those they were restored from"
                )
            columns = (to_uint8(batch.shown), restored, part.image)
            yield Scored(*(column.to(device) for column in columns), part.numbers)


def open_restored(config: EvalConfig) -> RestoredImages:
    """Open the folder of restored images that the flags name, sample.py's or the released program's.

    Raises ValueError if there are none, some are missing, or they do not fit the data set.
    """
    path = config.run_dir / config.sample_dir
    if not (path / SETTINGS).exists() and (files := ReconFiles.find(path)):
        return _open_released(config, path, files)
    folder = SampleFolder.open(path)
    settings = folder.settings
    run_config = replace(read_run_config(config.run_dir), corrupt=settings.corrupt, mask_file=settings.mask_file)
    if config.corrupt not in ("", settings.corrupt):
        raise ValueError(f"--corrupt {config.corrupt}: the images in {folder.path} were made with {settings.corrupt}")
    run_config = choose_degradation(run_config, config.corrupt, config.mask_file, folder.path / SETTINGS)
    dataset_dir = config.dataset_dir or settings.dataset_dir
    images = open_task_split(run_config, dataset_dir, "val", settings.image_size)
    if config.subset or settings.subset:
        images = images.subset(config.subset or settings.subset)
    if len(images) != settings.num_images:
        raise ValueError(
            f"{images.clean.describe()} holds {len(images)} images, but those in {folder.path} were restored from "
            f"{settings.num_images}: give the --dataset-dir, and the --subset, they came from"
        )
    if images.fingerprint != settings.fingerprint:
        raise ValueError(
            f"{images.clean.describe()} holds images of other names than those in {folder.path} were restored from: "
            "give the --dataset-dir they came from"
        )
    missing = folder.missing(range(len(images)))
    if missing:
        raise ValueError(
            f"{folder.path}: {len(missing)} of {len(images)} images are missing, first number {missing[0]}; "
            "finish sample.py first (to score a part of a split, restore that part with --subset)"
        )
    corruption = build_task_corruption(run_config, settings.image_size)
    return RestoredImages(folder, images, run_config, corruption, settings.image_size, settings.seed, vars(settings))


def _open_released(config: EvalConfig, path: Path, files: list[Path]) -> RestoredImages:
    """Open recon.pt files: they say nothing of how they were made, the run and the flags do."""
    source = ReconFiles(path, files)
    saved = config.run_dir / "config.yaml"
    if saved.exists() or is_released(config.run_dir):
        run_config = read_run_config(config.run_dir)
    elif config.corrupt and config.dataset_dir:
        run_config = TrainConfig(name=config.ckpt, dataset_dir=config.dataset_dir, corrupt=config.corrupt)
    else:
        raise ValueError(
            f"{path}: its {files[0].name} does not say what it was restored from: give --corrupt and --dataset-dir"
        )
    run_config = choose_degradation(run_config, config.corrupt, config.mask_file, saved)
    if "freeform" in run_config.corrupt and not run_config.mask_file:
        raise ValueError(f"--corrupt {run_config.corrupt}: give the published masks that {path} used with --mask-file")
    if source.height != source.width:
        raise ValueError(f"{path}: holds images of {source.width}x{source.height} pixels, square ones are wanted")
    images = open_task_split(run_config, config.dataset_dir or run_config.dataset_dir, "val", source.width)
    if config.subset:
        images = images.subset(config.subset)
    if len(images) != len(source):
        raise ValueError(
            f"{images.clean.describe()} holds {len(images)} images, {path} {len(source)}: "
            "give the --dataset-dir, and the --subset, they came from"
        )
    labels = _labels(images)
    unlike = (labels != source.labels).nonzero().flatten()
    if (labels >= 0).all() and len(unlike):
        place = int(unlike[0])
        raise ValueError(
            f"{images.clean.describe()}: image {place} is of class {labels[place]}, in {path} of class "
            f"{source.labels[place]} ({len(unlike)} differ): give the --dataset-dir they came from"
        )
    settings = {
        "run": config.ckpt,
        "files": [file.name for file in files],
        "corrupt": run_config.corrupt,
        "mask_file": run_config.mask_file,
        "dataset_dir": config.dataset_dir or run_config.dataset_dir,
        "subset": config.subset,
        "image_size": source.width,
        "num_images": len(source),
        "fingerprint": images.fingerprint,
    }
    if match := re.match(r"samples_nfe(\d+)", path.name):
        settings["nfe"] = int(match[1])
    corruption = build_task_corruption(run_config, source.width)
    return RestoredImages(source, images, run_config, corruption, source.width, 0, settings)


def _labels(images: ImageDataset) -> Tensor:
    return torch.tensor([images.label(index) for index in range(len(images))])
