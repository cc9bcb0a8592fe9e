"""The study: a tiny one from end to end, killed and started again; what it refuses; what it reports."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers.programs import ENVIRONMENT, ROOT, run_python
from helpers.tiny_run import TINY
from i2sb.cli.program import describe

NOT_OF_TRAINING = ("corrupt", "num_itr", "eval_every")


def settings(folder: Path, dataset_dir: Path) -> dict:
    """A study of one linear task and one that is not, with every formulation."""
    train = {name: value for name, value in TINY.items() if name not in NOT_OF_TRAINING}
    train |= {"dataset_dir": str(dataset_dir), "num_itr": 3, "eval_every": 0}
    return {
        "results_dir": str(folder / "study"),
        "tasks": {"sr4x-pool": None, "jpeg": {"corrupt": "jpeg-5", "ot_ode": True}},
        "formulations": {
            "bridge": {"samplers": ["posterior"]},
            "conditional_diffusion": {"train": {"schedule": "cosine"}, "samplers": ["ddim"], "sample": {"eta": 0.5}},
            "regression": None,
            "diffusion": None,
        },
        "nfe": [1, 2],
        "train": train,
        "sample": {"workers": 0, "device": "cpu", "clip_denoise": True},
        "score": {"workers": 0, "device": "cpu", "metrics": "ssim"},
        "sheet_nfe": 2,
    }


def write(folder: Path, study: dict) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset_dir) -> Path:
    """The folder of a study that was killed twice, once while training and once while scoring, and then finished."""
    folder = tmp_path_factory.mktemp("study")
    path = write(folder, settings(folder, dataset_dir))
    for said in (b"begun with random weights", b"metrics.json"):
        with subprocess.Popen(
            [sys.executable, "scripts/study.py", str(path)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            heard = b""
            while said not in heard:
                byte = process.stdout.read(1)
                assert byte, heard.decode()
                heard += byte
            process.kill()
        assert process.returncode == -signal.SIGKILL
    run_python("scripts/study.py", path)
    return folder / "study"


@pytest.mark.slow
def test_every_cell_is_scored_and_impossible_ones_are_named(finished):
    results = json.loads((finished / "results.json").read_text())
    assert not results["pending"]
    found = {(c["task"], c["formulation"], c["sampler"], c["nfe"]) for c in results["cells"]}
    tasks = ("sr4x-pool", "jpeg")
    assert found == {
        *((task, "bridge", "posterior", nfe) for task in tasks for nfe in (1, 2)),
        *((task, "conditional_diffusion", "ddim", nfe) for task in tasks for nfe in (1, 2)),
        *((task, "regression", "direct", 1) for task in tasks),
        *(("sr4x-pool", "diffusion", sampler, nfe) for sampler in ("ddnm", "ddrm") for nfe in (1, 2)),
    }
    reasons = {(left["task"], left["formulation"], left["nfe"]): left["reason"] for left in results["left_out"]}
    assert "JPEG has none" in reasons["jpeg", "diffusion", 1]
    assert "one evaluation" in reasons["sr4x-pool", "regression", 2]
    for cell in results["cells"]:
        assert set(cell["metrics"]) == {"psnr", "ssim"} and cell["images"] == 5
        assert cell["metrics"]["psnr"]["restored"] > 2
        assert cell["condition_parameters"] == (864 if cell["formulation"] == "conditional_diffusion" else 0)
        assert cell["settings"]["eta"] == {"ddim": 0.5, "ddnm": 0.85, "ddrm": 0.85}.get(cell["sampler"], 1.0)
    equal = {cell["parameters"] - cell["condition_parameters"] for cell in results["cells"]}
    assert len(equal) == 1


@pytest.mark.slow
def test_the_other_forms_say_the_same(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = list(csv.DictReader((finished / "results.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(results["cells"])
    for row, cell in zip(rows[::2], results["cells"], strict=True):
        assert row["metric"] == "psnr" and float(row["restored"]) == cell["metrics"]["psnr"]["restored"]
    table = (finished / "table.txt").read_text()
    assert "14 of 14 done, 0 to do" in table and "·" not in table
    assert "left out: jpeg, diffusion, NFE 1, 2: --formulation diffusion" in table
    for cell in results["cells"]:
        assert f"{cell['metrics']['psnr']['restored']:.2f}" in table
    assert {path.name for path in (finished / "plots").iterdir()} == {
        f"{task}_{metric}.png" for task in ("sr4x-pool", "jpeg") for metric in ("psnr", "ssim")
    }
    with Image.open(finished / "sheets" / "sr4x-pool.png") as sheet, Image.open(finished / "sheets/jpeg.png") as other:
        # A column for each method, two of them of the diffusion, which JPEG has none of.
        assert sheet.width > other.width > 4 * 128 and sheet.height > 4 * 128


@pytest.fixture
def study_program(monkeypatch, capsys):
    """Run scripts/study.py in this process; returns its exit status and what it said, both streams together."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study

    def run(path: Path, *flags: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["study.py", str(path), *flags])
        try:
            study.main()
        except SystemExit as stop:
            return stop.code, "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


@pytest.mark.slow
def test_finished_work_is_not_done_again_and_other_settings_are_refused(finished, dataset_dir, tmp_path, study_program):
    """One run serves all tasks where training does not see them; weights and images stay as they are."""
    made = [path for path in finished.rglob("*") if path.suffix == ".pt" or path.parent.name == "000"]
    kept = {path: path.stat().st_mtime_ns for path in made}
    assert len([path for path in kept if path.name == "latest.pt"]) == 7
    study = settings(finished.parent, dataset_dir)
    status, said = study_program(write(tmp_path, study))
    assert status == 0 and said.count("14 of 14 done") == 1 and "[1/14]" not in said
    # Scored otherwise: no image is made again, nor any iteration.
    study["score"]["batch_size"] = 3
    status, said = study_program(write(tmp_path, study))
    assert status == 0 and "[14/14]" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for section, change, words in (
        ("train", {"lr": 0.5}, "--lr 0.001 there, 0.5 now"),
        ("train", {"num_itr": 2}, "was trained to iteration 3, beyond num_itr 2"),
        ("sample", {"clip_denoise": False}, "was restored with clip_denoise True, it is False now"),
        ("sample", {"image_size": 32}, "was restored with image_size 16, it is 32 now"),
        ("train", {"num_itr": 4}, "was restored at iteration 3, num_itr is 4 now"),
    ):
        changed = {**study, section: {**study[section], **change}}
        status, said = study_program(write(tmp_path, changed))
        assert status == 2 and words in said.strip().splitlines()[-1], said
    results = (finished / "results.csv").read_bytes()
    assert results.count(b"\n") == 2 * 14 + 1
    # An image that is gone is restored again, and the very same.
    lost = next(path for path in kept if path.parent.name == "000")
    image = lost.read_bytes()
    lost.unlink()
    status, said = study_program(write(tmp_path, study))
    assert status == 0 and "1 to restore here" in said and lost.read_bytes() == image
    kept.pop(lost)
    # Tasks in another order, and one more: what is there serves again.
    study["tasks"] = {"decolor": None, **dict(reversed(study["tasks"].items()))}
    status, said = study_program(write(tmp_path, study))
    assert status == 0 and "[1/23] task decolor" in said and "23 of 23 done" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_dry_run_says_how_long_and_leaves_nothing(tmp_path, dataset_dir, study_program):
    study = settings(tmp_path, dataset_dir)
    (tmp_path / "one.txt").write_text("2.png")
    study["formulations"] = {"bridge": {"samplers": ["posterior"]}, "regression": None}
    study["sample"]["subset"] = str(tmp_path / "one.txt")
    study["train"]["num_itr"] = 3_000_000
    status, said = study_program(write(tmp_path, study), "--dry-run")
    assert status == 0 and said.count("s an iteration") == 2 and "4 runs to train: " in said
    assert "6 of 6 folders to restore and score, 6 images in all: " in said
    assert "images from number" not in said and "ready for" not in said  # what the programs say
    assert "days" in said or "hours" in said
    assert not (tmp_path / "study").exists()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Return the plan of a study's settings."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from studies.plan import make_plan
    from studies.settings import read_study

    def plan(study: dict):
        path = write(tmp_path, study)
        return make_plan(read_study(path), path)

    return plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"formulations": {"bridges": {}}}, "formulations, bridges: unknown; there are bridge, student"),
        ({"formulations": {"bridge": {"sampler": "eta"}}}, "formulations, bridge: unknown sampler: train, sample"),
        ({"formulations": {"bridge": {"samplers": ["ddim"]}}}, "with bridge: --sampler ddim: unknown to this run"),
        ({"tasks": {"sr4x-pool": {"network": "mini"}}}, "network is the same for all: put it under train"),
        ({"formulations": {"bridge": {"train": {"ema": 0.5}}}}, "ema is the same for all: put it under train"),
        ({"sample": {"nfe": 3}}, "sample: nfe is what the study decides: leave it out"),
        ({"tasks": {"sr4x-pool": ["mini"]}}, "tasks, sr4x-pool: must hold lines of the form"),
        ({"formulations": {"bridge": {"samplers": "eta"}}}, "formulations, bridge, samplers: must be a list of names"),
        ({"formulations": {"bridge": {"train": 3}}}, "formulations, bridge, train: must hold lines of the form"),
        ({"tasks": {}}, "tasks: must be a dict, and not empty"),
        ({"tasks": {"a/b": None}}, "tasks, a/b: begin with a letter or digit"),
        ({"tasks": {1: None}}, "tasks, 1: begin with a letter or digit"),
        ({"tasks": {"a": {"corrupt": 5}}}, "tasks, a, corrupt: must be text"),
        ({"tasks": {"sr5x": None}}, "tasks, sr5x, with bridge: --corrupt sr5x: unknown"),
        ({"sample": {"corrupt": "decolor"}}, "sample: corrupt is a task's own: put it under tasks"),
        ({"formulations": {"bridge": {"train": {"corrupt": "decolor"}}}}, "train: corrupt is a task's own"),
        ({"sample": {5: 3}}, "sample: 5: is no setting"),
        ({"score": {"metrics": None}}, "score: --metrics: has no value; give one, or leave the line out"),
        ({"sample": {"limit": 2}}, "sample: limit is what the study decides"),
        ({"sample": {"eta": 0.5}}, "with bridge: --eta 0.5: --sampler posterior does not use it"),
        ({"sample": {"consistency": "gradient"}}, "tasks, jpeg, with bridge: --consistency gradient: the rounding of"),
        ({"score": {"metrics": "fidd"}}, "with bridge: score: --metrics fidd"),
        ({"score": {"metrcs": "ssim"}}, "with bridge: score: unknown setting --metrcs: did you mean --metrics"),
        (
            {"tasks": {"jpeg-5": None}, "formulations": {"diffusion": None}},
            "nothing can be done: --formulation diffusion",
        ),
        ({"seeds": [0, 0]}, "seeds [0, 0]: must be whole numbers, 0 or more, each once"),
        ({"sheet_images": 0}, "sheet_images 0: must be at least 1"),
        ({"nfe": [0]}, "nfe [0]: must be whole numbers, 1 or more"),
        ({"epochs": 3}, "unknown setting epochs: there are results_dir, tasks"),
        ({"train": {"lerning_rate": 1}}, "unknown setting --lerning-rate"),
    ],
)
def test_wrong_studies_are_named(tmp_path, dataset_dir, plan, change, words):
    with pytest.raises(ValueError) as error:
        plan({**settings(tmp_path, dataset_dir), **change})
    said = describe(error.value)
    assert said.startswith(f"{tmp_path}/study.yaml: ") and words in said


def test_validation_that_a_formulation_cannot_do_is_refused_before_anything_is_trained(tmp_path, dataset_dir, plan):
    study = settings(tmp_path, dataset_dir)
    study["train"] |= {"eval_every": 2, "eval_nfe": 2}
    with pytest.raises(ValueError, match="with regression: `eval_nfe` 2: a regression restores in one evaluation"):
        plan(study)
    plan({**study, "train": {**study["train"], "eval_nfe": 1}})


def test_all_formulations_get_the_holes_of_the_task(tmp_path, dataset_dir, plan):
    study = settings(tmp_path, dataset_dir)
    masks = tmp_path / "masks.npz"
    holes = np.zeros((3, 8192), dtype=np.uint8)
    holes[:, :1200] = 255
    np.savez(masks, **{"10-20% freeform": holes})
    study["train"]["image_size"] = 256  # the published masks' size
    study["tasks"] = {"inpaint-freeform1020": {"mask_file": str(masks)}, "sr4x-pool": None}
    for cell in plan(study).cells:
        assert cell.config.mask_file == (str(masks) if cell.task != "sr4x-pool" else ""), cell
        assert cell.run.config.mask_file == ("" if cell.formulation == "diffusion" else cell.config.mask_file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": {"sr4x-pool": None, "paired": None}}, "--corrupt paired: but"),
        ({"sample": {"dataset_dir": "/nope"}}, "/nope"),
        ({"sample": {"subset": "/nope.txt"}}, "/nope.txt"),
        ({"sample": {"image_size": 17}}, "--image-size 17: --network tiny takes multiples of 2"),
        ({"sample": {"image_size": 18}}, "images of 18x18 pixels"),
    ],
)
def test_data_that_is_not_there_is_named_before_anything_is_trained(
    tmp_path, dataset_dir, study_program, change, words
):
    status, said = study_program(write(tmp_path, {**settings(tmp_path, dataset_dir), **change}))
    assert status == 2 and words in said and said.count("\n") == 1 and not (tmp_path / "study").exists()


@pytest.mark.parametrize("text", ["", "- a", "nfe: [1", "a: 1\na: 2", "\x00"])
def test_files_that_are_no_studies_are_named(tmp_path, study_program, text):
    (tmp_path / "a.yaml").write_text(text)
    status, said = study_program(tmp_path / "a.yaml")
    assert status == 2 and said.startswith(f"study.py: error: {tmp_path}/a.yaml: ") and said.count("\n") == 1
    status, said = study_program(tmp_path / "b.yaml")
    assert status == 2 and "b.yaml: there is no such file" in said


def test_its_folder_may_be_in_the_users_home(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from studies.settings import read_study

    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, {**settings(tmp_path, tmp_path), "results_dir": "~/study"})
    assert read_study(path).folder == tmp_path / "study"


def test_the_shipped_study_is_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from studies.plan import make_plan
    from studies.settings import read_study

    paths = list((ROOT / "configs" / "studies").glob("*.yaml"))
    assert paths
    for path in paths:
        plan = make_plan(read_study(path), path)
        assert len(plan.cells) > 10
