"""Make a data set out of the photographs in Debian packages; scripts/fetch_photos.sh downloads these and calls this.

    python scripts/fetch_photos.py PACKAGES OUT      (PACKAGES: a folder of .deb files)

scripts/photos.tsv lists the photographs, one a line: the split, the name here, the package, the path in it (for one
inside a Qt resource file: that file's path, a colon, and the path in there), by how much to shrink it at least,
licence, author, and where the author published it, if the package says so.

OUT/train and OUT/val get whole photographs. OUT/test is a data set folder of its own: OUT/test/val gets square crops of
other packages' photographs, the most textured one of each, and none of a photograph that is flat everywhere.
OUT/licences.tsv says whose each of them is; it is written last.
"""

import argparse
import csv
import io
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageOps
from qt_resource import QtResources

from i2sb.cli.program import report_errors
from i2sb.errors import FileError, UserError
from i2sb.files import write_atomically, write_text

TABLE = Path(__file__).with_name("photos.tsv")
# Larger photographs look blurred at their own scale: they are shrunk until they have no more pixels than this.
MAX_PIXELS = 3_000_000
MIN_PHOTOS = {"train": 100, "val": 8, "test": 8}
CROP, CROP_STRIDE = 256, 64
# Mean difference between neighbouring pixels, of 255; flatter crops are left out, as any method restores them.
MIN_TEXTURE = 8.0


class Photo(NamedTuple):
    """A line of photos.tsv."""

    split: str
    name: str
    package: str
    path: str
    shrink: int
    licence: str
    author: str
    source: str


def read_table() -> list[Photo]:
    with open(TABLE, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Photo(**{**line, "shrink": int(line["shrink"])}) for line in lines]


def read_package(deb: Path, paths: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield those of the given files that a package has. Raises UserError if it is damaged."""
    # A resource file holds several of them.
    inner = defaultdict(set)
    for path in paths:
        inner[path.partition(":")[0]].add(path.partition(":")[2])
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    outer = member.name.removeprefix("./")
                    if outer not in inner or not member.isfile():
                        continue
                    content = archive.extractfile(member).read()
                    if not outer.endswith(".rcc"):
                        yield outer, content
                        continue
                    resources = QtResources(content, f"{deb.name}: {outer}")
                    for path in sorted(inner[outer]):
                        if path in resources:
                            yield f"{outer}:{path}", resources.read(path)
            process.stdout.read()  # read the archive's padding, so that dpkg-deb can end
        except tarfile.TarError:
            raise _damaged(deb) from None
    if process.returncode:
        raise _damaged(deb)


def _damaged(deb: Path) -> UserError:
    return FileError(deb, "is damaged; delete it and start again")


def shrink(image: Image.Image, at_least: int) -> tuple[Image.Image, int]:
    """Average squares of pixels, of the smallest whole side that is allowed; returns that side too."""
    factor = at_least
    while (image.width // factor) * (image.height // factor) > MAX_PIXELS:
        factor += 1
    return (image.reduce(factor) if factor > 1 else image), factor


def decode(content: bytes, name: str) -> Image.Image:
    """Return a photograph as RGB, the right way up. Raises UserError if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise FileError(name, f"cannot be decoded ({error})") from None


def find_textured_crop(image: Image.Image) -> tuple[int, int, float]:
    """Return the corner (x, y) of the crop on a grid with the greatest texture, and its texture.

    Texture is the mean absolute difference of neighbouring pixels' brightness, across plus down, in 8-bit levels.
    """
    grey = np.asarray(image.convert("L"), np.float32)
    texture = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    corners = [
        (x, y)
        for y in range(0, image.height - CROP + 1, CROP_STRIDE)
        for x in range(0, image.width - CROP + 1, CROP_STRIDE)
    ]
    means = [float(texture[y : y + CROP - 1, x : x + CROP - 1].mean()) for x, y in corners]
    best = int(np.argmax(means))
    return *corners[best], means[best]


def save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda file: image.save(file, "PNG", icc_profile=None), sync=False)


def write_photo(photo: Photo, content: bytes, out: Path) -> tuple[str, int, int] | None:
    """Write a photograph, or its crop; returns the file's path in `out`, its pixels, and by how much it was shrunk.

    Writes nothing and returns None if it is a test photograph without texture.
    """
    image, factor = shrink(decode(content, f"{photo.package}: {photo.path}"), photo.shrink)
    path = PurePosixPath(photo.split, f"{photo.name}.png")
    if photo.split == "test":
        x, y, texture = find_textured_crop(image)
        if texture < MIN_TEXTURE:
            return None
        image = image.crop((x, y, x + CROP, y + CROP))
        path = PurePosixPath("test/val", f"{photo.name}_y{y:04d}_x{x:04d}.png")
    save(image, out / path)
    return str(path), image.width * image.height, factor


def read_version(deb: Path) -> str:
    done = subprocess.run(["dpkg-deb", "--field", deb, "Version"], capture_output=True, text=True)
    if done.returncode:
        raise _damaged(deb)
    return done.stdout.strip()


def make_data(packages: Path, out: Path) -> None:
    """Write all splits and the licences. Raises UserError if too few of the photographs are there."""
    table = read_table()
    licences = [("file", "package", "version", "path", "shrunk", "licence", "author", "source")]
    counts, pixels, flat = Counter(), Counter(), 0
    for package in dict.fromkeys(photo.package for photo in table):
        photos = {photo.path: photo for photo in table if photo.package == package}
        deb = next(packages.glob(f"{package}_*.deb"), None)
        if deb is None:
            print(f"{package}: is not there, {len(photos)} photographs left out", flush=True)
            continue
        version, decoded = read_version(deb), 0
        for path, content in read_package(deb, set(photos)):
            photo = photos[path]
            written = write_photo(photo, content, out)
            decoded += 1
            if written is None:
                flat += 1
                continue
            file, size, factor = written
            counts[photo.split] += 1
            pixels[photo.split] += size
            licences.append((file, package, version, path, f"{factor}x", photo.licence, photo.author, photo.source))
        lost = f", {len(photos) - decoded} are not in this version of it" if decoded < len(photos) else ""
        print(f"{package}: {decoded} photographs{lost}", flush=True)
    for split, least in MIN_PHOTOS.items():
        if counts[split] < least:
            raise UserError("", None, f"found {counts[split]} photographs for {split}, at least {least} are needed")
    what = {"train": "photographs", "val": "photographs", "test": f"crops of {CROP}x{CROP}"}
    for split, count in counts.items():
        print(f"{split}: {count} {what[split]}, {pixels[split] / 1e6:.1f} megapixels")
    print(f"left out as flat: {flat} of the test photographs")
    lines = ["\t".join(line) + "\n" for line in [licences[0], *sorted(licences[1:])]]
    write_text(out / "licences.tsv", "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder of downloaded .deb files")
    parser.add_argument("out", type=Path, help="data set folder to write into")
    options = parser.parse_args()
    with report_errors():
        make_data(options.packages, options.out)


if __name__ == "__main__":
    main()
