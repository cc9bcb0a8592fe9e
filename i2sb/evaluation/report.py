"""A report to look at: one HTML file that holds all it shows, and needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from torch import Tensor

from i2sb.evaluation.scores import COLUMNS, Result
from i2sb.files import write_text
from i2sb.images import to_pil

STRIPS_SHOWN = 8
_BINS, _TICKS = 24, 6


class Example(NamedTuple):
    """An image to show: its number and key in the split, its PSNRs in dB, and its pixels, uint8 [C, H, W] each."""

    number: int
    key: str
    degraded_psnr: float
    restored_psnr: float
    degraded: Tensor
    restored: Tensor
    clean: Tensor


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    results: Sequence[Result],
    not_computed: Mapping[str, str],
    psnr: Mapping[str, Sequence[float]],
    examples: Mapping[str, Sequence[Example]],
    strips: Sequence[Path],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write the report, whole or not at all.

    psnr: of every image, in dB, for each of COLUMNS. examples: groups of images under their titles. strips: PNG
    pictures of trajectories, of which the first are shown.
    """
    page = _PAGE.substitute(
        title=escape(title),
        summary=escape(summary),
        rows="".join(map(_metric_row, results)),
        not_computed=_not_computed(not_computed),
        histogram=_histogram(psnr),
        examples="".join(
            f'<h3>{escape(kind)}</h3><div class="group">{"".join(map(_example, group))}</div>'
            for kind, group in examples.items()
        ),
        strips=_strips(strips),
        settings=_pairs(settings),
        versions=_pairs(versions),
    )
    write_text(path, page)


def _metric_row(result: Result) -> str:
    change = result.restored - result.degraded
    better = change > 0 if result.higher_is_better else change < 0
    mark = "" if change == 0 or math.isnan(change) else ("better" if better else "worse")
    numbers = "".join(
        f"<td>{_number(getattr(result, column), result.digits)}{_spread(result, column)}</td>" for column in COLUMNS
    )
    arrow = "↑" if result.higher_is_better else "↓"
    return (
        f"<tr><th>{escape(result.title)} {arrow}</th>{numbers}"
        f'<td class="{mark}">{_number(change, result.digits, sign=True)}<small>{mark}</small></td>'
        f"<td>{escape(result.unit)}</td><td>{result.n}</td><td class=words>{escape(result.definition)}</td></tr>\n"
    )


def _number(value: float, digits: int, *, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _spread(result: Result, column: str) -> str:
    spread = result.details.get("spread")
    return f"<small>± {spread[column]:.{result.digits}f}</small>" if spread else ""


def _not_computed(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return ""
    items = "".join(f"<li><b>{escape(name)}</b> {escape(reason)}</li>" for name, reason in reasons.items())
    return f"<ul class=missing>{items}</ul>"


def _pairs(values: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items())


# --- Pictures --------------------------------------------------------------------------------------------------------


def _as_source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _picture(image: Tensor, words: str, css: str = "") -> str:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return f'<img class="{css}" src="{_as_source(buffer.getvalue())}" alt="{escape(words)}">'


def _example(example: Example) -> str:
    """A slider between degraded and restored, the clean image beside it."""
    named = f"image {example.number}"
    before, after = (_number(value, 2) for value in (example.degraded_psnr, example.restored_psnr))
    return (
        "<figure><div class=two><div class=pair>"
        + _picture(example.restored, f"{named}, restored", "under")
        + _picture(example.degraded, f"{named}, degraded", "over")
        + "<span class=line></span><span class='tag left'>degraded</span><span class='tag right'>restored</span>"
        f"<input type=range min=0 max=100 value=50 aria-label='{escape(named)}: degraded on the left, restored on the "
        "right' oninput=\"this.parentNode.style.setProperty('--cut', this.value + '%')\"></div>"
        "<div class=clean>" + _picture(example.clean, f"{named}, clean") + "<span class='tag left'>clean</span></div>"
        f"</div><figcaption><b>{example.number}</b> {escape(example.key)}<br>{before} → {after} dB"
        "</figcaption></figure>"
    )


def _strips(paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    shown = [
        f'<figure class=strip><img src="{_as_source(path.read_bytes())}" alt="trajectory {escape(path.stem)}">'
        f"<figcaption>{escape(path.stem)}</figcaption></figure>"
        for path in paths[:STRIPS_SHOWN]
    ]
    return f"<h2>Trajectories</h2>{''.join(shown)}"


def _histogram(psnr: Mapping[str, Sequence[float]]) -> str:
    """Draw how many images have which PSNR, as SVG."""
    everything = [value for values in psnr.values() for value in values]
    low, high = math.floor(min(everything)), math.floor(max(everything)) + 1
    high = low + _TICKS * math.ceil((high - low) / _TICKS)  # so that every tick is a whole number
    step = (high - low) / _BINS
    counts = {
        name: [sum(min(int((value - low) / step), _BINS - 1) == place for value in values) for place in range(_BINS)]
        for name, values in psnr.items()
    }
    most = max(max(row) for row in counts.values())
    width, height, left, right, top, bottom = 720, 230, 44, 24, 26, 40
    bar, scale = (width - left - right) / _BINS, (height - bottom - top) / most
    shapes = []
    for place in range(_BINS):
        for row, name in enumerate(COLUMNS):
            size = counts[name][place] * scale
            x = left + (place + 0.08 + 0.42 * row) * bar
            words = f"{low + place * step:.1f} to {low + (place + 1) * step:.1f} dB: {counts[name][place]} {name}"
            shapes.append(
                f'<rect class="{name}" x="{x:.1f}" y="{height - bottom - size:.1f}" width="{0.42 * bar:.1f}" '
                f'height="{size:.1f}"><title>{words}</title></rect>'
            )
    for value in range(low, high + 1, (high - low) // _TICKS):
        x = left + (value - low) / (high - low) * bar * _BINS
        shapes.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{value}</text>')
    for value in sorted({0, most // 2, most}):
        y = height - bottom - value * scale
        shapes.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
        shapes.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    shapes.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">PSNR, dB</text>')
    for row, name in enumerate(COLUMNS):
        x = left + 8 + 90 * row
        shapes.append(f'<rect class="{name}" x="{x}" y="2" width="10" height="10"/>')
        shapes.append(f'<text x="{x + 14}" y="11">{name}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="PSNR of the images">{"".join(shapes)}</svg>'


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #6b7480; --rule: #d8dde3; --before: #b9823a;
  --after: #2f6fb3; --good: #1a7f4b; --bad: #b3362f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #15181c; --faint: #98a2ad; --rule: #343a41;
  --before: #d6a35c; --after: #6ea8e6; --good: #56c08a; --bad: #f0837b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1120px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.faint, figcaption, small, .words { color: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, .words { text-align: left; white-space: normal; } .words { font-size: .85rem; min-width: 18rem; }
thead th:last-child { text-align: left; } small { display: block; font-size: .75rem; }
.better, .better small { color: var(--good); } .worse, .worse small { color: var(--bad); }
.missing { color: var(--faint); font-size: .9rem; }
svg { width: 100%; max-width: 720px; height: auto; } svg text { font-size: 11px; fill: var(--faint); }
svg line { stroke: var(--rule); } .degraded { fill: var(--before); } .restored { fill: var(--after); }
.group { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pair, .clean { position: relative; --cut: 50%; }
.two img { width: 100%; display: block; image-rendering: pixelated; }
.over { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.line { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 2px #000; pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 2px solid var(--after); }
.tag { position: absolute; bottom: 4px; padding: 0 .35rem; font-size: .72rem; color: #fff; background: #000a;
  border-radius: 3px; pointer-events: none; } .left { left: 4px; } .right { right: 4px; }
.strip { margin-bottom: 1rem; } .strip img { max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .85rem; margin: .4rem 0 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="faint">$summary</p>
<h2>Metrics</h2>
<div class="scroll"><table>
<thead><tr><th></th><th>degraded</th><th>restored</th><th>change</th><th></th><th>n</th><th>definition</th></tr></thead>
<tbody>
$rows</tbody></table></div>
$not_computed
<h2>PSNR of the images</h2>
$histogram
<h2>Images</h2>
<p class="faint">By the PSNR of the restored image. Drag across the left picture, or use the arrow keys on it.</p>
$examples
$strips
<h2>How it was made</h2>
<details><summary>Settings</summary><dl>$settings</dl></details>
<details><summary>Versions</summary><dl>$versions</dl></details>
</body>
</html>
"""
)
