"""Scoring a folder of restored images against the clean ones, with the degraded ones beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor
from tqdm import tqdm

from i2sb.config import EvalConfig
from i2sb.data import load_in_order
from i2sb.distributed import find_device
from i2sb.files import write_text
from i2sb.images import draw_grid, save_png, to_uint8
from i2sb.metrics import psnr, ssim
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import read_run_config
from i2sb.sample_folder import SampleFolder
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split

IMAGES_DRAWN = 12


@dataclass(frozen=True)
class Metric:
    """How a metric is computed, one number an image, and how it is shown."""

    compute: Callable[[Tensor, Tensor], Tensor]
    unit: str
    digits: int
    definition: str
    needs: str = "torch"


METRICS = {
    "psnr": Metric(psnr, "dB", 2, "PSNR of 8-bit images, mean over images"),
    "ssim": Metric(ssim, "", 4, "SSIM, Gaussian window 11, σ 1.5, mean over images and channels", needs="torchmetrics"),
}


def run(config: EvalConfig) -> None:
    """Print PSNR and SSIM of degraded and restored images; write metrics.json and comparison.png into the folder.

    Raises ValueError if the folder is not one of sample.py's, is unfinished, or does not fit the data set.
    """
    device = find_device(config.device)
    folder = SampleFolder.open(config.run_dir / config.sample_dir)
    settings = folder.settings
    run_config = replace(read_run_config(config.run_dir), corrupt=settings.corrupt, mask_file=settings.mask_file)
    if config.corrupt not in ("", settings.corrupt):
        raise ValueError(f"--corrupt {config.corrupt}: the images in {folder.path} were made with {settings.corrupt}")
    run_config = choose_degradation(run_config, config.corrupt, config.mask_file, folder.path / "settings.yaml")
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
            "finish sample.py first"
        )

    metrics = {name: metric for name, metric in METRICS.items() if find_spec(metric.needs) is not None}
    scores: dict[str, dict[str, list[Tensor]]] = {name: {"degraded": [], "restored": []} for name in metrics}
    corruption = build_task_corruption(run_config, settings.image_size)
    wanted = {i * len(images) // IMAGES_DRAWN for i in range(IMAGES_DRAWN)}
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    loaded = load_in_order(images, range(len(images)), batch_size=config.batch_size, workers=config.workers)
    for part in tqdm(loaded, total=-(-len(images) // config.batch_size), unit="batch", dynamic_ncols=True):
        noise = ImageNoise(settings.seed, Purpose.SAMPLE, part.numbers)
        batch = make_task_batch(run_config, part, corruption, noise, evaluation=True)
        degraded, clean = to_uint8(batch.shown), part.image
        restored = torch.stack([folder.load(index) for index in part.numbers])
        if restored.shape != clean.shape:
            raise ValueError(
                f"{folder.path}: images {part.numbers} are not of the shape of those they were restored from"
            )
        for name, metric in metrics.items():
            scores[name]["degraded"].append(metric.compute(degraded.to(device), clean.to(device)).cpu())
            scores[name]["restored"].append(metric.compute(restored.to(device), clean.to(device)).cpu())
        drawn += [(degraded[i], restored[i], clean[i]) for i, index in enumerate(part.numbers) if index in wanted]

    means = {
        name: {column: torch.cat(values).mean().item() for column, values in columns.items()}
        for name, columns in scores.items()
    }
    reasons = {name: f"not computed: needs {METRICS[name].needs}" for name in METRICS if name not in metrics}
    reasons["fid"] = f"({config.mode}) not computed: this version has no Inception network"
    report = {
        "images": len(images),
        "settings": vars(settings),
        "metrics": {
            # JSON knows no infinity, the PSNR of equal images.
            name: {column: value if math.isfinite(value) else None for column, value in columns.items()}
            | {"unit": METRICS[name].unit, "definition": METRICS[name].definition}
            for name, columns in means.items()
        },
        "not_computed": reasons,
        "versions": {name: version(name) for name in ("torch", "torchvision", "torchmetrics") if find_spec(name)},
    }
    write_text(folder.path / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False))
    columns = [torch.stack(column) for column in zip(*drawn, strict=True)]
    picture = folder.path / "comparison.png"
    save_png(draw_grid(list(zip(("degraded", "restored", "clean"), columns, strict=True))), picture)

    print(f"\n{len(images)} images of {images.clean.describe()}, {settings.run}, NFE {settings.nfe}")
    print(f"{'':10}{'degraded':>10}{'restored':>10}{'gain':>10}")
    for name, columns in means.items():
        before, after, digits = columns["degraded"], columns["restored"], METRICS[name].digits
        row = f"{name.upper():10}{before:10.{digits}f}{after:10.{digits}f}{after - before:+10.{digits}f}"
        print(f"{row} {METRICS[name].unit}".rstrip())
    for name, reason in reasons.items():
        print(f"{name.upper()} {reason}")
    print(f"{folder.path / 'metrics.json'}\n{picture}")
