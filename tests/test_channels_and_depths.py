"""Images of other channels and depths, from training to score, with the flags of docs/own-data.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.deep_images import write_deep
from helpers.pictures import make_image
from helpers.programs import run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.config import EvalConfig, SampleConfig, TrainConfig
from i2sb.evaluation.score import run as score
from i2sb.image_files import ARRAY, ARRAYS, PNG, TIFF, Form, read_whole
from i2sb.sampling.split import run as sample
from i2sb.storage.sample_folder import SampleFolder
from i2sb.training.loop import train

QUICK = {**TINY, "num_itr": 2, "eval_every": 2, "eval_images": 2}
# By name: the form of its files, their channels, and the flags that the page gives it.
SETS = {
    "bands": (Form("float32", ARRAY, -1), 5,
              "--corrupt sr4x-pool --image-channels 5 --value-range -1 2 --show-channels 5 3 2"),
    "scans": (Form("uint16", TIFF, None), 1, "--corrupt inpaint-center --image-channels 1"),
    "photographs16": (Form("uint16", PNG, -1), 3, "--corrupt blur-gauss"),
}  # fmt: skip


def read(path: Path, channels: int) -> np.ndarray:
    return read_whole(path.read_bytes(), channels).pixels


def write_mask(path: Path) -> np.ndarray:
    """A hole of 24x20 pixels, and where it is."""
    hole = np.zeros((20, 24), bool)
    hole[4:10, 3:12] = True
    Image.fromarray(hole.astype(np.uint8) * 255).save(path)
    return hole


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_from_training_to_score(tmp_path, name):
    form, channels, flags = SETS[name]
    for split, first in (("train", 0), ("val", 20)):
        write_deep(tmp_path / name / split, 4, form, channels, first=first)
    common = ["--results-dir", tmp_path / "results", "--device", "cpu"]
    tiny = as_flags({key: value for key, value in QUICK.items() if key not in ("corrupt", "device")})
    done = run_python("train.py", "--name", name, "--dataset-dir", tmp_path / name, *flags.split(), *tiny, *common)
    values = "-1 to 2" if name == "bands" else "0 to 65535"
    assert f"the first image {form.dtype}, values from {values}" in done.stdout + done.stderr
    run_dir = tmp_path / "results" / name
    with Image.open(run_dir / "validation" / "iteration_00000002.png") as drawn:
        assert drawn.mode == "RGB"

    common += ["--ckpt", name, "--workers", 0]
    run_python("sample.py", *common, "--nfe", 2, "--save-trajectory")
    folder = run_dir / "samples_nfe2"
    restored = sorted((folder / "000").iterdir())
    assert [path.name for path in restored] == [f"{i:06d}{form.ending}" for i in range(4)]
    assert {read(path, channels).dtype for path in restored} == {np.dtype(form.dtype)}
    before = restored[1].read_bytes()
    restored[1].unlink()
    run_python("sample.py", *common, "--nfe", 2, "--save-trajectory")
    assert restored[1].read_bytes() == before
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [f"000/{path.name}" for path in restored]

    run_python("compute_metrices.py", *common, "--sample-dir", "samples_nfe2")
    report = json.loads((folder / "metrics.json").read_text())
    assert set(report["metrics"]) == {"psnr", "ssim", "mae"}
    assert "put to 0 to 255" in report["metrics"]["psnr"]["definition"]
    assert report["not_computed"]["fid"] == "not computed: is defined for 8-bit RGB images"
    assert (folder / "comparison.png").exists() and (folder / "report.html").exists()

    hole = write_mask(tmp_path / "hole.png")
    out = tmp_path / "restored"
    mask = ["--mask", tmp_path / "hole.png"] if name == "scans" else []
    run_python("sample.py", *common, "--nfe", 2, "--input", tmp_path / name / "val", *mask, "--output", out)
    for path in (tmp_path / name / "val").iterdir():
        pixels = read(path, channels)
        decoded = read_whole((out / path.name).read_bytes(), channels)
        assert decoded.form == form and decoded.pixels.shape == pixels.shape
        if mask:
            assert np.array_equal(decoded.pixels[:, ~hole], pixels[:, ~hole])
            assert (decoded.pixels != pixels)[:, hole].mean() > 0.9


@pytest.mark.parametrize(("dtype", "channels", "ending"), [("uint16", 3, PNG), ("int16", 1, ARRAY)])
def test_what_is_known_of_an_inpainting_comes_back_to_the_last_bit(tmp_path, dtype, channels, ending):
    form = Form(dtype, ending, -1)
    for split in ("train", "val"):
        write_deep(tmp_path / split, 4, form, channels, height=16, width=16)
    place = {"results_dir": str(tmp_path / "results"), "device": "cpu", "workers": 0}
    settings = {**QUICK, **place, "corrupt": "inpaint-center", "image_channels": channels, "eval_every": 0}
    train(TrainConfig(name="holes", dataset_dir=str(tmp_path), **settings))
    sample(SampleConfig(ckpt="holes", nfe=2, **place))
    folder = SampleFolder.open(tmp_path / "results" / "holes" / "samples_nfe2")
    known = np.ones((16, 16), bool)
    known[4:12, 4:12] = False
    for i in range(4):
        clean = read(tmp_path / "val" / f"{i}{ending}", channels)
        restored = folder.load(i, channels).numpy()
        assert restored.dtype == clean.dtype and np.array_equal(restored[:, known], clean[:, known])
        assert (restored[:, ~known] != clean[:, ~known]).mean() > 0.9

    # A picture of one's own: around the hole what was measured, which all answers share.
    source, out = tmp_path / "val" / f"0{ending}", tmp_path / "out"
    how = {"input": str(source), "output": str(out), "corrupt": "inpaint-center", "samples": 2}
    sample(SampleConfig(ckpt="holes", nfe=2, degradation_noise=0.1, **how, **place))
    answers = [read(path, channels) for path in (out / source.name, out / f"answers/{source.name}/1{ending}")]
    assert np.array_equal(answers[0][:, known], answers[1][:, known])
    assert (answers[0][:, known] != read(source, channels)[:, known]).mean() > 0.8  # the others are at a limit
    assert np.load(out / f"answers/{source.name}/std.npy")[:, known].max() == 0


@pytest.mark.slow
def test_a_split_may_mix_depths(tmp_path):
    """Each restored image has its own source's, and scores do not depend on how they are put together."""
    for split in ("train", "val"):
        write_deep(tmp_path / split, 4, Form("uint16"), 3, height=16, width=16)
    make_image(7, 16, 16).save(tmp_path / "val" / "7.png")
    place = {"results_dir": str(tmp_path / "results"), "device": "cpu", "workers": 0}
    train(TrainConfig(name="mixed", dataset_dir=str(tmp_path), **{**QUICK, **place, "corrupt": "inpaint-center"}))
    scores = {}
    for batch_size in (1, 5):
        folder_name = f"by{batch_size}"
        sample(SampleConfig(ckpt="mixed", nfe=2, batch_size=batch_size, sample_dir=folder_name, **place))
        folder = SampleFolder.open(tmp_path / "results" / "mixed" / folder_name)
        assert [folder.load(i).dtype for i in range(5)] == 4 * [torch.uint16] + [torch.uint8]
        assert folder.is_eight_bit([4]) and not folder.is_eight_bit([3])
        score(EvalConfig(ckpt="mixed", sample_dir=folder_name, batch_size=batch_size, **place))
        report = json.loads((folder.path / "metrics.json").read_text())
        assert set(report["metrics"]) == {"psnr", "ssim", "mae"}
        scores[batch_size] = [report["metrics"][name]["restored"] for name in ("psnr", "ssim", "mae")]
    assert scores[1] == pytest.approx(scores[5], rel=1e-3)
    with pytest.raises(ValueError, match=r"save_pt: is for 8-bit images in colour or grey alone"):
        sample(SampleConfig(ckpt="mixed", nfe=2, save_pt=True, **place))


@pytest.mark.parametrize(("form", "channels"), [(Form("float32", ARRAYS, 0), 3), (Form("float64", TIFF, -1), 3)])
def test_floats_around_a_hole_come_back_as_they_were_too(tmp_path, trained_run, form, channels):
    write_deep(tmp_path / "in", 1, form, channels)
    hole = write_mask(tmp_path / "hole.png")
    place = {"results_dir": str(trained_run.parent), "device": "cpu", "output": str(tmp_path / "out")}
    source = tmp_path / "in" / f"0{form.ending}"
    sample(SampleConfig(ckpt="tiny", nfe=2, input=str(source), mask=str(tmp_path / "hole.png"), **place))
    before, after = (read_whole(path.read_bytes(), channels) for path in (source, tmp_path / "out" / source.name))
    assert before.form == after.form and np.array_equal(before.pixels[:, ~hole], after.pixels[:, ~hole])
    assert (before.pixels != after.pixels)[:, hole].mean() > 0.9


def make_floats(tmp_path: Path) -> list[object]:
    """A data set of floats, and a run's flags for it."""
    for split in ("train", "val"):
        write_deep(tmp_path / split, 4, Form("float32", ARRAY, -1), 3)
    tiny = as_flags({key: value for key, value in QUICK.items() if key not in ("corrupt", "results_dir")})
    return ["--name", "run", "--dataset-dir", tmp_path, "--results-dir", tmp_path / "results", *tiny]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--corrupt jpeg-5", "--corrupt jpeg-5: is made of 8-bit images"),
        ("--corrupt sr4x-pool,jpeg-5", "--corrupt sr4x-pool,jpeg-5: is made of 8-bit images"),
        ("--corrupt sr4x-pool --show-channels 4", "--show-channels 4: the images have 3 channels, counted from 1"),
        ("--corrupt sr4x-pool --image-channels 4", "is of shape [20, 24, 3], --image-channels is 4"),
        ("--corrupt sr4x-pool --value-range 0 0.5", "outside of --value-range 0 0.5"),
        ("--corrupt decolor --image-channels 4", "images of 4 channels: decolor needs colour images"),
        ("--corrupt jpeg-5 --image-channels 4", "jpeg needs colour images"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(tmp_path, flags, words, capsys):
    from i2sb.cli.program import run_program

    with pytest.raises(SystemExit) as stop:
        run_program(TrainConfig, train, [*map(str, make_floats(tmp_path)), *flags.split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and words in lines[-1]
