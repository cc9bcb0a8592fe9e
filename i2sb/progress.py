"""Progress bars: drawn often on a terminal, every half minute into a file."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN = {"terminal": 0.1, "file": 30.0}


def progress_bar(total: int, unit: str, *, quiet: bool = False, **settings: Any) -> tqdm:
    """Return a bar on standard error, which stays silent if `quiet` or if `total` is 0. settings: others of tqdm's."""
    seconds = SECONDS_BETWEEN["terminal" if sys.stderr.isatty() else "file"]
    return tqdm(
        total=total,
        unit=unit,
        disable=quiet or not total,
        mininterval=seconds,
        maxinterval=max(10.0, seconds),
        dynamic_ncols=True,
        **settings,
    )
