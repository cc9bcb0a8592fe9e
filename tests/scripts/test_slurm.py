"""scripts/slurm.sbatch, driven by stand-ins for SLURM's commands that behave as its documents say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.programs import ENVIRONMENT, HANGS, ROOT
from helpers.tiny_run import TINY, as_flags
from i2sb.storage.checkpoint import read_checkpoint

# srun hands SIGUSR1 on to its task and makes SIGKILL of SIGTERM; scancel --signal reaches the task of a step.
COMMANDS = {
    "srun": """
import os, signal, subprocess, sys
place = os.environ["STUBS"]
options = [a for a in sys.argv[1:] if a.startswith("--")][:2]
open(f"{place}/srun_options", "w").write(" ".join(options))
task = subprocess.Popen([a for i, a in enumerate(sys.argv[1:]) if i >= len(options)], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: task.kill())
signal.signal(signal.SIGUSR1, lambda *_: task.send_signal(signal.SIGUSR1))
open(f"{place}/task_of_{os.environ['SLURM_JOB_ID']}.0", "w").write(str(task.pid))
sys.exit(task.wait() & 0xFF)
""",
    "scancel": """
import os, signal, sys
(name, step) = sys.argv[1:]
number = getattr(signal, "SIG" + name.removeprefix("--signal="))
os.kill(int(open(f"{os.environ['STUBS']}/task_of_{step}").read()), number)
""",
    "scontrol": """
import os, sys
if sys.argv[1] == "show":
    print("localhost")
else:
    open(f"{os.environ['STUBS']}/requeued", "w").write(" ".join(sys.argv[1:]))
""",
}

# SLURM's signal comes while the third batch is degraded.
DEGRADATION = """
import os, signal
from corruption import Corrupted, Corruption

class Stop(Corruption):
    calls = 0
    def degrade(self, clean, draws):
        Stop.calls += 1
        # Once the job is gone this fails, so that nothing that a failing test leaves behind trains on.
        os.kill(int(os.environ["BATCH"]), signal.SIGUSR1 if Stop.calls == 6 else 0)
        return Corrupted(clean * 0.5)
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_whose_time_is_up_is_saved_and_queued_again(tmp_path, dataset_dir):
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, code in COMMANDS.items():
        (stubs / name).write_text(f"#!{sys.executable}\n{code}")
        (stubs / name).chmod(0o755)
    (tmp_path / "stop.py").write_text(DEGRADATION)
    places = {"name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir, "corrupt": f"{tmp_path}/stop.py:Stop"}
    flags = as_flags({**TINY, "num_itr": 100_000, "save_every": 100_000, "eval_every": 0, **places})
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    job |= {"SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "64", "STUBS": str(stubs), "PYTHON": sys.executable}
    printed, errors = tmp_path / "printed", tmp_path / "errors"  # a pipe would wait for what the job left behind
    with open(printed, "w") as out, open(errors, "w") as err:
        done = subprocess.run(
            ["bash", "-c", 'export BATCH=$$; exec bash scripts/slurm.sbatch "$@"', "sbatch", *flags],
            cwd=ROOT,
            env={**ENVIRONMENT, **job, "PATH": f"{stubs}:{ENVIRONMENT['PATH']}"},
            stdout=out,
            stderr=err,
            timeout=HANGS,
        )
    said = errors.read_text()
    assert done.returncode not in (0, 9), said
    assert "stopped by SIGTERM" in said and "queued again" in printed.read_text()
    assert (stubs / "requeued").read_text() == "requeue 123"
    assert (stubs / "srun_options").read_text() == "--kill-on-bad-exit=1 --cpus-per-task=64"
    assert read_checkpoint(Path(tmp_path / "run/latest.pt"))["progress"]["iteration"] >= 2
