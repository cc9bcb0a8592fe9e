"""Pictures that people drop on the page, taken with care, and what they are shown of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from i2sb.config import PageConfig
from i2sb.data.picture_files import Picture, read_picture
from i2sb.errors import FileError
from i2sb.images import UNDECODABLE, as_signal, choose_shown, show, to_levels, to_pil

# What is decoded at all, by how its file begins, and the ending it is kept under. No other decoder sees an upload.
KINDS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_OPENED = [kind for kind in KINDS if kind != "MPO"]  # Pillow finds an MPO where it looks for a JPEG
SHOWN_SIDE = 1280  # longer sides are shown smaller; what is downloaded is whole
PAINTED_SIDE = 768  # of the picture that holes are painted on
HOLE_COLOUR = (233, 64, 140)
EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Upload:
    """A picture somebody dropped, its file's bytes and kind; it is decoded for a network's channels when needed."""

    name: str
    path: Path

    def read(self, channels: int, value_range: tuple[float, float] | None) -> Picture:
        """Decode it. Raises UserError in words for the page: no path is in it."""
        try:
            return read_picture(self.path, channels, value_range)
        except FileError as error:
            raise RefusedError(f"This picture cannot be restored: {error.must}.") from None


class RefusedError(ValueError):
    """A picture that is not taken; the message is what the page says."""


def take_upload(source: Path, name: str, folder: Path, config: PageConfig) -> Upload:
    """Move a file that was dropped into a visitor's folder, under a name of ours, if it is a picture to take.

    name: what the visitor calls it. Looked at are its size and its first bytes; nothing is decoded. Raises
    RefusedError.
    """
    size = source.stat().st_size
    if size > config.max_megabytes * 1e6:
        raise RefusedError(f"This file has {size / 1e6:.1f} megabytes; {config.max_megabytes:g} are the most.")
    try:
        with Image.open(source, formats=_OPENED) as image:
            kind, (width, height) = image.format or "", image.size
    except Image.DecompressionBombError:
        raise RefusedError(_too_large(config)) from None
    except UNDECODABLE:
        raise RefusedError("This file is no picture that can be read. JPEG, PNG and WebP are taken.") from None
    if width * height > config.max_megapixels * 1e6:
        raise RefusedError(_too_large(config, f"This picture has {width * height / 1e6:.1f} megapixels; "))
    ending = KINDS[kind]
    kept = folder / f"upload{ending}"
    source.replace(kept)
    return Upload(Path(name).stem[:60] or "picture", kept)


def _too_large(config: PageConfig, found: str = "This picture is too large; ") -> str:
    return f"{found}{config.max_megapixels:g} megapixels are the most. Make it smaller first."


def signal(picture: Picture) -> Tensor:
    """Return a picture as a network takes it, [1, C, H, W] in [-1, 1]."""
    return as_signal(picture.image)[None]


def draw(image: Tensor, mask: Tensor | None = None) -> Image.Image:
    """Draw an image [1, C, H, W] in [-1, 1], its hole [1, 1, H, W] in colour, no larger than the page shows it."""
    shown = show(to_levels(image[0]), choose_shown(None, image.shape[1])).cpu()
    drawn = to_pil(shown).convert("RGB")
    if mask is not None:
        drawn.paste(HOLE_COLOUR, mask=to_pil((mask[0] * 255).to(torch.uint8)))
    return shrink(drawn, SHOWN_SIDE)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side is at most so many pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def read_painting(layers: list[Image.Image], height: int, width: int) -> Tensor | None:
    """Return the hole that was painted, [1, 1, H, W], 1 where there is paint; None if there is none.

    layers: RGBA, of the shape of the picture or a smaller copy of it.
    """
    hole = torch.zeros(height, width, dtype=torch.bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize((width, height), Image.Resampling.NEAREST)
        hole |= torch.frombuffer(bytearray(alpha.tobytes()), dtype=torch.uint8).reshape(height, width) >= 64
    return hole.float()[None, None] if bool(hole.any()) else None
