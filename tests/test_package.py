"""What `pip install .` gives: a wheel, installed into an environment of its own, and used from elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from helpers.pictures import make_image
from helpers.programs import ENVIRONMENT, ROOT, run_python

PROGRAMS = {
    "i2sb-train": "train.py",
    "i2sb-sample": "sample.py",
    "i2sb-score": "compute_metrices.py",
    "i2sb-app": "scripts/app.py",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel; what it asks for is there from the tests, which pip checks."""
    source, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "environment"))
    for name in ("i2sb", "corruption"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for folder_of_requirements in ("scripts", "tests"):
        (source / folder_of_requirements).mkdir()
        for path in (ROOT / folder_of_requirements).glob("requirements*.txt"):
            shutil.copy(path, source / folder_of_requirements / path.name)
    check(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", wheels, source)
    check(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    ask_for = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = check(python, "-c", ask_for).strip()
    Path(packages, "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    check(python, "-m", "pip", "install", "--no-deps", *wheels.glob("i2sb-*.whl"))
    complaints = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, check=False).stdout
    assert not [line for line in complaints.splitlines() if line.startswith("i2sb ")], complaints
    return folder


def check(*command: object) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(installed, program: str, *flags: str, cwd) -> subprocess.CompletedProcess[str]:
    """Run an installed program where the project's folder is out of sight."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    command = [installed / "bin" / program, *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_file_of_the_packages_is_installed(installed):
    def files(root):
        found = [path for name in ("i2sb", "corruption") for path in (root / name).rglob("*") if path.is_file()]
        return {path.relative_to(root) for path in found if "__pycache__" not in path.parts}

    (packages,) = installed.glob("lib/python*/site-packages")
    assert files(packages) == files(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_installed_programs_say_what_the_scripts_say(installed, tmp_path, program):
    script = run_python(ROOT / PROGRAMS[program], "--help").stdout
    assert run(installed, program, "--help", cwd=tmp_path).stdout == script.replace(
        Path(PROGRAMS[program]).name, program
    )
    from i2sb import __version__

    assert run(installed, program, "--version", cwd=tmp_path).stdout == f"i2sb {__version__}\n"
    wrong = run(installed, program, "--nonsense", "1", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith(f"{program}: error: ")


@pytest.mark.slow
def test_an_installed_package_restores_with_the_weights_that_it_carries(installed, tmp_path):
    make_image(1, 40, 24).save(tmp_path / "photo.jpg")
    flags = ("--ckpt", "photos-jpeg", "--nfe", "2", "--input", "photo.jpg", "--output", "restored")
    made = run(installed, "i2sb-sample", *flags, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    with Image.open(tmp_path / "restored/photo.jpg") as restored:
        assert restored.size == (40, 24)


@pytest.mark.slow
def test_an_installed_package_restores_and_scores(installed, trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "results/tiny")
    made = run(installed, "i2sb-sample", "--ckpt", "tiny", "--nfe", "2", "--workers", "0", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    flags = ("--ckpt", "tiny", "--sample-dir", "samples_nfe2", "--metrics", "psnr", "--workers", "0")
    scored = run(installed, "i2sb-score", *flags, cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert (tmp_path / "results/tiny/samples_nfe2/report.html").exists()  # its template came along
