"""Students as runs: `train.py --distill`, and what becomes of them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from helpers.comparison import assert_equal_states
from helpers.pictures import write_images
from helpers.programs import ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb import load_model
from i2sb.config import TrainConfig
from i2sb.data.loading import load_training
from i2sb.data.order import TrainingPositions
from i2sb.distributed import World
from i2sb.errors import UserError
from i2sb.parsing import read_flags
from i2sb.storage.checkpoint import read_checkpoint
from i2sb.training.loop import train
from i2sb.training.memory import estimate_memory
from i2sb.training.teacher import complete_student
from i2sb.training.trainer import Trainer

SMALL = {"num_itr": 3, "save_every": 1, "eval_every": 2, "log_every": 1, "lr_step": 2, "inner_updates": 2, "lr": 1e-3}
ONE = World(0, 1, torch.device("cpu"))


def student(results, **changes) -> TrainConfig:
    """A student's settings, as train.py reads them from flags."""
    flags = as_flags({"distill": "teacher", "name": "student", "results_dir": str(results), **SMALL, **changes})
    return read_flags(TrainConfig, [*flags, "--log-writer", "none"], complete=complete_student)


@pytest.fixture(scope="module")
def results(tmp_path_factory, dataset_dir):
    """Runs: teachers of several kinds, and a student of the first."""
    folder = tmp_path_factory.mktemp("results")
    base = {**TINY, "eval_every": 0, "lr": 0.01, "results_dir": str(folder), "dataset_dir": str(dataset_dir)}
    train(TrainConfig(**{**base, "name": "teacher"}))
    train(student(folder))
    return folder


@pytest.fixture(scope="module")
def other_teachers(results, dataset_dir):
    base = {**TINY, "eval_every": 0, "lr": 0.01, "results_dir": str(results), "dataset_dir": str(dataset_dir)}
    told = {"cond_x1": True, "corrupt": "inpaint-center"}
    train(TrainConfig(**{**base, "name": "told", **told}))
    train(TrainConfig(**{**base, "name": "ode", "ot_ode": True, "beta_max": 1.0}))
    train(TrainConfig(**{**base, "name": "mean", "formulation": "regression"}))
    train(TrainConfig(**{**base, "name": "from-mean", "x1_from": "mean"}))
    return results


def degraded(count=2):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_what_is_not_said_is_as_the_teacher_has_it(results):
    config = student(results, batch_size=2, seed=1)
    assert (config.formulation, config.nfe, config.eval_nfe) == ("student", 1, 1)
    assert (config.corrupt, config.image_size, config.network) == ("sr4x-pool", 16, "tiny")
    assert (config.batch_size, config.seed) == (2, 1)
    assert student(results, nfe=2).eval_nfe == 2


def test_it_begins_as_its_teacher_and_does_not_see_the_noise(results):
    trainer = Trainer(student(results, name="new"), ONE)
    trainer.resume()
    assert len(trainer.networks) == 3
    teacher = load_model(results / "teacher").network
    x, z, step = degraded(), degraded() ** 2, torch.tensor([10, 999])
    want = teacher(x, step)
    for network in trainer.networks:
        noise = z if network is trainer.network else None
        torch.testing.assert_close(network(x, step, cond=noise), want, rtol=0, atol=1e-5)
    restored, taught = load_model(results / "student"), load_model(results / "teacher")
    assert not torch.equal(restored.restore(x), taught.restore(x, nfe=1))


def test_one_iteration_moves_student_and_inner_bridge_but_not_the_teacher(results):
    trainer = Trainer(student(results, name="new", inner_updates=3), ONE)
    trainer.resume()
    before = [{name: p.clone() for name, p in network.named_parameters()} for network in trainer.networks]
    positions = TrainingPositions(0, 4, trainer.microbatch, 0, 1)
    stream = load_training(trainer.train_images, seed=0, positions=positions, workers=0)
    result = trainer.iterate(stream)
    assert trainer.progress.iteration == 1 and trainer.progress.num_images_seen == 4 * 4
    assert result.inner is not None and result.inner.loss > 0
    moved = [
        any(not torch.equal(p, old[name]) for name, p in network.named_parameters())
        for network, old in zip(trainer.networks, before, strict=True)
    ]
    assert moved == [True, False, True]  # student, teacher, inner
    assert not any(p.requires_grad for network in trainer.networks[1:] for p in network.parameters())


@pytest.mark.parametrize(
    ("teacher", "changes"),
    [
        ("told", {"nfe": 2}),
        ("ode", {"student_noise": False}),
        ("from-mean", {"grad_checkpoint": True}),
        ("teacher", {"half_teacher": True}),
    ],
)
def test_all_kinds_of_bridges_have_students(other_teachers, teacher, changes):
    config = student(other_teachers, distill=teacher, name=f"of-{teacher}", num_itr=2, **changes)
    train(config)
    model = load_model(config.run_dir)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    how = {"mask": mask} if teacher == "told" else {}
    restored = model.restore(degraded(), seed=1, **how)
    assert restored.isfinite().all()
    same = torch.equal(restored, model.restore(degraded(), seed=2, **how))
    assert same == (teacher == "ode")  # which has no noise at all
    if teacher == "told":
        assert (restored[:, :, 0] - degraded()[:, :, 0]).abs().max() < 0.1


def test_stopped_half_way_without_its_teacher_it_ends_as_if_never_stopped(results, tmp_path):
    for name in ("teacher", "student"):
        shutil.copytree(results / name, tmp_path / name)
    shutil.rmtree(tmp_path / "student")
    train(student(tmp_path, num_itr=1))
    shutil.rmtree(tmp_path / "teacher")
    train(student(tmp_path))
    one, other = (read_checkpoint(folder / "student/checkpoint_00000003.pt") for folder in (tmp_path, results))
    parts = ("net", "ema", "optimizer", "inner", "progress")
    assert_equal_states({part: one[part] for part in parts}, {part: other[part] for part in parts})
    (tmp_path / "student/distill.safetensors").unlink()
    with pytest.raises(UserError, match=r"distill teacher: give a \.safetensors file or a run"):
        student(tmp_path)


def test_degraded_images_alone_are_enough(results, tmp_path):
    """A folder of them, and nothing else: what is logged is what those images give."""
    write_images(tmp_path / "data/train", [f"{number}.png" for number in range(4)])
    config = student(results, name="blind", dataset_dir=tmp_path / "data", degraded_data=True, eval_every=0, num_itr=1)
    train(config)
    assert load_model(config.run_dir).restore(degraded()).isfinite().all()


def test_it_is_a_run_like_any_other(results, tmp_path):
    """Restored, exported and loaded; the file holds no teacher."""
    lines = [json.loads(line) for line in (results / "student/log.jsonl").read_text().splitlines()]
    assert all("inner_loss" in line for line in lines if line["event"] == "train")
    assert any(line["event"] == "validation" for line in lines)
    run_python(ROOT / "scripts/export.py", "student", tmp_path / "a.safetensors", "--results-dir", results)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert all(name.startswith("diffusion_model.") for name in file.keys())  # noqa: SIM118 - no dict
    model, exported = load_model(results / "student"), load_model(tmp_path / "a.safetensors")
    x = degraded()
    assert torch.equal(model.restore(x), exported.restore(x))
    assert torch.equal(model.restore(x), model.restore(x, nfe=1)) and not torch.equal(model.restore(x), x)
    whole = model.restore(x, seed=3)
    assert torch.equal(model.restore(x, seed=3, tile=16, overlap=4), whole)
    answers = model.restore(x, samples=3)
    assert answers.std.mean() > 0


def test_memory_counts_three_networks(results):
    teacher = Trainer(
        TrainConfig(**{**TINY, "name": "t", "dataset_dir": student(results).dataset_dir, "eval_every": 0}), ONE
    )
    made = Trainer(student(results, name="new", microbatch=2), ONE)
    size = sum(4 * p.numel() for p in teacher.network.parameters())
    assert 5 * size < estimate_memory(made) - estimate_memory(teacher)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill": "nowhere"}, "distill nowhere: give a .safetensors file or a run"),
        ({"corrupt": "jpeg-5"}, "corrupt jpeg-5: must be as of the bridge that is distilled, 'sr4x-pool'"),
        ({"ot_ode": True}, "ot_ode True: must be as of the bridge"),
        ({"network": "mini"}, "network mini: must be as of the bridge"),
        ({"distill": "mean"}, "distill mean: is a regression, of which no student can be made"),
        ({"distill": "student"}, "distill student: is a student, of which no student can be made"),
        ({"nfe": 1000, "eval_nfe": 1}, "nfe 1000: a bridge of 1000 steps takes between 1 and 999 evaluations"),
        ({"distill": "told", "degraded_data": True}, "degraded_data: images with holes do not say where these are"),
    ],
)
def test_what_cannot_be_is_refused(other_teachers, changes, words):
    with pytest.raises(UserError) as refused:
        train(student(other_teachers, name="refused", **changes))
    assert words in str(refused.value)
    assert not (other_teachers / "refused").exists()


def test_only_students_have_settings_of_students(dataset_dir):
    with pytest.raises(UserError, match="distill: is missing"):
        TrainConfig(name="a", dataset_dir="b", corrupt="jpeg-5", formulation="student")
    with pytest.raises(UserError, match="degraded_data: only students"):
        TrainConfig(name="a", dataset_dir="b", corrupt="jpeg-5", degraded_data=True)
