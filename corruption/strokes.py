"""Brush strokes for freeform inpainting: of any image size, covering exactly the share of the area that is asked for.

Each image has up to four strokes, chains of straight pieces that turn at random. The hole is then the pixels closest to
a stroke, as many as its share of the area wants: so the brush is as broad as the share needs, and the count is exact.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from corruption.base import Draws, send

CPU = torch.device("cpu")
STROKES, PIECES = 4, 5
# For an image: its share and its number of strokes; for each stroke: start, breadth, and turn and length of the pieces.
DRAWS_PER_STROKE = 3 + 2 * PIECES
DRAWS_PER_IMAGE = 2 + STROKES * DRAWS_PER_STROKE
SHORTEST, LONGEST = 0.08, 0.3  # a piece's length over the shorter side
SHARPEST_TURN = 0.75 * math.pi
NARROWEST, BROADEST = 0.6, 1.4  # breadths of an image's strokes, relative to each other
EVALUATION_SEED = 1020
COARSE = 64  # distances are computed on a grid about this fine and interpolated


def count_bounds(percents: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Return (least, beyond): a hole of n pixels has its share in [low, high) percent if least <= n < beyond."""
    low, high = percents
    return -(-low * pixels // 100), -(-high * pixels // 100)


def draw_strokes(
    draws: Draws, height: int, width: int, percents: tuple[int, int], device: torch.device = CPU
) -> Tensor:
    """Return masks float32 [B, 1, height, width], 1 inside the hole, whose share is in [low, high) percent.

    In training the device computes them, 4 to 8 ms an image on a CPU; another device may round a pixel at a hole's edge
    to the other side. In evaluation (`draws.index`) the i-th mask is a function of i, the size and the percents alone.
    """
    if draws.index is None:
        u = send(draws.rand(DRAWS_PER_IMAGE), device)
    else:
        seeds = ([EVALUATION_SEED, percents[0], number] for number in draws.index)
        u = torch.from_numpy(np.stack([np.random.default_rng(seed).random(DRAWS_PER_IMAGE) for seed in seeds]))
    u = u.float()
    distance = _distance_to_strokes(u[:, 1:], height, width).flatten(1)
    least, beyond = count_bounds(percents, height * width)
    count = least + (u[:, :1] * (beyond - least)).long().clamp(max=beyond - least - 1)
    nearest = distance.topk(beyond - 1, dim=1, largest=False).indices
    inside = torch.arange(beyond - 1, device=u.device) < count
    mask = torch.zeros_like(distance).scatter_(1, nearest, inside.float())
    return send(mask.view(-1, 1, height, width), device)


def _distance_to_strokes(u: Tensor, height: int, width: int) -> Tensor:
    """Return each pixel's distance to the closest stroke over that stroke's breadth, [B, height, width]."""
    number = (u[:, :1] * STROKES).long()  # number of strokes, less one
    u = u[:, 1:].view(-1, STROKES, DRAWS_PER_STROKE)
    start, breadth, turn, length = u.split([2, 1, PIECES, PIECES], dim=-1)
    side = min(height, width)

    first, turn = turn[..., :1] * 2 * math.pi, (turn[..., 1:] * 2 - 1) * SHARPEST_TURN
    angle = torch.cat([first, turn], -1).cumsum(-1)
    length = (SHORTEST + (LONGEST - SHORTEST) * length) * side
    steps = torch.stack([angle.sin(), angle.cos()], -1) * length.unsqueeze(-1)
    extent = torch.stack([u.new_full((), height), u.new_full((), width)])  # torch.tensor would wait for the device
    corners = torch.cat([torch.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2) + (start * extent).unsqueeze(-2)
    corners = extent - (extent - corners.remainder(2 * extent)).abs()  # strokes are mirrored at the border
    breadth = NARROWEST + (BROADEST - NARROWEST) * breadth
    breadth = torch.where(torch.arange(STROKES, device=u.device)[:, None] <= number.unsqueeze(-1), breadth, 1e-6)

    grid = [max(2, math.ceil(extent / max(1, side // COARSE))) for extent in (height, width)]
    axes = [
        (torch.arange(n, dtype=u.dtype, device=u.device) + 0.5) * (s / n)
        for n, s in zip(grid, (height, width), strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None, None]  # [1, 1, h, w, 2]
    nearest = torch.full((), torch.inf, device=corners.device)
    for piece in range(PIECES):  # all images and strokes at once
        a, b = (corners[:, :, piece + end, None, None] for end in (0, 1))  # [B, strokes, 1, 1, 2]
        along = ((points - a) * (b - a)).sum(-1, keepdim=True) / (b - a).square().sum(-1, keepdim=True).clamp(min=1e-9)
        away = (points - torch.lerp(a, b, along.clamp(0, 1))).square().sum(-1)
        nearest = torch.minimum(nearest, away)
    distance = (nearest.sqrt() / breadth.unsqueeze(-1)).amin(1, keepdim=True)
    return F.interpolate(distance, size=(height, width), mode="bilinear")[:, 0]
