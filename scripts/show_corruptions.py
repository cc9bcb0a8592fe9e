"""Draw a contact sheet: an image and every degradation of it.

    python scripts/show_corruptions.py IMAGE OUT.png [--size 256] [--degradation-noise 0.1] [NAME ...]

The image's shorter side is resized to --size and its middle is cut out, as validation images are.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

import torch
from PIL import Image, ImageDraw
from torchvision.transforms import functional as TF

from corruption import CORRUPTIONS, build_corruption
from i2sb.data.picture_files import read_picture
from i2sb.errors import FileError, UserError, require
from i2sb.image_files import Form, Planes
from i2sb.images import as_signal, save_png, to_pil, to_uint8

PER_ROW, GAP, LABEL = 5, 6, 16


def load_square(path: Path, size: int) -> torch.Tensor:
    """Return the middle of the image, [1, 3, size, size] in [-1, 1]."""
    planes = Planes(tuple(map(Image.fromarray, read_picture(path, 3).image.numpy())), Form())
    small = planes.each(lambda plane: TF.resize(plane, size, TF.InterpolationMode.BILINEAR))
    return as_signal(small.each(lambda plane: TF.center_crop(plane, size)).tensor()[None])


def draw_sheet(tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    """Draw equally large tiles in rows, each with its label below."""
    width, height = tiles[0][1].width + GAP, tiles[0][1].height + LABEL + GAP
    rows = -(-len(tiles) // PER_ROW)
    sheet = Image.new("RGB", (width * min(PER_ROW, len(tiles)) + GAP, height * rows + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, tile) in enumerate(tiles):
        row, column = divmod(number, PER_ROW)
        x, y = GAP + column * width, GAP + row * height
        sheet.paste(tile, (x, y))
        pen.text((x + 2, y + tile.height + 2), label, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument(
        "names", nargs="*", help="degradations, path/to/file.py:ClassName among them (default: all but mixture)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the tiles, in pixels (default: %(default)s)")
    parser.add_argument(
        "--degradation-noise", type=float, default=0.0, help="of linear ones, as train.py has it (default: 0)"
    )
    options = parser.parse_intermixed_args()
    with report_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError or OSError naming what is wrong."""
    if options.out.exists():
        raise FileError(options.out, "is there already: remove it, or name another file")
    if options.size < 16:
        raise UserError("size", options.size, "must be at least 16")
    names = options.names or [name for name in CORRUPTIONS if name != "mixture"]  # which is one of the others
    noise = options.degradation_noise
    require(0 <= noise <= 1, "degradation_noise", noise, "must be from 0 to 1")
    corruptions = [(name, build_corruption(name, options.size, degradation_noise=noise)) for name in names]
    clean = load_square(options.image, options.size)
    # Degraded as image number 0 of an evaluation is.
    shown = [(name, corruption(clean, torch.Generator().manual_seed(0), [0]).image) for name, corruption in corruptions]
    sheet = draw_sheet([(name, to_pil(to_uint8(image)[0])) for name, image in [("clean", clean), *shown]])
    save_png(sheet, options.out)
    print(f"{options.out}: {len(shown)} degradations of {options.image}")


if __name__ == "__main__":
    main()
