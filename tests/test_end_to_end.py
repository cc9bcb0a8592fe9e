"""The whole path in real processes: train, kill, resume, several processes, restore, score."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from corruption import CORRUPTIONS, build_corruption
from helpers.comparison import assert_equal_but_for_rounding, assert_equal_states
from helpers.pictures import write_images
from helpers.programs import ENVIRONMENT, ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb import load_model
from i2sb.data.dataset import open_split
from i2sb.images import from_uint8, to_uint8
from i2sb.randomness import ImageNoise, Purpose
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint

ITERATIONS = 8
SETTINGS = {**TINY, "num_itr": ITERATIONS, "eval_every": 0}


def train(results: Path, dataset_dir: Path, name: str = "run", **changes) -> subprocess.CompletedProcess[str]:
    flags = as_flags({**SETTINGS, "name": name, "results_dir": results, "dataset_dir": dataset_dir, **changes})
    return run_python("train.py", *flags)


def final_state(results: Path, name: str = "run") -> dict:
    path, state = find_checkpoint(results / name)
    assert path.name == f"checkpoint_{ITERATIONS:08d}.pt"
    return state


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, dataset_dir) -> dict:
    results = tmp_path_factory.mktemp("uninterrupted")
    train(results, dataset_dir)
    return final_state(results)


def test_killed_from_outside_while_it_runs(tmp_path, dataset_dir, uninterrupted):
    """SIGKILL after three iterations or some more, wherever the program is by then; with loader processes."""
    flags = as_flags(
        {**SETTINGS, "name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir, "workers": 1, "save_every": 1}
    )
    screen, theirs = os.openpty()  # the bar is drawn at every iteration only where somebody may watch
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "train.py", *flags], cwd=ROOT, env=ENVIRONMENT, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        while re.search(rb" [3-5]/8 ", said) is None:
            try:
                said += os.read(screen, 1)
            except OSError:  # it ended
                pytest.fail(said.decode())
        process.kill()
    os.close(screen)
    assert process.returncode == -signal.SIGKILL
    train(tmp_path, dataset_dir, workers=1, save_every=1)
    assert_equal_states(final_state(tmp_path), uninterrupted)


# Runs train.py in float64. In float32 the order of additions shows: where a gradient is nothing but rounding, Adam
# makes a whole step of it, in either direction.
IN_FLOAT64 = """
import runpy
import torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = lambda self: self.to(torch.float32 if self.dtype == torch.bool else torch.float64)
runpy.run_path("train.py", run_name="__main__")
"""


def train_in_float64(results: Path, dataset_dir: Path, *launcher: str, **changes) -> dict:
    script = results / "in_float64.py"
    script.write_text(IN_FLOAT64)
    flags = as_flags({**SETTINGS, "name": "run", "results_dir": results, "dataset_dir": dataset_dir, **changes})
    run_python(*launcher, script, *flags)
    return final_state(results)


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory, dataset_dir) -> dict:
    """A run without microbatches: one forward pass an iteration."""
    return train_in_float64(tmp_path_factory.mktemp("float64"), dataset_dir, microbatch=4)


def assert_learned_the_same(state: dict, other: dict) -> None:
    """Compare runs that add up the same numbers in another order: the optimizer's mean gradients and the weights.

    Adam's updates do not depend on the gradient's scale, its means do: they would show gradients summed, not averaged.
    A gradient is a sum of some thousand products, of at most 1 here: rounding leaves 1e-13 of it open. A step enlarges
    that at most lr / ε = 1e5 times, to 1e-8, and the few that follow have a hundred times more room. Biases that a
    normalisation takes away have gradients of nothing but rounding, 1e-18: there a step is 1e-13, not a share of it.
    """
    changed = {"world_size": 0, "microbatch": 0}
    assert {**state["progress"], **changed} == {**other["progress"], **changed}
    optimizers = [(one["optimizer"], want["optimizer"]) for one, want in _learners(state, other)]
    pairs = [
        (moments["exp_avg"], want["state"][index]["exp_avg"])
        for one, want in optimizers
        for index, moments in one["state"].items()
    ]
    pairs += zip(state["ema"]["shadow_params"], other["ema"]["shadow_params"], strict=True)
    for one, want in pairs:
        assert one.dtype == torch.float64 and (one - want).norm() < 1e-6 * want.norm() + 1e-9


def _learners(*states: dict) -> list[tuple[dict, ...]]:
    """Of two runs, the parts of the network, and of a student's inner bridge."""
    return [states, *([tuple(state["inner"] for state in states)] if "inner" in states[0] else [])]


def test_microbatch_and_workers_do_not_change_what_is_learned(tmp_path, dataset_dir, in_float64):
    assert_learned_the_same(train_in_float64(tmp_path, dataset_dir, microbatch=2, workers=1), in_float64)


def test_saving_memory_does_not_change_what_is_learned(tmp_path, dataset_dir, in_float64):
    state = train_in_float64(tmp_path, dataset_dir, microbatch=4, grad_checkpoint=True, channels_last=True)
    assert_learned_the_same(state, in_float64)


@pytest.mark.cluster
def test_two_processes_learn_what_one_learns(tmp_path, dataset_dir, in_float64):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    state = train_in_float64(tmp_path, dataset_dir, *launcher, eval_every=ITERATIONS, microbatch=1)
    assert_learned_the_same(state, in_float64)
    assert len(list((tmp_path / "run" / "validation").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.cluster
def test_two_processes_train_the_student_that_one_trains(tmp_path, dataset_dir, trained_run):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    made_of = {"distill": trained_run, "inner_updates": 2, "nfe": 2, "eval_every": 0}
    (tmp_path / "alone").mkdir()
    alone = train_in_float64(tmp_path / "alone", dataset_dir, microbatch=4, **made_of)
    state = train_in_float64(tmp_path, dataset_dir, *launcher, microbatch=1, **made_of)
    assert len(state["inner"]["optimizer"]["state"]) > 0
    assert_learned_the_same(state, alone)


def test_going_on_beyond_the_end_and_from_another_run(tmp_path, dataset_dir, uninterrupted):
    first = train(tmp_path, dataset_dir, num_itr=4)
    assert 0.1 < float(re.search(r"^memory +(\S+) GB at most in this process$", first.stdout, re.MULTILINE)[1]) < 4
    again = train(tmp_path, dataset_dir, num_itr=4)
    assert "resumed from" in again.stderr + again.stdout
    train(tmp_path, dataset_dir, name="other", ckpt="run")
    assert_equal_states(final_state(tmp_path, "other"), uninterrupted)
    assert read_checkpoint(tmp_path / "run" / "checkpoint_00000004.pt")["progress"]["iteration"] == 4


def test_a_finished_run_is_ready_to_restore(trained_run):
    there = {path.name for path in trained_run.iterdir()}
    assert {"config.yaml", "latest.pt", "log.jsonl", "validation"} <= there
    lines = [json.loads(line) for line in (trained_run / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in lines if line["event"] == "validation"] == [4, 6]
    state = read_checkpoint(trained_run / "latest.pt")
    assert set(state) == {"format", "net", "ema", "optimizer", "sched", "progress", "settings", "scaler"}
    assert all(name.startswith("diffusion_model.") for name in state["net"])
    with Image.open(trained_run / "validation" / "iteration_00000006.png") as image:
        assert image.size[0] > 300


def copy_run(trained_run: Path, results: Path) -> Path:
    """Link a finished run's files into a fresh results folder."""
    run = results / trained_run.name
    run.mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (run / name).symlink_to(trained_run / name)
    return run


@pytest.mark.cluster
def test_restoring_and_scoring_a_split(tmp_path, dataset_dir, trained_run):
    run = copy_run(trained_run, tmp_path)
    common = ["--ckpt", "tiny", "--results-dir", tmp_path, "--device", "cpu", "--workers", 0]
    run_python("sample.py", *common, "--nfe", 3, "--batch-size", 2)
    folder = run / "samples_nfe3"
    images = sorted(folder.glob("000/*.png"))
    assert [path.name for path in images] == [f"{i:06d}.png" for i in range(5)]

    # After an interruption, the same bytes.
    before = [path.read_bytes() for path in images]
    images[1].unlink()
    run_python("sample.py", *common, "--nfe", 3, "--batch-size", 2)
    assert [path.read_bytes() for path in images] == before

    # In another part, batch, number of processes, the same images.
    images[1].unlink()
    images[4].unlink()
    run_python("sample.py", *common, "--nfe", 3, "--batch-size", 1, "--partition", "0_2")
    assert not images[4].exists()
    run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "sample.py", *common, "--nfe", 3)
    for path, want in zip(images, before, strict=True):
        assert_equal_but_for_rounding(path.read_bytes(), want)

    refused = run_python("sample.py", *common, "--nfe", 3, "--seed", 1, check=False)
    assert refused.returncode == 2 and "made with other settings (seed 0 there, 1 now)" in refused.stderr

    done = run_python("compute_metrices.py", *common, "--sample-dir", "samples_nfe3", "--weights-dir", tmp_path)
    assert "PSNR" in done.stdout and "fid, kid not computed: needs pt_inception" in done.stdout
    report = json.loads((folder / "metrics.json").read_text())
    assert report["images"] == 5 and "pt_inception" in report["not_computed"]["fid"]
    assert 5 < report["metrics"]["psnr"]["degraded"] < 60 and 0 < report["metrics"]["ssim"]["restored"] <= 1
    assert (folder / "comparison.png").exists() and (folder / "report.html").exists()


def test_python_gives_the_same_as_the_command(tmp_path, dataset_dir, trained_run):
    from torchvision.transforms.functional import pil_to_tensor

    from corruption import build_corruption
    from i2sb.data.dataset import open_split
    from i2sb.images import from_uint8, to_uint8

    run = copy_run(trained_run, tmp_path)
    run_python("sample.py", "--ckpt", "tiny", "--results-dir", tmp_path, "--nfe", 2, "--device", "cpu", "--workers", 0)
    model = load_model(run)
    images = open_split(dataset_dir, "val", image_size=16)
    clean = from_uint8(torch.stack([images.read(i)[0] for i in range(5)]))
    restored = to_uint8(model.restore(build_corruption("sr4x-pool", 16)(clean).image, nfe=2))
    for i in range(5):
        with Image.open(run / "samples_nfe2" / "000" / f"{i:06d}.png") as image:
            assert (pil_to_tensor(image).int() - restored[i].int()).abs().max() <= 1


def test_averaged_weights_are_the_default(trained_run):
    averaged, raw = load_model(trained_run), load_model(trained_run, ema=False)
    state = read_checkpoint(trained_run / "latest.pt")
    for p, shadow in zip(averaged.network.parameters(), state["ema"]["shadow_params"], strict=True):
        assert torch.equal(p, shadow)
    assert_equal_states(dict(raw.network.state_dict()), dict(state["net"]))
    assert averaged.iteration == 6 and averaged.config.corrupt == "sr4x-pool"


@pytest.mark.parametrize(
    "changes",
    [
        {"corrupt": "inpaint-center", "cond_x1": True, "ot_ode": True, "beta_max": 1.0},
        {"corrupt": "inpaint-center", "image_channels": 1, "clip_denoise": True},
        {"corrupt": "sr4x-bicubic", "eval_image_size": 20},
        pytest.param({"corrupt": "sr2x-bicubic", "degradation_noise": 0.1}, marks=pytest.mark.slow),
        pytest.param({"corrupt": "inpaint-center", "degradation_noise": 0.1, "cond_x1": True}, marks=pytest.mark.slow),
        {"corrupt": "decolor", "add_x1_noise": True, "cond_x1": True},
        *({"corrupt": name} for name in (*CORRUPTIONS, "jpeg-80") if name not in ("decolor", "inpaint-center")),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_other_tasks_take_the_same_path(tmp_path, dataset_dir, changes):
    """In this process: train two iterations, restore, score."""
    from i2sb.config import EvalConfig, SampleConfig, TrainConfig
    from i2sb.evaluation import score as evaluation
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    settings = {**TINY, "num_itr": 2, "dataset_dir": str(dataset_dir), **places, **changes}
    training.train(TrainConfig(name="other", **settings))
    sampling.run(SampleConfig(ckpt="other", nfe=2, clip_denoise=True, use_fp16=True, **places))
    evaluation.run(EvalConfig(ckpt="other", sample_dir="samples_nfe2_clip", metrics="psnr,ssim", **places))
    report = json.loads((tmp_path / "other" / "samples_nfe2_clip" / "metrics.json").read_text())
    assert report["settings"]["image_size"] == changes.get("eval_image_size", 16)
    assert report["settings"]["degradation_noise"] == changes.get("degradation_noise", 0)
    assert report["metrics"]["psnr"]["restored"] > 5


@pytest.mark.slow
def test_noise_is_a_setting_of_the_degradation(tmp_path, trained_run, dataset_dir):
    """Of a run trained without: asked for at sampling, made again for the score, told apart; older folders: none."""
    from i2sb.config import EvalConfig, SampleConfig, TrainConfig
    from i2sb.evaluation import score as evaluation
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    run = copy_run(trained_run, tmp_path)
    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    sample, psnr = SampleConfig(ckpt=run.name, nfe=1, **places), {}
    for noise in (None, 0.0, 0.3):
        folder = f"noise{noise}"
        sampling.run(replace(sample, degradation_noise=noise, sample_dir=folder))
        score = EvalConfig(ckpt=run.name, sample_dir=folder, metrics="psnr", **places)
        evaluation.run(score)
        psnr[noise] = json.loads((run / folder / "metrics.json").read_text())["metrics"]["psnr"]["degraded"]
    assert psnr[None] == psnr[0.0] > psnr[0.3] + 1
    # The same noise again: that of the image's own seed.
    images = open_split(dataset_dir, "val", image_size=16)
    clean = torch.stack([images.read(i)[0] for i in range(5)])
    generators = ImageNoise(0, Purpose.SAMPLE, range(5)).degradation_generators()
    made = build_corruption("sr4x-pool", 16, degradation_noise=0.3)(from_uint8(clean), generators, range(5)).image
    error = (to_uint8(made).double() - clean).square().mean((1, 2, 3))
    assert psnr[0.3] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item())
    with pytest.raises(ValueError, match="degradation_noise 0.3 there, 0.0 now"):
        sampling.run(replace(sample, sample_dir="noise0.3"))
    settings = run / "noise0.0" / "settings.yaml"
    settings.write_text(re.sub("degradation_noise.*\n", "", settings.read_text()))
    sampling.run(replace(sample, sample_dir="noise0.0"))
    for changes, words in (
        ({"corrupt": "jpeg-5"}, "degradation_noise 0.3: jpeg-5: JPEG is no linear degradation"),
        ({"corrupt": "paired"}, "degradation_noise 0.3: pairs are degraded already"),
        ({"consistency": "project"}, "consistency project: would put the noise of `degradation_noise` into the image"),
        ({"input": str(settings), "output": "o"}, "degradation_noise 0.3: nothing here uses it"),
    ):
        with pytest.raises(ValueError, match=words):
            sampling.run(replace(sample, degradation_noise=0.3, **changes))
    config = {**TINY, **places, "dataset_dir": str(dataset_dir), "degradation_noise": 0.3}
    with pytest.raises(ValueError, match="`degradation_noise` 0.0 there, 0.3 now"):
        training.train(TrainConfig(name=run.name, **config))


def test_a_run_that_denoises_changes_what_is_around_a_hole(tmp_path, dataset_dir):
    from i2sb.config import TrainConfig
    from i2sb.training import loop as training

    settings = {**TINY, "num_itr": 1, "eval_every": 0, "dataset_dir": str(dataset_dir), "results_dir": str(tmp_path)}
    for name, noise in (("plain", 0.0), ("denoises", 0.1)):
        changes = {"corrupt": "inpaint-center", "degradation_noise": noise, "ot_ode": True}
        training.train(TrainConfig(name=name, **{**settings, **changes}))
    x, mask = build_corruption("inpaint-center", 16)(torch.rand(1, 3, 16, 16))
    known = (mask == 0).expand_as(x)
    for name in ("plain", "denoises"):
        model = load_model(tmp_path / name)
        restored = model.restore(x, mask=mask, nfe=1)
        assert torch.equal(restored[known], x[known]) == (name == "plain"), name
        model.restore(x, mask=mask, nfe=2, consistency="gradient")  # knows the hole though nothing is known exactly


def test_paired_folders_take_the_same_path(tmp_path):
    from i2sb.config import SampleConfig, TrainConfig
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    for split, count in (("train", 6), ("val", 2)):
        write_images(tmp_path / "pairs" / split / "clean", [f"{i}.png" for i in range(count)])
        write_images(tmp_path / "pairs" / split / "degraded", [f"{i}.png" for i in range(count)], first=3)
    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0, "dataset_dir": str(tmp_path / "pairs")}
    training.train(TrainConfig(name="pairs-run", **{**TINY, "corrupt": "paired", "num_itr": 2, **places}))
    sampling.run(SampleConfig(ckpt="pairs-run", nfe=1, **places))
    assert len(list((tmp_path / "pairs-run" / "samples_nfe1" / "000").iterdir())) == 2


@pytest.mark.slow
def test_the_study_of_samplers_scores_every_number_of_evaluations(tmp_path, trained_run):
    run = copy_run(trained_run, tmp_path)
    flags = ["--results-dir", tmp_path, "--nfe", 1, 2, "--samplers", "posterior", "eta0", "--images", 2]
    run_python("scripts/nfe_study.py", run.name, tmp_path / "study", *flags, "--device", "cpu")
    rows = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert [row["nfe"] for row in rows if row["sampler"] == "posterior"] == [1, 2]
    assert all(5 < row["psnr"] < 60 and 0 < row["ssim"] <= 1 for row in rows)
    assert len({row["efficientnet-lite0-frechet"] for row in rows}) == 4 and rows[0]["sampler"] == "degraded"
    assert all(row["efficientnet-lite0-frechet"] > 0 and row["images"] == 2 for row in rows)


@pytest.mark.slow
def test_a_study_of_samplers_goes_on_where_it_was(tmp_path, trained_run):
    run = copy_run(trained_run, tmp_path)
    flags = ["--results-dir", tmp_path, "--nfe", 1, 2, "--samplers", "posterior", "eta0", "--images", 2]
    run_python("scripts/nfe_study.py", run.name, tmp_path / "study", *flags, "--device", "cpu")
    study = tmp_path / "study" / "study.json"
    kept = json.loads(study.read_text())
    study.write_text(json.dumps({**kept, "rows": kept["rows"][:3]}))
    run_python("scripts/nfe_study.py", run.name, tmp_path / "study", *flags, "--device", "cpu")
    assert json.loads(study.read_text()) == kept
    other = [*flags[:-1], 3, "--device", "cpu"]
    refused = run_python("scripts/nfe_study.py", run.name, tmp_path / "study", *other, check=False)
    assert refused.returncode == 2 and "is of another study (images 2 there, 3 now)" in refused.stderr
