"""A restoration on the page: what `restore` of Python gives, watched, stopped, and with what is known kept."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import make_image
from helpers.programs import ROOT
from i2sb import load_model, tiles
from i2sb.data.picture_files import read_picture
from i2sb.errors import UserError
from i2sb.images import from_uint8, to_uint8
from i2sb.page.offers import Able
from i2sb.page.restoring import CancelledError, Wish, prepare, restore


@pytest.fixture(scope="module")
def able(trained_run) -> Able:
    return Able("tiny", load_model(trained_run))


@pytest.fixture
def picture(tmp_path):
    make_image(5, 52, 40).save(tmp_path / "picture.png")
    return read_picture(tmp_path / "picture.png", 3)


def run(able, picture, wish, folder, stop=None, report=lambda share, what: None):
    return restore(able, prepare(able, picture, wish), wish, folder, "photo", report, stop or Event())


def test_it_is_what_python_gives_and_comes_back_whole(able, picture, tmp_path):
    done = run(able, picture, Wish(sampler="posterior", nfe=3, seed=7), tmp_path)
    wanted = able.model.restore(from_uint8(picture.image)[None], nfe=3, seed=7)
    assert done.file.name == "photo-restored.png"
    assert np.array_equal(np.asarray(Image.open(done.file)), to_uint8(wanted)[0].permute(1, 2, 0).numpy())
    assert done.before.size == done.after.size == (52, 40) and done.heat is None
    with Image.open(done.animation) as film:
        assert film.n_frames == 4  # degraded, and a state a step


def test_a_degraded_picture_is_compared_with_the_original(able, picture, tmp_path):
    done = run(able, picture, Wish(corrupt="sr4x-pool", sampler="posterior"), tmp_path)
    assert "PSNR" in done.summary and "dB restored" in done.summary


def test_several_answers_are_drawn_where_they_differ(able, picture, tmp_path):
    done = run(able, picture, Wish(sampler="posterior", nfe=2, samples=2), tmp_path)
    assert Image.open(done.heat).width >= 52
    with pytest.raises(UserError, match="samples"):
        run(able, picture, Wish(sampler="posterior", nfe=1, samples=2), tmp_path)


def test_what_is_outside_a_hole_comes_back_as_it_was(picture, tmp_path):
    able = Able("photos-inpaint", load_model(ROOT / "weights/photos-inpaint.safetensors"))
    hole = torch.zeros(1, 1, 40, 52)
    hole[..., 10:20, 12:30] = 1
    done = run(able, picture, Wish(hole=hole, sampler="posterior"), tmp_path)
    restored = torch.from_numpy(np.array(Image.open(done.file))).permute(2, 0, 1)
    changed = (restored != picture.stored).any(0)
    assert not bool(changed[hole[0, 0] == 0].any())
    assert float(changed[hole[0, 0] == 1].float().mean()) > 0.9


def test_it_reports_every_evaluation_of_every_tile(able, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "LARGE_PIXELS", 100)
    monkeypatch.setattr(tiles, "USUAL_TILE", 40)
    seen = []
    wish = Wish(sampler="posterior", nfe=2, samples=2)
    run(able, picture, wish, tmp_path, report=lambda share, what: seen.append((share, what)))
    # 52 pixels take three tiles of 40 that share 32: at 0, 6 and 12
    assert [what for _, what in seen[:4]] == [
        *(f"step 1 of 2, part {part} of 3, answer 1 of 2" for part in (1, 2, 3)),
        "step 2 of 2, part 1 of 3, answer 1 of 2",
    ]
    assert [share for share, _ in seen] == pytest.approx([number / 12 for number in range(12)])


def test_stop_ends_it_before_the_next_evaluation_and_leaves_nothing(able, picture, tmp_path):
    stop, seen = Event(), []

    def report(share, what):
        seen.append(what)
        if len(seen) == 3:
            stop.set()

    before = set(tmp_path.rglob("*"))
    with pytest.raises(CancelledError):
        run(able, picture, Wish(sampler="posterior", nfe=50), tmp_path, stop, report)
    assert len(seen) == 3 and set(tmp_path.rglob("*")) == before
    assert run(able, picture, Wish(sampler="posterior", nfe=2), tmp_path)  # the network is as it was
    assert len(seen) == 3


def test_only_the_newest_outcome_stays_under_an_address_of_its_own(able, picture, tmp_path):
    first, second = (run(able, picture, Wish(sampler="posterior", nfe=2), tmp_path) for _ in range(2))
    assert first.animation != second.animation
    assert second.file.exists() and not first.file.exists()
