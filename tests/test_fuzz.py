"""Hostile values for single flags: each is taken, or refused in one line; none ends in a traceback or never."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from helpers.pictures import write_images
from helpers.programs import HANGS
from helpers.tiny_run import TINY, as_flags
from i2sb.cli.program import run_program
from i2sb.config import EvalConfig, SampleConfig, TrainConfig
from i2sb.evaluation.score import run as score
from i2sb.options import flag
from i2sb.sampling.split import run as restore
from i2sb.training.loop import train

QUICK, SLOW = 12, 300  # cases of each program

TEXTS = ("", " ", "-", "--", "a", "é", "\udcff", "a b", "a\nb", "%s%n", "$HOME", "~", "~nobody", "a" * 5000, "*", "\\")
NUMBERS = ("0", "1", "2", "3", "-1", "10", "010", "1000000000", "-1000000000", "0.5", "-0.5", "1e-320", "1e400", "1e9")
OTHERS = (
    "nan",
    "inf",
    "-inf",
    "1:20",
    "1_000",
    "0x10",
    "null",
    "None",
    "true",
    "no",
    "[]",
    "{}",
    "{",
    "[1",
    "a: b",
    "&a",
)
FILES = (
    "pipe",
    "/dev/null",
    "/dev/zero",
    "/etc/passwd",
    "folder",
    "empty",
    "broken.pt",
    "broken.png",
    "..",
    "own/a.png",
)
NAMES = (
    "decolor",
    "jpeg-0",
    "sr4x-pool,decolor",
    "mixture",
    "blur-uni",
    "own.py:A",
    "adm256",
    "tiny",
    "compact",
    "eta",
)

# What only takes long, or needs what is not there: of these a case is not to be told from a hang.
LONG = {"num_itr", "nfe", "eval_nfe", "compile"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained_run, dataset_dir) -> Path:
    """A working directory with hostile files, a run, and a folder of restored images."""
    root = tmp_path_factory.mktemp("fuzz") / "here"
    run = root / "results" / "tiny"
    run.mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (run / name).symlink_to(trained_run / name)
    (root / "data").symlink_to(dataset_dir)
    write_images(root / "own", ["a.png"])
    (root / "folder").mkdir()
    for name in ("empty", "broken.pt", "broken.png"):
        (root / name).write_bytes(b"\x89PNG" * (name != "empty"))
    os.mkfifo(root / "pipe")
    restore(SampleConfig(ckpt="tiny", results_dir=str(root / "results"), device="cpu", workers=0, nfe=1))
    return root


COMMON = ["--ckpt=tiny", "--device=cpu", "--workers=0"]
TRAINING = {**TINY, "num_itr": 1, "eval_every": 1, "eval_nfe": 1, "eval_images": 1, "dataset_dir": "data"}
PROGRAMS = {
    "train": (TrainConfig, train, as_flags(TRAINING)),
    "sample": (SampleConfig, restore, [*COMMON, "--nfe=1", "--limit=1"]),
    "pictures": (SampleConfig, restore, [*COMMON, "--nfe=1", "--input=own", "--output=out"]),
    "score": (EvalConfig, score, [*COMMON, "--sample-dir=samples_nfe1", "--metrics=psnr"]),
}


def draw(program: str, number: int) -> str:
    """Return the flag of a case: a setting of the program with a value out of the lists."""
    chance = random.Random(f"{program} {number}")
    setting = chance.choice(["config", *(f.name for f in fields(PROGRAMS[program][0]) if f.name not in LONG)])
    value = chance.choice([chance.choice(values) for values in (TEXTS, NUMBERS, OTHERS, FILES, NAMES)])
    return f"{flag(setting)}={value}"


def check(program: str, number: int, place: Path, monkeypatch, capsys) -> None:
    config_class, main, flags = PROGRAMS[program]
    case = draw(program, number)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")  # or settings of several processes would start them in place of this one
    monkeypatch.setattr(sys, "argv", ["program.py"])
    before = signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail(f"{case}: hangs", pytrace=False))
    signal.alarm(HANGS)
    status: object = 0
    try:
        run_program(config_class, main, [*flags, *(["--name", f"run{number}"] if program == "train" else []), case])
    except SystemExit as stop:
        status = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr().err
    assert status in (0, 2), (case, status)
    assert "Traceback" not in said and "object at 0x" not in said, (case, said)
    last = said.splitlines()[-1] if said else ""
    assert last.startswith("program.py: error: ") or status == 0, (case, said)


@pytest.mark.parametrize("number", range(QUICK))
@pytest.mark.parametrize("program", PROGRAMS)
def test_hostile_values(program, number, place, monkeypatch, capsys):
    check(program, number, place, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(QUICK, SLOW))
@pytest.mark.parametrize("program", PROGRAMS)
def test_many_hostile_values(program, number, place, monkeypatch, capsys):
    check(program, number, place, monkeypatch, capsys)
