"""The degradations by name. Images are [B, C, H, W] in [-1, 1]; nothing here knows about the bridge."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from corruption.base import Corrupted, Corruption
from corruption.inpaint import CenterInpainting
from corruption.superresolution import BicubicSuperResolution, PoolSuperResolution

__all__ = ["CORRUPTIONS", "Corrupted", "Corruption", "build_corruption"]

_BUILDERS: dict[str, type[Corruption]] = {
    "sr4x-pool": PoolSuperResolution,
    "sr4x-bicubic": BicubicSuperResolution,
    "inpaint-center": CenterInpainting,
}

CORRUPTIONS: tuple[str, ...] = tuple(_BUILDERS)


def build_corruption(name: str, image_size: int = 256, **options: Any) -> Corruption:
    """Build the degradation `name` for square images of `image_size` pixels.

    Raises ValueError for an unknown name, for a size that the degradation cannot take, and for unknown options.
    """
    if name not in _BUILDERS:
        near = get_close_matches(name, CORRUPTIONS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--corrupt {name}: unknown degradation; {hint}there are {', '.join(CORRUPTIONS)}")
    if options:
        raise ValueError(f"--corrupt {name}: takes no option {', '.join(options)}")
    corruption = _BUILDERS[name]()
    corruption.check_size(image_size, image_size)
    return corruption
