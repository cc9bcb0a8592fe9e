"""Draw the ways of several models back to a photograph, side by side: a strip of their states, and an animation.

    python scripts/draw_ways.py PHOTO OUT MODEL [MODEL ...] [--corrupt sr4x-bicubic] [--nfe 10] [--clip-denoise]

A MODEL is a run's folder, such as results/NAME, or a file of weights that scripts/export.py wrote. All restore the same
photograph, degraded alike, with as many network evaluations. OUT.png has a row a model: what it is shown, its states,
the clean photograph. OUT.webp has a frame an evaluation.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from i2sb.cli.program import check_directory, report_errors

check_directory()

import torch
from show_corruptions import load_square
from torch import Tensor
from torchvision.transforms.functional import center_crop

from corruption import build_corruption
from i2sb.config import SamplingOptions
from i2sb.errors import FileError, require
from i2sb.files import write_atomically
from i2sb.images import draw_grid, save_png, to_uint8
from i2sb.restore import load_model
from i2sb.sampler import logged_steps

FRAME_MS, ENDS_MS = 150, 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photo", type=Path, help="photograph in colour; the middle of it is taken")
    parser.add_argument("out", type=Path, help="OUT.png and OUT.webp are written")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder of a run, or file of weights")
    parser.add_argument("--corrupt", default="sr4x-bicubic", help="degradation, without a hole (default: %(default)s)")
    parser.add_argument("--nfe", type=int, default=10, help="network evaluations (default: %(default)s)")
    parser.add_argument("--states", type=int, default=4, help="states in the strip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of what is restored (default: %(default)s pixels)")
    parser.add_argument(
        "--shown", type=int, default=128, help="side of its middle, in the strip (default: %(default)s pixels)"
    )
    parser.add_argument("--clip-denoise", action="store_true", help="keep predictions in [-1, 1]: wise for diffusions")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    with report_errors():
        run(parser.parse_intermixed_args())


def run(options: argparse.Namespace) -> None:
    """Do what the flags ask for. Raises UserError or OSError naming what is wrong."""
    strip, animation = (options.out.with_name(options.out.name + ending) for ending in (".png", ".webp"))
    for path in (strip, animation):
        if path.exists():
            raise FileError(path, "is there already: remove it, or name another file")
    for name, least in (("nfe", 1), ("states", 1), ("size", 16), ("shown", 16)):
        require(getattr(options, name) >= least, name, getattr(options, name), f"must be at least {least}")
    require(options.shown <= options.size, "shown", options.shown, f"must be at most `size` {options.size}")
    corruption = build_corruption(options.corrupt, options.size)
    require(not corruption.makes_holes, "corrupt", options.corrupt, "must be one without a hole")
    clean = load_square(options.photo, options.size)
    degraded = corruption(clean, torch.Generator().manual_seed(0), [0]).image
    sampling = SamplingOptions(nfe=options.nfe, clip_denoise=options.clip_denoise, seed=options.seed)
    ways = torch.cat([follow(Path(model), degraded, sampling) for model in options.models])

    middle = partial(cut_middle, side=options.shown)
    rows = len(options.models)
    columns = [("degraded", middle(degraded).expand(rows, -1, -1, -1))]
    columns += [
        (f"{step} of {options.nfe}", middle(ways[:, step])) for step in logged_steps(options.nfe, options.states)
    ]
    columns += [("clean", middle(clean).expand(rows, -1, -1, -1))]
    save_png(draw_grid(columns, scale=1, per_row=1), strip)

    names = [Path(model).stem for model in options.models]
    frames = [
        draw_grid([(name, to_uint8(state[None])) for name, state in zip(names, states, strict=True)], scale=1)
        for states in ways.unbind(1)
    ]
    times = [ENDS_MS] + [FRAME_MS] * (len(frames) - 2) + [ENDS_MS]
    write_webp = partial(
        frames[0].save, format="WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80
    )
    write_atomically(animation, write_webp, sync=False)
    print(f"{strip}, {animation}: the ways of {', '.join(names)} to {options.photo}")


def follow(path: Path, degraded: Tensor, sampling: SamplingOptions) -> Tensor:
    """Return what a model is shown and its states after each evaluation, [1, 1 + nfe, C, H, W] in [-1, 1]."""
    model = load_model(path)
    way = model.follow(degraded, sampling, states=sampling.nfe)
    assert way.states is not None
    return torch.cat([degraded[:, None], way.states.flip(1).cpu()], dim=1)


def cut_middle(images: Tensor, side: int) -> Tensor:
    """Return the middle of images [B, C, H, W] in [-1, 1], `side` pixels wide and high, as bytes."""
    return to_uint8(center_crop(images, [side, side]))


if __name__ == "__main__":
    main()
