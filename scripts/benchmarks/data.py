"""Images a second by the number of worker processes: out of an LMDB, and as crops of large photographs."""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from make_lmdb import make_lmdb
from PIL import Image

from benchmarks.timing import out_of_time, print_table
from i2sb.data.dataset import open_split
from i2sb.data.loading import load_training
from i2sb.data.order import TrainingPositions

FULL_SIZE = (500, 375)  # of a typical ImageNet photograph
CAMERA_SIZE = (4000, 3000)
CAMERA_PHOTOGRAPHS = 4
CROP, CROPS_PER_IMAGE = 64, (1, 4, 16)


def benchmark_data(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Load random photographs, as smooth as real ones, the way training does."""
    return _benchmark_whole(options) + _benchmark_crops(options)


def _benchmark_whole(options: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _draw_photographs(root / "photos", options.images, FULL_SIZE)
        for kind, resize in (("full size", None), ("pre-resized", options.size)):
            make_lmdb(root / "photos", root / kind, "train", resize=resize, workers=1)
            images = open_split(root / kind, "train", image_size=options.size)
            for workers in options.workers:
                measure = partial(_speed, images, workers, options.images)
                _add_row(rows, {"stored": kind, "workers": workers}, measure, options.deadline)
    columns = {"stored": "", "workers": "", "images/s": ".0f", "times first": ".2f"}
    print_table(f"data: JPEG of {FULL_SIZE[0]}x{FULL_SIZE[1]}, to {options.size} px", columns, rows)
    return rows


def _benchmark_crops(options: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        _draw_photographs(Path(folder) / "train", CAMERA_PHOTOGRAPHS, CAMERA_SIZE)
        images = open_split(folder, "train", image_size=CROP, native=True)
        for crops in CROPS_PER_IMAGE:
            for workers in options.workers:
                row = {"stored": "12 megapixels", "crops an image": crops, "workers": workers}
                least = 2 * crops * CAMERA_PHOTOGRAPHS
                measure = partial(_speed, images, workers, least, CAMERA_PHOTOGRAPHS, crops)
                _add_row(rows, row, measure, options.deadline)
    columns = {"stored": "", "crops an image": "", "workers": "", "images/s": ".0f", "times first": ".2f"}
    print_table(f"data: crops of {CROP} px from JPEG of {CAMERA_SIZE[0]}x{CAMERA_SIZE[1]}", columns, rows)
    return rows


def _add_row(
    rows: list[dict[str, object]], row: dict[str, object], measure: Callable[[], float], deadline: float
) -> None:
    """Add a row with the images a second that `measure` returns, also as a multiple of the first row's."""
    rows.append(row)
    if reason := out_of_time(deadline):
        row["skipped"] = reason
        return
    row["images/s"] = measure()
    row["times first"] = row["images/s"] / rows[0]["images/s"]


def _speed(
    images: torch.utils.data.Dataset, workers: int, least: int, batch: int = 16, crops_per_image: int = 1
) -> float:
    """Return images a second over at least `least` images, after the first batches, when all workers are at work."""
    positions = TrainingPositions(0, batch, batch)
    stream = load_training(images, seed=0, positions=positions, workers=workers, crops_per_image=crops_per_image)
    for _ in range(crops_per_image * (2 * workers + 1)):
        next(stream)
    begun, count = time.perf_counter(), max(4, least // batch)
    for _ in range(count):
        next(stream)
    return count * batch / (time.perf_counter() - begun)


def _draw_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        photo = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        photo.save(folder / f"{number:05d}.jpg", quality=90)
