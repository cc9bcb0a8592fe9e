"""The examples in docstrings run, and those who use the library from Python find one where they look."""

from __future__ import annotations

import doctest
import importlib

import pytest

from corruption import build_corruption
from helpers.programs import ROOT
from i2sb import Bridge, load_model
from i2sb.bridge import make_betas, space_indices
from i2sb.sampler import sample

FILES = [path for package in ("i2sb", "corruption") for path in ROOT.glob(f"{package}/**/*.py")]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name, tmp_path, trained_run, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "NAME").symlink_to(trained_run)  # as the examples call a run
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(name))  # which prints what is wrong
    assert attempted and not failed


@pytest.mark.parametrize("public", [Bridge, build_corruption, load_model, make_betas, sample, space_indices])
def test_what_is_called_from_outside_has_an_example(public):
    assert ">>> " in public.__doc__
