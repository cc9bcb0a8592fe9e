"""Which runs are offered, and what each can be asked for."""

from __future__ import annotations

import shutil

import pytest
import torch

from helpers.programs import ROOT
from i2sb import load_model
from i2sb.config import PageConfig
from i2sb.errors import UserError
from i2sb.page.offers import Able, Shelf, find_offers


@pytest.fixture
def results(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "results/group/tiny")
    (tmp_path / "results/begun").mkdir()
    shutil.copy(trained_run / "config.yaml", tmp_path / "results/begun")  # without a checkpoint
    return tmp_path / "results"


def test_runs_and_exported_files_are_found_and_told_apart(results, tmp_path):
    exported = tmp_path / "weights"
    exported.mkdir()
    shutil.copy(ROOT / "weights/photos-jpeg.safetensors", exported)
    shutil.copy(ROOT / "weights/photos-jpeg.safetensors", exported / "tiny.safetensors")
    (results / "group/tiny").rename(results / "tiny")
    config = PageConfig(results_dir=str(results), exported_dir=str(exported))
    assert list(find_offers(config)) == ["tiny", "photos-jpeg", "tiny.safetensors"]


def test_a_run_in_a_folder_is_found_and_named_by_it(results, tmp_path):
    config = PageConfig(results_dir=str(results), exported_dir=str(tmp_path / "none"))
    assert find_offers(config) == {"group/tiny": results / "group/tiny"}
    named = PageConfig(ckpt=("group/tiny",), results_dir=str(results))
    assert find_offers(named) == {"group/tiny": results / "group/tiny"}


def test_nothing_to_offer_is_a_mistake_that_names_the_flag(tmp_path):
    with pytest.raises(UserError, match="ckpt: there is no run in"):
        find_offers(PageConfig(results_dir=str(tmp_path), exported_dir=str(tmp_path)))
    with pytest.raises(UserError, match="ckpt nowhere"):
        find_offers(PageConfig(ckpt=("nowhere",), results_dir=str(tmp_path)))
    with pytest.raises(UserError, match="no such file"):
        find_offers(PageConfig(ckpt=("nowhere.safetensors",), results_dir=str(tmp_path)))


def test_what_a_run_can_do_is_offered_and_nothing_else(trained_run):
    able = Able("tiny", load_model(trained_run))
    assert able.undoes == "low resolution: shrunk 4 times (block means)"
    assert able.degradations[0] == "sr4x-pool" and "inpaint-center" not in able.degradations
    assert "mixture" not in able.degradations  # its nine are
    assert not able.fills_holes and not able.needs_hole
    assert next(iter(able.samplers)) == able.usual_sampler == "posterior"
    assert able.list_consistencies("") == ["none", "project", "gradient"]
    assert able.list_consistencies("jpeg-5") == ["none", "project"]
    assert able.usual_steps == 1 and able.most_steps == 100


def test_a_run_that_fills_holes_is_offered_paint():
    able = Able("photos-inpaint", load_model(ROOT / "weights/photos-inpaint.safetensors"))
    assert able.fills_holes and able.needs_hole and "inpaint-center" in able.degradations


def test_few_models_are_kept_and_only_offered_ones_loaded(trained_run):
    shelf = Shelf(dict.fromkeys("abc", trained_run), torch.device("cpu"))
    first = shelf.take("a")
    assert shelf.take("a") is first
    for name in "bc":
        shelf.take(name)
    assert shelf.take("a") is not first
    with pytest.raises(UserError):
        shelf.take(str(trained_run))
