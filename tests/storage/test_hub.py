"""Weights on the Hugging Face Hub: pushed, fetched and refused, against a local server that speaks as it does."""

from __future__ import annotations

import json
import os

import pytest
import torch
import yaml

from helpers.hub_server import TOKEN, serve_hub
from helpers.pictures import make_image
from helpers.programs import ROOT, run_python
from i2sb import load_model
from i2sb.errors import UserError
from i2sb.storage.hub import parse_name

pytest.importorskip("huggingface_hub")
LICENCE = ("--license", "cc0-1.0", "--data", "twelve patterns")


@pytest.fixture
def hub(tmp_path):
    """The server, and a function that runs a program which talks to it."""
    with serve_hub() as server:

        def run(*arguments: object, token: str = TOKEN, url: str = server.url, check: bool = False):
            names = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN")
            mine = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token, **dict.fromkeys(names, "")}
            mine |= {name: "" for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"}
            mine |= {"HF_HUB_CACHE": str(tmp_path / "hf" / "hub"), "HF_HUB_DISABLE_XET": "1"}
            return run_python(*arguments, env=mine, check=check, cwd=tmp_path)

        yield server, run


def refused(done, *words: str) -> None:
    """Check that the last line, after those in which huggingface_hub says that it tries again, holds these words."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(word in done.stderr.splitlines()[-1] for word in words), done.stderr


@pytest.mark.slow
def test_weights_are_pushed_and_fetched_again(hub, trained_run, tmp_path):
    server, run = hub
    push = (ROOT / "scripts/export.py", trained_run.name, "--results-dir", trained_run.parent, "--push", "hf:me/tiny")
    done = run(*push, *LICENCE, check=True)
    assert "to hf:me/tiny, a public repository" in done.stdout and "license cc0-1.0" in done.stdout
    files = server.repositories["me/tiny"]
    assert sorted(files) == ["README.md", "model.safetensors"]
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["license"] == "cc0-1.0" and front["library_name"] == "i2sb"
    assert "Training data: twelve patterns" in files["README.md"].decode()
    assert str(trained_run.parent) not in files["README.md"].decode(), "the page tells paths of the user's"

    # Nothing that is there is replaced or deleted unasked.
    files["notes.txt"] = b"mine"
    before = dict(files)
    refused(run(*push, *LICENCE), "holds model.safetensors and README.md already", "--overwrite")
    assert files == before
    run(*push, *LICENCE, "--raw", "--overwrite", check=True)
    assert files["model.safetensors"] != before["model.safetensors"] and files["notes.txt"] == b"mine"
    files["model.safetensors"] = before["model.safetensors"]

    make_image(1, 20, 16).save(tmp_path / "a.png")
    sample = (ROOT / "sample.py", "--nfe", 2, "--device", "cpu", "--input", "a.png")
    run(*sample, "--ckpt", "hf:me/tiny", "--output", "hub", token="", check=True)
    run(*sample, "--ckpt", trained_run, "--output", "run", check=True)
    assert (tmp_path / "hub" / "a.png").read_bytes() == (tmp_path / "run" / "a.png").read_bytes()
    settings = json.loads((tmp_path / "hub" / "manifest.jsonl").read_text())["settings"]
    assert settings["run"] == "hf/me/tiny"
    # Without a net what was fetched does; a revision is fetched by its name.
    server.shutdown()
    run(*sample, "--ckpt", "hf:me/tiny", "--output", "again", url="http://127.0.0.1:9", check=True)


@pytest.mark.slow
def test_what_cannot_be_fetched_is_one_line(hub, tmp_path):
    server, run = hub
    server.repositories["me/empty"] = {}
    server.repositories["me/broken"] = {"model.safetensors": b"no tensors"}
    sample = (ROOT / "sample.py", "--device", "cpu", "--input", "a.png", "--output", "out", "--ckpt")
    make_image(1, 20, 16).save(tmp_path / "a.png")
    refused(run(*sample, "hf:me/nothing"), "hf:me/nothing: there is no such repository, or it is private")
    refused(run(*sample, "hf:me/empty"), "hf:me/empty: holds no model.safetensors")
    refused(run(*sample, "hf:me/empty@v9"), "hf:me/empty@v9: the repository has no such revision")
    refused(run(*sample, "hf:me/broken@v1"), "broken file of weights")
    refused(run(*sample, "hf:me/empty", url="http://127.0.0.1:9"), "the Hub cannot be reached")
    refused(run(*sample, "hf:empty"), "hf:empty: write hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_cannot_be_pushed_is_one_line(hub, trained_run):
    server, run = hub
    results = ("--results-dir", trained_run.parent)
    push = (ROOT / "scripts/export.py", trained_run.name, *results, "--push")
    refused(run(*push, "hf:me/tiny"), "--license: is missing")
    refused(run(*push, "hf:me/tiny@v1", *LICENCE), "leave out what follows the @")
    write = (*push[:2], "out.safetensors", *results)
    refused(run(*write, "--push", "hf:me/tiny", *LICENCE), "give a file to write, or")
    refused(run(*write, "--private"), "--private: leave it out")
    refused(run(*push, "hf:me/tiny", *LICENCE, token="hf_wrong"), "hf:me/tiny: you have no right to this (401)")
    refused(run(*push, "hf:me/tiny", *LICENCE, token=""), "hf:me/tiny", "HF_TOKEN")
    refused(run(*push, "hf:others/tiny", *LICENCE), "hf:others/tiny: you have no right to this (403)")
    refused(run(*push, "hf:me/tiny", *LICENCE, url="http://127.0.0.1:9"), "the Hub cannot be reached")
    assert not server.repositories


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b c", "hf:-a/b"])
def test_a_name_on_the_hub_is_an_owner_and_a_name(name):
    with pytest.raises(UserError, match="write hf:ORG/NAME"):
        parse_name(name)


def test_a_name_with_a_revision():
    assert parse_name("hf:a/b.c@v1.0") == ("a/b.c", "v1.0") and str(parse_name("hf:a/b@main")) == "hf:a/b@main"


def test_carried_weights_have_a_name(monkeypatch, tmp_path):
    """A folder of that name in the working directory goes before them, as all paths do."""
    monkeypatch.chdir(tmp_path)
    model = load_model("photos-jpeg")
    assert model.config.corrupt.startswith("jpeg")
    assert model.restore(torch.zeros(1, 3, 16, 16), nfe=1).shape == (1, 3, 16, 16)
    (tmp_path / "photos-jpeg").mkdir()
    with pytest.raises(UserError, match="config.yaml"):
        load_model("photos-jpeg")
