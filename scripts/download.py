"""Fetch what others publish: initial weights, released checkpoints, masks, lists and statistics.

    python scripts/download.py --list
    python scripts/download.py adm256
    python scripts/download.py sr4x-pool --url https://…/latest.pt

An interrupted fetch goes on where it was when the same command is given again. Addresses on Google Drive need gdown
(pip install gdown). Proxies are taken from the environment.
"""

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import report_errors
from i2sb.errors import UserError
from i2sb.parsing import expand_homes
from i2sb.storage.download import ITEMS, fetch


def list_items() -> None:
    """Print a line for everything there is to fetch."""
    for name, item in ITEMS.items():
        print(
            f"{name:22}{item.folder}/{item.file}\n{'':22}{item.about}\n{'':22}{item.url or 'no address known: --url'}"
        )


def download(options: argparse.Namespace) -> None:
    """Fetch one item. Raises UserError for unknown names, missing addresses, and whatever goes wrong on the way."""
    if options.name not in ITEMS:
        near = get_close_matches(options.name, ITEMS, n=1)
        hint = f"did you mean {near[0]}?" if near else "--list shows what there is"
        raise UserError("", None, f"{options.name}: unknown; {hint}")
    item = ITEMS[options.name]
    url = options.url or item.url
    if not url:
        raise UserError(
            "", None, f"{options.name}: no lasting address is known ({item.about}); give the one you have with `url`"
        )
    known = not options.file  # the known check sum is of the item's usual file
    target = (options.dest or Path(item.folder)) / (options.file or item.file)
    fetch(
        url,
        target,
        size=options.size,
        sha256=options.sha256 or (item.sha256 if known else ""),
        tries=options.tries,
        retry_delay=options.retry_delay,
        stall_seconds=options.stall_seconds,
    )
    checked = "checked" if options.sha256 or (item.sha256 and known) else "no check sum is known"
    print(f"{target}: {target.stat().st_size} bytes, {checked}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="what to fetch")
    parser.add_argument("--list", action="store_true", help="show what there is to fetch, and exit")
    parser.add_argument("--dest", type=Path, help="folder to put it in (default: where the programs look for it)")
    parser.add_argument("--file", help="name to give the file (default: its usual one)")
    parser.add_argument("--url", help="address to fetch it from (default: the publisher's, where one is known)")
    parser.add_argument("--size", type=int, help="bytes it must have")
    parser.add_argument("--sha256", default="", help="SHA-256 it must have, or the beginning of it")
    parser.add_argument(
        "--tries", type=int, default=5, help="tries in a row that may bring nothing new (default: %(default)s)"
    )
    parser.add_argument(
        "--retry-delay",
        type=float,
        default=2.0,
        help="seconds before the second try, then doubled (default: %(default)g)",
    )
    parser.add_argument(
        "--stall-seconds", type=float, default=30.0, help="seconds of silence that end a try (default: %(default)g)"
    )
    options = argparse.Namespace(**expand_homes(vars(parser.parse_args())))
    if options.list:
        list_items()
        return
    if options.name is None:
        parser.error("say what to fetch; --list shows what there is")
    with report_errors():
        download(options)


if __name__ == "__main__":
    main()
