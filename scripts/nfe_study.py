"""Measure how the quality of restored images depends on the sampler and the number of network evaluations.

    python scripts/nfe_study.py NAME OUT [--nfe 1 2 3 5 10 20 50 100] [--samplers posterior eta0 eta0.5 second_order]
                                [--images 32] [--image-size …] [--dataset-dir …] [--seed 0] [--device auto]

NAME is a run in --results-dir, OUT a folder that is not there yet; it gets study.json, study.csv and study.png. Images
are spread evenly over the val split and degraded as sample.py degrades them; every sampler starts from the same noise.
Numbers of evaluations that the run's bridge is too short for are left out, and so are samplers that are another one on
it. The picture needs matplotlib (scripts/requirements-demo.txt).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from i2sb.data import load_in_order
from i2sb.distributed import find_device
from i2sb.files import write_atomically, write_text
from i2sb.images import to_uint8
from i2sb.network import check_image_size
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import RestorationModel, load_model
from i2sb.steps import SAMPLERS
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split
from i2sb.validation import METRICS, choose_images

EVALUATIONS = (1, 2, 3, 5, 10, 20, 50, 100)
UNITS = {"psnr": "PSNR, dB", "ssim": "SSIM"}


class Way(NamedTuple):
    """A sampler with its eta, and what it is called here."""

    name: str
    sampler: str
    eta: float


def read_way(name: str) -> Way:
    """Read "posterior", "eta0.5", "second_order" or "ot_ode". Raises ValueError for others."""
    match = re.fullmatch(r"eta(\d(?:\.\d+)?)", name)
    if match and float(match[1]) <= 1:
        return Way(name, "eta", float(match[1]))
    if name == "eta" or name not in SAMPLERS:
        raise ValueError(f"--samplers {name}: unknown; choose of posterior, eta0 to eta1, second_order, ot_ode")
    return Way(name, name, 1.0)


@torch.no_grad()
def study(model: RestorationModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Restore the images in every way; returns a row each, the first one for the degraded images."""
    config = choose_degradation(model.config, options.corrupt, "", options.results_dir / options.name)
    image_size = options.image_size or config.restored_size
    check_image_size(config.network, image_size)
    corruption = build_task_corruption(config, image_size, model.device)
    images = open_task_split(config, options.dataset_dir or config.dataset_dir, "val", image_size)
    numbers = choose_images(len(images), options.images)
    ways = [way for way in map(read_way, options.samplers) if not (config.ot_ode and way.sampler in ("eta", "ot_ode"))]
    counts = [nfe for nfe in sorted(set(options.nfe)) if nfe < config.interval]
    table: dict[tuple[str, int], list[list[float]]] = {}
    progress = tqdm(total=len(numbers) * len(ways) * sum(counts), unit="evaluation", dynamic_ncols=True)
    for loaded in load_in_order(images, numbers, batch_size=options.batch):
        clean = loaded.image.to(model.device)
        jobs = [(way, nfe) for way in ways for nfe in counts]
        for way, nfe in [(None, 0), *jobs]:
            noise = ImageNoise(options.seed, Purpose.SAMPLE, loaded.numbers)
            batch = make_task_batch(config, loaded, corruption, noise, model.device, evaluation=True)
            shown = batch.shown
            if way is not None:
                shown = model.restore_batch(batch, noise, nfe=nfe, sampler=way.sampler, eta=way.eta)
            scores = [metric(to_uint8(shown), clean).tolist() for metric in METRICS.values()]
            kept = table.setdefault(("degraded" if way is None else way.name, nfe), [[] for _ in METRICS])
            for column, values in zip(kept, scores, strict=True):
                column += values
            progress.update(nfe * len(batch))
    progress.close()
    return [
        {"sampler": name, "nfe": nfe, "images": len(columns[0])}
        | {metric: sum(values) / len(values) for metric, values in zip(METRICS, columns, strict=True)}
        for (name, nfe), columns in table.items()
    ]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return the table as CSV."""
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
    figure, panels = pyplot.subplots(1, len(METRICS), figsize=(4.6 * len(METRICS), 3.6), squeeze=False)
    for panel, metric in zip(panels[0], METRICS, strict=True):
        for name in dict.fromkeys(row["sampler"] for row in restored):
            points = [(row["nfe"], row[metric]) for row in restored if row["sampler"] == name]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        panel.axhline(degraded[metric], color="grey", linestyle="--", label="degraded")
        counts = sorted({row["nfe"] for row in restored})
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.set_xlabel("network evaluations")
        panel.set_ylabel(UNITS[metric])
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
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of all runs")
    parser.add_argument("--ckpt-file", help="checkpoint of the run (default: the newest)")
    parser.add_argument("--nfe", type=int, nargs="+", default=EVALUATIONS, help="network evaluations")
    parser.add_argument("--samplers", nargs="+", default=["posterior", "eta0", "eta0.5", "second_order"])
    parser.add_argument("--images", type=int, default=32, help="images of the val split")
    parser.add_argument("--image-size", type=int, help="side of the images (default: the run's validation size)")
    parser.add_argument("--dataset-dir", default="", help="folder with the val data (default: the run's)")
    parser.add_argument("--corrupt", default="", help="degradation, to be given where the run's is a Python file")
    parser.add_argument("--batch", type=int, default=8, help="images restored at once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    try:
        for name, value in (("--images", options.images), ("--batch", options.batch), ("--nfe", min(options.nfe))):
            if value < 1:
                raise ValueError(f"{name} {value}: must be at least 1")
        for name in options.samplers:
            read_way(name)
        if options.out.exists():
            raise ValueError(f"{options.out}: is there already; remove it, or name another folder")
        begun = time.perf_counter()
        model = load_model(options.results_dir / options.name, find_device(options.device), True, options.ckpt_file)
        rows = study(model, options)
    except ValueError as error:
        sys.exit(f"nfe_study.py: error: {error}")
    config = model.config
    bridge = f"N = {config.interval}, {'OT-ODE' if config.ot_ode else 'SDE'}"
    title = f"{options.name}: {config.corrupt}, {bridge}, {model.iteration} iterations, {rows[0]['images']} images"
    report = {"run": title, "seed": options.seed, "seconds": time.perf_counter() - begun, "rows": rows}
    write_text(options.out / "study.json", json.dumps(report, indent=2))
    write_text(options.out / "study.csv", as_csv(rows))
    print(f"{title}\n{as_csv(rows)}{options.out}/study.json, study.csv", end="")
    if find_spec("matplotlib"):
        draw(rows, title, options.out / "study.png")
        print(", study.png")
    else:
        print("; no picture: pip install matplotlib")


if __name__ == "__main__":
    main()
