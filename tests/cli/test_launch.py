"""The released program's flags that start several processes."""

from __future__ import annotations

from i2sb.cli.launch import launch_command
from i2sb.config import SampleConfig, TrainConfig


def config(**changes) -> TrainConfig:
    return TrainConfig(name="a", dataset_dir="b", corrupt="sr4x-pool", **changes)


def test_released_launch_flags_become_torchruns(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launch_command(config(), "train.py", []) is None
    command = launch_command(config(n_gpu_per_node=8), "train.py", ["--name", "a"])
    assert command[1:] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=8",
        "train.py",
        "--name",
        "a",
    ]
    command = launch_command(
        config(n_gpu_per_node=8, num_proc_node=2, node_rank=1, master_address="host", master_port=1234), "train.py", []
    )
    assert command[3:-1] == [
        *("--nnodes=2", "--node-rank=1", "--master-addr=host", "--master-port=1234", "--nproc-per-node=8")
    ]
    assert launch_command(SampleConfig(ckpt="a", n_gpu_per_node=2), "sample.py", [])[-1] == "sample.py"
    monkeypatch.setenv("RANK", "0")
    assert launch_command(config(n_gpu_per_node=8), "train.py", []) is None
