"""Runs train.py in forks of this process, so that many starts cost little, and kills them at random moments.

    python tests/helpers/moments.py KILLS FLAGS …
    python tests/helpers/moments.py sample KILLS FOLDER FLAGS …

The latter runs sample.py, with --results-dir FOLDER/never-killed or FOLDER/killed.

A moment is a number of function calls, Python's or C's, since training or restoring began, so that the middle of saving
is as likely as any other.
One run is never killed. Prints a JSON line for each start: the run's name and how it ended.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
from types import FrameType

import i2sb.sampling.split
import i2sb.training.loop  # noqa: F401 - what every fork then has

KILLS_A_RUN = 4
# The function of a program with which the moments begin.
BEGINNINGS = {"train.py": "_train", "sample.py": "_restore_split"}


def start(program: str, flags: list[str], moment: int | None = None, report: int | None = None) -> None:
    """Be a program; die by SIGKILL at the moment, or write the number of calls there were in all."""
    calls, begun = 0, False

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls, begun
        begun = begun or frame.f_code.co_name == BEGINNINGS[program]
        if begun and event in ("call", "c_call"):
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = [program, *flags]
    sys.setprofile(count)
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        sys.setprofile(None)
        if report is not None:
            os.write(report, str(calls).encode())


def fork(flags: list[str], moment: int | None = None, program: str = "train.py") -> tuple[int, int]:
    """Run a program in a fork; returns its exit code (-9 if killed) and, if it was not, its number of calls."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            start(program, flags, moment, write)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        calls = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(calls or 0)


def kill_sampling(kills: int, folder: str, flags: list[str]) -> None:
    """Kill sample.py again and again, every start going on with the same images, then let it end."""
    status, total = fork([*flags, "--results-dir", f"{folder}/never-killed"], program="sample.py")
    print(json.dumps({"name": "never-killed", "status": status, "moment": None, "calls": total}), flush=True)
    moments = random.Random(0)
    for _ in range(kills):
        moment = moments.randrange(1, total // 4)  # a start that goes on has less to do
        status, _ = fork([*flags, "--results-dir", f"{folder}/killed"], moment, program="sample.py")
        print(json.dumps({"name": "killed", "status": status, "moment": moment}), flush=True)
    status, _ = fork([*flags, "--results-dir", f"{folder}/killed"], program="sample.py")
    print(json.dumps({"name": "killed", "status": status, "moment": None}), flush=True)


def main() -> None:
    if sys.argv[1] == "sample":
        kill_sampling(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
        return
    kills, flags = int(sys.argv[1]), sys.argv[2:]
    status, total = fork([*flags, "--name", "never-killed"])
    print(json.dumps({"name": "never-killed", "status": status, "moment": None, "calls": total}), flush=True)
    moments = random.Random(0)
    for kill in range(kills):
        name = f"run{kill // KILLS_A_RUN}"
        moment = moments.randrange(1, total // 2)  # a start that goes on has less to do
        status, _ = fork([*flags, "--name", name], moment)
        print(json.dumps({"name": name, "status": status, "moment": moment}), flush=True)
        if kill % KILLS_A_RUN == KILLS_A_RUN - 1:
            status, _ = fork([*flags, "--name", name])
            print(json.dumps({"name": name, "status": status, "moment": None}), flush=True)


if __name__ == "__main__":
    main()
