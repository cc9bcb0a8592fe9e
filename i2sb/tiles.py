"""Networks on images of any size: padding to the sides a network takes, and evaluation tile by tile.

Only the network sees tiles. States, noise and predictions stay whole, and the tiles' outputs are blended at every
evaluation: so no seam has a chance to grow, and the noise is the same whatever the tiles.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from corruption.base import send

LARGE_PIXELS = 1024 * 1024  # pictures with more are cut into tiles, unless somebody says otherwise
USUAL_TILE = 256


def pad_reflect(x: Tensor, multiple: int) -> Tensor:
    """Extend x [..., H, W] at its bottom and right to multiples, mirrored at the last row and column.

    Images smaller than what is added are mirrored again and again. Blocks of pixels counted from the top left, such as
    JPEG's, stay where they are.

    >>> pad_reflect(torch.tensor([[1, 2, 3, 4, 5]]), 8)[0]
    tensor([1, 2, 3, 4, 5, 4, 3, 2])
    """
    rows, columns = (_mirror(side, -(-side // multiple) * multiple, x.device) for side in x.shape[-2:])
    return x if (len(rows), len(columns)) == tuple(x.shape[-2:]) else x[..., rows[:, None], columns]


def _mirror(side: int, wanted: int, device: torch.device) -> Tensor:
    """Return the source of each of `wanted` rows: 0, 1, …, side - 1, side - 2, …, 0, 1, …"""
    if side == 1:
        return torch.zeros(wanted, dtype=torch.long, device=device)
    row = torch.arange(wanted, device=device) % (2 * side - 2)
    return torch.minimum(row, 2 * side - 2 - row)


def choose_tile(height: int, width: int, restored_size: int) -> int:
    """Return the side of the tiles that a picture is restored in if nobody says it; 0: whole, as it is not large.

    restored_size: side of the images that the run restores; tiles are no smaller.
    """
    return max(USUAL_TILE, restored_size) if height * width > LARGE_PIXELS else 0


class _Axis(NamedTuple):
    """The tiles along one axis: where they start, and the weight of each of their pixels, [tile] a tile."""

    starts: list[int]
    weights: list[Tensor]


def lay_tiles(side: int, tile: int, overlap: int) -> _Axis:
    """Lay the fewest tiles over `side` pixels so that neighbours share at least `overlap`, evenly.

    A weight rises over the overlap from the tile's edge, and all weights over a pixel add up to 1.
    """
    tile = min(tile, side)
    count = 1 if side == tile else math.ceil((side - overlap) / (tile - overlap))
    starts = [i * (side - tile) // max(count - 1, 1) for i in range(count)]
    from_edge = torch.arange(1, tile + 1, dtype=torch.float64)
    ramp = torch.minimum(from_edge, from_edge.flip(0)).clamp(max=overlap + 1)
    total = torch.zeros(side, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += ramp
    return _Axis(starts, [(ramp / total[start : start + tile]).float() for start in starts])


def tiled(net: Callable[..., Tensor], tile: int, overlap: int, batch_size: int = 1) -> Callable[..., Tensor]:
    """Return a network that evaluates `net(xt, step, cond=cond)` on square tiles, `batch_size` of them at once.

    Sides that are no longer than `tile` pixels are not cut. What memory it takes beyond that of the whole images does
    not depend on their size.
    """

    @cache
    def lay(side: int, device: torch.device) -> _Axis:
        """Lay tiles once for all evaluations, with their weights on the device."""
        starts, weights = lay_tiles(side, tile, overlap)
        return _Axis(starts, list(send(torch.stack(weights), device)))

    def evaluate(xt: Tensor, step: Tensor, cond: Tensor | None = None) -> Tensor:
        rows, columns = (lay(side, xt.device) for side in xt.shape[-2:])
        height, width = (min(tile, side) for side in xt.shape[-2:])
        corners = [(i, j) for i in range(len(rows.starts)) for j in range(len(columns.starts))]
        blended = torch.zeros_like(xt)
        at_once = max(1, batch_size // len(xt))
        for first in range(0, len(corners), at_once):
            windows = [
                (i, j, (..., slice(top, top + height), slice(left, left + width)))
                for i, j in corners[first : first + at_once]
                for top, left in [(rows.starts[i], columns.starts[j])]
            ]
            out = net(_cut(xt, windows), step.repeat(len(windows)), cond=None if cond is None else _cut(cond, windows))
            for (i, j, window), part in zip(windows, out.split(len(xt)), strict=True):
                weight = rows.weights[i][:, None] * columns.weights[j]
                blended[window] += part * weight.to(part.dtype)
        return blended

    return evaluate


def _cut(x: Tensor, windows: Sequence[tuple]) -> Tensor:
    """Return the windows of x [B, C, H, W], one after the other, [windows · B, C, h, w]."""
    return torch.cat([x[window] for _, _, window in windows])
