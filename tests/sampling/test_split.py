"""Restoring a split: what is written besides the images, and that no kill, part or setting confuses it."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.transforms.functional import pil_to_tensor

from corruption import build_corruption
from helpers.comparison import assert_equal_but_for_rounding, assert_equal_states
from helpers.programs import ROOT, run_python
from helpers.tiny_run import train_anew
from i2sb import load_model
from i2sb.config import EvalConfig, SampleConfig, SamplingOptions
from i2sb.data.dataset import open_split
from i2sb.errors import UserError
from i2sb.evaluation.score import run as score
from i2sb.images import from_uint8, to_uint8
from i2sb.sampling import split as sampling
from i2sb.storage.exported import write_export
from i2sb.storage.recon import write_recon
from i2sb.storage.runs import read_weights
from i2sb.storage.sample_folder import SampleFolder
from i2sb.unet import UNet


def link_run(trained_run: Path, results: Path) -> Path:
    run = results / trained_run.name
    run.mkdir(parents=True)
    for path in trained_run.glob("*.*"):
        if path.is_file():
            (run / path.name).symlink_to(path)
    return run


@pytest.fixture
def restore(trained_run, tmp_path):
    """Restore the split in this process; returns the run's folder."""
    folder = link_run(trained_run, tmp_path / "results")

    def run(**changes) -> Path:
        common = {"ckpt": "tiny", "results_dir": str(folder.parent), "device": "cpu", "workers": 0, "nfe": 2}
        sampling.run(SampleConfig(**{**common, **changes}))
        return folder

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_file_of_weights_restores_a_split_that_is_scored(trained_run, tmp_path):
    """The images go to a folder that has the file's name, and belong to the weights in it."""
    results, file = tmp_path / "results", tmp_path / "tiny.safetensors"
    write_export(file, read_weights(trained_run))
    common = {"ckpt": str(file), "results_dir": str(results), "device": "cpu", "workers": 0}
    sampling.run(SampleConfig(nfe=2, **common))
    folder = results / "tiny.safetensors" / "samples_nfe2"
    assert len(manifest(folder)) == 5 and manifest(folder)[0]["settings"]["run"] == "tiny.safetensors"
    scoring = EvalConfig(sample_dir="samples_nfe2", metrics="psnr", **common)
    score(scoring)
    assert json.loads((folder / "metrics.json").read_text())["images"] == 5
    write_export(file, read_weights(trained_run, ema=False), overwrite=True)
    with pytest.raises(UserError, match="made with other settings .weights"):
        sampling.run(SampleConfig(nfe=2, **common))
    with pytest.raises(UserError, match="ckpt .*were restored with another file tiny.safetensors: give that one"):
        score(scoring)
    with pytest.raises(UserError, match="ckpt_file .*one file of weights and has no checkpoints"):
        sampling.run(SampleConfig(nfe=2, ckpt_file="latest.pt", **common))


def test_manifest_says_what_each_image_is(restore):
    folder = restore(limit=2, seed=3) / "samples_nfe2"
    assert [line["index"] for line in manifest(folder)] == [0, 1]
    restore(seed=3)
    lines = manifest(folder)
    assert [line["source"] for line in lines] == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert [line["label"] for line in lines] == [0, 0, 1, 1, 1]
    assert [line["file"] for line in lines] == [f"000/{i:06d}.png" for i in range(5)]
    assert len({line["seed"] for line in lines}) == 5
    settings = lines[0]["settings"]
    assert (settings["nfe"], settings["seed"], settings["sampler"], settings["iteration"]) == (2, 3, "posterior", 6)


def test_manifest_is_whole_after_parts_in_any_order_and_a_lost_line(restore):
    folder = restore() / "samples_nfe2"
    before = contents(folder)
    for path in folder.glob("000/*.png"):
        path.unlink()
    restore(partition="1_2", batch_size=1)
    assert [line["index"] for line in manifest(folder)] == [2, 3, 4]
    (folder / "manifest.jsonl").write_text("what is this\n")
    restore(partition="0_2")
    after = contents(folder)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith(".png"))
    for name in after:
        if name.endswith(".png"):
            assert_equal_but_for_rounding(after[name], before[name])


def test_images_replaced_under_their_names_are_named_by_both_programs(restore, dataset_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir / "val", data / "val")
    folder = restore(dataset_dir=str(data)) / "samples_nfe2"
    for line in manifest(folder):
        assert line["sha256"] == hashlib.sha256((data / "val" / line["source"]).read_bytes()).hexdigest()
    shutil.copy(data / "val/dog/0.png", data / "val/cat/1.png")
    common = {"ckpt": "tiny", "results_dir": str(tmp_path / "results"), "device": "cpu", "workers": 0}
    scoring = EvalConfig(**common, sample_dir="samples_nfe2", metrics="psnr")
    words = r"samples_nfe2: 1 images were restored from other files .*: cat/1.png \(000001.png\); bring those back"
    for again in (lambda: restore(dataset_dir=str(data)), lambda: score(scoring)):
        with pytest.raises(UserError, match=words):
            again()
    whole = (folder / "manifest.jsonl").read_text()
    older = re.sub(r'"sha256": "\w+", ', "", whole)
    (folder / "manifest.jsonl").write_text(older)
    restore(dataset_dir=str(data))
    score(scoring)  # nobody knows better
    assert {line["sha256"] for line in manifest(folder)} == {""}
    (folder / "manifest.jsonl").write_text(whole)
    (folder / "000/000001.png").unlink()
    restore(dataset_dir=str(data))
    score(scoring)
    assert manifest(folder)[1]["sha256"] == manifest(folder)[2]["sha256"]


def test_names_that_are_no_utf_8_are_restored_scored_and_listed(restore, dataset_dir, tmp_path):
    data, name = tmp_path / os.fsdecode(b"data\xff"), os.fsdecode(b"cat/\xff.png")
    shutil.copytree(dataset_dir / "val", data / "val")
    (data / "val/cat/0.png").rename(data / "val" / name)
    for _ in range(2):
        folder = restore(dataset_dir=str(data)) / "samples_nfe2"
        assert name in [line["source"] for line in manifest(folder)]
    common = {"ckpt": "tiny", "results_dir": str(tmp_path / "results"), "device": "cpu", "workers": 0}
    score(EvalConfig(**common, sample_dir="samples_nfe2", metrics="psnr"))
    assert name.encode(errors="backslashreplace").decode() in (folder / "report.html").read_text()


def test_what_is_missing_is_restored_in_the_batches_of_an_uninterrupted_run(restore):
    """So that the bytes are the same: kernels may add up in another order for a batch of another size."""
    seen = []
    record = lambda module, inputs: seen.append(inputs[0].clone()) if isinstance(module, UNet) else None
    with register_module_forward_pre_hook(record):
        folder = restore(batch_size=2) / "samples_nfe2"
        whole, before = seen[:], contents(folder)
        assert [len(x) for x in whole] == [2, 2, 2, 2, 1, 1]
        for lost, calls in (([0], whole[:2]), ([3, 4], whole[2:])):
            for index in lost:
                (folder / f"000/{index:06d}.png").unlink()
            kept = {path: path.stat().st_mtime_ns for path in folder.glob("000/*.png")}
            seen.clear()
            restore(batch_size=2)
            assert_equal_states(seen, calls)
            assert contents(folder) == before and kept == {path: path.stat().st_mtime_ns for path in kept}


def test_recon_pt_is_the_released_one(restore, dataset_dir):
    folder = restore(save_pt=True) / "samples_nfe2"
    recon = torch.load(folder / "recon.pt", weights_only=True)
    assert recon["arr"].shape == (5, 3, 16, 16) and recon["arr"].dtype == torch.float32
    assert recon["arr"].abs().max() <= 1
    assert recon["label_arr"].tolist() == [0, 0, 1, 1, 1] and recon["label_arr"].dtype == torch.int64
    images = torch.stack([SampleFolder.open(folder).load(i) for i in range(5)])
    assert torch.equal(to_uint8(recon["arr"]), images)
    restore(save_pt=True, partition="1_2")
    part = torch.load(folder / "recon_1_2.pt", weights_only=True)
    assert torch.equal(part["arr"], recon["arr"][2:]) and part["label_arr"].tolist() == [1, 1, 1]
    assert not list(folder.glob(".*.partial"))


def test_every_8_bit_value_survives_recon_pt(tmp_path, restore):
    folder = SampleFolder.open(restore(limit=1) / "samples_nfe2")
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    path = folder.image_path(0)
    Image.fromarray(values.permute(1, 2, 0).numpy()).save(path)
    write_recon(tmp_path / "recon.pt", folder, [0], torch.tensor([7]))
    assert torch.equal(to_uint8(torch.load(tmp_path / "recon.pt")["arr"])[0], values)


def test_folders_of_other_settings_are_told_apart(restore):
    run = restore(limit=1)
    names = {
        "samples_nfe2_eta0": {"sampler": "eta"},
        "samples_nfe2_eta0.5": {"sampler": "eta", "eta": 0.5},
        "samples_nfe2_second_order": {"sampler": "second_order"},
        "samples_nfe2_project": {"consistency": "project"},
        "samples_nfe2_gradient8": {"consistency": "gradient", "consistency_weight": 8.0},
        "samples_nfe2_clip_eta0_project": {"sampler": "eta", "consistency": "project", "clip_denoise": True},
        "samples_nfe2_checkpoint_00000004": {"ckpt_file": "checkpoint_00000004.pt"},
    }
    images = {(run / "samples_nfe2/000/000000.png").read_bytes()}
    for name, changes in names.items():
        restore(limit=1, **changes)
        images.add((run / name / "000/000000.png").read_bytes())
    assert len(images) == len(names)  # of two steps, second order takes both at first order: that is eta 0
    settings = SampleFolder.open(run / "samples_nfe2_eta0.5").settings
    assert (settings.sampler, settings.eta) == ("eta", 0.5)
    (run / "samples_nfe2_eta0.5").rename(run / "samples_nfe2_eta0.25")
    with pytest.raises(ValueError, match=r"other settings \(eta 0.5 there, 0.25 now\)"):
        restore(limit=1, sampler="eta", eta=0.25)


def test_checkpoints_by_name_and_path(restore, trained_run):
    run = restore(limit=1)
    first = load_model(trained_run, checkpoint="checkpoint_00000004.pt")
    assert first.iteration == 4 and load_model(trained_run).iteration == 6
    assert load_model(trained_run, checkpoint=trained_run / "checkpoint_00000004.pt").iteration == 4
    with pytest.raises(ValueError, match="ckpt_file best.pt: there is no such file; checkpoints in .*checkpoint_0"):
        restore(limit=1, ckpt_file="best.pt")
    assert not (run / "samples_nfe2_best").exists()


def test_trajectories_are_drawn_and_made_up_for(restore):
    folder = restore(limit=2) / "samples_nfe2"
    restore(limit=1, save_trajectory=True, nfe=2)
    drawn = sorted(path.name for path in (folder / "trajectories" / "000").iterdir())
    assert drawn == ["000000.png", "000000.webp"]
    before = contents(folder)
    restore(limit=1, save_trajectory=True)
    assert contents(folder) == before
    with Image.open(folder / "trajectories/000/000000.webp") as animation:
        assert animation.format == "WEBP" and animation.is_animated
    with Image.open(folder / "trajectories/000/000000.png") as strip:
        assert strip.width > 3 * 128 and strip.height > 2 * 128  # degraded and two states; predictions below


def test_images_that_are_not_finite_are_named_not_written_as_black_ones(restore, dataset_dir, tmp_path):
    broken = {"consistency": "gradient", "consistency_weight": 1e37, "limit": 1}
    words = "the restored images of {} hold values that are NaN or infinite; try `precision` fp32, or a smaller"
    with pytest.raises(UserError, match=words.format("cat/0.png")):
        restore(**broken)
    assert not list((tmp_path / "results/tiny/samples_nfe2_gradient1e+37").glob("000/*.png"))
    pictures = {"input": str(dataset_dir / "val/cat"), "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match=words.format("0.png")):
        restore(**broken, **pictures)
    assert not (tmp_path / "out").exists()


def test_several_answers_may_grow_in_number_and_answer_0_is_the_only_one(restore, dataset_dir, trained_run):
    """Made at once or in three goes, every byte is the same; Python gives the same numbers."""
    alone = contents(restore(sample_dir="alone", seed=3) / "alone")
    for samples in (1, 2, 4):
        run = restore(sample_dir="grown", seed=3, samples=samples, batch_size=2)
    restore(sample_dir="straight", seed=3, samples=4, batch_size=2)
    files = contents(run / "grown")
    assert files == contents(run / "straight")
    several = {"1.png", "2.png", "3.png", "mean.png", "std.npy", "std.png", "answers.json"}
    for number in range(5):
        found = {path.name for path in (run / f"grown/answers/000/{number:06d}").iterdir()}
        assert found == several
        assert_equal_but_for_rounding(files[f"000/{number:06d}.png"], alone[f"000/{number:06d}.png"])

    model, images = load_model(trained_run), open_split(dataset_dir, "val", image_size=16)
    degraded = build_corruption("sr4x-pool", 16)(from_uint8(torch.stack([images.read(i)[0] for i in (2, 3)]))).image
    kept = []
    answers = model.restore(
        degraded, nfe=2, seed=3, numbers=[2, 3], samples=4, on_answer=lambda number, x0: kept.append(x0)
    )
    folder = SampleFolder.open(run / "grown")
    assert folder.settings.samples == 4
    for row, number in enumerate((2, 3)):
        for which, image in (*enumerate(kept), ("mean", answers.mean)):
            assert (folder.load(number, which=which).int() - to_uint8(image)[row].int()).abs().max() <= 1
        std = torch.from_numpy(np.load(folder.answers(number).std))
        torch.testing.assert_close(std, answers.std[row], rtol=1e-3, atol=1e-5)
        assert manifest(folder.path)[number]["diversity"] == pytest.approx(std.double().mean().item())

    for fewer in (1, 3):
        with pytest.raises(UserError, match=f"has 4 answers to an image, {fewer} now; ask for `samples` 4, or name"):
            restore(sample_dir="grown", seed=3, samples=fewer)


@pytest.mark.slow
def test_whatever_is_missing_of_several_answers_is_made_again(restore):
    folder = restore(samples=2, batch_size=2, save_trajectory=True) / "samples_nfe2"
    before = contents(folder)
    one = folder / "answers/000/000002"
    for lost in (*one.iterdir(), folder / "000/000002.png", folder / "manifest.jsonl"):
        lost.unlink()
        (one / ".1.png.9.partial").write_text("half of it")
        kept = {path: path.stat().st_mtime_ns for path in (folder / "answers/000/000001").iterdir()}
        restore(samples=2, batch_size=2, save_trajectory=True)
        (one / ".1.png.9.partial").unlink(missing_ok=True)  # stays where only the manifest is made again
        assert contents(folder) == before, lost
        assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_answers_to_a_split(restore):
    def measure(samples: int) -> int:
        """Return the bytes of all tensors when the network is called for the last time."""
        calls, seen = 0, []

        def count(module, inputs) -> None:
            nonlocal calls
            calls += isinstance(module, UNet)
            if isinstance(module, UNet) and calls == 2 * samples:
                tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
                seen.append(
                    sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
                )

        with register_module_forward_pre_hook(count):
            restore(samples=samples, sample_dir=f"of{samples}")
        return seen[0]

    # Answers that are being written are 8-bit ones, of one number at a time.
    assert abs(measure(3) - measure(9)) <= 2 * 5 * 3 * 16 * 16


def test_answers_that_would_all_be_the_same_are_refused_at_once(restore):
    for how in ({"nfe": 1}, {"sampler": "ot_ode"}):
        with pytest.raises(UserError, match="samples 3: no noise is drawn with .* all answers would be the same"):
            restore(samples=3, sample_dir="none", **how)
    assert not (restore(limit=1) / "none").exists()
    folder = restore(samples=2, corrupt="inpaint-center", sampler="ot_ode", sample_dir="holes", limit=1) / "holes"
    std = np.load(folder / "answers/000/000000/std.npy")
    hole = std[:, 4:12, 4:12]
    assert (hole > 0).all() and std.sum() == pytest.approx(hole.sum())
    assert manifest(folder)[0]["diversity"] == pytest.approx(hole.mean())


def test_samplers_are_advised_on(restore, capsys):
    restore(limit=1, sampler="ot_ode")
    assert "warning: --sampler ot_ode: this run was trained with noise" in capsys.readouterr().err


def test_python_restores_a_split_as_the_command_does(restore, dataset_dir, trained_run):
    """Sampler, consistency and an image's number in the split are taken the same way; states on request."""
    folder = restore(sampler="eta", eta=0.25, consistency="project", seed=5) / "samples_nfe2_eta0.25_project"
    model, images = load_model(trained_run), open_split(dataset_dir, "val", image_size=16)
    degraded = build_corruption("sr4x-pool", 16)(from_uint8(torch.stack([images.read(i)[0] for i in (3, 1)]))).image
    options = SamplingOptions(nfe=2, seed=5, sampler="eta", eta=0.25, consistency="project")
    steps = []
    restored = model.restore(degraded, **asdict(options), numbers=[3, 1], callback=steps.append)
    for image, index in zip(to_uint8(restored), (3, 1), strict=True):
        with Image.open(folder / f"000/{index:06d}.png") as there:
            assert (pil_to_tensor(there).int() - image.int()).abs().max() <= 1
    assert [step.number for step in steps] == [1, 2] and torch.equal(steps[-1].state, restored)
    path = model.follow(degraded, options, numbers=[3, 1], states=2)
    assert torch.equal(path.x0, restored) and path.states.shape == path.pred_x0s.shape == (2, 2, 3, 16, 16)
    assert torch.equal(path.states[:, 0], restored)
    with pytest.raises(ValueError, match="numbers: 1 for 2 images"):
        model.restore(degraded, nfe=2, numbers=[0])
    with pytest.raises(ValueError, match="cond: this run's network takes no condition"):
        model.restore(degraded, nfe=2, cond=degraded)


def test_what_a_killed_process_left_is_removed_but_not_what_another_is_writing(restore):
    folder = restore(limit=1) / "samples_nfe2"
    own = [".settings.yaml.9.partial", ".manifest.jsonl.9.partial", "000/.000003.png.9.partial"]
    (folder / "trajectories" / "000").mkdir(parents=True)
    for name in (*own, "trajectories/000/.000004.webp.9.partial", "000/.000001.png.9.partial"):
        (folder / name).write_text("half of it")
    restore(partition="1_2")
    left = [path.relative_to(folder).as_posix() for path in folder.rglob("*.partial")]
    assert left == ["000/.000001.png.9.partial"], "number 1 is another part's"


def test_killed_at_five_random_moments_the_files_are_those_of_one_clean_run(tmp_path, trained_run):
    """SIGKILL between any two function calls; the same command until it is done; every byte of every file."""
    for name in ("never-killed", "killed"):
        link_run(trained_run, tmp_path / name)
    flags = ["--ckpt", "tiny", "--nfe", 2, "--device", "cpu", "--workers", 0, "--batch-size", 2]
    extras = ["--save-pt", "--save-trajectory", "--samples", 2]
    said = run_python(ROOT / "tests" / "helpers" / "moments.py", "sample", 5, tmp_path, *flags, *extras).stdout
    starts = [json.loads(line) for line in said.splitlines()]
    assert [start["status"] for start in starts] == [0, *[-signal.SIGKILL] * 5, 0], starts
    want, found = (contents(tmp_path / name / "tiny" / "samples_nfe2") for name in ("never-killed", "killed"))
    assert want.keys() == found.keys() and len(want) == (3 + 5) * 5 + 4
    assert want == found


def test_images_of_a_run_that_was_trained_anew_are_not_kept(restore, trained_run, tmp_path):
    """Its name and iteration are the same, its weights are others."""
    run = restore(limit=1)
    anew = train_anew(trained_run, tmp_path / "anew")
    (run / "samples_nfe2").rename(anew / "samples_nfe2")
    with pytest.raises(UserError, match=r"made with other settings \(weights \w+ there, \w+ now\)"):
        restore(results_dir=str(anew.parent))
    settings = anew / "samples_nfe2/settings.yaml"
    settings.write_text("".join(line for line in settings.open() if not line.startswith("weights:")))
    restore(results_dir=str(anew.parent))  # a folder of an older version, which did not keep it


OWN = """
from corruption import Corrupted, Corruption

class Darker(Corruption):
    def degrade(self, clean, draws):
        return Corrupted(clean - 0.{amount})
"""


def test_images_made_with_code_that_was_changed_are_not_kept(restore, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.format(amount=1))
    corrupt = f"{file}:Darker"
    folder = restore(corrupt=corrupt, limit=1) / "samples_nfe2"
    restore(corrupt=corrupt)  # unchanged: goes on
    file.write_text(OWN.format(amount=2))
    with pytest.raises(UserError, match=r"made with other settings \(code \w+ there, \w+ now\)"):
        restore(corrupt=corrupt)
    settings = folder / "settings.yaml"
    settings.write_text("".join(line for line in settings.open() if not line.startswith("code:")))
    restore(corrupt=corrupt)  # a folder of an older version, which did not keep it
