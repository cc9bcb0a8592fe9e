"""data.json: the images that a run began with, so that it does not go on with others unnoticed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from i2sb.data.dataset import ImageDataset
from i2sb.errors import UserError
from i2sb.files import write_text

RECORD = "data.json"
# Of larger data sets so many are looked at, spread evenly: the files of ImageNet take minutes to ask on slow disks.
SIZED, HASHED = 20_000, 100

T = TypeVar("T")


def describe_images(images: ImageDataset) -> dict[str, int | str]:
    """Return the number of images, and digests of their names, the sizes of their files, and the contents of some.

    Not of the files' times, which change where data is copied to the machine at every start.
    """
    sizes, contents = hashlib.sha256(), hashlib.sha256()
    for store in [images.clean, *([images.degraded] if images.degraded else [])]:
        for key in _spread(images.keys, SIZED):
            sizes.update(f"{_if_readable(store.size, key)}\n".encode())
        for key in _spread(images.keys, HASHED):
            contents.update(hashlib.sha256(_if_readable(store.read, key) or b"").digest())
    return {
        "images": len(images),
        "names": images.fingerprint,
        "sizes": sizes.hexdigest()[:16],
        "contents": contents.hexdigest()[:16],
    }


def _spread(keys: list[str], most: int) -> list[str]:
    count = min(most, len(keys))
    return [keys[i * len(keys) // count] for i in range(count)]


def _if_readable(read: Callable[[str], T], key: str) -> T | None:
    try:
        return read(key)
    except OSError:  # one of the bad images, which training skips
        return None


def check_images(run_dir: Path, images: ImageDataset, *, resumed: bool, allowed: bool) -> str:
    """Compare the images with those of the run in `run_dir` if it is `resumed`; record them, if they may be used.

    Returns a warning where they differ and that is `allowed`, "" where they do not. Raises UserError where it is not.
    """
    record = run_dir / RECORD
    now = describe_images(images)
    before = json.loads(record.read_bytes()) if resumed and record.exists() else None  # older runs have none
    change = _find_change(before, now) if before else ""
    if change and not allowed:
        raise UserError(
            "dataset_dir",
            images.clean.path,
            f"{change} since this run was last started, so that it would not go on as if it had never stopped; "
            "bring them back, or say that you know with `allow_changed_data`",
        )
    if now != before:
        write_text(record, json.dumps(now, indent=2))
    return f"{images.clean.path}: {change} since this run was last started" if change else ""


def _find_change(before: dict[str, int | str], now: dict[str, int | str]) -> str:
    if before["images"] != now["images"]:
        return f"there were {before['images']} images, and are {now['images']}"
    if before["names"] != now["names"]:
        return "images were renamed or exchanged for others"
    return "" if before == now else "images were replaced under their names"
