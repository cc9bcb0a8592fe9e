"""What surrounds a program: outputs that break or are closed, terminals, a full disk, a folder that is gone."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.full_disk import full_disk
from helpers.pictures import write_images
from helpers.programs import ENVIRONMENT, HANGS, ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.cli.program import report_errors, run_program
from i2sb.config import EvalConfig, SampleConfig, TrainConfig
from i2sb.evaluation.score import run as score
from i2sb.metrics.frechet import Gaussian
from i2sb.metrics.reference import MadeFrom, write_reference
from i2sb.sampling.split import run as restore
from i2sb.training.loop import train
from scripts.export import export
from scripts.show_corruptions import run as show_corruptions

# A program of ours as short as can be: it says what it is told to, with what surrounds all of them.
SAYS = "import sys; from i2sb.cli.program import report_errors\nwith report_errors(): print(eval(sys.argv[1]))"


def run_shell(command: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, for which $SAYS is that program."""
    env = {**ENVIRONMENT, "PYTHON": sys.executable, "SAYS": SAYS, **variables}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=HANGS)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_the_program_without_a_word(unbuffered):
    done = run_shell("""("$PYTHON" -c "$SAYS" "'x' * 10**6"; echo $? >&2) | head -c 1""", PYTHONUNBUFFERED=unbuffered)
    assert done.stdout == "x" and done.stderr == "141\n"


def test_a_full_disk_under_the_output_is_one_line():
    done = run_shell(""""$PYTHON" -c "$SAYS" "'x'" > /dev/full""")
    assert done.returncode == 2 and done.stderr == "-c: error: cannot write: No space left on device\n"


def test_a_broken_pipe_that_is_not_the_output_keeps_its_traceback():
    with pytest.raises(BrokenPipeError), report_errors():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_names_are_shown_on_every_terminal():
    done = run_shell(""""$PYTHON" -c "$SAYS" "'r\\u00e9 \\udcff …'" """, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "r\\xe9 \\udcff \\u2026\n")


def test_closed_streams_are_none_to_fear(tmp_path, dataset_dir):
    flags = as_flags({**TINY, "num_itr": 1, "eval_every": 0, "name": "run", "results_dir": tmp_path})
    command = ['"$PYTHON"', "train.py", *flags, "--dataset-dir", str(dataset_dir), "<&- >&- 2>&-"]
    assert run_shell(" ".join(command)).returncode == 0
    assert (tmp_path / "run" / "checkpoint_00000001.pt").exists()


# Every program, and words that its flags accept.
PROGRAMS = {
    "train.py": [],
    "sample.py": [],
    "compute_metrices.py": [],
    "scripts/app.py": [],
    "scripts/benchmark.py": ["data", "--quick"],
    "scripts/demo_photos.py": ["out"],
    "scripts/download.py": ["nothing"],
    "scripts/draw_ways.py": ["photo.png", "out", "run"],
    "scripts/export.py": ["run", "out.safetensors"],
    "scripts/fetch_photos.py": ["packages", "out"],
    "scripts/make_lmdb.py": ["images", "out"],
    "scripts/nfe_study.py": ["run", "out"],
    "scripts/show_corruptions.py": ["image.png", "out.png"],
    "scripts/study.py": ["study.yaml"],
}


def test_the_table_has_every_program():
    files = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")]
    assert set(PROGRAMS) == {str(path.relative_to(ROOT)) for path in files if "__main__" in path.read_text()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_working_directory_that_is_gone_is_named(tmp_path, program):
    (tmp_path / "gone").mkdir()
    command = f"""rmdir ../gone; "$PYTHON" {ROOT / program} {" ".join(PROGRAMS[program])}"""
    done = run_shell(command, cwd=tmp_path / "gone")
    said = f"{Path(program).name}: error: the working directory was deleted; change to one that is there\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a program on a disk that takes no file beyond so many bytes; returns the line that it ends with."""

    def run(config_class, main, flags, largest: int) -> str:
        monkeypatch.setattr(sys, "argv", ["program.py"])
        with pytest.raises(SystemExit) as stop, full_disk(largest):
            run_program(config_class, main, [str(flag) for flag in flags])
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


def test_a_full_disk_while_restoring_and_scoring(refused, trained_run, tmp_path):
    run = tmp_path / "tiny"
    run.mkdir()
    for name in ("config.yaml", "latest.pt"):
        (run / name).symlink_to(trained_run / name)
    flags = ["--ckpt", "tiny", "--results-dir", tmp_path, "--device", "cpu", "--workers", 0]
    folder = run / "samples_nfe1"
    said = "program.py: error: {}: File too large"
    for largest, file in ((100, "settings.yaml"), (500, "000/000000.png")):
        assert refused(SampleConfig, restore, [*flags, "--nfe", 1], largest) == said.format(folder / file)
    run_program(SampleConfig, restore, [str(flag) for flag in [*flags, "--nfe", 1]])
    line = refused(SampleConfig, restore, [*flags, "--nfe", 1, "--save-pt"], 6000)
    assert line == said.format(folder / "recon.pt")
    scoring = [*flags, "--sample-dir", "samples_nfe1", "--metrics", "psnr"]
    assert refused(EvalConfig, score, scoring, 100) == said.format(folder / "comparison.png")
    assert refused(EvalConfig, score, scoring, 20_000) == said.format(folder / "report.html")
    assert not (folder / "metrics.json").exists(), "it comes last, so that where it is all is"
    assert not list(run.rglob("*.partial"))

    write_images(tmp_path / "own", ["a.png"])
    own = [*flags, "--nfe", 1, "--input", tmp_path / "own", "--output", tmp_path / "out"]
    assert refused(SampleConfig, restore, own, 0) == said.format(tmp_path / "out" / "manifest.jsonl")
    assert refused(SampleConfig, restore, own, 700) == said.format(tmp_path / "out" / "a.png")


@pytest.mark.parametrize(("largest", "file"), [(0, ".lock"), (100, "data.json"), (600, "config.yaml")])
def test_a_full_disk_as_a_run_begins(refused, tmp_path, dataset_dir, largest, file):
    flags = as_flags({**TINY, "name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir})
    line = refused(TrainConfig, train, flags, largest)
    assert line == f"program.py: error: {tmp_path / 'run' / file}: File too large"


def test_a_full_disk_under_what_other_programs_write(trained_run, tmp_path, capsys):
    write_images(tmp_path, ["a.png"])
    made_from = MadeFrom("n", "", "val", 16, "center", 2, "data", "f", "")
    moments = Gaussian(torch.zeros(64).double(), torch.eye(64).double())
    sheet = argparse.Namespace(
        image=tmp_path / "a.png", out=tmp_path / "sheet.png", names=["decolor"], size=32, degradation_noise=0.0
    )
    for name, write in (
        ("a.safetensors", lambda: export(trained_run, tmp_path / "a.safetensors", raw=False, overwrite=False)),
        ("a.npz", lambda: write_reference(tmp_path / "a.npz", moments, made_from)),
        ("sheet.png", lambda: show_corruptions(sheet)),
    ):
        with pytest.raises(SystemExit) as stop, full_disk(1000), report_errors():
            write()
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith(f"error: {tmp_path / name}: File too large\n")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_users_home_is_where_the_shell_would_have_it(monkeypatch):
    from i2sb.parsing import read_flags

    monkeypatch.setenv("HOME", "/home/me")
    config = read_flags(TrainConfig, ["--name=a", "--dataset-dir=~/data", "--corrupt=decolor", "--results-dir=~"])
    assert (config.dataset_dir, config.results_dir) == ("/home/me/data", "/home/me")
    assert read_flags(SampleConfig, ["--ckpt=a", "--dataset-dir=a/~b"]).dataset_dir == "a/~b"


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("benchmark", ["data", "--json=~/there"], "--json {}/there: is there already"),
        ("download", ["adm256", "--dest=~", "--file=there", "--url=http://127.0.0.1:1"], "{}/there: exists already"),
        ("export", ["run", "out.safetensors", "--results-dir=~"], "{}/run: there is no such run"),
        ("nfe_study", ["run", "out", "--results-dir=~"], "{}/run: there is no such run"),
    ],
)
def test_it_is_so_in_the_flags_of_scripts(tmp_path, script, flags, words):
    (tmp_path / "there").touch()
    done = run_python(ROOT / "scripts" / f"{script}.py", *flags, cwd=tmp_path, check=False, env={"HOME": str(tmp_path)})
    assert done.returncode == 2 and words.format(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
