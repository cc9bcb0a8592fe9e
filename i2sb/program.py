"""What the three command lines share: flags in, one line out when the user erred, a traceback when the code did."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from i2sb.parsing import C, make_parser, read_flags, to_yaml

SOURCE_ROOT = Path(__file__).resolve().parent.parent


def run_program(config_class: type[C], main: Callable[[C], None], argv: Sequence[str] | None = None) -> None:
    """Read the flags into a config and call main(config).

    `--config FILE.yaml` gives settings below the flags, `--dry-run` prints the resolved ones and exits, `--pdb` stops
    in the debugger where an error arose. Exits with 2 after a wrong setting or file, with 130 after Ctrl-C.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", metavar="FILE.yaml", help="read settings from a YAML file; flags override it")
    own.add_argument("--dry-run", action="store_true", help="print the resolved settings and exit")
    own.add_argument("--pdb", action="store_true", help="on an error, stop in the debugger where it arose")
    own.add_argument("-h", "--help", action="store_true", help="print this and exit")
    options, flags = own.parse_known_args(argv)
    if options.help:
        print(make_parser(config_class).format_help() + "\n" + own.format_help().split("\n\n", 1)[1])
        return
    try:
        config = read_flags(config_class, flags, options.config)
        if options.dry_run:
            print(to_yaml(config), end="")
            return
        main(config)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if options.pdb:
            import ipdb

            traceback.print_exc()
            ipdb.post_mortem(error.__traceback__)
            sys.exit(1)
        if not _is_message(error):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _is_message(error: Exception) -> bool:
    """Whether an error speaks to the user: a wrong value or file that this project's own code reported.

    The same types raised inside a library are faults of ours, and keep their traceback.
    """
    if not isinstance(error, (ValueError, OSError)):
        return False
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    own_code = Path(innermost).resolve()
    return own_code.is_relative_to(SOURCE_ROOT) and "site-packages" not in own_code.parts
