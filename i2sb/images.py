"""Pixels: the one place that turns stored images into [-1, 1] and back, and draws and writes pictures.

A plain image has 8 bits a channel and uses all of them: it is turned with the published roundings, `from_uint8` and
`to_uint8`. Any other, of TYPES, is turned exactly between its range of values and [-1, 1]: `from_pixels`, `to_pixels`.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from i2sb.errors import FileError, require
from i2sb.files import write_atomically

# What a pixel may be stored as.
TYPES = ("uint8", "uint16", "int16", "float16", "float32", "float64")

# The lowest and the highest value a pixel can have; None stands for all that its type has, 0 to 1 for floats.
ValueRange = tuple[float, float] | None


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1], with the published roundings: divided by 255, then doubled, less one."""
    return images.float().div(255).mul(2).sub(1)


def to_uint8(images: Tensor) -> Tensor:
    """Map images in [-1, 1] to uint8 as published: clamp((x + 1) · 127.5, 0, 255), truncated.

    >>> to_uint8(torch.tensor([-1.2, -1.0, 0.0, 0.5, 1.0])).tolist()
    [0, 0, 127, 191, 255]
    """
    return ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def whole_range(dtype: str) -> tuple[float, float]:
    """Return the range of values that images of this type have unless told otherwise.

    >>> whole_range("uint16"), whole_range("float32")
    ((0.0, 65535.0), (0.0, 1.0))
    """
    if np.issubdtype(dtype, np.floating):
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def is_plain(dtype: str, value_range: ValueRange) -> bool:
    """Whether images of this type with these values are turned by `from_uint8` and `to_uint8`."""
    return dtype == "uint8" and value_range in (None, whole_range(dtype))


def find_limits(dtype: str, value_range: ValueRange) -> tuple[float, float]:
    """Return the lowest and the highest value of pixels of this type, rounded as the type rounds them.

    Raises ValueError if the type cannot hold them: what is restored may have any value between them.

    >>> find_limits("float32", (0, 0.1))[1] > 0.1, find_limits("uint16", None)
    (True, (0.0, 65535.0))
    """
    low, high = value_range or whole_range(dtype)
    holds = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    if low < float(holds.min) or high > float(holds.max):
        raise ValueError(f"holds pixels of type {dtype}, which cannot have all of `value_range` {low:g} {high:g}")
    if isinstance(holds, np.finfo):
        return float(np.dtype(dtype).type(low)), float(np.dtype(dtype).type(high))
    return low, high


def from_pixels(pixels: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Map pixels of one of TYPES to float32 in [-1, 1], from the lowest value of their range to the highest.

    Integers of 16 bits come back whole from `to_pixels`. Raises ValueError for values that are not finite or lie
    outside of the range, and like `find_limits`.
    """
    low, high = find_limits(pixels.dtype.name, value_range)
    least, most = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError("holds values that are NaN or infinite")
    if least < low or most > high:
        raise ValueError(f"holds values from {least:g} to {most:g}, outside of `value_range` {low:g} {high:g}")
    return ((pixels.astype(np.float64) - low) * (2 / (high - low)) - 1).astype(np.float32)


def to_pixels(images: Tensor, dtype: str, value_range: ValueRange) -> Tensor:
    """Map images in [-1, 1] to pixels of one of TYPES: plain ones by `to_uint8`, others clamped to their range.

    Integers are rounded to the nearest. Returned on the CPU.

    >>> to_pixels(torch.tensor([-1.5, 0.0, 1.0]), "int16", (0.0, 1000.0)).tolist()
    [0, 500, 1000]
    """
    if is_plain(dtype, value_range):
        return to_uint8(images).cpu()
    low, high = find_limits(dtype, value_range)
    values = ((images.cpu().double() + 1) * ((high - low) / 2) + low).clamp(low, high).numpy()
    if np.issubdtype(dtype, np.integer):
        values = values.round().clip(np.ceil(low), np.floor(high))
    return torch.from_numpy(values.astype(dtype))


def to_stored(images: Tensor, dtypes: Sequence[str], value_range: ValueRange) -> list[Tensor]:
    """Map a batch of images in [-1, 1] by `to_pixels`, each to its own type, on the CPU."""
    if all(is_plain(dtype, value_range) for dtype in dtypes):
        return list(to_uint8(images).cpu())
    return [to_pixels(image, dtype, value_range) for image, dtype in zip(images.cpu(), dtypes, strict=True)]


def as_signal(images: Tensor) -> Tensor:
    """Return images as the data set gives them, uint8 if they are plain, else in [-1, 1] already, in [-1, 1]."""
    return images if images.is_floating_point() else from_uint8(images)


def to_levels(images: Tensor) -> Tensor:
    """Map images in [-1, 1] to what metrics compare: float64 from 0 to 255 over the range of values, not rounded."""
    return ((images.double() + 1) * 127.5).clamp(0, 255)


def as_compared(images: Tensor, *, plain: bool) -> Tensor:
    """Return images in [-1, 1] as metrics compare them: uint8 if the data set is plain, else by `to_levels`.

    Images of a data set that are uint8 already stay so.
    """
    if not images.is_floating_point():
        return images
    return to_uint8(images) if plain else to_levels(images)


def show(images: Tensor, channels: Sequence[int]) -> Tensor:
    """Return what people are shown of images [..., C, H, W]: these channels, uint8.

    images: uint8 already, or floats from 0 to 255 as `to_levels` gives them.
    """
    shown = images[..., list(channels), :, :]
    return shown if shown.dtype == torch.uint8 else shown.round().clamp(0, 255).to(torch.uint8)


def choose_shown(wanted: Sequence[int] | None, channels: int) -> list[int]:
    """Return the channels, counted from 0, that pictures for people show of images that have so many.

    wanted: one or three, counted from 1; None for the first three, or the first where there are fewer. Raises UserError
    naming `show_channels` if there are no such.

    >>> choose_shown((4, 3, 2), 13), choose_shown(None, 5), choose_shown(None, 2)
    ([3, 2, 1], [0, 1, 2], [0])
    """
    if wanted is None:
        return [0, 1, 2] if channels >= 3 else [0]
    must = f"the images have {channels} channels, counted from 1"
    require(max(wanted) <= channels, "show_channels", " ".join(map(str, wanted)), must)
    return [number - 1 for number in wanted]


def to_pil(image: Tensor) -> Image.Image:
    """Turn one uint8 image [C, H, W], C from 1 to 4 (2 and 4: the last is transparency), into a PIL image."""
    return TF.to_pil_image(image.cpu())


# What Pillow raises for files that are no images, or damaged ones; OSError is also what the disk says.
UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def say_undecodable(error: Exception) -> str:
    """Say in a line what an error of UNDECODABLE says of a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or cut off"
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def open_image(content: bytes) -> Image.Image:
    """Begin to decode an image file. Raises one of UNDECODABLE if it is none, or has more than 8 bits a channel."""
    image = Image.open(io.BytesIO(content))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of kind {image.mode}, only 8-bit images are supported")
    return image


@contextmanager
def refuse_undecodable(path: Path, kind: str, advice: str) -> Iterator[None]:
    """Turn what Pillow says of a broken file at `path` into a FileError with this advice; errors of the disk stay."""
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise FileError(path, f"unreadable {kind} ({say_undecodable(error)}); {advice}") from None


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    write_atomically(path, lambda file: image.save(file, format="PNG"), sync=False)


def draw_grid(columns: Sequence[tuple[str, Tensor]], *, scale: int | None = None, per_row: int = 2) -> Image.Image:
    """Draw images side by side with their columns' titles above.

    columns: (title, uint8 [B, C, H, W]) pairs, equal in shape. Small images are enlarged by whole `scale`
    (default: to about 128 pixels a side); `per_row` images with all their columns share a row.
    """
    titles = [title for title, _ in columns]
    count, _, height, width = columns[0][1].shape
    scale = scale or max(1, 128 // max(height, width))
    gap, head = 4, 16
    cell_w, cell_h = width * scale + gap, height * scale + gap
    per_row = min(per_row, count)
    rows = -(-count // per_row)
    group_w = cell_w * len(columns) + 3 * gap
    sheet = Image.new("RGB", (group_w * per_row - 4 * gap, cell_h * rows - gap + head), "white")
    pen = ImageDraw.Draw(sheet)
    for group in range(per_row):
        for c, title in enumerate(titles):
            pen.text((group * group_w + c * cell_w + 2, 2), title, fill="black")
    for i in range(count):
        row, group = divmod(i, per_row)
        for c, (_, images) in enumerate(columns):
            tile = to_pil(images[i]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile.convert("RGB"), (group * group_w + c * cell_w, head + row * cell_h))
    return sheet


# Black over violet and orange to pale yellow: each of these evenly brighter than the one before.
_HEAT = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")


def draw_heat(values: Tensor, what: str) -> Image.Image:
    """Draw a map of numbers from 0 up, float [H, W], in colours, above a scale that says which colour is what.

    what: the numbers' name and unit, below the scale. It ends at the next 1, 2 or 5 times a power of ten, so that many
    maps share theirs. Small maps are enlarged to about 256 pixels a side.
    """
    largest = max(float(values.max()), 1e-6)
    power = 10.0 ** math.floor(math.log10(largest))
    end = next(step * power for step in (1, 2, 5, 10) if step * power >= largest)
    height, width = values.shape
    scale = max(1, 256 // max(height, width))
    levels = (values / end * 255).round().clamp(0, 255).to(torch.uint8)
    heat = _colour(levels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    sheet = Image.new("RGB", (max(heat.width, math.ceil(pen.textlength(what))), heat.height + 44), "white")
    sheet.paste(heat, ((sheet.width - heat.width) // 2, 0))
    bar = _colour(torch.arange(256, dtype=torch.uint8)[None])
    sheet.paste(bar.resize((sheet.width, 10), Image.Resampling.NEAREST), (0, heat.height + 4))
    pen = ImageDraw.Draw(sheet)
    pen.text((1, heat.height + 16), "0", fill="black")
    pen.text((sheet.width - pen.textlength(f"{end:g}") - 1, heat.height + 16), f"{end:g}", fill="black")
    pen.text(((sheet.width - pen.textlength(what)) / 2, heat.height + 29), what, fill="black")
    return sheet


def _colour(levels: Tensor) -> Image.Image:
    """Turn levels from 0 to 255, uint8 [H, W], into the colours of _HEAT."""
    anchors = torch.tensor([list(bytes.fromhex(colour)) for colour in _HEAT], dtype=torch.float64)
    place = levels.double() / 255 * (len(anchors) - 1)
    below = place.long().clamp(max=len(anchors) - 2)
    colours = torch.lerp(anchors[below], anchors[below + 1], (place - below)[..., None])
    return Image.fromarray(colours.round().to(torch.uint8).numpy())


def draw_strip(
    states: Tensor, pred_x0s: Tensor, x1: Tensor, *, title: str = "x1", scale: int | None = None
) -> Image.Image:
    """Draw one image's way over the bridge: x1 and the states, degraded to clean, and below them the predicted x0.

    states, pred_x0s: uint8 [L, C, H, W], cleanest first, as trajectories are; x1: uint8 [C, H, W], under `title`.
    """
    states, pred_x0s = states.flip(0), pred_x0s.flip(0)
    blank = torch.full_like(x1, 255)
    columns = [(title, torch.stack([x1, blank]))]
    columns += [(f"state {i + 1}", torch.stack(pair)) for i, pair in enumerate(zip(states, pred_x0s, strict=True))]
    return draw_grid(columns, scale=scale, per_row=1)
