"""The report: whole in itself, and true to what it was given."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from i2sb.evaluation.answers_meter import Number
from i2sb.evaluation.report import Example, ExampleAnswers, Report
from i2sb.evaluation.results import Result
from i2sb.metrics.table import METRICS

NASTY = "<script>alert('a&b')</script>"


@pytest.fixture
def page(tmp_path):
    pixels = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    Image.new("RGB", (30, 10)).save(tmp_path / "000003.png")

    def write(**changes) -> str:
        values = {
            "title": NASTY,
            "summary": "2 images",
            "results": [
                Result(METRICS["psnr"], "PSNR", "a definition", {"degraded": 20.0, "restored": 25.125}, 2),
                Result(
                    METRICS["kid"],
                    "KID",
                    "b",
                    {"degraded": 0.5, "restored": 0.75},
                    2,
                    {"spread": {"degraded": 0.125, "restored": 0.25}},
                ),
            ],
            "not_computed": {"fid": f"not computed: needs {NASTY}"},
            "psnr": {"degraded": [20.0, 20.2], "restored": [25.0, 60.0]},
            "examples": {"worst": [Example(7, f"cat/{NASTY}", 20.0, 60.0, *pixels)]},
            "strips": [tmp_path / "000003.png"],
            "settings": {"nfe": 3},
            "versions": {"torch": "2"},
        }
        Report(**{**values, **changes}).write(tmp_path / "report.html")
        return (tmp_path / "report.html").read_text()

    return write


class Tags(HTMLParser):
    """Collects every tag with its attributes, and what is open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_needs_nothing_from_elsewhere(page):
    text = page()
    tags = Tags(text)
    assert not tags.open
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for _, attributes in tags.found if "src" in attributes]
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"https?://|url\(|@import", text)


def test_report_shows_several_answers_side_by_side(page, tmp_path):
    pixels = torch.zeros(6, 3, 8, 8).byte()
    answers = ExampleAnswers([*pixels[:2]], pixels[5], tmp_path / "000003.png", 31.25, 0.0625)
    example = Example(7, "cat", 20.0, 30.0, *pixels[2:5], answers)
    text = page(examples={"worst": [example]}, of_answers=[Number("diversity", 0.125, "", 4, "a mean")])
    tags = Tags(text)
    assert not tags.open
    alts = [attributes["alt"] for tag, attributes in tags.found if tag == "img" and "answer" in attributes["alt"]]
    words = ["mean of the answers", "standard deviation of the answers", "answer 0", "answer 1"]
    assert alts == [f"image 7, {word}" for word in words]
    assert "mean: 31.25 dB; diversity 0.0625" in text and "<td>0.1250</td>" in text and "a mean" in text
    assert "answers" not in page().partition("<body>")[2]


def test_report_begins_with_the_pictures_and_tells_a_reason_once(page):
    text = page(not_computed={"fid": "too few", "ssim": "too small", "kid": "too few"})
    assert text.index("<h2>Images") < text.index("<h2>Metrics") < text.index("<h2>PSNR")
    assert text.count("too few") == 1 and "<b>fid, kid</b> too few" in text and "<b>ssim</b> too small" in text


def test_report_escapes_what_it_is_given(page):
    text = page()
    assert "<script>" not in text and text.count("&lt;script&gt;") >= 4


def test_report_shows_every_number(page):
    text = page()
    row = text[text.index("PSNR ↑") : text.index("KID ↓")]
    assert "20.00" in row and "25.12" in row and 'class="better">+5.12' in row and "a definition" in row
    kid = text[text.index("KID ↓") : text.index("</tbody>")]
    assert "± 0.12500" in kid and "± 0.25000" in kid and 'class="worse">+0.25000' in kid
    assert "20.00 → 60.00 dB" in text and "<b>7</b>" in text
    unknown = Result(METRICS["fid"], "FID", "c", {"degraded": float("nan"), "restored": 1.0}, 2)
    assert "<td>–</td>\n<td>1.00</td>" in page(results=[unknown])
    assert "Trajectories" in text and "000003" in text
    assert "Trajectories" not in page(strips=[])


def test_histogram_counts_all_images(page):
    text = page()
    counts = [(int(n), name) for n, name in re.findall(r"dB: (\d+) (degraded|restored)</title>", text)]
    assert sum(n for n, name in counts if name == "degraded") == 2
    assert sum(n for n, name in counts if name == "restored") == 2
    page(psnr={"degraded": [20.0], "restored": [20.0]})  # one value has no width
