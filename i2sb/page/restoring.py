"""One restoration on the page: what was asked for goes to the model's `restore`, what comes back becomes files to see.

It reports every evaluation of the network and can be stopped before any of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from threading import Event

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from corruption import Corruption
from i2sb.answers import Answers
from i2sb.config import SamplingOptions
from i2sb.data.picture_files import Picture, write_picture
from i2sb.images import as_compared, choose_shown, draw_heat, from_uint8, save_png, to_pixels
from i2sb.metrics.pixels import psnr
from i2sb.page.offers import Able
from i2sb.page.pictures import SHOWN_SIDE, RefusedError, draw, signal
from i2sb.restore import RestorationModel, check_restored
from i2sb.sampler import StepTaken
from i2sb.storage.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.tiles import choose_tile, lay_tiles

HEAT_TITLE = "standard deviation, values in [-1, 1]"

_OUTCOME = "outcome-"

# report(share done, what is being done)
Report = Callable[[float, str], object]


class CancelledError(Exception):
    """The visitor pressed Stop, or left."""


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for.

    corrupt: the degradation to put on the picture first, "" for none. hole: painted on it, [1, 1, H, W], or None.
    """

    corrupt: str = ""
    hole: Tensor | None = None
    sampler: str = ""
    nfe: int = 1
    consistency: str = "none"
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """A picture as the network is given it.

    shown: [1, C, H', W'], degraded, of sides that may be longer than the picture's; mask: its hole; corruption: the
    degradation, where it is known.
    """

    picture: Picture
    shown: Tensor
    mask: Tensor | None
    corruption: Corruption | None

    @property
    def sides(self) -> tuple[int, int]:
        height, width = self.picture.image.shape[-2:]
        return height, width

    def cut(self, images: Tensor) -> Tensor:
        """Cut the picture out of images of the longer sides."""
        height, width = self.sides
        return images[..., :height, :width]

    def draw(self) -> Image.Image:
        """Draw it with its hole in colour."""
        return draw(self.cut(self.shown), None if self.mask is None else self.cut(self.mask))


@dataclass(frozen=True)
class Restored:
    """What came out: before and after to look at, files to download, and a line of numbers."""

    before: Image.Image
    after: Image.Image
    file: Path
    animation: Path
    strip: Path
    heat: Path | None
    summary: str


def prepare(able: Able, picture: Picture, wish: Wish) -> Given:
    """Degrade a picture, or put the hole that was painted into it. Raises UserError if that cannot be."""
    clean = signal(picture)
    if not wish.corrupt:
        height, width = clean.shape[-2:]
        # Any inpainting does: its operator takes the mask that it is given.
        blind = wish.hole is not None and not able.model.formulation.sees_degradation
        corruption = able.model.build_corruption("inpaint-center", height, width) if blind else None
        return Given(picture, clean, wish.hole, corruption)
    if picture.form is not None:
        raise RefusedError(
            "This picture has more than 8 bits a channel: take it as it is, or save it with 8 bits first."
        )
    corruption = able.model.build_corruption(wish.corrupt, *clean.shape[-2:])
    shown, mask = able.model.degrade(clean, corruption, seed=wish.seed)
    return Given(picture, shown, mask, corruption)


def restore(able: Able, given: Given, wish: Wish, folder: Path, name: str, report: Report, stop: Event) -> Restored:
    """Restore a picture and write what came out into a new folder in `folder`; the restored one is named after it.

    Raises CancelledError soon after `stop` is set, and UserError as `model.restore` does.
    """
    model, started = able.model, time.monotonic()
    way = able.samplers[wish.sampler]
    height, width = given.sides
    options = SamplingOptions(
        nfe=wish.nfe,
        seed=wish.seed,
        sampler=way.sampler,
        eta=way.eta,
        consistency=wish.consistency,  # type: ignore[arg-type]
        tile=choose_tile(height, width, model.config.restored_size),
    )
    options = model.formulation.settle(options)
    shown_channels = choose_shown(model.config.show_channels, model.config.image_channels)
    recorder = TrajectoryRecorder(given.shown, options.evaluations, height, width, shown_channels)
    steps_taken = 0

    def on_step(step: StepTaken) -> None:
        nonlocal steps_taken
        if steps_taken < step.count:  # the first answer's
            recorder(step)
        steps_taken += 1

    total = options.evaluations * wish.samples
    parts = _count_parts(given.shown, options)

    def on_evaluation(count: int) -> None:
        if stop.is_set():
            raise CancelledError
        part = f", part {count % parts + 1} of {parts}" if parts > 1 else ""
        number, step = divmod(steps_taken, options.evaluations)
        which = f", answer {number + 1} of {wish.samples}" if wish.samples > 1 else ""
        share = (steps_taken + count % parts / parts) / total
        report(min(share, 1.0), f"step {step + 1} of {options.evaluations}{part}{which}")

    with _watching(model, on_evaluation):
        ask = partial(
            model.restore,
            given.shown,
            mask=given.mask,
            corruption=given.corruption,
            nfe=options.nfe,
            seed=options.seed,
            sampler=options.sampler,
            eta=way.eta,
            consistency=options.consistency,
            tile=options.tile,
            tiles_at_once=1,  # so that it can be stopped between them; a CPU is no faster with more
            callback=on_step,
        )
        answer: Tensor | Answers = ask() if wish.samples == 1 else ask(samples=wish.samples)
    x0 = given.cut(answer if isinstance(answer, Tensor) else answer.first)
    check_restored(x0, [name])
    pixels = to_pixels(x0[0], given.picture.dtype, model.config.value_range)
    noisy = given.corruption is not None and given.corruption.noise > 0
    if given.mask is not None and not noisy:  # what is known comes back as it was
        hole = given.cut(given.mask)
        pixels = torch.where(hole[0].cpu() > 0, pixels, given.picture.stored)
        x0 = torch.where(hole > 0, x0, signal(given.picture).to(x0))
    after = from_uint8(pixels)[None] if pixels.dtype == torch.uint8 else x0  # to the level, where people can compare
    trained = model.training_corruption
    # A browser would take a file of the same address for the one that it has seen.
    for older in folder.glob(f"{_OUTCOME}*"):
        shutil.rmtree(older)
    folder = Path(mkdtemp(prefix=_OUTCOME, dir=folder))
    file = folder / f"{name}-restored.png"
    write_picture(file, pixels, given.picture, colours=trained is None or trained.adds_colour)
    recorder.save(0, folder / "way")
    strip, animation = trajectory_paths(folder / "way")
    heat = None
    if isinstance(answer, Answers):
        heat = folder / "spread.png"
        save_png(draw_heat(_shrink(given.cut(answer.std)[0].mean(0)), HEAT_TITLE), heat)
    seconds = time.monotonic() - started
    return Restored(given.draw(), draw(after), file, animation, strip, heat, _summarise(wish, given, pixels, seconds))


@contextmanager
def _watching(model: RestorationModel, on_evaluation: Callable[[int], object]) -> Iterator[None]:
    """Call on_evaluation(count) before every evaluation of the model's network, and before those of its mean's.

    With large pictures many of them, one a tile, make up a step, and `restore` itself can be asked to stop after a step
    only. count: evaluations of the network before it.
    """
    count = 0

    def before(*_: object) -> None:
        nonlocal count
        on_evaluation(count)
        count += 1

    hooks = [model.network.register_forward_pre_hook(before)]
    if model.mean is not None:
        hooks += [network.register_forward_pre_hook(lambda *_: on_evaluation(0)) for network in model.mean.networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _count_parts(images: Tensor, options: SamplingOptions) -> int:
    """Return how many times the network is evaluated in a step."""
    if not options.tile:
        return 1
    rows, columns = (len(lay_tiles(side, options.tile, options.overlap).starts) for side in images.shape[-2:])
    return rows * columns


def _shrink(spread: Tensor) -> Tensor:
    """Return a map [H, W] no larger than the page shows it, averaged over what falls together."""
    scale = -(-max(spread.shape) // SHOWN_SIDE)
    return spread if scale == 1 else avg_pool2d(spread[None], scale, ceil_mode=True)[0]


def _summarise(wish: Wish, given: Given, pixels: Tensor, seconds: float) -> str:
    height, width = given.sides
    line = f"{width} × {height} pixels in {seconds:.1f} s."
    if wish.corrupt:
        clean = as_compared(given.picture.image[None], plain=True)
        damaged = as_compared(given.cut(given.shown).cpu(), plain=True)
        before, after = (float(psnr(images, clean)) for images in (damaged, pixels[None]))
        line += f" PSNR, how close it is to your original: {before:.2f} dB damaged, {after:.2f} dB restored."
    return line
