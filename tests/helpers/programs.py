"""Programs as real processes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT["no_proxy"] = "127.0.0.1"  # where test_download's server stands

# With these a processor of any age computes as an old one does: it emulates bf16 and fp16. x86 only.
OLD_PROCESSOR = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="others lack such switches")

# After so many seconds a process is taken to hang. A minute is much for one, on a slow and busy machine too.
HANGS = 1200


def run_python(
    *arguments: object, cwd: Path = ROOT, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run python as a real process; with `check` its failure fails the test, showing what it printed.

    env: environment variables besides the tests' own.
    """
    command = [sys.executable, *map(str, arguments)]
    variables = {**ENVIRONMENT, **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=HANGS)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done
