"""What others publish, and fetching it over the net so that an interruption costs nothing.

Not by pooch, which begins anew after an interruption, and does not check a size or the beginning of a hash.

A file appears under its name only when it is whole and the right one. Until then `.NAME.partial` grows beside it, and
`.NAME.partial.json` says where it comes from; the next call goes on with it if the server still has the same file.
Proxies are taken from the environment (https_proxy, no_proxy).
"""

import fcntl
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from i2sb.errors import FileError, UserError
from i2sb.files import PARTIAL, hash_file, write_atomically
from i2sb.progress import progress_bar, say

_CHUNK = 1 << 20
# HTTP statuses after which another try may succeed; others from 400 to 499 are final.
_PASSING = frozenset((408, 425, 429))


@dataclass(frozen=True)
class Item:
    """A file that others publish.

    url: empty where this project knows no lasting address; `about` then says who announces one. sha256: the beginning
    of the digest, where it is known.
    """

    file: str
    folder: str
    about: str
    url: str = ""
    sha256: str = ""


def _weights(about: str, url: str) -> Item:
    """Return weights whose name ends, by custom, in the first digits of their SHA-256."""
    file = url.rpartition("/")[2]
    return Item(file, "data/weights", about, url, sha256=Path(file).stem.rpartition("-")[2])


_TORCH = "https://download.pytorch.org/models"
_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
_RUN = "released I²SB checkpoint, announced at github.com/NVlabs/I2SB; fetch its options.pkl too, with --file"
_STATISTICS = "data/statistics"
_TASKS = (
    "sr4x-pool sr4x-bicubic jpeg-5 jpeg-10 blur-uni blur-gauss inpaint-center inpaint-freeform1020 inpaint-freeform2030"
).split()

ITEMS: dict[str, Item] = {
    "adm256": Item(
        "256x256_diffusion_uncond.pt",
        "data/weights",
        "ADM's unconditional ImageNet-256 network, for --init adm",
        f"{_OPENAI}/256x256_diffusion_uncond.pt",
    ),
    **{task: Item("latest.pt", f"results/{task}", _RUN) for task in _TASKS},
    "freeform-masks": Item(
        "imagenet_freeform_masks.npz",
        "data",
        "10,000 free-form masks, announced at github.com/NVlabs/I2SB",
    ),
    "eval-list": Item(
        "eval_list.txt",
        "data",
        "list of 10,000 ImageNet validation images, for --subset, announced at github.com/NVlabs/I2SB",
    ),
    "statistics-train": Item(
        "VIRTUAL_imagenet256_labeled.npz",
        _STATISTICS,
        "Inception statistics of the ImageNet-256 training set",
        f"{_OPENAI}/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz",
    ),
    "statistics-val": Item(
        "imagenet256_val.npz",
        _STATISTICS,
        "Inception statistics of the ImageNet-256 validation set, announced at github.com/NVlabs/I2SB",
    ),
    "inception": _weights(
        "the Inception network of the FID, as PyTorch weights",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    "resnet50": _weights("torchvision's ResNet-50 (V1), for classifier accuracy", f"{_TORCH}/resnet50-0676ba61.pth"),
    "alexnet": _weights("torchvision's AlexNet, for LPIPS", f"{_TORCH}/alexnet-owt-7be5be79.pth"),
    "vgg16": _weights("torchvision's VGG-16, for LPIPS", f"{_TORCH}/vgg16-397923af.pth"),
}


class _TryAgain(Exception):
    """What happened to one try, if another may succeed."""


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str = "",
    tries: int = 5,
    retry_delay: float = 2.0,
    stall_seconds: float = 30.0,
) -> None:
    """Fetch `url` (http, https, or a file on Google Drive) to `target`, going on with what an earlier call left.

    A try fails when the connection breaks or is silent for `stall_seconds`; the next one waits `retry_delay` seconds,
    twice as long each time. After `tries` in a row that brought nothing new, gives up and keeps what is there. size,
    sha256 (or its beginning): what the file must have, where that is known.
    Raises UserError saying what happened, also if `target` exists: nothing is ever overwritten.
    """
    if target.exists():
        raise FileError(target, "exists already; delete it first to fetch it anew")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("url", url, "give an address that begins with https:// or http://")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    with _open_alone(partial) as file:
        if parts.hostname in ("drive.google.com", "docs.google.com"):
            _fetch_from_drive(url, partial)
        else:
            _fetch_with_retries(url, file, partial, tries, retry_delay, stall_seconds)
        _check(file, url, partial, size, sha256)
        os.fsync(file.fileno())
        os.replace(partial, target)
    _source(partial).unlink(missing_ok=True)


@contextmanager
def _open_alone(partial: Path) -> Iterator[BinaryIO]:
    """Open a partial file to go on with it. Raises UserError if another process has it open."""
    with open(partial, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(partial, "another process is fetching this file") from None
        try:
            yield file
        finally:
            if partial.exists() and partial.stat().st_size == 0:
                partial.unlink()
                _source(partial).unlink(missing_ok=True)


def _source(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _fetch_with_retries(
    url: str, file: BinaryIO, partial: Path, tries: int, retry_delay: float, stall_seconds: float
) -> None:
    furthest, failures = 0, 0
    while True:
        try:
            return _try(url, file, partial, stall_seconds)
        except (_TryAgain, http.client.HTTPException, OSError) as error:
            if getattr(error, "filename", None) is not None and not isinstance(error, urllib.error.URLError):
                raise  # the disk, not the net
            reached = file.seek(0, os.SEEK_END)
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            if failures >= tries:
                raise _refuse(
                    url,
                    f"gave up after {failures} tries that brought nothing new ({reason}); {reached} bytes are kept, "
                    "the same command goes on with them",
                ) from None
            delay = retry_delay * 2 ** max(failures - 1, 0)
            say(f"{reason}: trying again in {delay:g} s")
            time.sleep(delay)


def _refuse(url: str, reason: str) -> UserError:
    return UserError("", None, f"{url}: {reason}")


def _try(url: str, file: BinaryIO, partial: Path, stall_seconds: float) -> None:
    """Make one request, for what is missing; returns when the file is complete."""
    kept = file.seek(0, os.SEEK_END)
    source = _read_source(partial)
    validator = source.get("validator") if source.get("url") == url else None
    headers = {"User-Agent": "i2sb-download", "Accept-Encoding": "identity"}
    if kept and validator:
        # If the file has changed since, the server sends it whole.
        headers |= {"Range": f"bytes={kept}-", "If-Range": validator}
    try:
        # An opener of its own: the shared one would keep the proxies of the process's first request.
        opener = urllib.request.build_opener()
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            if error.headers.get("Content-Range") == f"bytes */{kept}":
                return  # stopped after the last byte, before the file got its name
            file.truncate(0)
            raise _TryAgain("the file on the server has changed") from None
        if error.code < 500 and error.code not in _PASSING:
            raise _refuse(url, f"the server answers {error.code} {error.reason}; is the address right?") from None
        raise _TryAgain(f"the server answers {error.code} {error.reason}") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _refuse(url, "is a web page, not the file; give the address that the page downloads from")
        begin, total = _extent(response)
        if begin != kept:
            if begin:
                raise _TryAgain(f"the server sent bytes from {begin} on, {kept} was asked for")
            file.truncate(0)
        strong = response.headers.get("ETag", "")
        validator = strong if strong.startswith('"') else response.headers.get("Last-Modified")
        note = json.dumps({"url": url, "validator": validator}).encode()
        write_atomically(_source(partial), lambda out: out.write(note), sync=False)
        with progress_bar(total, "B", initial=begin, scaled=True) as progress:
            while chunk := response.read1(_CHUNK):
                _write(file, chunk, partial)
                progress.update(len(chunk))
    reached = file.seek(0, os.SEEK_END)
    if total is not None and reached != total:
        raise _TryAgain(f"the connection ended after {reached} of {total} bytes")


def _write(file: BinaryIO, chunk: bytes, partial: Path) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:  # `filename` tells an error of the disk from one of the net
        raise OSError(error.errno, error.strerror, str(partial)) from None


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return where the answer's bytes begin in the file, and the file's size if it is told."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, None if length is None else int(length)
    try:
        span, _, total = response.headers["Content-Range"].removeprefix("bytes ").partition("/")
        return int(span.partition("-")[0]), int(total) if total != "*" else None
    except (AttributeError, TypeError, ValueError):
        raise _TryAgain("the server sent a part without saying which") from None


def _read_source(partial: Path) -> dict[str, str]:
    try:
        source = json.loads(_source(partial).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return source if isinstance(source, dict) else {}


def _fetch_from_drive(url: str, partial: Path) -> None:
    try:
        import gdown
    except ImportError:
        raise UserError("url", url, "files on Google Drive need gdown: pip install gdown") from None
    try:
        done = gdown.download(url, str(partial), fuzzy=True)
    except Exception as error:  # gdown and the service can raise anything
        raise UserError("url", url, f"gdown failed: {' '.join(str(error).split())}") from None
    if done is None or not partial.exists():
        raise UserError("url", url, "gdown fetched nothing; is the file shared with everyone?")


def _check(file: BinaryIO, url: str, partial: Path, size: int | None, sha256: str) -> None:
    """Compare what was fetched with what is known of it; delete it if it is wrong."""
    reached, wrong = partial.stat().st_size, ""
    if reached == 0 or (size is not None and reached != size):
        wrong = f"{reached} bytes came, {size if size is not None else 'more'} are right"
    elif sha256 and not (digest := hash_file(partial)).startswith(sha256.lower()):
        wrong = f"its SHA-256 begins with {digest[: max(8, len(sha256))]}, {sha256} is right"
    if wrong:
        file.truncate(0)
        raise _refuse(url, f"is not the file that was wanted ({wrong}); nothing was kept")
