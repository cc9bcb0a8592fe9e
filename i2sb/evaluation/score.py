"""Scoring a folder of restored images against the clean ones, with the degraded ones beside them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from i2sb.config import EvalConfig
from i2sb.data.dataset import open_split
from i2sb.data.loading import load_in_order
from i2sb.distributed import World, join_world, leave_world
from i2sb.evaluation.measures import Meters, build_meters, build_network, compute_results, weights_of
from i2sb.evaluation.report import Example, write_report
from i2sb.evaluation.restored import RestoredImages, open_restored
from i2sb.evaluation.scores import COLUMNS, PairMeter, Result, Scored
from i2sb.files import write_text
from i2sb.images import draw_grid, save_png
from i2sb.metrics.features import (
    EFFICIENTNET_LITE0,
    INCEPTION,
    UnavailableError,
)
from i2sb.metrics.frechet import Moments
from i2sb.metrics.reference import MadeFrom, Reference, read_reference, write_reference
from i2sb.progress import progress_bar
from i2sb.storage.sample_folder import TRAJECTORIES

IMAGES_DRAWN = 12
EXAMPLES_DRAWN = 4  # each of the worst, middle and best
REQUIRED_IS_MISSING = 3  # exit status
_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "efficientnet-lite-pytorch", "numpy")


def run(config: EvalConfig) -> None:
    """Print the metrics of degraded and restored images; write metrics.json, report.html and comparison.png.

    With --make-reference write reference statistics instead. Under torchrun the processes share the images. Exits with
    status 3 if a metric of --require could not be computed.
    Raises ValueError if the folder holds no restored images, is unfinished, or does not fit the data set or reference.
    """
    world = join_world(config.device)
    try:
        # Full precision in convolutions: scores are compared with other people's.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            if config.make_reference:
                _make_reference(config, world)
                return
            not_computed = _score(config, world)
        world.barrier()  # a process that leaves early with a status would have the others stopped
    finally:
        leave_world()
    missing = [f"{name} ({not_computed[name]})" for name in config.required if name in not_computed]
    if missing:
        if world.is_main:
            print(f"compute_metrices.py: --require: {'; '.join(missing)}", file=sys.stderr)
        sys.exit(REQUIRED_IS_MISSING)


# --- Scoring ---------------------------------------------------------------------------------------------------------


def _score(config: EvalConfig, world: World) -> dict[str, str]:
    """Score the images and, on the main process, write and print what came out. Returns what was not computed."""
    restored = open_restored(config)
    count = len(restored)
    if count < world.world_size:
        raise ValueError(f"torchrun --nproc-per-node: {world.world_size} processes for {count} images")
    reference = read_reference(Path(config.reference)) if config.reference else None
    if reference is not None:
        metric = {INCEPTION: "fid", EFFICIENTNET_LITE0: "efficientnet-lite0-frechet"}.get(reference.network)
        if metric is None and reference.network != config.features:
            raise ValueError(
                f"--reference {reference.path}: made with {reference.network}; give --features {reference.network}, "
                "if you trust that file, or another reference"
            )
        if (metric or "features-frechet") not in config.wanted:
            raise ValueError(
                f"--reference {reference.path}: holds statistics of {reference.network}, but --metrics "
                f"{config.metrics} leaves out {metric or 'features-frechet'}"
            )
    meters = build_meters(config, restored, reference, world.device)
    if world.is_main:
        _warn(meters, reference)

    mine = range(world.rank, count, world.world_size)
    progress = progress_bar(len(mine), "image", quiet=not world.is_main)
    for scored in restored.read(mine, config, world.device):
        for meter in meters:
            meter.add(scored)
        progress.update(len(scored.numbers))
    progress.close()
    for meter in meters:
        meter.reduce(lambda value: world.sum(value.to(world.device)).cpu())
    if world.is_main:
        results = compute_results(config, restored, meters, reference)
        _write(config, restored, meters, results)
        _print(restored, results, meters.not_computed)
    return meters.not_computed


def _warn(meters: Meters, reference: Reference | None) -> None:
    """Say what the user should know of files that do not vouch for themselves."""
    if reference is not None and reference.made_from is None:
        print(
            f"warning: {reference.path} does not say what it was made from: taken as it is, "
            f"as statistics of {reference.network}",
            file=sys.stderr,
        )
    for network in weights_of(meters).values():
        if network and not network["published"]:
            print(f"warning: {network['file']} is not the published file of that name", file=sys.stderr)


# --- What comes out --------------------------------------------------------------------------------------------------


def _finite(value: float) -> float | None:
    """Return a number as JSON knows it, without infinity and NaN."""
    return value if math.isfinite(value) else None


def _write(config: EvalConfig, restored: RestoredImages, meters: Meters, results: dict[str, Result]) -> None:
    versions = _versions()
    report = {
        "images": len(restored),
        "settings": restored.settings,
        "scored_with": asdict(config),
        "metrics": {
            name: {column: _finite(getattr(result, column)) for column in COLUMNS}
            | {"n": result.n, "title": result.title, "unit": result.unit, "definition": result.definition}
            | result.details
            for name, result in results.items()
        },
        "not_computed": meters.not_computed,
        "versions": versions,
    }
    write_text(restored.path / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False))

    spread_evenly = sorted({i * len(restored) // IMAGES_DRAWN for i in range(IMAGES_DRAWN)})
    images = [getattr(_gather(restored, spread_evenly, config), column) for column in (*COLUMNS, "clean")]
    save_png(draw_grid(list(zip((*COLUMNS, "clean"), images, strict=True))), restored.path / "comparison.png")
    write_report(
        restored.path / "report.html",
        title=f"{restored.settings['run']}, {restored.path.name}",
        summary=f"{len(restored)} images of {restored.images.clean.describe()}, degraded by "
        f"{restored.run_config.corrupt}",
        results=list(results.values()),
        not_computed=meters.not_computed,
        psnr={column: meters.pairs["psnr"].values(column).tolist() for column in COLUMNS},
        examples=_examples(restored, meters.pairs["psnr"], config),
        strips=sorted((restored.path / TRAJECTORIES).rglob("*.png")),
        settings={**restored.settings, **{f"scored with {k}": v for k, v in asdict(config).items() if v != ""}},
        versions=versions,
    )


def _gather(restored: RestoredImages, numbers: list[int], config: EvalConfig) -> Scored:
    """Read some images again, all at once."""
    read = list(restored.read(numbers, config, torch.device("cpu")))
    columns = [torch.cat([getattr(scored, name) for scored in read]) for name in (*COLUMNS, "clean")]
    return Scored(*columns, numbers)


def _examples(restored: RestoredImages, meter: PairMeter, config: EvalConfig) -> dict[str, list[Example]]:
    """Return the worst, middle and best images by the PSNR of the restored ones."""
    order = torch.argsort(meter.values("restored"), stable=True).tolist()
    shown = min(EXAMPLES_DRAWN, len(order))
    middle = (len(order) - shown) // 2
    chosen = {"worst": order[:shown], "median": order[middle : middle + shown], "best": order[-shown:][::-1]}
    examples: dict[str, list[Example]] = {}
    for kind, numbers in chosen.items():
        scored = _gather(restored, numbers, config)
        examples[kind] = [
            Example(
                number,
                restored.images.keys[number],
                *(meter.values(column)[number].item() for column in COLUMNS),
                *(getattr(scored, column)[i] for column in (*COLUMNS, "clean")),
            )
            for i, number in enumerate(numbers)
        ]
    return examples


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _print(restored: RestoredImages, results: dict[str, Result], not_computed: dict[str, str]) -> None:
    settings = restored.settings
    nfe = f", NFE {settings['nfe']}" if "nfe" in settings else ""
    print(f"\n{len(restored)} images of {restored.images.clean.describe()}, {settings['run']}{nfe}")
    width = max(10, *(len(result.title) + 2 for result in results.values()))
    print(f"{'':{width}}{'degraded':>10}{'restored':>10}{'gain':>10}")
    for result in results.values():
        before, after, digits = result.degraded, result.restored, result.digits
        row = f"{result.title:{width}}{before:10.{digits}f}{after:10.{digits}f}{after - before:+10.{digits}f}"
        print(f"{row} {result.unit}".rstrip())
    for name, reason in not_computed.items():
        print(f"{name} {reason}")
    for name in ("metrics.json", "comparison.png", "report.html"):
        print(restored.path / name)


# --- Reference statistics --------------------------------------------------------------------------------------------


def _make_reference(config: EvalConfig, world: World) -> None:
    """Write the moments of the clean images of a split."""
    path = Path(config.make_reference)
    if path.exists():
        raise ValueError(f"--make-reference {path}: is there already; delete it first, or name another file")
    split = config.reference_split or "val"
    images = open_split(config.dataset_dir, split, image_size=config.image_size, native=config.crop == "random")
    if len(images) < max(2, world.world_size):
        raise ValueError(f"{images.clean.describe()}: holds {len(images)} images, too few for statistics")
    named = INCEPTION
    if config.features:
        named = "own"
    elif config.metrics and "fid" not in config.wanted and "efficientnet-lite0-frechet" in config.wanted:
        named = EFFICIENTNET_LITE0
    try:
        network = build_network(named, config, world.device)
    except UnavailableError as error:
        raise ValueError(f"--make-reference {path}: {error}") from None
    if world.is_main and network.weights and not network.weights.published:
        print(f"warning: {network.weights.file} is not the published file of that name", file=sys.stderr)
    moments = Moments()
    mine = range(world.rank, len(images), world.world_size)
    progress = progress_bar(len(mine), "image", quiet=not world.is_main)
    for part in load_in_order(images, mine, batch_size=config.batch_size, workers=config.workers):
        moments.add(network(part.image.to(world.device)).features)
        progress.update(len(part.numbers))
    progress.close()
    gaussian = moments.gaussian(lambda value: world.sum(value.to(world.device)).cpu())
    made_from = MadeFrom(
        network=network.name,
        mode=network.mode,
        split=split,
        image_size=config.image_size,
        crop=config.crop,
        images=len(images),
        data=Path(config.dataset_dir).name,
        fingerprint=images.fingerprint,
        weights=network.weights.sha256 if network.weights else "",
    )
    if world.is_main:
        write_reference(path, gaussian, made_from)
        print(f"{path}: {network.name} statistics of {len(images)} images of {images.clean.describe()}")
    world.barrier()
