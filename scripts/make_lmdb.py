"""Pack a folder of images into one LMDB file, as the field keeps ImageNet.

    python scripts/make_lmdb.py /data/imagenet/train data/imagenet --split train --resize 256

The result, OUT/{split}_faster_imagefolder.lmdb, appears only when it is complete; keys are the images' paths below the
folder, values the encoded files. Those of more than 8 bits a channel, and arrays, are stored as they are, and not
shrunk. Unreadable images are left out and listed at the end. With --released the index that the released program needs
lies beside it.
"""

import argparse
import io
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

import lmdb
from torchvision.transforms import functional as TF

from i2sb.data.stores import check_ascii, index_of, list_images, sort_keys, write_index
from i2sb.errors import FileError, UserError
from i2sb.files import PARTIAL, read_regular
from i2sb.image_files import read_whole
from i2sb.images import UNDECODABLE, open_image, say_undecodable
from i2sb.progress import progress_bar

MAP_SIZE = 1 << 40  # address space, not disk: the file grows as it is written
COMMIT_EVERY = 1000


class Encoded(NamedTuple):
    """The bytes to store under a key, or why the image cannot be read, or that it cannot be shrunk."""

    key: str
    content: bytes | None = None
    reason: str = ""
    shrinks: bool = True


def encode(key: str, root: Path, resize: int | None) -> Encoded:
    """Read an image, and shrink it if that is asked for."""
    try:
        key.encode()
        content = read_regular(root / key)
        if read_whole(content, None) is not None:
            return Encoded(key, content, shrinks=resize is None)
        image = open_image(content)
        image.load()
        shrink = resize is not None and min(image.size) > resize
        pixels = image.convert("RGB") if shrink else None
    except UnicodeEncodeError:
        return Encoded(key, reason="its name is no UTF-8")
    except UNDECODABLE as error:
        return Encoded(key, reason=say_undecodable(error))
    if pixels is not None:
        buffer = io.BytesIO()
        TF.resize(pixels, resize, TF.InterpolationMode.BILINEAR).save(buffer, format="PNG")
        content = buffer.getvalue()
    return Encoded(key, content)


def is_running(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write(
    path: Path, source: Path, keys: list[str], *, resize: int | None, workers: int, title: str
) -> list[tuple[str, str]]:
    """Write the images of these keys; returns (path, reason) of each that was left out.

    Raises UserError if one cannot be shrunk.
    """
    environment = lmdb.open(str(path), subdir=False, map_size=MAP_SIZE, lock=False, sync=False, writemap=False)
    unreadable = []
    transaction = environment.begin(write=True)
    print(f"{title}:", file=sys.stderr)
    with multiprocessing.Pool(workers) as pool, progress_bar(len(keys), "image") as progress:
        results = pool.imap(partial(encode, root=source, resize=resize), keys, chunksize=16)
        for count, encoded in enumerate(results, 1):
            if not encoded.shrinks:
                must = f"shrinks 8-bit pictures alone, and {source / encoded.key} is none; leave it out"
                raise UserError("resize", resize, must)
            if encoded.content is None:
                unreadable.append((encoded.key, encoded.reason))
            else:
                transaction.put(encoded.key.encode(), encoded.content)
            progress.update()
            if count % COMMIT_EVERY == 0:
                transaction.commit()
                transaction = environment.begin(write=True)
    transaction.commit()
    environment.sync(True)
    environment.close()
    return unreadable


def make_lmdb(
    source: Path, out: Path, split: str, *, resize: int | None, workers: int, released: bool = False
) -> list[tuple[str, str]]:
    """Write the LMDB of one split; returns (path, reason) of each image left out.

    released: whether to write the index that the released program needs, too.
    Raises UserError if there are no images, none can be read, the LMDB or an index exists already, or an image has a
    name that the released program cannot read.
    """
    target = out / f"{split}_faster_imagefolder.lmdb"
    if not source.is_dir():
        raise FileError(source, "there is no such folder")
    for path in (target, index_of(target)):
        if path.exists():
            raise FileError(path, "exists already; delete it first to make it anew")
    keys = sort_keys(list_images(source))
    if not keys:
        raise FileError(source, "holds no images")
    if released:
        check_ascii(keys)

    out.mkdir(parents=True, exist_ok=True)
    # The process id keeps two builds apart; what a killed build left is deleted once its process is gone.
    for stale in out.glob(f".{target.name}.*{PARTIAL}"):
        if not is_running(int(stale.name.split(".")[-2])):
            stale.unlink()
    partial_file = out / f".{target.name}.{os.getpid()}{PARTIAL}"
    try:
        unreadable = write(partial_file, source, keys, resize=resize, workers=workers, title=split)
        if len(unreadable) == len(keys):
            raise FileError(source, f"none of its {len(keys)} images can be read, first {keys[0]}: {unreadable[0][1]}")
        if released:
            left_out = {key for key, _ in unreadable}
            write_index(target, source, [key for key in keys if key not in left_out])
        os.replace(partial_file, target)
    except lmdb.Error as error:
        said = str(error).removeprefix(f"{partial_file}: ")
        raise FileError(target, f"cannot be written ({said}); is the disk full?") from None
    finally:
        partial_file.unlink(missing_ok=True)
    print(f"{target}: {len(keys) - len(unreadable)} images")
    return unreadable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of images: class folders, or flat")
    parser.add_argument("out", type=Path, help="data set folder to write into")
    parser.add_argument("--split", default="train", help="name of the split: train or val (default: train)")
    parser.add_argument(
        "--resize", type=int, help="shrink so that the shorter side has this many pixels, stored as PNG"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that read and resize (default: one a core)"
    )
    parser.add_argument(
        "--released", action="store_true", help="also write the .lmdb.pt without which the released program reads none"
    )
    options = parser.parse_args()
    with report_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError or OSError naming what is wrong."""
    for name in ("resize", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(name, value, "must be at least 1")
    unreadable = make_lmdb(
        options.source,
        options.out,
        options.split,
        resize=options.resize,
        workers=options.workers,
        released=options.released,
    )
    if unreadable:
        print(f"left out {len(unreadable)} unreadable images:", file=sys.stderr)
        for key, reason in unreadable:
            print(f"  {options.source / key}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
