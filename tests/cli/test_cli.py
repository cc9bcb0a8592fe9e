"""Bad input at the command line: one clear line, exit status 2, nothing lost."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from helpers.pictures import write_images
from helpers.programs import run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.cli.program import run_program
from i2sb.config import EvalConfig, SampleConfig, TrainConfig


@pytest.fixture
def program(monkeypatch, capsys):
    """Run a program's main in this process; returns its exit status and what it said on standard error."""

    def run(config_class, main, arguments):
        monkeypatch.setattr(sys, "argv", ["program.py"])
        capsys.readouterr()
        try:
            run_program(config_class, main, [str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


@pytest.fixture
def train(program, tmp_path, dataset_dir):
    def run(**changes):
        from i2sb.training.loop import train

        settings = {**TINY, "name": "run", "results_dir": tmp_path / "results", "dataset_dir": dataset_dir, **changes}
        return program(TrainConfig, train, as_flags(settings))

    return run


def assert_one_line(status, said, *words):
    assert status == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("program.py: error: ") and "Traceback" not in said, said
    for word in words:
        assert word in last, last


def forget_settings(checkpoint):
    """Make a checkpoint one of an older version, which kept no settings in it."""
    state = torch.load(checkpoint, weights_only=True)
    del state["settings"]
    torch.save(state, checkpoint)
    (checkpoint.parent / "checkpoints.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_dir": "/nowhere"}, ["--dataset-dir /nowhere: there is no such folder"]),
        ({"interval": 11, "eval_nfe": 2}, ["--interval 11: must be even", "such as 12"]),
        ({"eval_nfe": 1000}, ["--eval-nfe 1000: must be between 1 and 999"]),
        ({"batch_size": 5}, ["--batch-size 5: must be a multiple of --microbatch 2"]),
        ({"batch_size": 14}, ["--batch-size 14: larger than the 12 images"]),
        ({"corrupt": "sr4x-poll"}, ["--corrupt sr4x-poll: unknown degradation", "did you mean sr4x-pool?"]),
        ({"corrupt": "paired"}, ["--corrupt paired: but", "holds single images"]),
        ({"image_size": 100, "network": "adm256"}, ["--image-size 100: --network adm256", "96 or 128"]),
        ({"image_size": 18}, ["--image-size 18: images of 18x18 pixels: sr4x needs multiples of 4"]),
        ({"eval_image_size": 17}, ["--eval-image-size 17: --network tiny takes multiples of 2"]),
        ({"eval_image_size": 18}, ["--eval-image-size 18: images of 18x18 pixels"]),
        ({"network": "tinny"}, ["--network tinny: unknown"]),
        ({"ckpt": "other"}, ["--ckpt other: there is no run", "other with a checkpoint"]),
    ],
)
def test_wrong_settings(train, tmp_path, changes, words):
    assert_one_line(*train(**changes), *words)
    assert not (tmp_path / "results").exists(), "something was written"


def test_gpu_that_is_not_there(train):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert_one_line(*train(device="cuda"), "--device cuda: torch finds no GPU")


def test_empty_data_folder(train, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    assert_one_line(*train(dataset_dir=tmp_path / "data"), "data/train: holds no images")


def test_truncated_image_saves_what_was_learned_and_the_run_goes_on_once_it_is_mended(train, tmp_path, dataset_dir):
    data, results = tmp_path / "data", tmp_path / "results"
    shutil.copytree(dataset_dir, data)
    image = data / "train" / "dog" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    status, said = train(dataset_dir=data, save_every=100, eval_every=0, num_itr=9, max_bad_images=0)
    assert "train/dog/3.png: unreadable image" in said and "remove or replace it" in said
    assert_one_line(status, said, "--max-bad-images 0: more training images", "is saved at iteration")
    assert not list(results.glob("run/checkpoint_00000009.pt"))
    image.write_bytes(whole)
    again = {"dataset_dir": data, "save_every": 100, "eval_every": 0, "num_itr": 9}
    assert_one_line(*train(**again), "images were replaced under their names", "--allow-changed-data")
    assert train(**again, allow_changed_data=True)[0] == 0
    assert list(results.glob("run/checkpoint_00000009.pt"))


def test_truncated_validation_image_saves_what_was_learned(train, tmp_path, dataset_dir):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    (data / "val" / "cat" / "0.png").write_bytes(b"")
    assert_one_line(*train(dataset_dir=data, save_every=100, eval_every=3), "val/cat/0.png: unreadable image")
    assert (tmp_path / "results" / "run" / "checkpoint_00000003.pt").exists()


def test_averaged_weights_of_another_network_are_named(train, program, tmp_path):
    from i2sb.sampling.split import run as restore

    assert train(num_itr=2, eval_every=0)[0] == 0
    path = tmp_path / "results" / "run" / "checkpoint_00000002.pt"
    state = torch.load(path, weights_only=True)
    state["ema"]["shadow_params"].pop()
    torch.save(state, path)
    (path.parent / "checkpoints.json").unlink()
    assert_one_line(*program(SampleConfig, restore, ["--ckpt", "run", "--results-dir", path.parent.parent]), "ema")


def test_run_of_another_architecture_or_setting_is_refused_and_kept(train, tmp_path):
    assert train(num_itr=2, eval_every=0)[0] == 0
    run = tmp_path / "results" / "run"
    forget_settings(run / "checkpoint_00000002.pt")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert_one_line(*train(network="small64"), "--network tiny there, small64 now", "another --name")
    assert_one_line(*train(interval=100, eval_nfe=2), "--interval 1000 there, 100 now")
    # The settings agree, the weights do not: someone put another run's checkpoint there.
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("network: tiny", "network: small64"))
    assert_one_line(*train(network="small64"), "checkpoint_00000002.pt: holds another architecture", "missing")
    (run / "config.yaml").write_bytes(before["config.yaml"])
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("line", "edited", "differences"),
    [
        ("corrupt: sr4x-pool", "corrupt: jpeg-5", "--corrupt sr4x-pool there, jpeg-5 now"),
        ("beta_max: 0.3", "beta_max: 1.0", "--beta-max 0.3 there, 1.0 now"),
        ("ot_ode: false", "ot_ode: true", "--ot-ode False there, True now"),
        ("network: tiny", "network: mini", "--network tiny there, mini now"),
    ],
)
def test_a_run_whose_config_was_edited_does_not_go_on(train, program, tmp_path, line, edited, differences):
    from i2sb.training.loop import train as main

    assert train(num_itr=2, eval_every=0)[0] == 0
    run = tmp_path / "results" / "run"
    config = run / "config.yaml"
    before = config.read_text().replace("num_itr: 2", "num_itr: 3")  # which may change
    config.write_text(before.replace(line, edited))
    words = f"config.yaml: was edited: checkpoint_00000002.pt was trained with other settings ({differences}); put"
    for changes in ([], ["--name", "next", "--ckpt", "run"]):
        assert_one_line(*program(TrainConfig, main, ["--config", config, *changes]), words)
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    config.write_text(before)
    assert program(TrainConfig, main, ["--config", config])[0] == 0
    assert (run / "checkpoint_00000003.pt").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_from_the_checkpoint_of_one_of_another_task(train, tmp_path):
    """It fits the network."""
    runs = tmp_path / "results"
    assert train(num_itr=2, eval_every=0)[0] == 0
    assert train(num_itr=2, eval_every=0, name="other", corrupt="jpeg-5")[0] == 0
    for name in ("checkpoint_00000002.pt", "checkpoints.json"):
        shutil.copy(runs / "other" / name, runs / "run" / name)
    words = "checkpoint_00000002.pt was trained with other settings (--corrupt jpeg-5 there, sr4x-pool now)"
    assert_one_line(*train(num_itr=3, eval_every=0), words)


def test_a_run_of_an_older_version_which_kept_no_settings_goes_on(train, tmp_path):
    assert train(num_itr=2, eval_every=0)[0] == 0
    forget_settings(tmp_path / "results" / "run" / "checkpoint_00000002.pt")
    assert train(num_itr=3, eval_every=0)[0] == 0
    assert (tmp_path / "results" / "run" / "checkpoint_00000003.pt").exists()


@pytest.mark.parametrize(
    ("part", "edit"),
    [
        ("ema", lambda state: state["shadow_params"].pop()),
        ("optimizer", lambda state: state["param_groups"].clear()),
        ("optimizer", lambda state: state.pop("state")),
        ("progress", lambda state: state.update(unknown=1)),
    ],
)
def test_checkpoint_whose_parts_were_edited(train, tmp_path, part, edit):
    assert train(num_itr=2, eval_every=0)[0] == 0
    path = tmp_path / "results" / "run" / "checkpoint_00000002.pt"
    state = torch.load(path, weights_only=True)
    edit(state[part])
    torch.save(state, path)
    (path.parent / "checkpoints.json").unlink()
    assert_one_line(*train(num_itr=4, eval_every=0), f"checkpoint_00000002.pt: its {part} does not fit this run")


def test_checkpoint_cut_off_in_the_middle(train, program, tmp_path):
    assert train(num_itr=4, eval_every=0)[0] == 0
    run = tmp_path / "results" / "run"
    newest = run / "checkpoint_00000004.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    status, said = train(num_itr=4, eval_every=0)
    assert status == 0 and "checkpoint_00000004.pt: broken checkpoint" in said
    for path in run.glob("checkpoint_*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert_one_line(*train(num_itr=4, eval_every=0), "none of its 2 checkpoints is whole")

    from i2sb.sampling.split import run as restore

    flags = ["--ckpt", "run", "--results-dir", run.parent]
    assert_one_line(*program(SampleConfig, restore, flags), "none of its 2 checkpoints is whole")


def test_places_that_cannot_be_written_are_named(train, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line(*train(results_dir=tmp_path / "file"), f"{tmp_path}/file")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run").write_text("mine")
    assert_one_line(*train(), "results/run")
    assert (tmp_path / "file").read_text() == (tmp_path / "results" / "run").read_text() == "mine"


def test_folder_that_is_no_run(train, tmp_path):
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "results" / "run" / "thesis.tex").write_text("years of work")
    assert_one_line(*train(), "holds files but no config.yaml")
    assert [path.name for path in (tmp_path / "results" / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nfe", "0"], ["--nfe 0: must be at least 1"]),
        (["--nfe", "1000"], ["--nfe 1000", "between 1 and 999 evaluations"]),
        (["--partition", "2_2"], ["--partition 2_2: write i_n"]),
        (["--dataset-dir", "/nowhere"], ["--dataset-dir /nowhere: there is no such folder"]),
        (["--image-size", "15"], ["--image-size 15: --network tiny takes multiples of 2"]),
        (["--ckpt", "nobody"], ["nobody: there is no such run"]),
        (["--batch-size", "0"], ["--batch-size 0: must be at least 1"]),
    ],
)
def test_wrong_sampling(program, trained_run, flags, words):
    from i2sb.sampling.split import run

    before = sorted(trained_run.rglob("*"))
    common = ["--ckpt", trained_run.name, "--results-dir", trained_run.parent, "--device", "cpu"]
    assert_one_line(*program(SampleConfig, run, [*common, *flags]), *words)
    assert sorted(trained_run.rglob("*")) == before


def test_wrong_scoring(program, trained_run, tmp_path, dataset_dir):
    from i2sb.evaluation.score import run

    common = ["--ckpt", trained_run.name, "--results-dir", trained_run.parent, "--device", "cpu"]
    assert_one_line(*program(EvalConfig, run, common), "--sample-dir: is missing; name a folder of restored images")
    assert_one_line(
        *program(EvalConfig, run, ["--sample-dir", "a"]), "--ckpt: is missing; name the run that was trained"
    )
    for wrong in ("a/b", "../a"):
        said = program(EvalConfig, run, [*common, "--sample-dir", wrong])
        assert_one_line(*said, f"--sample-dir {wrong}: name a folder of restored images inside the run")
    assert_one_line(*program(EvalConfig, run, [*common, "--sample-dir", "none"]), "holds no settings.yaml")
    elsewhere = ["--ckpt", "nowhere", "--results-dir", tmp_path, "--sample-dir", "a"]
    assert_one_line(*program(EvalConfig, run, elsewhere), "nowhere: there is no such run")
    assert_one_line(
        *program(EvalConfig, run, [*common, "--sample-dir", "a", "--mode", "best"]), "--mode best: must be one of"
    )
    results = restore_tiny(program, trained_run, tmp_path)
    mistyped = ["--ckpt", trained_run.name, "--results-dir", results, "--sample-dir", "samples_nfe3"]
    assert_one_line(*program(EvalConfig, run, mistyped), "that do: samples_nfe1")
    for flags, words in (
        (["--metrics", "psnr,fdi"], "--metrics fdi: unknown metric; there are psnr, ssim"),
        (["--require", "best"], "--require best: unknown metric"),
        (["--metrics", "ssim", "--require", "fid"], "--require fid: is not among --metrics ssim"),
        (["--features", "own.py"], "--features own.py: name file and function, as path/to/file.py:function"),
        (["--require", "features-frechet"], "--features: is missing; features-frechet needs the function"),
        (["--reference", "nowhere.npz"], "--reference nowhere.npz: there is no such file"),
        (["--make-reference", "a.npz"], "--make-reference a.npz: give --dataset-dir"),
        (["--make-reference", "a.npz", "--dataset-dir", "d"], "--make-reference a.npz: scores nothing, so leave out"),
        (["--make-reference", "a", "--dataset-dir", "d"], "--make-reference a: name a file that ends in .npz"),
    ):
        said = program(EvalConfig, run, [*common, "--sample-dir", "samples_nfe1", "--results-dir", results, *flags])
        assert_one_line(*said, words)
    make = ["--make-reference", tmp_path / "a.npz", "--dataset-dir", dataset_dir, "--weights-dir", tmp_path]
    assert_one_line(*program(EvalConfig, run, make), "a.npz: needs pt_inception-2015-12-05-6726825d.pth in")


def restore_tiny(program, trained_run, tmp_path):
    """Restore the split once into a results folder of its own; returns the folder."""
    from i2sb.sampling.split import run as restore

    results = tmp_path / "tiny_results"
    (results / "tiny").mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (results / "tiny" / name).symlink_to(trained_run / name)
    flags = ["--ckpt", "tiny", "--results-dir", results, "--device", "cpu", "--workers", 0, "--nfe", 1]
    assert program(SampleConfig, restore, flags)[0] == 0
    return results


def test_scoring_an_unfinished_folder_or_another_data_set(program, trained_run, tmp_path, dataset_dir):
    from i2sb.evaluation.score import run
    from i2sb.sampling.split import run as restore

    results = tmp_path / "results"
    (results / "tiny").mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (results / "tiny" / name).symlink_to(trained_run / name)
    common = ["--ckpt", "tiny", "--results-dir", results, "--device", "cpu", "--workers", 0]
    assert program(SampleConfig, restore, [*common, "--nfe", 1, "--partition", "0_2"])[0] == 0
    score = [*common, "--sample-dir", "samples_nfe1"]
    assert_one_line(*program(EvalConfig, run, score), "3 of 5 images are missing, first number 2")
    write_images(tmp_path / "same_count" / "val", [f"{i}.png" for i in range(5)])
    other = [*score, "--dataset-dir", tmp_path / "same_count"]
    assert_one_line(*program(EvalConfig, run, other), "same_count/val: holds images of other names")
    write_images(tmp_path / "other" / "val", ["a.png"])
    assert_one_line(
        *program(EvalConfig, run, [*score, "--dataset-dir", tmp_path / "other"]), "holds 1 images", "restored from 5"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no settings.yaml"),
        (b"\xca\xfe", "settings.yaml: cannot be read"),
        (b"seed: 0", "settings.yaml: lacks nfe, clip_denoise, run, iteration"),
        (b"[]", "settings.yaml: must hold lines of the form"),
    ],
)
def test_sample_folder_without_its_settings(program, trained_run, tmp_path, content, words):
    from i2sb.evaluation.score import run
    from i2sb.sampling.split import run as restore

    results = tmp_path / "results"
    (results / "tiny").mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (results / "tiny" / name).symlink_to(trained_run / name)
    common = ["--ckpt", "tiny", "--results-dir", results, "--device", "cpu", "--workers", 0]
    assert program(SampleConfig, restore, [*common, "--nfe", 1])[0] == 0
    settings = results / "tiny" / "samples_nfe1" / "settings.yaml"
    whole = settings.read_text()
    settings.unlink()
    if content is not None:
        settings.write_bytes(content)
    assert_one_line(*program(EvalConfig, run, [*common, "--sample-dir", "samples_nfe1"]), words)
    again = program(SampleConfig, restore, [*common, "--nfe", 1])
    assert_one_line(*again, "samples_nfe1", "settings.yaml")
    settings.write_text(whole.replace("image_size: 16", "image_size: null"))
    assert_one_line(
        *program(EvalConfig, run, [*common, "--sample-dir", "samples_nfe1"]),
        "settings.yaml: --image-size null: must be a whole number",
    )


def test_a_fault_of_ours_keeps_its_traceback(program):
    def main(config):
        torch.zeros(3).view(2, 2)

    def library(config):
        torch.utils.data.DataLoader([1], num_workers=-1)

    flags = ["--ckpt", "a"]
    with pytest.raises(RuntimeError):
        program(SampleConfig, main, flags)
    with pytest.raises(ValueError, match="num_workers"):
        program(SampleConfig, library, flags)


@pytest.mark.parametrize("name", ["train.py", "sample.py", "compute_metrices.py"])
def test_programs_as_processes(name):
    shown = run_python(name, "--help")
    assert "--config FILE.yaml" in shown.stdout and "--dry-run" in shown.stdout
    wrong = run_python(name, "--workres", "1", check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(f"{name}: error: unknown setting --workres: did you mean --workers?")
    assert wrong.stderr.count("\n") == 1


def test_dry_run_prints_settings_that_config_reads_back(tmp_path):
    flags = as_flags({**TINY, "name": "a", "dataset_dir": "/nowhere"})
    printed = run_python("train.py", *flags, "--dry-run").stdout
    (tmp_path / "a.yaml").write_text(printed)
    assert run_python("train.py", "--config", tmp_path / "a.yaml", "--dry-run").stdout == printed


@pytest.mark.parametrize(
    "raised",
    ["ValueError('ours')", "KeyError('ours')", "int('banana')", "list(zip([1], [], strict=True))", "(lambda: 1 / 0)()"],
)
def test_a_fault_of_our_own_keeps_its_traceback(raised):
    """Whatever is raised inside our files by mistake, from Python or C: status 1, no line about the user's settings."""
    script = f"""
import sys, i2sb.network_sizes
def spoiled(name):
    error = {raised}
    raise error
spoiled.__code__ = spoiled.__code__.replace(co_filename=i2sb.network_sizes.__file__)
import i2sb.config
i2sb.config.find_network = spoiled
sys.argv = ["train.py", "--name", "a", "--dataset-dir", "b", "--corrupt", "sr4x-pool", "--dry-run"]
import runpy
runpy.run_path("train.py", run_name="__main__")
"""
    done = run_python("-c", script, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "train.py: error" not in done.stderr
