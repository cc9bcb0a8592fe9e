"""Runs train.py in forks of this process, so that many starts cost little, and kills them at random moments.

    python tests/moments.py KILLS FLAGS …

A moment is a number of function calls, Python's or C's, since training began, so that the middle of saving is as likely
as any other.
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

import i2sb.training  # noqa: F401 - what every fork then has

KILLS_A_RUN = 4


def start(flags: list[str], moment: int | None = None, report: int | None = None) -> None:
    """Be train.py; die by SIGKILL at the moment, or write the number of calls there were in all."""
    calls, training = 0, False

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls, training
        training = training or frame.f_code.co_name == "_train"
        if training and event in ("call", "c_call"):
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["train.py", *flags]
    sys.setprofile(count)
    try:
        runpy.run_path("train.py", run_name="__main__")
    finally:
        sys.setprofile(None)
        if report is not None:
            os.write(report, str(calls).encode())


def fork(flags: list[str], moment: int | None = None) -> tuple[int, int]:
    """Run train.py in a fork; returns its exit code (-9 if killed) and, if it was not, its number of calls."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            start(flags, moment, write)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        calls = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(calls or 0)


def main() -> None:
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
