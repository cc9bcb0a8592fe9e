"""Several processes: that they are of one start, have a GPU each, go on from one state, and end together."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from helpers.comparison import assert_equal_states
from helpers.programs import ENVIRONMENT, HANGS, ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.distributed import (
    PATIENCE,
    World,
    agree_on_start,
    check_architecture,
    find_device,
    join_world,
    read_place,
    refuse_shared_gpu,
)
from i2sb.errors import UserError
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def in_threads(work, count: int) -> list:
    """Return what work(rank) returns for each of `count` ranks, which run at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_processes_of_a_start_agree_on_a_name_whatever_dead_ones_left():
    store = dist.HashStore()
    starts = [in_threads(lambda rank: agree_on_start(store, rank, 4), 4) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in starts)
    assert len({names[0] for names in starts}) == 3
    # One that died before the main process came, and one that never comes.
    store.set("question of 1", "of a process that is dead")
    assert len(set(in_threads(lambda rank: agree_on_start(store, rank, 2), 2))) == 1
    with pytest.raises(TimeoutError, match=r"processes \[1\] have not come within"):
        agree_on_start(store, 0, 2, patience=timedelta(seconds=0.1))


def test_two_processes_on_one_gpu_are_refused():
    for gpus, sharing in ((["a", "b", "c"], []), (["a", "b", "a"], [0, 2])):
        store = dist.HashStore()

        def said(rank, store=store, gpus=gpus):
            try:
                refuse_shared_gpu(store, rank, len(gpus), gpus[rank])
            except UserError as error:
                return str(error)
            return ""

        said_by = in_threads(said, len(gpus))
        assert [rank for rank, text in enumerate(said_by) if text] == sharing
        assert all(f"processes {sharing} were given the same GPU" in said_by[rank] for rank in sharing)


def test_a_gpu_that_is_too_old_for_this_torch_is_named():
    check_architecture((8, 0), ["sm_80", "sm_90a", "compute_90"])
    check_architecture((9, 0), ["sm_80"])  # newer ones take what was built for it, or say so themselves
    check_architecture((7, 0), [])
    with pytest.raises(UserError, match="sm_70, this torch was built for sm_75 and later; install one built"):
        check_architecture((7, 0), ["sm_75", "sm_80", "sm_90"])


@pytest.mark.parametrize(("gpus", "device"), [(4, "cuda:3"), (1, "cuda:0")])
def test_a_process_takes_its_own_gpu_or_the_only_one_it_is_shown(monkeypatch, gpus, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device() == torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="more processes were started than the 2 GPUs here"):
        find_device()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK 1 without WORLD_SIZE"),
        ({"RANK": "0"}, "RANK 0 without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE 2 without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "1"}, "WORLD_SIZE 1 without RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK 2 and WORLD_SIZE 2"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK -1 and WORLD_SIZE 1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK 0 and WORLD_SIZE 0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "RANK 0 and WORLD_SIZE 2 without MASTER_PORT"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK first"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE "),
    ],
)
def test_what_was_left_over_of_a_launcher_is_refused(monkeypatch, variables, words):
    """With it a process would do a share of the work, or none, and end as if all was done."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert read_place() == (0, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^the environment holds {words}, which no launcher sets so: unset it"):
        join_world("cpu")


def test_one_that_torchrun_did_not_start_says_whom_it_waits_for(monkeypatch, capsys):
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "7"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)

    def give_up(url):
        raise TimeoutError

    monkeypatch.setattr(dist, "rendezvous", give_up)
    with pytest.raises(TimeoutError):
        join_world("cpu")
    said = "waiting at localhost:7 until 2 processes have started this (RANK 1 and WORLD_SIZE 2 in the environment)"
    assert capsys.readouterr().err == f"{said}\n"


def test_processes_wait_for_each_other_between_cpus(monkeypatch):
    """Where NCCL would end the job after ten minutes."""
    groups = []
    monkeypatch.setattr(dist, "barrier", lambda group=None: groups.append(group))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *op, group=None: groups.append((tensor.device.type, group)))
    monkeypatch.setattr(dist, "all_gather_object", lambda values, value, group=None: groups.append(group))
    world = World(0, 2, torch.device("meta"), control="between CPUs")
    world.barrier()
    world.sum(torch.zeros(2))
    world.any(True)
    world.gather("word")
    cpu = ("cpu", "between CPUs")
    assert groups == ["between CPUs", cpu, cpu, "between CPUs"]
    assert timedelta(hours=1) <= PATIENCE


# --- Runs ------------------------------------------------------------------------------------------------------------

# Runs train.py after PREPARE, which may change sys.argv, differently on each rank.
PREPARED = """
import os, runpy, signal, sys
rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
prepare, sys.argv = sys.argv[1], ["train.py", *sys.argv[2:]]
exec(prepare)
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture
def flags(tmp_path, dataset_dir):
    """Flags of a tiny run of two processes in tmp_path."""

    def make(**changes) -> list[str]:
        places = {"name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir}
        return as_flags({**TINY, "num_itr": 4, "save_every": 2, "eval_every": 0, "microbatch": 1, **places, **changes})

    return make


def run_prepared(tmp_path: Path, prepare: str, flags: list[str]) -> subprocess.CompletedProcess:
    script = tmp_path / "prepared.py"
    script.write_text(PREPARED)
    return run_python(*TORCHRUN, script, prepare, *flags, check=False)


def iterations(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.glob("checkpoint_*.pt"))


@pytest.mark.slow
@pytest.mark.cluster
def test_processes_with_other_checkpoints_are_refused(tmp_path, flags):
    """As with results on each machine's own disk: the same run, the same iteration, other weights."""
    for seed, folder in enumerate(("here", "there")):
        run_python("train.py", *flags(results_dir=tmp_path / folder, microbatch=2, seed=seed))
    config = (tmp_path / "here/run/config.yaml").read_bytes()
    (tmp_path / "there/run/config.yaml").write_bytes(config)
    elsewhere = f"sys.argv[sys.argv.index('--results-dir') + 1] = {str(tmp_path)!r} + ('/there' if rank else '/here')"
    longer = flags(num_itr=6, microbatch=1)
    done = run_prepared(tmp_path, elsewhere, longer)
    assert done.returncode != 0
    assert done.stderr.count("has other contents for processes [1], which may have another disk") == 1
    for path in (tmp_path / "there/run").glob("checkpoint_*4.pt"):
        path.unlink()
    done = run_prepared(tmp_path, elsewhere, longer)
    assert done.returncode != 0
    assert done.stderr.count("is where the main process goes on from, and process 1 may have another disk") == 1
    assert iterations(tmp_path / "here/run")[-1] == "checkpoint_00000004.pt"


@pytest.mark.cluster
def test_a_process_without_memory_for_a_checkpoint_stops_all(tmp_path, flags):
    """It is no broken checkpoint, to be passed over for an older one."""
    run_python("train.py", *flags(microbatch=2))
    before = (tmp_path / "run/checkpoint_00000004.pt").read_bytes()
    lack = """
if rank == 1:
    import torch
    def load(*args, **kwargs):
        raise MemoryError("no memory left")
    torch.load = load
"""
    done = run_prepared(tmp_path, lack, flags(num_itr=6))
    assert done.returncode != 0 and "error: not enough memory" in done.stderr
    assert "passed over" not in done.stderr
    assert iterations(tmp_path / "run")[-1] == "checkpoint_00000004.pt"
    assert (tmp_path / "run/checkpoint_00000004.pt").read_bytes() == before


@pytest.mark.slow
@pytest.mark.cluster
def test_gradients_stay_in_the_buckets_that_are_sent(tmp_path, flags):
    """Else, added up over microbatches, they would need their memory a second time."""
    watch = f"""
import torch
original, apart = torch.Tensor.backward, []
def backward(self, *args, **kwargs):
    original(self, *args, **kwargs)
    apart.append(sum(p.grad.untyped_storage().nbytes() == p.grad.nbytes for p in parameters if p.grad is not None))
    open({str(tmp_path / "apart.txt")!r}, "w").write(" ".join(map(str, apart)))
torch.Tensor.backward = backward
import i2sb.training.trainer as trainer
build, parameters = trainer.build_network, []
def keep(*args, **kwargs):
    network = build(*args, **kwargs)
    parameters.extend(network.parameters())
    return network
trainer.build_network = keep
"""
    done = run_prepared(tmp_path, watch, flags())
    assert done.returncode == 0, done.stderr
    apart = [int(count) for count in (tmp_path / "apart.txt").read_text().split()]
    # Two microbatches an iteration. The first is before there are buckets.
    assert len(apart) == 8 and not any(apart[2:]), apart


@pytest.mark.slow
@pytest.mark.cluster
def test_a_killed_process_of_two_machines_costs_one_restart(tmp_path, flags):
    """Two agents, which count restarts apart: the one whose process died counts one more."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = tmp_path / "prepared.py"
    script.write_text(PREPARED)
    mark = tmp_path / "killed"
    kill = f"""
import torch
original, calls = torch.optim.AdamW.step, []
def step(self, *args, **kwargs):
    calls.append(1)
    if rank == 1 and len(calls) == 3 and not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
torch.optim.AdamW.step = step
"""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=job"),
        *(str(script), kill, *flags()),
    ]
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    agents = [start(command, cwd=ROOT, env=ENVIRONMENT) for _ in range(2)]
    said = [agent.communicate(timeout=HANGS)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["event"] == "resumed"] == [2]
    assert mark.exists()
    run_python(*TORCHRUN, "train.py", *flags(name="never"))
    assert_equal_states(find_checkpoint(tmp_path / "run")[1], read_checkpoint(tmp_path / "never/latest.pt"))


@pytest.mark.slow
@pytest.mark.cluster
def test_compiled_networks_learn_together_what_others_learn(tmp_path, flags):
    """Compiled inside DDP; by the compiler's front end alone, as machine code takes it minutes."""
    front_end = """
from i2sb.network import BridgeNetwork
original = BridgeNetwork.compile
BridgeNetwork.compile = lambda network: original(network, backend="aot_eager")
"""
    done = run_prepared(tmp_path, front_end, flags(name="compiled", compile=True, num_itr=2))
    assert done.returncode == 0, done.stderr
    run_python(*TORCHRUN, "train.py", *flags(name="eager", num_itr=2))
    states = [read_checkpoint(tmp_path / name / "latest.pt")["net"] for name in ("compiled", "eager")]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-3, atol=1e-5, msg=name)
