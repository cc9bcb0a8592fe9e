"""What there is to score: restored images with the clean and the degraded ones that they belong to."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corruption import Corruption
from i2sb.config import EvalConfig, TrainConfig
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.errors import FileError, UserError
from i2sb.images import as_compared, from_pixels, is_plain, to_levels
from i2sb.metrics.meters import EvaluationBatch
from i2sb.randomness import ImageNoise, Purpose
from i2sb.storage.answer_files import Which
from i2sb.storage.recon import ReconFiles
from i2sb.storage.released import is_released
from i2sb.storage.runs import find_source, is_export, read_run_config, read_weights, settings_file
from i2sb.storage.sample_folder import SETTINGS, SampleFolder
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split

_DATA_SET_WANTED = "give the `dataset_dir`, and the `subset`, they came from"


@dataclass(frozen=True)
class EvaluationSet:
    """Restored images, the data set they came from, and how its degraded images are made again.

    source: where the restored images lie. run_config: the training run's, with the degradation of these images.
    corruption: that degradation, None if the data set brings degraded images itself. seed: of its noise. settings: what
    metrics.json tells of the restored images.
    """

    source: SampleFolder | ReconFiles
    dataset: ImageDataset
    run_config: TrainConfig
    corruption: Corruption | None
    image_size: int
    seed: int
    settings: dict[str, Any]

    @cached_property
    def eight_bit(self) -> bool:
        """Whether all images are of 8 bits, all of which are used."""
        if not is_plain("uint8", self.run_config.value_range):
            return False
        return isinstance(self.source, ReconFiles) or self.source.is_eight_bit(range(len(self)))

    @property
    def eight_bit_colour(self) -> bool:
        """Whether they are of 8 bits, all of which are used, in colour or grey."""
        return self.eight_bit and self.run_config.image_channels in (1, 3)

    @property
    def path(self) -> Path:
        """The folder of the restored images."""
        return self.source.path

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: Sequence[int], config: EvalConfig, device: torch.device) -> Iterator[EvaluationBatch]:
        """Yield images, by their indices in the split, in batches. Raises UserError if restored ones do not fit."""
        loaded = load_in_order(self.dataset, numbers, batch_size=config.batch_size, workers=config.workers)
        for part in loaded:
            noise = ImageNoise(self.seed, Purpose.SAMPLE, part.numbers)
            batch = make_task_batch(self.run_config, part, self.corruption, noise, evaluation=True)
            stored = [self._load(index) for index in part.numbers]
            kinds = {(image.shape, part.image.is_floating_point() or image.dtype) for image in stored}
            if kinds != {(part.image.shape[1:], part.image.is_floating_point() or part.image.dtype)}:
                raise FileError(
                    self.path, f"images {part.numbers} are not of the shape, or type, of those they were restored from"
                )
            plain = not part.image.is_floating_point()
            degraded, clean = (as_compared(image, plain=plain) for image in (batch.shown, part.image))
            restored = torch.stack(stored if plain else [self.as_levels(image) for image in stored])
            yield EvaluationBatch(degraded.to(device), restored.to(device), clean.to(device), part.numbers)

    def _load(self, index: int) -> Tensor:
        if isinstance(self.source, ReconFiles):
            return self.source.load(index)
        return self.source.load(index, self.run_config.image_channels)

    def load_mean(self, index: int, *, plain: bool) -> Tensor:
        """Return the mean of several answers to an image as `read` gives restored ones; plain: whether those are."""
        assert isinstance(self.source, SampleFolder)
        mean = self.source.load(index, self.run_config.image_channels, "mean")
        return mean if plain else self.as_levels(mean)

    def load_shown(self, index: int, which: Which) -> Tensor:
        """Return one of several answers to an image, or their mean, as i2sb.images.show takes it."""
        assert isinstance(self.source, SampleFolder)
        return self.as_levels(self.source.load(index, self.run_config.image_channels, which))

    def as_levels(self, stored: Tensor) -> Tensor:
        """Return a restored image in float64, its range of values put to 0 to 255. Raises UserError if beyond it."""
        try:
            if is_plain(str(stored.dtype).removeprefix("torch."), self.run_config.value_range):
                return stored.double()
            return to_levels(torch.from_numpy(from_pixels(stored.numpy(), self.run_config.value_range)))
        except ValueError as error:
            raise FileError(self.path, str(error)) from None

    def read_at_once(self, numbers: Sequence[int], config: EvalConfig) -> EvaluationBatch:
        """Return a few images, by their indices in the split, as one batch on the CPU."""
        return next(self.read(numbers, replace(config, batch_size=len(numbers), workers=0), torch.device("cpu")))


def open_evaluation_set(config: EvalConfig) -> EvaluationSet:
    """Open the folder of restored images that the settings name, sample.py's or the released program's.

    Raises UserError if there are none, some are missing, or they do not fit the data set.
    """
    source = find_source(config.ckpt, Path(config.results_dir))
    path = source.folder / config.sample_dir
    if not (path / SETTINGS).exists() and (files := ReconFiles.find(path)):
        return _open_released(config, source.weights, path, files)
    folder = SampleFolder.open(path)
    settings = folder.settings
    run_config = read_run_config(source.weights)
    if is_export(source.weights):
        if read_weights(source.weights).digest != settings.weights:
            made_by = f"the images in {folder.path} were restored with another file {settings.run}"
            raise UserError("ckpt", config.ckpt, f"{made_by}: give that one")
    # Its folder may have been renamed since, and `results_dir` may have been another that leads there.
    elif not source.folder.absolute().as_posix().endswith(f"/{settings.run}") and settings.run != run_config.name:
        made_by = f"the images in {folder.path} were restored by the run {settings.run}"
        raise UserError("ckpt", config.ckpt, f"{made_by}: score them in its folder")
    run_config = replace(
        run_config,
        corrupt=settings.corrupt,
        mask_file=settings.mask_file,
        degradation_noise=settings.degradation_noise,
    )
    if config.corrupt not in ("", settings.corrupt):
        raise UserError("corrupt", config.corrupt, f"the images in {folder.path} were made with {settings.corrupt}")
    run_config = choose_degradation(run_config, config.corrupt, config.mask_file, folder.path / SETTINGS)
    images = open_task_split(run_config, config.dataset_dir or settings.dataset_dir, "val", settings.image_size)
    images = images.subset(config.subset or settings.subset)
    data_set = images.clean.describe()
    if len(images) != settings.num_images:
        raise FileError(
            data_set,
            f"holds {len(images)} images, but those in {folder.path} were restored from {settings.num_images}: "
            f"{_DATA_SET_WANTED}",
        )
    if images.fingerprint != settings.fingerprint:
        raise FileError(
            data_set,
            f"holds images of other names than those in {folder.path} were restored from: "
            "give the `dataset_dir` they came from",
        )
    missing = folder.missing(range(len(images)))
    if missing:
        raise FileError(
            folder.path,
            f"{len(missing)} of {len(images)} images are missing, first number {missing[0]}; finish sample.py first "
            "(to score a part of a split, restore that part with `subset`)",
        )
    corruption = build_task_corruption(run_config, settings.image_size)
    folder.check_masks(run_config.mask_file)
    return EvaluationSet(folder, images, run_config, corruption, settings.image_size, settings.seed, vars(settings))


def _open_released(config: EvalConfig, run: Path, path: Path, files: list[Path]) -> EvaluationSet:
    """Open recon.pt files: they say nothing of how they were made, the run (or exported file) and the settings do."""
    source = ReconFiles(path, files)
    saved = settings_file(run)
    if saved.exists() or is_released(run):
        run_config = read_run_config(run)
    elif config.corrupt and config.dataset_dir:
        run_config = TrainConfig(name=config.ckpt, dataset_dir=config.dataset_dir, corrupt=config.corrupt)
    else:
        raise FileError(
            path, f"its {files[0].name} does not say what it was restored from: give `corrupt` and `dataset_dir`"
        )
    run_config = choose_degradation(run_config, config.corrupt, config.mask_file, saved)
    if source.height != source.width:
        raise FileError(path, f"holds images of {source.width}x{source.height} pixels, square ones are wanted")
    size = source.width
    corruption = build_task_corruption(run_config, size)
    if corruption is not None and corruption.draws_masks:
        raise UserError("corrupt", run_config.corrupt, f"give the published masks that {path} used with `mask_file`")
    dataset_dir = config.dataset_dir or run_config.dataset_dir
    images = open_task_split(run_config, dataset_dir, "val", size).subset(config.subset)
    _check_released(images, source)
    settings = {
        "run": config.ckpt,
        "files": [file.name for file in files],
        "corrupt": run_config.corrupt,
        "mask_file": run_config.mask_file,
        "dataset_dir": dataset_dir,
        "subset": config.subset,
        "image_size": size,
        "num_images": len(source),
        "fingerprint": images.fingerprint,
    }
    if match := re.match(r"samples_nfe(\d+)", path.name):
        settings["nfe"] = int(match[1])
    return EvaluationSet(source, images, run_config, corruption, size, 0, settings)


def _check_released(images: ImageDataset, source: ReconFiles) -> None:
    """Raise UserError if the files hold another number of images than the data set, or images of other classes."""
    data_set = images.clean.describe()
    if len(images) != len(source):
        raise FileError(data_set, f"holds {len(images)} images, {source.path} {len(source)}: {_DATA_SET_WANTED}")
    labels = images.labels(range(len(images)))
    others = (labels != source.labels).nonzero().flatten()
    if (labels >= 0).all() and len(others):
        first = int(others[0])
        raise FileError(
            data_set,
            f"image {first} is of class {labels[first]}, in {source.path} of class {source.labels[first]} "
            f"({len(others)} differ): give the `dataset_dir` they came from",
        )
