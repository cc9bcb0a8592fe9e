"""What a cluster does to a run: kills, signals, dying processes, full disks, bad batches, a second start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.comparison import assert_equal_states
from helpers.programs import ENVIRONMENT, HANGS, ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.stopping import STOPPED
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint

ITERATIONS = 8
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def flags(tmp_path, dataset_dir):
    """Flags of a tiny run in tmp_path."""

    def make(**changes) -> list[str]:
        places = {"name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir}
        return as_flags({**TINY, "num_itr": ITERATIONS, "eval_every": 0, **places, **changes})

    return make


def final_state(run_dir: Path) -> dict:
    path, state = find_checkpoint(run_dir)
    assert path.name == f"checkpoint_{ITERATIONS:08d}.pt"
    state.pop("kept", None)  # what identifies files, which safetensors writes in an order of its own each time
    return state


def records(run_dir: Path, event: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


# With the status that each ends a run with.
SIGNALS = [
    ("SIGTERM", STOPPED),
    pytest.param("SIGUSR1", STOPPED, marks=pytest.mark.slow),
    ("SIGINT", 130),
]

# Runs train.py; at the n-th optimizer step, ACTION happens on the processes it is meant for.
AT_STEP = """
import os, runpy, signal, sys, time
import torch
count, action = int(sys.argv[1]), sys.argv[2]
sys.argv = ["train.py", *sys.argv[3:]]
rank, restarts = int(os.environ.get("RANK", 0)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
original, calls = torch.optim.AdamW.step, 0
def step(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        exec(action)
    return original(self, *args, **kwargs)
torch.optim.AdamW.step = step
runpy.run_path("train.py", run_name="__main__")
"""


def run_with(tmp_path: Path, count: int, action: str, flags: list[str], *launcher: str):
    script = tmp_path / "at_step.py"
    script.write_text(AT_STEP)
    return run_python(*launcher, script, count, action, *flags, check=False)


# --- Kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["bridge", "student"])
def test_killed_at_twenty_random_moments_and_started_again_ends_the_same(tmp_path, flags, trained_run, student):
    """SIGKILL between any two function calls, in the middle of saving too; the same command until it is done."""
    settings = flags(distill=trained_run, inner_updates=2) if student else flags()
    del settings[settings.index("--name") : settings.index("--name") + 2]
    said = run_python(ROOT / "tests" / "helpers" / "moments.py", 20, *settings).stdout
    starts = [json.loads(line) for line in said.splitlines()]
    killed = [start for start in starts if start["moment"] is not None]
    assert len(killed) == 20 and all(start["status"] == -signal.SIGKILL for start in killed), starts
    assert all(start["status"] == 0 for start in starts if start["moment"] is None), starts
    want = final_state(tmp_path / "never-killed")
    names = {start["name"] for start in starts}
    assert len(names) == 6
    for name in names:
        assert_equal_states(final_state(tmp_path / name), want)
        assert not list((tmp_path / name).glob("*.partial")), "a temporary file is left"


# --- Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), SIGNALS)
def test_a_signal_lets_the_iteration_finish_and_saves(tmp_path, flags, name, status):
    done = run_with(tmp_path, 3, f"os.kill(os.getpid(), signal.{name})", flags(save_every=100))
    assert done.returncode == status and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"stopped by {name}" in last and "is saved at iteration 3; the same command goes on from there" in last
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] and read_checkpoint(tmp_path / "run/latest.pt")
    run_python("train.py", *flags(save_every=100))
    run_python("train.py", *flags(save_every=100, name="never"))
    assert_equal_states(final_state(tmp_path / "run"), final_state(tmp_path / "never"))


WORKERS = "w = [p.pid for p in __import__('multiprocessing').active_children()]; assert w"


@pytest.mark.parametrize(("name", "status"), SIGNALS)
def test_a_signal_to_the_loader_processes_too_lets_the_iteration_finish(tmp_path, flags, name, status):
    """As a cluster, a terminal and `timeout` send it: to the whole group of processes."""
    # From another process: a loader process takes SIGTERM from its own parent for the end.
    kill = ["kill", "-s", name.removeprefix("SIG")]
    action = f"{WORKERS}; import subprocess; subprocess.run([*{kill}, *map(str, (*w, os.getpid()))])"
    done = run_with(tmp_path, 3, action, flags(save_every=100, workers=1))
    assert done.returncode == status and "Traceback" not in done.stderr
    assert read_checkpoint(tmp_path / "run/latest.pt")["progress"]["iteration"] == 3


def test_an_unforeseen_error_ends_the_loader_processes(tmp_path, flags):
    done = run_with(tmp_path, 3, f"{WORKERS}; print('workers', *w); raise RuntimeError('a fault')", flags(workers=1))
    assert done.returncode == 1 and "RuntimeError: a fault" in done.stderr
    (pid,) = next(line for line in done.stdout.splitlines() if line.startswith("workers")).split()[1:]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, dataset_dir) -> dict:
    """The final state of a run of two processes that nothing happened to."""
    results = tmp_path_factory.mktemp("two")
    settings = {**TINY, "num_itr": ITERATIONS, "eval_every": 0, "microbatch": 1}
    run_python(
        *TORCHRUN, "train.py", *as_flags({**settings, "name": "r", "results_dir": results, "dataset_dir": dataset_dir})
    )
    return final_state(results / "r")


@pytest.mark.cluster
@pytest.mark.parametrize("who", ["rank == 1", pytest.param("True", marks=pytest.mark.slow)], ids=["one", "all"])
def test_sigterm_under_torchrun_stops_all_processes_at_one_iteration(tmp_path, flags, two_processes, who):
    action = f"if {who}: os.kill(os.getpid(), signal.SIGTERM)"
    done = run_with(tmp_path, 3, action, flags(microbatch=1, save_every=100), *TORCHRUN)
    assert done.returncode != 0
    assert read_checkpoint(tmp_path / "run" / "latest.pt")["progress"]["iteration"] == 3
    run_python(*TORCHRUN, "train.py", *flags(microbatch=1, save_every=100))
    assert_equal_states(final_state(tmp_path / "run"), two_processes)


@pytest.mark.cluster
@pytest.mark.slow
def test_three_processes_stopped_after_an_iteration_end_the_same(tmp_path, flags):
    """Of two gradients there is one sum; of three there are several, in floats."""
    three, settings = [*TORCHRUN[:-1], "--nproc-per-node=3"], {"batch_size": 3, "microbatch": 1}
    run_python(*three, "train.py", *flags(name="never", **settings))
    stopped = run_with(tmp_path, 1, "os.kill(os.getpid(), signal.SIGTERM)", flags(**settings), *three)
    assert stopped.returncode != 0 and read_checkpoint(tmp_path / "run/latest.pt")["progress"]["iteration"] == 1
    run_python(*three, "train.py", *flags(**settings))
    assert_equal_states(final_state(tmp_path / "run"), final_state(tmp_path / "never"))


@pytest.mark.cluster
def test_sigterm_of_torchrun_itself_reaches_the_processes_and_the_state_is_saved(tmp_path, flags):
    """What a cluster does to the whole job."""
    action = "if rank == 0: os.kill(os.getppid(), signal.SIGTERM)"
    settings = flags(microbatch=1, num_itr=100_000, save_every=100_000)
    done = run_with(tmp_path, 3, action, settings, *TORCHRUN)
    assert done.returncode != 0 and "stopped by SIGTERM" in done.stderr
    saved = read_checkpoint(tmp_path / "run" / "latest.pt")["progress"]["iteration"]
    assert saved >= 3 and saved == records(tmp_path / "run")[-1]["iteration"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_dying_process_costs_the_iterations_since_the_last_checkpoint(tmp_path, flags, two_processes):
    """torchrun --max-restarts starts all anew; they go on from the last checkpoint."""
    action = "if rank == 1 and restarts == 0: os.kill(os.getpid(), signal.SIGKILL)"
    run = run_with(tmp_path, 5, action, flags(microbatch=1), *TORCHRUN, "--max-restarts=1")
    assert run.returncode == 0, run.stderr
    assert [line["iteration"] for line in records(tmp_path / "run", "resumed")] == [4]
    assert_equal_states(final_state(tmp_path / "run"), two_processes)


# --- Several machines ------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.slow
def test_two_launchers_make_two_nodes(tmp_path, flags, two_processes):
    """Two agents on this machine stand for two nodes, started with the released program's flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "train.py", *flags(microbatch=1), "--num-proc-node", "2", "--node-rank", str(rank)),
                *("--master-address", "localhost", "--master-port", str(port)),
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=HANGS)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "2 processes x 1 x 2 accumulated" in said[0] + said[1]
    assert all(f"waiting at localhost:{port} until 2 machines have started this" in text for text in said)
    assert_equal_states(final_state(tmp_path / "run"), two_processes)


# --- What goes between processes -------------------------------------------------------------------------------------

COUNT_COLLECTIVES = """
import json, os, runpy, sys
import torch
from torch.profiler import profile, ProfilerActivity
out, sys.argv = sys.argv[1], ["train.py", *sys.argv[2:]]
with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
    runpy.run_path("train.py", run_name="__main__")
if os.environ["RANK"] == "0":
    sizes = []
    for event in prof.events():
        if event.name == "gloo:all_reduce":
            shape = event.input_shapes[0] if event.input_shapes else []
            sizes.append(torch.Size(shape).numel() if shape else 0)
    json.dump(sizes, open(out, "w"))
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_gradients_are_reduced_once_an_iteration_whatever_the_accumulation(tmp_path, flags, two_processes):
    """Counted by the profiler: every parameter goes over the wire once an iteration, and little else."""
    script, counted = tmp_path / "count.py", {}
    script.write_text(COUNT_COLLECTIVES)
    parameters = sum(p.numel() for p in two_processes["net"].values())
    for accumulation in (1, 2):
        out = tmp_path / f"{accumulation}.json"
        settings = flags(microbatch=2 // accumulation, log_every=2, num_itr=4, name=f"run{accumulation}")
        run_python(*TORCHRUN, script, out, *settings)
        counted[accumulation] = json.loads(out.read_text())
    assert len(counted[1]) == len(counted[2]), "accumulation adds collectives"
    for sizes in counted.values():
        large = [size for size in sizes if size > 100]
        assert sum(large) == 4 * parameters
        # Beside it: the flags of each iteration, the loss when it is logged, and a few at start and end.
        assert len(sizes) - len(large) <= 4 + 2 + 6


# --- Bad batches -----------------------------------------------------------------------------------------------------

BAD_BATCHES = """
import torch
from corruption import Corrupted, Corruption

class Bad(Corruption):
    calls = 0
    def degrade(self, clean, draws):
        Bad.calls += 1
        bad = {condition}
        return Corrupted(torch.full_like(clean, float("nan")) if bad and clean.std() > 0 else clean * 0.5)
"""


def bad_batches(tmp_path: Path, condition: str) -> str:
    path = tmp_path / "bad.py"
    path.write_text(BAD_BATCHES.format(condition=condition))
    return f"{path}:Bad"


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_batch_of_nan_is_skipped_counted_and_logged(tmp_path, flags, precision):
    # One call tries the degradation out, two are made an iteration: the third iteration, its second microbatch.
    name = bad_batches(tmp_path, "Bad.calls == 7")
    run_python("train.py", *flags(corrupt=name, precision=precision, save_every=1, keep_last=10))
    lines = records(tmp_path / "run")
    assert [line["bad_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [line["grad_norm"] is None for line in lines] == [False, False, True] + [False] * 5
    states = [read_checkpoint(tmp_path / f"run/checkpoint_{i:08d}.pt") for i in range(1, 9)]
    assert_equal_states(states[1]["net"], states[2]["net"])
    assert_equal_states(states[1]["optimizer"]["state"], states[2]["optimizer"]["state"])
    assert not torch.equal(
        states[2]["net"]["diffusion_model.out.2.bias"], states[3]["net"]["diffusion_model.out.2.bias"]
    )
    assert all(p.isfinite().all() for p in states[-1]["net"].values())
    assert states[-1]["progress"]["bad_steps"] == 1


def test_nothing_but_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, flags):
    name = bad_batches(tmp_path, "Bad.calls > 6")
    done = run_python("train.py", *flags(corrupt=name, max_bad_steps=3, save_every=2), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "3 iterations in a row had an infinite or NaN loss or gradient; nothing was learned after iteration 2"
        in done.stderr
    )
    state = read_checkpoint(tmp_path / "run" / "latest.pt")
    assert all(p.isfinite().all() for p in [*state["net"].values(), *state["ema"]["shadow_params"]])


def test_unreadable_images_are_named_skipped_and_counted(tmp_path, flags, dataset_dir):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    (data / "train" / "dog" / "3.png").write_bytes(b"no image")
    done = run_python("train.py", *flags(dataset_dir=data))  # two epochs and more
    assert done.stderr.count("train/dog/3.png: unreadable image") == 1 and "; skipped" in done.stderr
    assert records(tmp_path / "run")[-1]["unreadable_images"] == 1
    # What the others learned from does not depend on how they were loaded.
    run_python("train.py", *flags(dataset_dir=data, name="other", workers=1))
    assert_equal_states(final_state(tmp_path / "run"), final_state(tmp_path / "other"))


# --- A full disk -----------------------------------------------------------------------------------------------------

# Files may not grow beyond a size while the n-th to m-th checkpoints are written: the file system's own error.
FULL_DISK = """
import resource, runpy, signal, sys
import torch
first, last = int(sys.argv[1]), int(sys.argv[2])
sys.argv = ["train.py", *sys.argv[3:]]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
original, calls = torch.save, 0
def save(*args, **kwargs):
    global calls
    calls += 1
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if first <= calls <= last:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
    try:
        return original(*args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
torch.save = save
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_full_disk_costs_neither_the_run_nor_the_older_checkpoint(tmp_path, flags):
    done = run_python("-c", FULL_DISK, 2, 3, *flags())
    warnings = [line for line in re.split(r"[\r\n]", done.stderr) if "was not written" in line]
    assert (
        len(warnings) == 2 and "the older ones are as they were, and the next --save-every tries again" in warnings[0]
    )
    run_python("train.py", *flags(name="never"))
    assert_equal_states(final_state(tmp_path / "run"), final_state(tmp_path / "never"))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".partial")]


def test_a_disk_that_stays_full_ends_the_run_in_one_line_with_the_older_checkpoint_whole(tmp_path, flags):
    done = run_python("-c", FULL_DISK, 2, 99, *flags(), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the checkpoint of iteration 8 was not written" in done.stderr and "make room" in done.stderr
    path, state = find_checkpoint(tmp_path / "run")
    assert path.name == "checkpoint_00000002.pt"


# --- A second start --------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_name_is_refused(tmp_path, flags):
    holding = "import sys\nfrom pathlib import Path\nfrom i2sb.storage.run_lock import RunLock\n"
    holding += "lock = RunLock(Path(sys.argv[1]))"
    holding += "\nprint('held', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "run")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        refused = run_python("train.py", *flags(), check=False)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert f"process {holder.pid} on {socket.gethostname()} trains this run already" in refused.stderr
        assert not list((tmp_path / "run").glob("*.pt"))
        holder.stdin.close()
    run_python("train.py", *flags())
    final_state(tmp_path / "run")


# --- What is kept and told -------------------------------------------------------------------------------------------


def test_a_change_of_processes_is_said_and_keys_are_written_nowhere(tmp_path, flags):
    key = "a-key-that-must-stay-secret"
    run_python("train.py", *flags(num_itr=2), env={"WANDB_API_KEY": key})
    again = run_python("train.py", *flags(microbatch=4), env={"WANDB_API_KEY": key})
    assert "1 processes x 2 until now: the same images and noise" in again.stdout + again.stderr
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_a_record_tells_what_a_run_costs(tmp_path, flags):
    run_python("train.py", *flags(num_itr=2))
    names = {"loss", "lr", "grad_norm", "images_per_second", "seconds_for_data", "bad_steps"} | {
        "unreadable_images",
        "enlarged_crops",
    }
    assert names <= set(records(tmp_path / "run")[0])
    assert records(tmp_path / "run")[0]["grad_norm"] > 0


def test_wandb_that_is_not_installed_is_named(tmp_path, flags):
    from importlib.util import find_spec

    if find_spec("wandb"):
        pytest.skip("it is installed")
    refused = run_python("train.py", *flags(log_writer="wandb"), check=False)
    assert refused.returncode == 2 and "--log-writer wandb: is not installed" in refused.stderr
