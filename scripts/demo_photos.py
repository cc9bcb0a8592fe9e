"""Cut the demo's data out of the photographs that the scikit-image and scikit-learn wheels carry.

    python scripts/demo_photos.py data/demo

The split is by photograph: no crop of a validation photograph is ever trained on. Crops keep their photograph's name,
as folder and in the file name, and go into LMDB through make_lmdb.py.
"""

import argparse
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

from make_lmdb import make_lmdb
from PIL import Image

from i2sb.errors import FileError, UserError

# The two motorcycles are a stereo pair of one scene, so they must stay on the same side.
PHOTOS = {
    "train": {
        "astronaut": "skimage/data/astronaut.png",
        "china": "sklearn/datasets/images/china.jpg",
        "motorcycle_left": "skimage/data/motorcycle_left.png",
        "motorcycle_right": "skimage/data/motorcycle_right.png",
        "rocket": "skimage/data/rocket.jpg",
    },
    "val": {
        "chelsea": "skimage/data/chelsea.png",
        "coffee": "skimage/data/coffee.png",
        "flower": "sklearn/datasets/images/flower.jpg",
    },
}
TRAIN_CROP, TRAIN_STRIDE = 32, 16
VAL_CROP = 128


def find_photo(path: str) -> Path:
    """Return where a photograph lies in the installed packages, without importing them. Raises UserError if not."""
    package, _, inner = path.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("", None, f"{package} is not installed: pip install -r scripts/requirements-demo.txt")
    photo = Path(spec.submodule_search_locations[0]) / inner
    if not photo.exists():
        raise FileError(photo, f"is missing from this version of {package}")
    return photo


def cut(name: str, photo: Path, folder: Path, side: int, stride: int) -> int:
    """Write all square crops on a grid as PNG; returns how many."""
    with Image.open(photo) as image:
        image = image.convert("RGB")
    corners = [
        (x, y) for y in range(0, image.height - side + 1, stride) for x in range(0, image.width - side + 1, stride)
    ]
    (folder / name).mkdir(parents=True)
    for x, y in corners:
        image.crop((x, y, x + side, y + side)).save(folder / name / f"{name}_y{y:04d}_x{x:04d}.png")
    return len(corners)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="data set folder to write into, such as data/demo")
    options = parser.parse_args()
    with report_errors():
        make_data(options.out)


def make_data(out: Path) -> None:
    """Write both splits, each unless it is there. Raises UserError if a photograph is not installed."""
    for split, photos in PHOTOS.items():
        if (out / f"{split}_faster_imagefolder.lmdb").exists():
            print(f"{out}: {split} data is there, reused")
            continue
        crops = out / f"{split}_crops"
        shutil.rmtree(crops, ignore_errors=True)
        side, stride = (TRAIN_CROP, TRAIN_STRIDE) if split == "train" else (VAL_CROP, VAL_CROP)
        for name, path in photos.items():
            count = cut(name, find_photo(path), crops, side, stride)
            print(f"{split}: {name}, {count} crops of {side}x{side}")
        make_lmdb(crops, out, split, resize=None, workers=os.cpu_count() or 1)
        shutil.rmtree(crops)


if __name__ == "__main__":
    main()
