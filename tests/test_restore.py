"""A loaded model: what it refuses to load, and what it refuses to restore."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from corruption import build_corruption
from i2sb import load_model
from i2sb.errors import UserError
from i2sb.restore import LARGEST
from i2sb.storage.exported import Exported, write_export

X = torch.zeros(2, 3, 16, 16)


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """A copy of a run with one checkpoint, which may be spoiled."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "checkpoint_00000006.pt"):
        shutil.copy(trained_run / name, folder / name)
    return folder


@pytest.mark.parametrize(("part", "ema"), [("net", False), ("ema", True)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(run, part, ema, bad):
    path = run / "checkpoint_00000006.pt"
    state = torch.load(path, weights_only=True)
    name = list(state["net"])[3]
    tensor = state["net"][name] if part == "net" else state["ema"]["shadow_params"][3]
    tensor.view(-1)[:2] = bad
    torch.save(state, path)
    with pytest.raises(UserError, match=rf"checkpoint_00000006.pt: 2 of the \d+ values of {name} are NaN or infinite"):
        load_model(run, ema=ema)
    load_model(run, ema=not ema)


def test_exported_weights_that_are_not_finite_are_refused(run, tmp_path):
    model = load_model(run)
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    name, tensor = next(iter(weights.items()))
    tensor.view(-1)[0] = float("nan")
    write_export(tmp_path / "a.safetensors", Exported(weights, model.config, 6, averaged=True))
    with pytest.raises(UserError, match=f"a.safetensors: 1 of the .* values of {name}"):
        load_model(tmp_path / "a.safetensors")


def test_finite_weights_whose_sum_is_not_are_fine(run):
    state = torch.load(run / "checkpoint_00000006.pt", weights_only=True)
    state["net"]["diffusion_model.out.2.bias"].fill_(3e38)
    torch.save(state, run / "checkpoint_00000006.pt")
    load_model(run, ema=False)


def test_an_edited_config_is_told_from_what_the_checkpoint_was_trained_with(run):
    config = run / "config.yaml"
    before = config.read_text()
    config.write_text(
        before.replace("corrupt: sr4x-pool", "corrupt: jpeg-5").replace("dataset_dir: ", "dataset_dir: /a")
    )
    words = r"config.yaml: was edited: checkpoint_00000006.pt was .*\(`corrupt` sr4x-pool there, jpeg-5 now\); put"
    with pytest.raises(UserError, match=words):
        load_model(run)
    state = torch.load(run / "checkpoint_00000006.pt", weights_only=True)
    del state["settings"]  # as older versions wrote it
    torch.save(state, run / "checkpoint_00000006.pt")
    assert load_model(run).config.corrupt == "jpeg-5"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full_like(X, float("nan")), "degraded: holds values that are NaN or infinite"),
        (X.to(torch.uint8), "degraded torch.uint8: must be floats in .*from_uint8"),
        (X + 200, r"degraded: must be in \[-1, 1\], noise aside; it holds 200, beyond 10"),
        (X - LARGEST - 1, "it holds 11"),
        (X[0], r"degraded 3x16x16: must be of shape \[B, 3, H, W\]"),
        (X[:, :1], "degraded 2x1x16x16: must be of shape"),
        (X[:0], "degraded 0x3x16x16: must be of shape"),
        (X.numpy(), "degraded ndarray: must be a torch.Tensor"),
        (None, "degraded NoneType: must be a torch.Tensor"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(trained_run, images, words):
    model = load_model(trained_run)
    with pytest.raises(UserError, match=words):
        model.restore(images, nfe=1)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (X[:1, :1], r"mask 1x1x16x16: must be of shape \[2, 1, 16, 16\]"),
        (X, "mask 2x3x16x16: must be of shape"),
        (X[:, :1] + float("nan"), "mask: must be 0 and 1"),
        (X[:, :1] + 255, "mask: must be 0 and 1"),
        (X[:, :1] + 0.5, "mask: must be 0 and 1"),
        (X[:, :1].tolist(), "mask list: must be a torch.Tensor"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(trained_run, mask, words):
    with pytest.raises(UserError, match=words):
        load_model(trained_run).restore(X, mask=mask, nfe=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": 2.5}, "^nfe 2.5: must be a whole number"),
        ({"seed": 1.5}, "^seed 1.5: must be a whole number"),
        ({"tile": "16"}, "^tile 16: must be a whole number"),
        ({"numbers": [0, -1]}, "^numbers: must be whole numbers from 0 on"),
        ({"numbers": [0, 0.5]}, "^numbers: must be whole numbers from 0 on"),
        ({"corruption": "jpeg-5"}, "^corruption str: must be what corruption.build_corruption returns"),
        ({"cond": X}, "^cond: this run's network takes no condition"),
        ({"cond": X.numpy()}, "^cond ndarray: must be a torch.Tensor"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(trained_run, options, words):
    with pytest.raises(UserError, match=words):
        load_model(trained_run).restore(X, **{"nfe": 1, **options})


def test_masks_may_be_of_any_type_and_numbers_from_anywhere(trained_run):
    model, mask = load_model(trained_run), torch.zeros(2, 1, 16, 16)
    mask[..., 4:8, 4:8] = 1
    want = model.restore(X, mask=mask, nfe=1, seed=1)
    for other in (torch.bool, torch.float64, torch.uint8):
        got = model.restore(X, mask=mask.to(other), nfe=np.int64(1), seed=1, numbers=torch.arange(2))
        assert torch.equal(got, want) and got.dtype == torch.float32


@pytest.mark.parametrize("corrupt", ["inpaint-center", "inpaint-freeform2030", "sr4x-pool,inpaint-center"])
def test_a_run_that_fills_holes_needs_to_be_told_of_them(trained_run, corrupt):
    model = load_model(trained_run)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, corrupt=corrupt))
    if "," in corrupt:  # not every image of a mixture has one
        model.restore(X, nfe=1)
        return
    with pytest.raises(UserError, match=f"mask: is missing: this run fills holes .{corrupt}.; it is 1 inside"):
        model.restore(X, nfe=1)
    model.restore(X, nfe=1, corruption=build_corruption("jpeg-5", 16))  # something else is to be undone


@pytest.mark.parametrize("options", [{}, {"consistency": "project"}, {"sampler": "second_order"}])
def test_a_programs_own_default_type_changes_no_draw(trained_run, options):
    """Draws of another type are other draws."""

    def restore():
        model, degrade = load_model(trained_run), build_corruption("inpaint-freeform2030", 16)
        degraded = degrade(X, [torch.Generator().manual_seed(i) for i in range(2)])
        mask = None if options else degraded.mask
        return torch.cat([degraded.mask.expand_as(X), model.restore(X, nfe=2, mask=mask, **options)])

    want = restore()
    torch.set_default_dtype(torch.float64)
    try:
        got = restore()
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_noise_other_floats_and_a_single_pixel_are_restored(trained_run):
    model = load_model(trained_run)
    noisy = 6 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    want = model.restore(noisy, nfe=1)
    assert torch.equal(model.restore(noisy.double(), nfe=1), want)
    for side in (1, 2):
        assert model.restore(noisy[:1, :, :side, :side], nfe=1).isfinite().all()


def test_holes_are_filled_as_the_run_says(trained_run):
    model, mask = load_model(trained_run), torch.zeros(2, 1, 16, 16)
    mask[..., 4:8, 4:8] = 1
    grey = dataclasses.replace(model, config=dataclasses.replace(model.config, hole_fill="grey"))
    filled = torch.where(mask > 0, 0.0, X)
    want = model.restore(filled, nfe=1, seed=1)
    assert torch.equal(grey.restore(X, mask=mask, nfe=1, seed=1)[..., 4:8, 4:8], want[..., 4:8, 4:8])
    assert not torch.equal(model.restore(X, mask=mask, nfe=1, seed=1)[..., 4:8, 4:8], want[..., 4:8, 4:8])
