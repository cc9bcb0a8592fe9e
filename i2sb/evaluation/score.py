"""Scoring a folder of restored images against the clean ones, with the degraded ones beside them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from i2sb.config import EvalConfig
from i2sb.distributed import World, join_world, leave_world
from i2sb.errors import FileError, UserError
from i2sb.evaluation.answers_meter import AnswersMeter
from i2sb.evaluation.evaluation_set import EvaluationSet, open_evaluation_set
from i2sb.evaluation.make_reference import make_reference
from i2sb.evaluation.report import Example, ExampleAnswers, Report, by_reason
from i2sb.evaluation.results import Meters, Result, build_meters, compute_results, warn_of_unpublished
from i2sb.files import write_text
from i2sb.images import choose_shown, draw_grid, save_png, show
from i2sb.metrics.meters import ImageMeter
from i2sb.metrics.reference import Reference, read_reference
from i2sb.metrics.table import CLEAN, COLUMNS, METRICS, OWN_FEATURES
from i2sb.precision import tf32
from i2sb.progress import progress_bar
from i2sb.storage.sample_folder import TRAJECTORIES, SampleFolder

IMAGES_DRAWN = 12
EXAMPLES_DRAWN = 4  # of the worst, of the middle and of the best
ANSWERS_DRAWN = 3  # of several to each of them
REQUIRED_IS_MISSING = 3  # exit status
_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "efficientnet-lite-pytorch", "numpy")


def run(config: EvalConfig) -> None:
    """Print the metrics of degraded and restored images; write metrics.json, report.html and comparison.png.

    With `make_reference` write reference statistics instead. Under torchrun the processes share the images. Exits with
    status 3 if a metric of `require` could not be computed.
    Raises UserError if the folder holds no restored images, is unfinished, or does not fit the data set or reference.
    """
    world = join_world(config.device)
    try:
        # Full precision: scores are compared with other people's.
        with torch.inference_mode(), tf32(products=False, convolutions=False):
            if config.make_reference:
                make_reference(config, world)
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
    images = open_evaluation_set(config)
    count = len(images)
    if count < world.world_size:
        raise FileError(images.path, f"holds {count} images, fewer than the {world.world_size} processes here")
    _choose_channels(config, images)  # before any work is done
    reference = read_reference(Path(config.reference)) if config.reference else None
    if reference is not None:
        _check_use(reference, config)
    meters = build_meters(config, images, reference, world.device)
    answers = None
    if isinstance(images.source, SampleFolder) and images.source.settings.samples > 1:
        answers = AnswersMeter(images, images.source)
    every_meter = [*meters, *([answers] if answers else [])]
    if world.is_main:
        _warn(meters, reference)

    share = range(world.rank, count, world.world_size)
    if isinstance(images.source, SampleFolder):
        images.source.check_sources(share, images.dataset.checksum)
    with progress_bar(len(share), "image", quiet=not world.is_main) as progress:
        for batch in images.read(share, config, world.device):
            for meter in every_meter:
                meter.add(batch)
            progress.update(len(batch.numbers))
    for meter in every_meter:
        meter.reduce(world.sum)
    if world.is_main:
        results = compute_results(config, meters, images)
        _write(config, images, meters, answers, results)
        _print(images, results, answers, meters.not_computed)
    return meters.not_computed


def _check_use(reference: Reference, config: EvalConfig) -> None:
    """Raise UserError if none of the wanted metrics compares with statistics of the reference's network."""
    network = OWN_FEATURES if reference.network == config.features else reference.network
    names = [name for name, metric in METRICS.items() if metric.uses_reference and metric.network == network]
    if not names:
        raise UserError(
            "reference",
            reference.path,
            f"made with {reference.network}; give `features` {reference.network}, if you trust that file, or another "
            "reference",
        )
    if not set(names) & set(config.wanted):
        raise UserError(
            "reference",
            reference.path,
            f"holds statistics of {reference.network}, but `metrics` {config.metrics} leaves out {' and '.join(names)}",
        )


def _warn(meters: Meters, reference: Reference | None) -> None:
    """Warn of files whose origin nobody can check."""
    if reference is not None and reference.made_from is None:
        print(
            f"warning: {reference.path} does not say what it was made from: taken as it is, "
            f"as statistics of {reference.network}",
            file=sys.stderr,
        )
    for weights in meters.weights.values():
        warn_of_unpublished(weights)


# --- What comes out --------------------------------------------------------------------------------------------------


def _write(
    config: EvalConfig,
    images: EvaluationSet,
    meters: Meters,
    answers: AnswersMeter | None,
    results: dict[str, Result],
) -> None:
    versions = _find_versions()
    of_answers = answers.summarise() if answers else {}
    content = {
        "images": len(images),
        "settings": images.settings,
        "scored_with": asdict(config),
        "metrics": {name: result.as_json() for name, result in results.items()},
        **({"answers": {name: number._asdict() for name, number in of_answers.items()}} if answers else {}),
        "not_computed": meters.not_computed,
        "versions": versions,
    }

    spread_evenly = sorted({i * len(images) // IMAGES_DRAWN for i in range(IMAGES_DRAWN)})
    drawn = images.read_at_once(spread_evenly, config)
    channels = _choose_channels(config, images)
    columns = [(column, show(getattr(drawn, column), channels)) for column in (*COLUMNS, CLEAN)]
    save_png(draw_grid(columns), images.path / "comparison.png")
    psnr = meters.images["psnr"]
    scored_with = {f"scored with {name}": value for name, value in asdict(config).items() if value not in ("", None)}
    report = Report(
        title=f"{images.settings['run']}, {images.path.name}",
        summary=f"{len(images)} images of {images.dataset.clean.describe()}, degraded by {images.run_config.corrupt}",
        results=list(results.values()),
        of_answers=list(of_answers.values()),
        not_computed=meters.not_computed,
        psnr={column: psnr.values(column).tolist() for column in COLUMNS},
        examples=_choose_examples(images, psnr, answers, config),
        strips=sorted((images.path / TRAJECTORIES).rglob("*.png")),
        settings={**images.settings, **scored_with},
        versions=versions,
    )
    report.write(images.path / "report.html")
    # Last: where it is, all is there.
    write_text(images.path / "metrics.json", json.dumps(content, indent=2, ensure_ascii=False))


def _choose_channels(config: EvalConfig, images: EvaluationSet) -> list[int]:
    """Return the channels to draw, counted from 0. Raises UserError if the images have no such."""
    return choose_shown(config.show_channels or images.run_config.show_channels, images.run_config.image_channels)


def _choose_examples(
    images: EvaluationSet, psnr: ImageMeter, answers: AnswersMeter | None, config: EvalConfig
) -> dict[str, list[Example]]:
    """Return the worst, middle and best images by the PSNR of the restored ones; of few images all, each once."""
    order = torch.argsort(psnr.values("restored"), stable=True).tolist()
    shown = EXAMPLES_DRAWN
    middle = (len(order) - shown) // 2
    chosen = {"worst": order[:shown], "median": order[middle : middle + shown], "best": order[-shown:][::-1]}
    if len(order) <= 3 * shown:
        chosen = {"all, the worst first": order}
    examples: dict[str, list[Example]] = {}
    channels = _choose_channels(config, images)
    for kind, numbers in chosen.items():
        batch = images.read_at_once(numbers, config)
        examples[kind] = [
            Example(
                number,
                images.dataset.keys[number],
                psnr.values("degraded")[number].item(),
                psnr.values("restored")[number].item(),
                show(batch.degraded[i], channels),
                show(batch.restored[i], channels),
                show(batch.clean[i], channels),
                answers=_show_answers(answers, number, channels) if answers else None,
            )
            for i, number in enumerate(numbers)
        ]
    return examples


def _show_answers(answers: AnswersMeter, number: int, channels: Sequence[int]) -> ExampleAnswers:
    images, folder = answers.images, answers.folder
    drawn = range(min(folder.settings.samples, ANSWERS_DRAWN))
    return ExampleAnswers(
        [show(images.load_shown(number, answer), channels) for answer in drawn],
        show(images.load_shown(number, "mean"), channels),
        folder.answers(number).heat,
        answers.psnr[number].item(),
        answers.diversity[number].item(),
    )


def _find_versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on, of those that are installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _print(
    images: EvaluationSet,
    results: dict[str, Result],
    answers: AnswersMeter | None,
    not_computed: dict[str, str],
) -> None:
    settings = images.settings
    nfe = f", NFE {settings['nfe']}" if "nfe" in settings else ""
    print(f"\n{len(images)} images of {images.dataset.clean.describe()}, {settings['run']}{nfe}")
    width = max(10, *(len(result.title) + 2 for result in results.values()))
    print(f"{'':{width}}{'degraded':>10}{'restored':>10}{'gain':>10}")
    for result in results.values():
        digits = result.metric.digits
        values = "".join(f"{value:10.{digits}f}" for value in result.values.values())
        row = f"{result.title:{width}}{values}{result.change:+10.{digits}f}"
        print(f"{row} {result.metric.unit}".rstrip())
    if answers:
        told = (f"{n.title} {n.value:.{n.digits}f} {n.unit}".rstrip() for n in answers.summarise().values())
        print(f"{answers.folder.settings.samples} answers to each: {', '.join(told)}")
    for reason, names in by_reason(not_computed):
        print(f"{', '.join(names)} {reason}")
    for name in ("metrics.json", "comparison.png", "report.html"):
        print(images.path / name)
