"""What a study's scores become: a table of how far it is, results as JSON and CSV, plots, and sheets of images."""

import csv
import io
import json
from collections import defaultdict
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from i2sb.evaluation.evaluation_set import open_evaluation_set
from i2sb.files import write_atomically, write_text
from i2sb.images import draw_grid, save_png
from studies.plan import Cell, Plan
from studies.settings import Study

KEY = ("task", "formulation", "sampler", "seed", "nfe")
Score = dict[str, Any]


def write_results(folder: Path, study: Study, plan: Plan, scores: list[Score], *, pictures: bool = False) -> str:
    """Write results.json, results.csv and table.txt, and if asked the pictures; returns the table."""
    results = {
        "study": asdict(study),
        "cells": scores,
        "left_out": plan.left_out,
        "pending": [cell.key for cell in plan.cells if not _find(scores, **cell.key)],
        "versions": {name: version(name) for name in ("torch", "torchvision")},
    }
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False))
    write_text(folder / "results.csv", _to_csv(scores))
    table = make_table(study, plan, scores)
    write_text(folder / "table.txt", table + "\n")
    if pictures:
        draw_plots(folder / "plots", scores)
        draw_sheets(folder / "sheets", study, plan)
    return table


def _find(scores: list[Score], **key: object) -> list[Score]:
    return [score for score in scores if all(score[name] == value for name, value in key.items())]


def _to_csv(scores: list[Score]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEY, "iteration", "parameters", "images", "metric", "unit", "degraded", "restored"])
    for score in scores:
        row = [*(score[name] for name in KEY), score["settings"]["iteration"], score["parameters"], score["images"]]
        for name, metric in score["metrics"].items():
            writer.writerow([*row, name, metric["unit"], metric["degraded"], metric["restored"]])
    return text.getvalue()


def make_table(study: Study, plan: Plan, scores: list[Score]) -> str:
    """Return the PSNR of every cell, methods below each other, evaluations side by side.

    · is to be done, - cannot be; the reasons stand below.
    """
    rows = list(dict.fromkeys(tuple(cell.key[name] for name in KEY[:4]) for cell in plan.cells))
    head = "".join(f"{'NFE ' + str(nfe):>9}" for nfe in study.nfe)
    lines = [f"{'task':22}{'formulation':23}{'sampler':14}{'seed':>4} {head}   PSNR in dB"]
    possible = {tuple(cell.key.values()) for cell in plan.cells}
    for task, formulation, sampler, seed in rows:
        line = f"{task:22}{formulation:23}{sampler:14}{seed:>4} "
        for nfe in study.nfe:
            key = dict(zip(KEY, (task, formulation, sampler, seed, nfe), strict=True))
            scored = _find(scores, **key)
            pending = f"{'·' if tuple(key.values()) in possible else '-':>9}"
            line += f"{scored[0]['metrics']['psnr']['restored']:9.2f}" if scored else pending
        lines.append(line)
    for task in dict.fromkeys(score["task"] for score in scores):
        value = _find(scores, task=task)[0]["metrics"]["psnr"]["degraded"]
        lines.append(f"{task:22}{'degraded':41} {value:9.2f}")
    done = len(scores)
    lines.append(f"{done} of {len(plan.cells)} done, {len(plan.cells) - done} to do")
    reasons: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for left in plan.left_out:
        reasons[left["task"], left["formulation"], left["reason"]].append(left["nfe"])
    for (task, formulation, reason), nfes in reasons.items():
        shown = ", ".join(map(str, sorted(set(nfes))))
        lines.append(f"left out: {task}, {formulation}, NFE {shown}: {reason}")
    return "\n".join(lines)


def draw_plots(folder: Path, scores: list[Score]) -> None:
    """Draw each metric against the number of evaluations, for each task: one line a method, over the seeds' range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys((score["formulation"], score["sampler"]) for score in scores))
    for task in dict.fromkeys(score["task"] for score in scores):
        of_task = _find(scores, task=task)
        for name, about in of_task[0]["metrics"].items():
            figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
            for number, (formulation, sampler) in enumerate(methods):
                values: dict[int, list[float]] = defaultdict(list)
                for score in _find(of_task, formulation=formulation, sampler=sampler):
                    value = score["metrics"].get(name, {}).get("restored")
                    if value is not None:
                        values[score["nfe"]].append(value)
                if not values:
                    continue
                nfes = sorted(values)
                label = f"{formulation.replace('_', ' ')}, {sampler.replace('_', ' ')}"
                style = {"color": f"C{number}", "marker": "osv^Dx*"[number % 7]}
                axes.plot(nfes, [sum(values[n]) / len(values[n]) for n in nfes], label=label, **style)
                if max(map(len, values.values())) > 1:
                    low, high = ([pick(values[n]) for n in nfes] for pick in (min, max))
                    axes.fill_between(nfes, low, high, color=style["color"], alpha=0.15, linewidth=0)
            degraded = about["degraded"]
            if degraded is not None:
                axes.axhline(degraded, color="grey", linestyle="--", label="degraded")
            nfes = sorted({score["nfe"] for score in of_task})
            axes.set_xscale("log")
            axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
            axes.minorticks_off()
            axes.set_xlabel("network evaluations an image")
            axes.set_ylabel(about["title"] + (f", {about['unit']}" if about["unit"] else ""))
            seeds = len({score["seed"] for score in of_task})
            about_runs = f"{of_task[0]['settings']['iteration']:,} iterations, {of_task[0]['images']} images"
            axes.set_title(f"{task}: {about_runs}, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
            write_atomically(
                folder / f"{task}_{name}.png", lambda file, f=figure: f.savefig(file, dpi=110, format="png")
            )
            pyplot.close(figure)


def draw_sheets(folder: Path, study: Study, plan: Plan) -> None:
    """Draw for each task some images of the first seed: degraded, restored by every method, clean.

    A method is shown at the largest number of evaluations it has up to `sheet_nfe` (its smallest if all are larger).
    """
    for task in study.tasks:
        cells = [cell for cell in plan.cells if cell.task == task and cell.seed == study.seeds[0]]
        chosen: dict[tuple[str, str], Cell] = {}
        for cell in sorted(cells, key=lambda cell: cell.nfe):
            if cell.nfe <= study.sheet_nfe or (cell.formulation, cell.sampler) not in chosen:
                chosen[cell.formulation, cell.sampler] = cell
        if not chosen:
            continue
        columns: list[tuple[str, torch.Tensor]] = []
        for cell in (cell for cell in cells if cell in chosen.values()):
            config, _ = cell.scoring(study.score)
            images = open_evaluation_set(config)
            count = min(study.sheet_images, len(images))
            batch = images.read_at_once([i * len(images) // count for i in range(count)], config)
            if not columns:
                columns, clean = [("degraded", batch.degraded)], batch.clean
            title = f"{cell.formulation.split('_')[0]}, {cell.sampler}, {cell.nfe}"  # a column is narrow
            columns.append((title, batch.restored))
        save_png(draw_grid([*columns, ("clean", clean)], per_row=1), folder / f"{task}.png")
