"""docs/tutorial.md as it stands: its commands run in order in a copy of the project, and do what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.programs import ENVIRONMENT, HANGS, ROOT
from i2sb.metrics.pixels import psnr

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
PARTS = ("i2sb", "corruption", "configs", "scripts", "weights")


def copy_project(folder: Path) -> None:
    """Copy what the tutorial uses, with this environment as the one that its set-up finds there already."""
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.txt")]:
        shutil.copy(path, folder)
    installed = folder / ".venv" / "installed"
    for requirements in re.findall(r"\S+\.txt", BLOCKS[0]):
        (installed / requirements).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / requirements, installed / requirements)
    # The interpreter is called, not linked: a link would look for its packages here.
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (python.parent / "activate").write_text(f'PATH="{python.parent}:$PATH"\n')


def read_pixels(path: Path):
    import torch
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    with Image.open(path) as image:
        return torch.stack([pil_to_tensor(image.convert("RGB"))])


@pytest.mark.slow
def test_its_commands_do_what_it_says(tmp_path):
    copy_project(tmp_path)
    environment = {**ENVIRONMENT, "PYTHONPATH": ""}
    script = "".join(["set -euo pipefail\n", *BLOCKS])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "reused" in done.stdout  # nothing was installed

    photo = read_pixels(tmp_path / "photo.jpg")
    clean = read_pixels(tmp_path / "my_photos" / "val" / "coffee.png")
    for folder in ("restored", "restored_by_first"):
        restored = read_pixels(tmp_path / folder / "photo.jpg")
        assert psnr(restored, clean).item() > psnr(photo, clean).item() + 0.5

    run_dir = tmp_path / "results" / "first"
    drawn = [path.name for path in sorted((run_dir / "validation").glob("iteration_*.png"))]
    assert drawn == [f"iteration_{iteration:08d}.png" for iteration in (50, 100, 150)]
    samples = run_dir / "samples_nfe1"
    assert (samples / "report.html").stat().st_size > 0
    scores = json.loads((samples / "metrics.json").read_text())["metrics"]["psnr"]
    assert scores["restored"] > scores["degraded"] + 1.0
