"""The baselines at the command line: they take the same path as the bridge, and wrong settings are named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from corruption import build_corruption
from helpers.pictures import make_image, write_images
from helpers.tiny_run import TINY, as_flags
from i2sb import load_model
from i2sb.baselines.diffusion import Diffusion
from i2sb.baselines.formulations import ConditionalDiffusion, Regression, UnconditionalDiffusion
from i2sb.bridge import Bridge
from i2sb.cli.program import describe
from i2sb.config import SampleConfig, SamplingOptions, TrainConfig
from i2sb.formulation import SchroedingerBridge


def test_samplers_that_differ_are_listed():
    listed = lambda formulation: [(s.sampler, s.eta) for s in formulation.list_samplers()]
    both = [("posterior", None), ("second_order", None)]
    assert listed(SchroedingerBridge(Bridge(), ot_ode=True)) == both
    assert listed(SchroedingerBridge(Bridge())) == [both[0], ("eta", 0.0), ("eta", 0.5), both[1], ("ot_ode", None)]
    assert listed(UnconditionalDiffusion(Diffusion()))[:3] == [("ddnm", 0.0), ("ddnm", 0.5), ("ddnm", 0.85)]


def test_unclipped_diffusions_are_warned_of():
    formulation = ConditionalDiffusion(Diffusion())
    assert "counts 157 times" in formulation.advise(formulation.settle(SamplingOptions()))
    assert not formulation.advise(formulation.settle(SamplingOptions(clip_denoise=True)))


def test_a_formulation_settles_what_is_left_to_it():
    formulation = ConditionalDiffusion(Diffusion())
    for asked, nfe, sampler, eta in (
        (SamplingOptions(), 1000, "ancestral", None),
        (SamplingOptions(sampler="ddim"), 1000, "ddim", 0.0),
        (SamplingOptions(nfe=3, sampler="ddim", eta=1), 3, "ddim", 1.0),
    ):
        settled = formulation.settle(asked)
        assert (settled.nfe, settled.sampler, settled.eta) == (nfe, sampler, eta)
        assert formulation.settle(settled) == settled
    for options, words in (
        ({"sampler": "posterior"}, "sampler posterior: unknown to this run, which has ancestral, ddim"),
        ({"sampler": "ancestral", "eta": 0.5}, "eta 0.5: `sampler` ancestral does not use it; ask for `sampler` ddim"),
        ({"nfe": 1001}, "nfe 1001: a diffusion of 1000 steps takes between 1 and 1000 evaluations"),
    ):
        with pytest.raises(ValueError, match=words):
            formulation.settle(SamplingOptions(**options))
    with pytest.raises(ValueError, match="`sampler` direct does not use it; leave it out"):
        Regression().settle(SamplingOptions(eta=0.5))


@pytest.mark.parametrize(
    ("name", "changes", "samplers"),
    [
        ("conditional_diffusion", {"corrupt": "inpaint-center", "schedule": "cosine"}, ["", "ddim0"]),
        ("conditional_diffusion", {"corrupt": "decolor", "add_x1_noise": True, "cond_x1": True}, ["ddim0.5"]),
        ("regression", {"corrupt": "jpeg-5", "eval_nfe": 1}, [""]),
        ("diffusion", {"corrupt": "sr4x-bicubic"}, ["", "ddrm0.85"]),
        ("diffusion", {"corrupt": "inpaint-center", "degradation_noise": 0.1}, ["", "ddrm0.85"]),
    ],
)
def test_baselines_take_the_same_path(tmp_path, dataset_dir, capsys, name, changes, samplers):
    """In this process: train, resume to no effect, restore, score."""
    from i2sb.config import EvalConfig
    from i2sb.evaluation import score as evaluation
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    settings = {**TINY, "num_itr": 2, "eval_every": 2, "dataset_dir": str(dataset_dir), "formulation": name}
    config = TrainConfig(name="run", **{**settings, **places, **changes})
    training.train(config)
    weights = (tmp_path / "run" / "latest.pt").read_bytes()
    training.train(config)
    assert (tmp_path / "run" / "latest.pt").read_bytes() == weights
    nfe = changes.get("eval_nfe", 2)
    more = 864 if name == "conditional_diffusion" else 0
    assert (f"{more} of them look at the degraded image" in capsys.readouterr().out) == bool(more)
    for asked in samplers:
        sampler, eta = asked[:4], float(asked[4:] or 0) if asked else None
        sampling.run(SampleConfig(ckpt="run", nfe=nfe, sampler=sampler, eta=eta, **places))
        folder = f"samples_nfe{nfe}" + (f"_{asked}" if asked else "")
        evaluation.run(EvalConfig(ckpt="run", sample_dir=folder, **places))
        report = json.loads((tmp_path / "run" / folder / "metrics.json").read_text())
        assert not asked or (report["settings"]["sampler"], report["settings"]["eta"]) == (sampler, eta)
        assert report["metrics"]["psnr"]["restored"] > 2
    write_images(tmp_path / "mine", ["a.png"])
    pictures = {"input": str(tmp_path / "mine"), "corrupt": changes["corrupt"], "save_trajectory": True}
    sampling.run(SampleConfig(ckpt="run", nfe=nfe, output=str(tmp_path / "out"), **pictures, **places))
    with Image.open(tmp_path / "out" / "a.png") as restored:
        assert restored.size == make_image(0).size
    model = load_model(tmp_path / "run")
    degraded, mask = build_corruption(changes["corrupt"], 16)(torch.zeros(1, 3, 16, 16))
    restored = model.restore(degraded, mask=mask, clip_denoise=True)  # as often as it can, 10 at most
    assert restored.isfinite().all()
    with pytest.raises(ValueError, match="has no bridge"):
        _ = load_model(tmp_path / "run").bridge


def test_clean_images_alone_serve_degradations_that_training_never_saw(tmp_path, dataset_dir):
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    settings = {**TINY, "num_itr": 1, "eval_every": 0, "dataset_dir": str(dataset_dir), "formulation": "diffusion"}
    training.train(TrainConfig(name="run", results_dir=str(tmp_path), **settings))
    model, corruption = load_model(tmp_path / "run"), build_corruption("decolor", 16)
    clean = torch.rand(2, 3, 16, 16) * 2 - 1
    degraded = corruption(clean).image
    restored = model.restore(degraded, nfe=3, corruption=corruption, sampler="ddrm", eta=0.5, clip_denoise=True)
    torch.testing.assert_close(corruption.A(restored), corruption.A(clean), rtol=0, atol=1e-5)
    # Without one it is the degradation that the run was validated on.
    own = build_corruption(TINY["corrupt"], 16)
    restored = model.restore(own(clean).image, nfe=3)
    torch.testing.assert_close(own.A(restored), own.A(clean), rtol=0, atol=1e-5)
    # A mask says itself what is known.
    write_images(tmp_path / "in", ["a.png"])
    hole = Image.new("L", make_image(0).size)
    hole.paste(255, (4, 4, 9, 9))
    hole.save(tmp_path / "mask.png")
    own = {"input": str(tmp_path / "in"), "mask": str(tmp_path / "mask.png"), "output": str(tmp_path / "out")}
    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    sampling.run(SampleConfig(ckpt="run", nfe=3, clip_denoise=True, **own, **places))
    with Image.open(tmp_path / "out" / "a.png") as image:
        off = np.abs(np.asarray(image).astype(int) - np.asarray(make_image(0))).max(axis=-1)
    known = np.asarray(hole) == 0
    assert off[known].max() <= 1 < off[~known].max()
    with pytest.raises(ValueError, match="JPEG has none"):
        model.restore(degraded, nfe=3, corruption=build_corruption("jpeg-5", 16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"formulation": "bridges"}, "--formulation bridges: must be one of bridge, student, conditional_diffusion"),
        ({"formulation": "regression"}, "--eval-nfe 2: a regression restores in one evaluation, so give 1; or train"),
        ({"formulation": "diffusion", "corrupt": "jpeg-5"}, "JPEG has none; give --corrupt sr4x-pool"),
        ({"formulation": "diffusion", "interval": 10}, "--interval 10: --schedule linear needs more than 20 steps"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, dataset_dir, changes, words):
    from i2sb.parsing import read_flags
    from i2sb.training.loop import train

    settings = {**TINY, "name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir, **changes}
    with pytest.raises(ValueError) as error:
        train(read_flags(TrainConfig, as_flags(settings)))
    assert words in describe(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_go_on_as_another_formulation(trained_run, tmp_path):
    from i2sb.config import check_resumable
    from i2sb.parsing import read_config

    saved = trained_run / "config.yaml"
    config = read_config(TrainConfig, saved)
    with pytest.raises(ValueError, match="`formulation` bridge there, regression now"):
        check_resumable(config, replace(config, formulation="regression"), trained_run)
    # Runs of older versions say nothing of formulations: they are bridges.
    lines = [line for line in saved.read_text().splitlines() if not line.startswith(("formulation", "schedule"))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert read_config(TrainConfig, tmp_path / "config.yaml").formulation == "bridge"
