"""Validation while training: some images of the val split restored with the averaged weights, scored and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from corruption import Corruption
from i2sb.config import SamplingOptions
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.images import as_compared, choose_shown, draw_grid, draw_strip, show, to_uint8
from i2sb.metrics.feature_networks import FeatureNetwork, ResNet50, UnavailableError
from i2sb.metrics.table import IMAGENET_CLASSES, Compare, choose_comparisons
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import RestorationModel
from i2sb.tasks import make_task_batch

STRIP_STATES = 6


class ValidationResult(NamedTuple):
    """The results of one process.

    sums: float64, over its images: for each metric the degraded and the restored value, then the number of images.
    grid: degraded, restored and clean images side by side; strip: the first one's way over the bridge; both None if the
    process had no images.
    """

    sums: Tensor
    grid: Image.Image | None
    strip: Image.Image | None


WATCHED = ("psnr", "ssim")  # of the table of metrics
# Of images, the clean ones and their labels: a number an image.
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]


def choose_metrics(classifier: FeatureNetwork | None, image_size: int) -> dict[str, Metric]:
    """Return those of WATCHED for which images of this size are large enough; with a classifier, its accuracy in %."""
    comparisons = choose_comparisons(WATCHED, image_size)
    metrics = {name: _without_label(compare) for name, compare in comparisons.items()}
    if classifier is not None:
        metrics["accuracy"] = lambda images, clean, label: 100.0 * (classifier(images).scores.argmax(1) == label)
    return metrics


def _without_label(compare: Compare) -> Metric:
    return lambda images, clean, label: compare(images, clean)


def find_classifier(images: ImageDataset, weights_dir: Path, device: torch.device) -> FeatureNetwork | None:
    """Return the published accuracy's ResNet-50 if the images have ImageNet's classes and its weights are here.

    It sees 8-bit images in colour alone. Raises UserError naming the file of weights if it is broken.
    """
    if len(images.classes) != IMAGENET_CLASSES or images.image_channels != 3 or not images.plain:
        return None
    try:
        return ResNet50(weights_dir).eval().requires_grad_(False).to(device)
    except UnavailableError:
        return None


def choose_images(available: int, wanted: int, kinds: int = 1) -> list[int]:
    """Return the numbers of `wanted` images at most, spread evenly over those available.

    kinds: how many degradations take turns, as image i has number i mod `kinds`; then the chosen take turns, too.
    """
    count = min(wanted, available)
    spread = [i * available // count for i in range(count)]
    in_turn = [number + (i - number) % kinds for i, number in enumerate(spread)]
    fits = in_turn[-1] < available and len(set(in_turn)) == count if count else True
    return in_turn if fits else spread


class ValidationSet(NamedTuple):
    """The images that validation restores, what degrades them (None: they are pairs), and what they are scored by."""

    images: ImageDataset
    corruption: Corruption | None
    metrics: Mapping[str, Metric]


@torch.no_grad()
def validate(
    model: RestorationModel,
    validation_set: ValidationSet,
    numbers: Sequence[int],
    *,
    batch_size: int,
    nfe: int,
    clip_denoise: bool,
    seed: int,
) -> ValidationResult:
    """Restore the images of these numbers and compare them with the clean ones."""
    images, corruption, metrics = validation_set
    channels = choose_shown(model.config.show_channels, images.image_channels)
    device, options = model.device, SamplingOptions(nfe=nfe, clip_denoise=clip_denoise, seed=seed)
    sums = torch.zeros(2 * len(metrics) + 1, dtype=torch.float64, device=device)
    drawn: list[tuple[Tensor, ...]] = []
    strip = None
    for part in load_in_order(images, numbers, batch_size=batch_size):
        noise = ImageNoise(seed, Purpose.SAMPLE, part.numbers)
        batch = make_task_batch(model.config, part, corruption, noise, device, evaluation=True)
        path = model.restore_batch(batch, noise, options, states=min(STRIP_STATES, nfe) if strip is None else None)
        plain, clean = not part.image.is_floating_point(), part.image.to(device)
        shown, restored, clean = (as_compared(image, plain=plain) for image in (batch.shown, path.x0, clean))
        label = part.label.to(device)
        values = [metric(image, clean, label) for metric in metrics.values() for image in (shown, restored)]
        sums += torch.stack([*(value.double().sum() for value in values), sums.new_tensor(len(batch))])
        drawn.append(tuple(show(image, channels) for image in (shown, restored, clean)))
        if path.states is not None and path.pred_x0s is not None:
            way = (path.states[0], path.pred_x0s[0], batch.x1[0])
            strip = draw_strip(*(show(to_uint8(image), channels) for image in way))
    if not drawn:
        return ValidationResult(sums, None, None)
    columns = [torch.cat(column) for column in zip(*drawn, strict=True)]
    return ValidationResult(sums, draw_grid(list(zip(("degraded", "restored", "clean"), columns, strict=True))), strip)


def summarise(sums: Tensor, metrics: Iterable[str]) -> tuple[dict[str, float], int]:
    """Return the mean of every metric, as "psnr_degraded", "psnr_restored", …, and the number of images."""
    *totals, count = sums.tolist()
    names = [f"{name}_{which}" for name in metrics for which in ("degraded", "restored")]
    return {name: total / count for name, total in zip(names, totals, strict=True)}, round(count)
