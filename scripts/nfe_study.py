"""Measure how the quality of restored images depends on the sampler and the number of network evaluations.

    python scripts/nfe_study.py NAME OUT [--nfe 1 2 3 5 10 20 50 100] [--samplers posterior eta0 second_order …]
                                [--images 32] [--image-size …] [--dataset-dir …] [--clip-denoise] [--seed 0]

NAME is a run in --results-dir, OUT a folder to make; it gets study.json, study.csv and study.png. The same command
again goes on where it was stopped. Images are spread
evenly over the val split and degraded as sample.py degrades them; every sampler starts from the same noise. PSNR and
SSIM (of images from 11 pixels a side on) are means over images; the Fréchet distance is between the features of the
restored and of the clean ones in EfficientNet-Lite0, which is not FID, and measures the number of images as well as
their quality where they are few.
Numbers of evaluations that the run's formulation does not take are left out, and so are samplers that take the same
steps as another one. The Fréchet distance needs scripts/requirements-scoring.txt, the picture
scripts/requirements-demo.txt.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

import torch

from i2sb.config import SamplingOptions
from i2sb.data.loading import load_in_order
from i2sb.distributed import find_device
from i2sb.errors import FileError, UserError, list_differences, require
from i2sb.files import write_atomically, write_text
from i2sb.formulation import Formulation
from i2sb.images import as_compared
from i2sb.metrics.feature_networks import EfficientNetLite0, FeatureNetwork, UnavailableError
from i2sb.metrics.frechet import Moments, frechet_distance
from i2sb.metrics.table import METRICS, Compare, choose_comparisons
from i2sb.network_sizes import check_image_size
from i2sb.parsing import expand_homes
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import RestorationModel, load_model
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split
from i2sb.training.validation import WATCHED, choose_images

EVALUATIONS = (1, 2, 3, 5, 10, 20, 50, 100)
FRECHET = "efficientnet-lite0-frechet"
LABELS = {name: ", ".join(filter(None, (METRICS[name].title, METRICS[name].unit))) for name in (*WATCHED, FRECHET)}


class Scores:
    """What the images of one way to restore, or the degraded or clean ones, add up to."""

    def __init__(self, comparisons: Mapping[str, Compare]) -> None:
        self.count, self.comparisons = 0, comparisons
        self.sums = dict.fromkeys(comparisons, 0.0)
        self.moments = Moments()

    def add(self, images: torch.Tensor, clean: torch.Tensor, features: FeatureNetwork | None) -> None:
        """Take in uint8 images [B, C, H, W]."""
        self.count += len(images)
        for name, compare in self.comparisons.items():
            self.sums[name] += float(compare(images, clean).double().sum())
        if features is not None:
            self.moments.add(features(images).features)

    def finish(self, clean: Scores) -> dict[str, Any]:
        """Return the number of images and every metric."""
        row = {"images": self.count} | {name: total / self.count for name, total in self.sums.items()}
        if self.moments.count:
            row[FRECHET] = frechet_distance(self.moments.gaussian(), clean.moments.gaussian())
        return row


def read_sampler(formulation: Formulation, name: str) -> SamplingOptions:
    """Read "posterior", "eta0.5", "ddim0" and the like. Raises UserError for what the formulation does not have."""
    match = re.fullmatch(r"(.*?)(\d+(?:\.\d+)?)?", name)
    word, eta = match.groups() if match else (name, None)
    try:
        options = SamplingOptions(sampler=word, eta=None if eta is None else float(eta))
        return replace(options, eta=formulation.settle(options).eta)
    except UserError as error:
        raise UserError("samplers", name, f"`{error.setting}` {error.value}: {error.must}") from None


def name_sampler(options: SamplingOptions) -> str:
    """Return what `read_sampler` reads."""
    return options.sampler + ("" if options.eta is None else f"{options.eta:g}")


def takes(formulation: Formulation, nfe: int) -> bool:
    """Say whether a formulation restores with this number of evaluations."""
    try:
        formulation.check_nfe(nfe)
    except UserError:
        return False
    return True


class Keep:
    """study.json: the rows that are done, and what they were made with, so that the same command goes on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / "study.json", name
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}

    def open(self, settings: dict[str, Any]) -> None:
        """Take up the rows that are there. Raises UserError if they, or the folder, are of something else."""
        self.settings = {"run": self.name, **settings}
        if self.path.exists():
            before = json.loads(self.path.read_bytes())
            differences = list_differences(before.get("settings", {}), self.settings)
            if differences:
                raise FileError(self.path, f"is of another study ({differences}); name another folder")
            self.rows = {(row["sampler"], row["nfe"]): row for row in before["rows"]}
        elif self.path.parent.exists() and any(self.path.parent.iterdir()):
            raise FileError(self.path.parent, "exists already and holds no study; name another folder")
        self._write()  # fails before the work, not after it

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row that is done."""
        self.rows[row["sampler"], row["nfe"]] = row
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"settings": self.settings, "rows": list(self.rows.values())}, indent=2))


@torch.no_grad()
def study(
    model: RestorationModel, options: argparse.Namespace, features: FeatureNetwork | None, keep: Keep
) -> list[dict[str, Any]]:
    """Restore the images in every way that `keep` does not know yet; returns all rows, first the degraded images'."""
    config = choose_degradation(model.config, options.corrupt, "", options.results_dir / options.name)
    image_size = options.image_size or config.restored_size
    check_image_size(config.network, image_size, multiple=model.network.multiple)
    corruption = build_task_corruption(config, image_size, model.device)
    model.formulation.check_degradation(corruption)
    samplers = {name: read_sampler(model.formulation, name) for name in options.samplers or ()}
    samplers = samplers or {name_sampler(sampler): sampler for sampler in model.formulation.list_samplers()}
    counts = [nfe for nfe in sorted(set(options.nfe)) if takes(model.formulation, nfe)]
    if not counts:
        model.formulation.check_nfe(options.nfe[0])
    images = open_task_split(config, options.dataset_dir or config.dataset_dir, "val", image_size)
    numbers = choose_images(len(images), options.images)
    if len(numbers) < 2 or config.image_channels != 3 or not images.plain:
        features = None
    keep.open(
        {
            "iteration": model.iteration,
            "corrupt": config.corrupt,
            "image_size": image_size,
            "images": len(numbers),
            "data": images.fingerprint,
            "clip_denoise": options.clip_denoise,
            "seed": options.seed,
            "features": features is not None,
        }
    )
    jobs = [("degraded", 0), *((name, nfe) for name in samplers for nfe in counts)]
    left = [job for job in jobs if job not in keep.rows]
    comparisons = choose_comparisons(WATCHED, image_size)
    clean_scores = Scores(comparisons)
    progress = progress_bar(len(numbers) * sum(nfe for _, nfe in left), "evaluation")
    for name, nfe in left:
        scores = Scores(comparisons)
        for loaded in load_in_order(images, numbers, batch_size=options.batch):
            plain = not loaded.image.is_floating_point()
            clean = as_compared(loaded.image.to(model.device), plain=plain)
            if (name, nfe) == left[0]:
                clean_scores.add(clean, clean, features)
            noise = ImageNoise(options.seed, Purpose.SAMPLE, loaded.numbers)
            batch = make_task_batch(model.config, loaded, corruption, noise, model.device, evaluation=True)
            shown = batch.shown
            if name in samplers:
                how = replace(samplers[name], nfe=nfe, clip_denoise=options.clip_denoise, seed=options.seed)
                shown = model.restore_batch(batch, noise, how).x0
            scores.add(as_compared(shown, plain=plain), clean, features)
            progress.update(nfe * len(batch))
        keep.add({"sampler": name, "nfe": nfe} | scores.finish(clean_scores))
    progress.close()
    return [keep.rows[job] for job in jobs]


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw a panel for each metric: its mean against the number of evaluations, a line a sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    degraded, *restored = rows
    metrics = [name for name in LABELS if name in degraded]
    figure, panels = pyplot.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.6), squeeze=False)
    for panel, metric in zip(panels[0], metrics, strict=True):
        for name in dict.fromkeys(row["sampler"] for row in restored):
            points = [(row["nfe"], row[metric]) for row in restored if row["sampler"] == name]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        panel.axhline(degraded[metric], color="grey", linestyle="--", label="degraded")
        counts = sorted({row["nfe"] for row in restored})
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.set_xlabel("network evaluations")
        panel.set_ylabel(LABELS[metric])
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the run in --results-dir")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="folder of all runs (default: results)"
    )
    parser.add_argument("--ckpt-file", help="checkpoint of the run (default: the newest)")
    parser.add_argument(
        "--nfe", type=int, nargs="+", default=EVALUATIONS, help="network evaluations (default: as above)"
    )
    parser.add_argument("--samplers", nargs="+", help="such as posterior, eta0.5 (default: all there are)")
    parser.add_argument("--images", type=int, default=32, help="images of the val split (default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="side of the images (default: the run's validation size)")
    parser.add_argument("--dataset-dir", default="", help="folder with the val data (default: the run's)")
    parser.add_argument("--corrupt", default="", help="degradation, to be given where the run's is a Python file")
    parser.add_argument("--network", default="", help="the run's, to be given where it is a Python file")
    parser.add_argument("--batch", type=int, default=8, help="images restored at once (default: %(default)s)")
    parser.add_argument("--clip-denoise", action="store_true", help="clamp predicted clean images to [-1, 1]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: the GPU if there is one"
    )
    options = argparse.Namespace(**expand_homes(vars(parser.parse_args())))
    with report_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError or OSError naming what is wrong."""
    require(options.seed >= 0, "seed", options.seed, "must not be negative")
    for setting, value in (("images", options.images), ("batch", options.batch), ("nfe", min(options.nfe))):
        require(value >= 1, setting, value, "must be at least 1")
    model = load_model(
        options.results_dir / options.name, find_device(options.device), True, options.ckpt_file, options.network
    )
    try:
        features = EfficientNetLite0().eval().requires_grad_(False).to(model.device)
    except UnavailableError as error:
        features = None
        print(f"warning: no Fréchet distance: {error}", file=sys.stderr)
    rows = study(model, options, features, Keep(options.out, options.name))
    about = " ".join(model.formulation.describe().split())
    images = f"{rows[0]['images']} images"
    title = f"{options.name}: {model.config.corrupt}, {about}, {model.iteration} iterations, {images}"
    write_text(options.out / "study.csv", as_csv(rows))
    print(f"{title}\n{as_csv(rows)}{options.out}/study.json, study.csv", end="")
    if find_spec("matplotlib"):
        draw(rows, title, options.out / "study.png")
        print(", study.png")
    else:
        print("; no picture: pip install matplotlib")


if __name__ == "__main__":
    main()
