"""The ways of several models back to one photograph, as a strip and an animation."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from helpers.programs import ROOT, run_python

SCRIPT = ROOT / "scripts" / "draw_ways.py"


@pytest.mark.slow
def test_each_model_has_its_row_and_each_evaluation_its_frame(tmp_path, trained_run, dataset_dir):
    photo, out = dataset_dir / "val" / "cat" / "0.png", tmp_path / "way"
    shutil.copytree(trained_run, tmp_path / "other")
    flags = ["--corrupt", "sr4x-pool", "--nfe", 3, "--states", 2, "--size", 32, "--shown", 16]
    run_python(SCRIPT, photo, out, trained_run, tmp_path / "other", *flags)
    side, gap, title = 16, 4, 16
    with Image.open(tmp_path / "way.png") as strip:
        assert strip.size == (4 * (side + gap) - gap, 2 * (side + gap) - gap + title)
        rows = [strip.crop((0, title + y, strip.width, title + y + side)).tobytes() for y in (0, side + gap)]
        first = strip.crop((0, title, side, title + side)).tobytes()
        last = strip.crop((strip.width - side, title, strip.width, title + side)).tobytes()
    assert rows[0] == rows[1]  # the same model twice
    assert first != last  # degraded and clean
    with Image.open(tmp_path / "way.webp") as animation:
        assert animation.n_frames == 1 + 3
    for arguments, words in (
        ([photo, out, trained_run], "is there already"),
        ([photo, tmp_path / "new", trained_run, "--corrupt", "inpaint-center"], "must be one without a hole"),
        ([photo, tmp_path / "new", trained_run, "--nfe", 0], "must be at least 1"),
        ([photo, tmp_path / "new", trained_run, "--size", 32], "must be at most --size 32"),
        ([tmp_path / "nowhere.png", tmp_path / "new", trained_run], "nowhere.png: there is no such file"),
    ):
        refused = run_python(SCRIPT, *arguments, check=False)
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
