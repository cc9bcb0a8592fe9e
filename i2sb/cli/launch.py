"""Starting on several GPUs without typing torchrun: the released program's flags, handed over to torch's launcher."""

import os
import sys
from collections.abc import Sequence

from i2sb.config import SampleConfig, TrainConfig


def launch_command(config: TrainConfig | SampleConfig, program: str, flags: Sequence[str]) -> list[str] | None:
    """Return the command that starts `program` with `flags` once a GPU, or None if this process is to do the work.

    It is: where one process is wanted, and where a launcher has started this one.
    """
    if config.n_gpu_per_node * config.num_proc_node == 1 or "RANK" in os.environ:
        return None
    if config.num_proc_node == 1:
        where = ["--standalone"]  # torch finds a free port
    else:
        where = [f"--nnodes={config.num_proc_node}", f"--node-rank={config.node_rank}"]
        where += [f"--master-addr={config.master_address}", f"--master-port={config.master_port}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={config.n_gpu_per_node}"]
    return [*launcher, program, *flags]


def hand_over(config: object, program: str, flags: Sequence[str]) -> None:
    """Become torch's launcher if the settings ask for several processes; else return."""
    if isinstance(config, (TrainConfig, SampleConfig)):
        command = launch_command(config, program, flags)
        if command is not None:
            if config.num_proc_node > 1:
                where = f"{config.master_address}:{config.master_port}"
                print(f"waiting at {where} until {config.num_proc_node} machines have started this", file=sys.stderr)
            os.execv(command[0], command)
