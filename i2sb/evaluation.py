"""Scoring a folder of restored images against the clean ones, with the degraded ones beside them."""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from torch import Tensor
from tqdm import tqdm

from i2sb.batch import make_batch
from i2sb.config import EvalConfig, TrainConfig
from i2sb.data import load_in_order
from i2sb.distributed import join_world
from i2sb.files import write_text
from i2sb.images import draw_grid, save_png, to_uint8
from i2sb.metrics import psnr, ssim
from i2sb.parsing import read_config
from i2sb.randomness import ImageNoise, Purpose
from i2sb.sample_folder import SampleFolder
from i2sb.tasks import build_task_corruption, open_task_split

METRICS = {
    "psnr": (psnr, "dB", "PSNR of 8-bit RGB, mean over images"),
    "ssim": (ssim, "", "SSIM, Gaussian window 11, σ 1.5, mean over images and channels"),
}
IMAGES_DRAWN = 12


def run(config: EvalConfig) -> None:
    """Print PSNR and SSIM of degraded and restored images; write metrics.json and comparison.png into the folder.

    Raises ValueError if the folder is not one of sample.py's, is unfinished, or does not fit the data set.
    """
    device = join_world(config.device).device
    run_config = read_config(TrainConfig, config.run_dir / "config.yaml")
    folder = SampleFolder.open(config.run_dir / config.sample_dir)
    settings = folder.settings
    dataset_dir = config.dataset_dir or settings.dataset_dir
    images = open_task_split(run_config, dataset_dir, "val", settings.image_size)
    if len(images) != settings.num_images:
        raise ValueError(
            f"{images.clean.describe()} holds {len(images)} images, but those in {folder.path} were restored from "
            f"{settings.num_images}: give the --dataset-dir they came from"
        )
    missing = folder.missing(range(len(images)))
    if missing:
        raise ValueError(
            f"{folder.path}: {len(missing)} of {len(images)} images are missing, first number {missing[0]}; "
            "finish sample.py first"
        )

    corruption = build_task_corruption(run_config, settings.image_size)
    scores: dict[str, dict[str, list[Tensor]]] = {name: {"degraded": [], "restored": []} for name in METRICS}
    wanted = {i * len(images) // IMAGES_DRAWN for i in range(IMAGES_DRAWN)}
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    loaded = load_in_order(images, range(len(images)), batch_size=config.batch_size, workers=config.workers)
    for part in tqdm(loaded, total=-(-len(images) // config.batch_size), unit="batch", dynamic_ncols=True):
        noise = ImageNoise(settings.seed, Purpose.SAMPLE, part.numbers)
        batch = make_batch(part.image, part.degraded, part.label, corruption, noise)
        degraded, clean = to_uint8(batch.shown), part.image
        restored = torch.stack([folder.load(index) for index in part.numbers])
        for name, (metric, _, _) in METRICS.items():
            scores[name]["degraded"].append(metric(degraded.to(device), clean.to(device)).cpu())
            scores[name]["restored"].append(metric(restored.to(device), clean.to(device)).cpu())
        drawn += [(degraded[i], restored[i], clean[i]) for i, index in enumerate(part.numbers) if index in wanted]

    means = {
        name: {column: torch.cat(values).mean().item() for column, values in columns.items()}
        for name, columns in scores.items()
    }
    report = {
        "images": len(images),
        "settings": vars(settings),
        "metrics": {
            name: {**means[name], "unit": METRICS[name][1], "definition": METRICS[name][2]} for name in METRICS
        },
        "fid": {"value": None, "mode": config.mode, "reason": "not computed: this version has no Inception network"},
        "versions": {package: version(package) for package in ("torch", "torchvision", "torchmetrics")},
    }
    write_text(folder.path / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False))
    columns = [torch.stack(column) for column in zip(*drawn, strict=True)]
    picture = folder.path / "comparison.png"
    save_png(draw_grid(list(zip(("degraded", "restored", "clean"), columns, strict=True))), picture)

    print(f"\n{len(images)} images of {images.clean.describe()}, {settings.run}, NFE {settings.nfe}")
    print(f"{'':10}{'degraded':>10}{'restored':>10}{'gain':>10}")
    for name in METRICS:
        before, after = means[name]["degraded"], means[name]["restored"]
        digits = 2 if name == "psnr" else 4
        gain = after - before
        print(f"{name.upper():10}{before:10.{digits}f}{after:10.{digits}f}{gain:+10.{digits}f} {METRICS[name][1]}")
    print(f"FID ({config.mode}) {report['fid']['reason']}")
    print(f"{folder.path / 'metrics.json'}\n{picture}")
