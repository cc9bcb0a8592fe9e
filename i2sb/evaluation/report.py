"""A report to look at: one HTML file that holds all it shows, and needs nothing from elsewhere.

The page is report.html.j2; here stands what it is given.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from torch import Tensor

from i2sb.evaluation.answers_meter import Number
from i2sb.evaluation.results import Result
from i2sb.files import write_text
from i2sb.images import to_pil
from i2sb.metrics.table import COLUMNS

TEMPLATE = Path(__file__).with_suffix(".html.j2")
STRIPS_SHOWN = 8
_BINS, _TICKS = 24, 6


class ExampleAnswers(NamedTuple):
    """Several answers to an image: the first of them and the mean of all, uint8 [C, H, W], with the drawing of their
    standard deviation, a PNG; the PSNR of the mean in dB, and their diversity in units of [-1, 1].
    """

    first: Sequence[Tensor]
    mean: Tensor
    heat: Path
    mean_psnr: float
    diversity: float


class Example(NamedTuple):
    """An image to show: its number and key in the split, its PSNRs in dB, and its pixels, uint8 [C, H, W] each; and
    several answers to it, if there are.
    """

    number: int
    key: str
    degraded_psnr: float
    restored_psnr: float
    degraded: Tensor
    restored: Tensor
    clean: Tensor
    answers: ExampleAnswers | None = None


@dataclass(frozen=True)
class Report:
    """What the page shows.

    not_computed: of the metrics that could not be computed, why. psnr: of every image, in dB, for each of COLUMNS.
    examples: groups of images under their titles. strips: PNG pictures of trajectories, of which the first are shown.
    of_answers: what several answers to the images come to, empty if there is one to each.
    """

    title: str
    summary: str
    results: Sequence[Result]
    not_computed: Mapping[str, str]
    psnr: Mapping[str, Sequence[float]]
    examples: Mapping[str, Sequence[Example]]
    strips: Sequence[Path]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    of_answers: Sequence[Number] = ()

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATE.parent),
            autoescape=True,
            trim_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {
            "number": format_number,
            "verdict": judge,
            "by_reason": by_reason,
            "pixels_url": _encode_pixels,
            "file_url": lambda file: _as_url(file.read_bytes()),
        }
        template = environment.get_template(TEMPLATE.name)
        write_text(path, template.render(vars(self), histogram=make_histogram(self.psnr), strips_shown=STRIPS_SHOWN))


def format_number(value: float, digits: int, *, sign: bool = False) -> str:
    """Write a number with so many decimals, one that is not finite as a dash."""
    if not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def by_reason(not_computed: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return each reason why metrics were not computed, with the names of all those that share it."""
    reasons = dict.fromkeys(not_computed.values())
    return [(reason, [name for name in not_computed if not_computed[name] == reason]) for reason in reasons]


def judge(result: Result) -> str:
    """Return whether restoring made a metric "better" or "worse", "" where it is the same or nobody can say."""
    if result.change == 0 or math.isnan(result.change):
        return ""
    return "better" if (result.change > 0) == result.metric.higher_is_better else "worse"


def _encode_pixels(image: Tensor) -> str:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return _as_url(buffer.getvalue())


def _as_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class Bar(NamedTuple):
    """A bar of the histogram, and what it stands for in words."""

    column: str
    x: float
    y: float
    width: float
    height: float
    words: str


class Histogram(NamedTuple):
    """How many images have which PSNR, drawn on width × height.

    left, right, bottom: sides of the area of the bars. values, counts: what stands below and beside it, PSNRs in dB
    with their x and numbers of images with their y.
    """

    width: int
    height: int
    left: int
    right: int
    bottom: int
    bars: list[Bar]
    values: list[tuple[int, float]]
    counts: list[tuple[int, float]]


def make_histogram(psnr: Mapping[str, Sequence[float]]) -> Histogram:
    """Lay out the histogram of the PSNRs in dB, for each of COLUMNS."""
    everything = [value for values in psnr.values() for value in values]
    low, high = math.floor(min(everything)), math.floor(max(everything)) + 1
    high = low + _TICKS * math.ceil((high - low) / _TICKS)  # so that every tick is a whole number
    bin_width = (high - low) / _BINS
    counts = {
        column: [
            sum(min(int((value - low) / bin_width), _BINS - 1) == number for value in psnr[column])
            for number in range(_BINS)
        ]
        for column in COLUMNS
    }
    most = max(max(row) for row in counts.values())
    width, height = 720, 230
    left, right, top, bottom = 44, width - 24, 26, height - 40
    slot, scale = (right - left) / _BINS, (bottom - top) / most
    bars = []
    for number in range(_BINS):
        span = f"{low + number * bin_width:.1f} to {low + (number + 1) * bin_width:.1f} dB"
        for row, column in enumerate(COLUMNS):
            count = counts[column][number]
            x, size = left + (number + 0.08 + 0.42 * row) * slot, count * scale
            bars.append(Bar(column, x, bottom - size, 0.42 * slot, size, f"{span}: {count} {column}"))
    ticks = range(low, high + 1, (high - low) // _TICKS)
    return Histogram(
        width,
        height,
        left,
        right,
        bottom,
        bars,
        values=[(value, left + (value - low) / (high - low) * (right - left)) for value in ticks],
        counts=[(count, bottom - count * scale) for count in sorted({0, most // 2, most})],
    )
