"""Runs whose bridge begins at what a regression restores (`x1_from`)."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from helpers.comparison import assert_equal_states
from helpers.programs import ROOT, run_python
from helpers.tiny_run import TINY
from i2sb import load_model
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.data.loading import load_training
from i2sb.data.order import TrainingPositions
from i2sb.distributed import World
from i2sb.errors import UserError
from i2sb.loss import bridge_loss
from i2sb.randomness import ImageNoise, Purpose
from i2sb.sampler import sample
from i2sb.storage.checkpoint import read_checkpoint
from i2sb.storage.exported import write_export
from i2sb.storage.runs import read_weights
from i2sb.tasks import make_task_batch
from i2sb.training.loop import train
from i2sb.training.trainer import Trainer


def settings(results_dir, dataset_dir, **changes) -> TrainConfig:
    base = {**TINY, "eval_every": 0, "corrupt": "inpaint-center", "results_dir": str(results_dir)}
    return TrainConfig(**{**base, "dataset_dir": str(dataset_dir), **changes})


@pytest.fixture(scope="module")
def results(tmp_path_factory, dataset_dir):
    """Runs: a regression, `mean`, which fills holes, and `bridge`, which begins at its outputs."""
    folder = tmp_path_factory.mktemp("results")
    train(settings(folder, dataset_dir, name="mean", formulation="regression", lr=0.05))
    train(settings(folder, dataset_dir, name="bridge", x1_from="mean", eval_every=4))
    return folder


def degraded_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and the mask of their middle."""
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return x, mask


def test_the_bridge_begins_at_what_the_regression_restores(results):
    mean, bridge = load_model(results / "mean"), load_model(results / "bridge")
    x, mask = degraded_images()
    restored = mean.restore(x, mask=mask, seed=3)
    assert torch.equal(restored[:, :, :4], x[:, :, :4])  # what is known stays
    assert not torch.equal(restored, x)

    noise = ImageNoise(3, Purpose.SAMPLE, range(2))
    noise.randn_like(x)  # what fills the hole before the regression sees it
    options = bridge.formulation.settle(SamplingOptions(nfe=3))
    net = lambda xt, step, cond=None: bridge.network(xt, step, cond)  # noqa: E731
    want = sample(bridge.bridge, net, restored, nfe=options.evaluations, mask=mask, randn=noise.randn_like).x0
    assert torch.equal(bridge.restore(x, mask=mask, nfe=3, seed=3), want)


def test_tiles_are_the_regressions_too(results):
    bridge, (x, mask) = load_model(results / "bridge"), degraded_images()
    whole = bridge.restore(x, mask=mask, nfe=2)
    assert torch.equal(bridge.restore(x, mask=mask, nfe=2, tile=16, overlap=4), whole)
    cut = bridge.mean.restore(x, mask=mask, tile=8, overlap=4)
    assert not torch.equal(cut, bridge.mean.restore(x, mask=mask))
    assert bridge.restore(x, mask=mask, nfe=2, tile=8, overlap=4).isfinite().all()


def test_training_sees_pairs_that_begin_there(results, dataset_dir):
    """The logged loss of the first iteration, computed from the regression's outputs by hand."""
    config = settings(results, dataset_dir, name="once", x1_from="mean", num_itr=1, batch_size=2)
    train(config)
    (line,) = [json.loads(text) for text in (config.run_dir / "log.jsonl").read_text().splitlines() if '"loss"' in text]

    trainer = Trainer(config, World(0, 1, torch.device("cpu")))
    mean, network = load_model(results / "mean"), trainer.network
    images = next(load_training(trainer.train_images, seed=0, positions=TrainingPositions(0, 2, 2, 0, 1), workers=0))
    noise = ImageNoise(0, Purpose.TRAIN, images.numbers)
    batch = make_task_batch(config, images, trainer.train_corruption, noise)
    direct = batch.x1 - mean.network(batch.x1, torch.zeros(2, dtype=torch.long))
    x1 = (1 - batch.mask) * batch.shown + batch.mask * direct
    torch.manual_seed(0)
    step = noise.randint(1000)
    loss = bridge_loss(
        trainer.formulation.bridge, network, step, batch.clean, x1, mask=batch.mask, randn=noise.randn_like
    )
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    with_degraded = bridge_loss(
        trainer.formulation.bridge,
        network,
        step,
        batch.clean,
        batch.x1,
        mask=batch.mask,
        randn=ImageNoise(0, Purpose.TRAIN, images.numbers).randn_like,
    )
    assert line["loss"] != pytest.approx(with_degraded.item(), rel=1e-2)


def test_a_run_keeps_its_regression_and_goes_on_without_the_other_run(results, dataset_dir, tmp_path):
    """Stopped half-way, its regression's run deleted, it ends as one that was never stopped."""
    shutil.copytree(results / "mean", tmp_path / "mean")
    train(settings(tmp_path, dataset_dir, name="bridge", x1_from="mean", num_itr=4))
    shutil.rmtree(tmp_path / "mean")
    train(settings(tmp_path, dataset_dir, name="bridge", x1_from="mean"))
    one, other = (read_checkpoint(folder / "bridge/checkpoint_00000006.pt") for folder in (tmp_path, results))
    assert_equal_states({part: one[part] for part in ("net", "ema")}, {part: other[part] for part in ("net", "ema")})

    kept = tmp_path / "bridge/x1_from.safetensors"
    content = kept.read_bytes()
    write_export(kept, dataclasses.replace(read_weights(results / "mean"), iteration=7), overwrite=True)
    with pytest.raises(UserError, match="is not the file that checkpoint_00000006.pt was trained with"):
        train(settings(tmp_path, dataset_dir, name="bridge", x1_from="mean", num_itr=8))
    kept.write_bytes(content)

    (tmp_path / "bridge/x1_from.safetensors").unlink()
    with pytest.raises(UserError, match="x1_from.safetensors: is gone, which this run keeps of its `x1_from` mean"):
        train(settings(tmp_path, dataset_dir, name="bridge", x1_from="mean", num_itr=8))
    with pytest.raises(UserError, match=r"x1_from.safetensors: there is no such file"):
        load_model(tmp_path / "bridge")


@pytest.mark.slow
def test_an_exported_file_holds_both(results, tmp_path):
    run_python(ROOT / "scripts/export.py", "bridge", tmp_path / "a.safetensors", "--results-dir", results)
    x, mask = degraded_images()
    want = load_model(results / "bridge").restore(x, mask=mask, nfe=2)
    assert torch.equal(load_model(tmp_path / "a.safetensors").restore(x, mask=mask, nfe=2), want)


@pytest.mark.slow
def test_the_programs_restore_with_it(results, dataset_dir):
    run_python(
        ROOT / "sample.py", "--ckpt", "bridge", "--results-dir", results, "--nfe", "2", "--workers", "0", "--limit", "1"
    )
    assert (results / "bridge/samples_nfe2/000/000000.png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x1_from": "bridge"}, r"x1_from bridge: is a bridge; name a run trained with `formulation` regression"),
        ({"corrupt": "sr4x-pool"}, r"x1_from mean: was trained with `corrupt` inpaint-center; this run has sr4x-pool"),
        ({"hole_fill": "grey"}, r"x1_from mean: was trained with `hole_fill` noise; this run has grey"),
        ({"x1_from": "nothing"}, r"x1_from nothing: give a .safetensors file or a run \(there is no .*nothing\)"),
        ({"add_x1_noise": True}, r"add_x1_noise: cannot go together with `x1_from`"),
    ],
)
def test_what_cannot_be_begun_at_is_refused(results, dataset_dir, changes, words):
    with pytest.raises(UserError, match=words):
        train(settings(results, dataset_dir, **{"name": "refused", "x1_from": "mean", **changes}))
    assert not (results / "refused").exists()


def test_the_network_of_the_regression_must_take_the_images_too(results, dataset_dir, tmp_path):
    config = settings(tmp_path, dataset_dir, name="mean", formulation="regression", num_itr=1)
    patched = dataclasses.replace(config, network="unet-32x1.1-blocks1-attention-heads32-patch4")
    train(patched)
    with pytest.raises(UserError, match=r"image_size 12: `network` unet.* takes multiples of 8"):
        train(settings(tmp_path, dataset_dir, name="bridge", x1_from="mean", image_size=12))
