"""Degradations to hold properties to: all that have a name, and examples of each family of names."""

from __future__ import annotations

from corruption import CORRUPTIONS, LinearCorruption, build_corruption

SIDE = 48  # suits all of them
EXAMPLES = (
    *CORRUPTIONS,
    *("jpeg-37", "jpeg-100"),
    *(f"sr{factor}x-{kernel}" for factor in (2, 3, 8) for kernel in ("pool", "bicubic")),
)
LINEAR = tuple(name for name in EXAMPLES if isinstance(build_corruption(name, SIDE), LinearCorruption))
