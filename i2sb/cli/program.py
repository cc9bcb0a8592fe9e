"""What the three command lines share: flags in, one line out when the user erred, a traceback when the code did."""

import argparse
import errno
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from i2sb import __version__
from i2sb.cli.launch import hand_over
from i2sb.config import TrainConfig, refuse_unused
from i2sb.errors import UserError
from i2sb.options import write_flags
from i2sb.parsing import C, Complete, HelpFormatter, make_parser, read_flags, to_yaml
from i2sb.stopping import StoppedError

READER_GONE = 128 + 13  # the exit status of a program that SIGPIPE ended
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_program(
    config_class: type[C],
    main: Callable[[C], None],
    argv: Sequence[str] | None = None,
    *,
    complete: Complete | None = None,
) -> None:
    """Read the flags into a config, completed as `read_flags` says, and call main(config).

    `--config FILE.yaml` gives settings below the flags, `--dry-run` prints the resolved ones and exits, `--version`
    prints that of the package, `--pdb` stops in the debugger where an error arose. Exits with 2 after a wrong setting
    or file, with 130 after Ctrl-C, with 75 when it was asked to stop and can go on later.
    """
    with report_errors(debug="--pdb" in (sys.argv if argv is None else argv)):
        parser = _Parser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS, formatter_class=HelpFormatter)
        general = parser.add_argument_group("general")
        general.add_argument("--config", metavar="FILE.yaml", help="read settings from a YAML file; flags override it")
        general.add_argument("--dry-run", action="store_true", help="print the resolved settings and exit")
        general.add_argument("--pdb", action="store_true", help="on an error, stop in the debugger where it arose")
        general.add_argument("--version", action="store_true", help="print the version and exit")
        general.add_argument("-h", "--help", action="store_true", help="print this and exit")
        options, flags = parser.parse_known_args(argv)
        if options.help:
            print(make_parser(config_class).format_help() + "\n" + parser.format_help(), end="")
            return
        if options.version:
            print(f"i2sb {__version__}")
            return
        if ("--corrupt", "help") in pairwise(flags) or "--corrupt=help" in flags:
            from corruption import describe_corruptions

            print(describe_corruptions())
            return
        config = read_flags(config_class, flags, options.config, complete)
        if isinstance(config, TrainConfig) and not (config.run_dir / "config.yaml").exists():
            refuse_unused(config)  # a run that has begun keeps its settings
        if options.dry_run:
            print(to_yaml(config), end="")
            return
        hand_over(config, sys.argv[0], sys.argv[1:] if argv is None else argv)
        main(config)


@contextmanager
def report_errors(*, debug: bool = False) -> Iterator[None]:
    """End the program as `run_program` says; with `debug` in the debugger where an error arose."""
    _prepare_streams()
    check_directory()
    try:
        yield
        sys.stdout.flush()
    except StoppedError as stop:
        print(f"{Path(sys.argv[0]).name}: {stop}", file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            import ipdb

            traceback.print_exc()
            ipdb.post_mortem(error.__traceback__)
            sys.exit(1)
        output_is_lost = _lose_broken_output()
        if output_is_lost and isinstance(error, BrokenPipeError):  # as of `| head`, which has seen enough
            sys.exit(READER_GONE)
        message = describe(error)
        if not message:
            raise
        _fail(message)


def _prepare_streams() -> None:
    """Open those of the three streams that were closed on nothing, and let them write whatever a name is made of."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # On terminals that know ASCII alone, too; and each line at once, so that logs can be followed.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def check_directory() -> None:
    """End the program if its working directory is gone: to be called before torch is loaded, which ends it, too."""
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the working directory was deleted; change to one that is there")


def _lose_broken_output() -> bool:
    """Lead streams that cannot be written to nowhere, or Python complains as it ends; returns whether there was one."""
    lost = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            reader = select.poll()
            reader.register(stream, 0)
            if not reader.poll(0):
                continue
        except io.UnsupportedOperation:  # no file, but a test's
            continue
        except OSError:
            pass
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        lost = True
    return lost


class _Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError("", None, message)


def describe(error: Exception) -> str:
    """Say in one line what the user got wrong, with settings as flags, or what the disk refused.

    Returns "" if it is neither, nor a lack of memory, but a bug of ours. CorruptionError has the attributes of a
    UserError, but is none.
    """
    if isinstance(error, OSError):
        if error.filename is None:
            return f"cannot write: {error.strerror}" if error.errno in _DISK_IS_FULL else ""
        return " ".join(f"{error.filename}: {error.strerror}".split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and os.strerror(errno.ENOMEM) in str(error)):
        return "not enough memory; take smaller images, fewer at once, or a smaller network"
    setting, value, must = (getattr(error, name, None) for name in ("setting", "value", "must"))
    if must is None or not isinstance(error, ValueError):
        return ""
    mistake = error if isinstance(error, UserError) else UserError(str(setting), value, must)
    return " ".join(write_flags(mistake.marked).split())


def _fail(message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)
