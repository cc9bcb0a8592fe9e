"""JPEG without a file: colour transform, 8x8 cosine transform, quantisation, and all of it back.

ITU T.81 without its entropy coding, which loses nothing; chroma is taken at every second pixel, not averaged.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from corruption.base import Corrupted, Corruption, Draws

# ITU T.81, annex K.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# From RGB to luma and the two chromas and back, in units of 8 bits, as published (the way back has more digits).
TO_LUMA = (0.299, 0.587, 0.114)
TO_CHROMA = ((-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
FROM_CHROMA = ((-3.68199903e-5, 1.40198758), (-0.344113281, -0.714103821), (1.77197812, -1.34583413e-4))
HALF_RANGE = 127.5  # 8-bit units in a unit of [-1, 1]
LUMA_SHIFT = HALF_RANGE - 128  # of mid-grey (0 in [-1, 1]) in 8-bit units, after 128 is subtracted


class Coefficients(NamedTuple):
    """Quantised cosine coefficients, whole numbers held as float32, horizontal frequency last.

    luma: [B, 1, H / 8, W / 8, 8, 8]; chroma: [B, 2, H / 16, W / 16, 8, 8], the blue difference first.
    """

    luma: Tensor
    chroma: Tensor


class JPEG(Corruption):
    """`jpeg-Q`: quality Q from 1 to 100, for colour images whose sides are multiples of 16."""

    is_8_bit = True

    to_luma: Tensor
    to_chroma: Tensor
    from_chroma: Tensor
    luma_forward: Tensor
    luma_backward: Tensor
    chroma_forward: Tensor
    chroma_backward: Tensor

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality
        cosines = _cosine_transform()
        blocks = torch.kron(cosines, cosines)  # [coefficient, pixel], rows and columns at once
        for name, table in (("luma", LUMINANCE), ("chroma", CHROMINANCE)):
            steps = quantisation_table(table, quality).flatten()
            # The division by the table and the multiplication are part of the transforms.
            self.register_buffer(f"{name}_forward", (blocks.T / steps).float().contiguous(), persistent=False)
            self.register_buffer(f"{name}_backward", (blocks * steps[:, None]).float().contiguous(), persistent=False)
        tables = ([TO_LUMA], TO_CHROMA, FROM_CHROMA)
        to_luma, to_chroma, from_chroma = (torch.tensor(table, dtype=torch.float32) for table in tables)
        self.register_buffer("to_luma", to_luma * HALF_RANGE, persistent=False)
        self.register_buffer("to_chroma", to_chroma * HALF_RANGE, persistent=False)
        self.register_buffer("from_chroma", from_chroma / HALF_RANGE, persistent=False)

    def check_shape(self, channels: int, height: int, width: int) -> None:
        if channels != 3 or height % 16 or width % 16:
            raise ValueError(
                f"images of {height}x{width} pixels, {channels} channels: "
                "jpeg needs colour images whose sides are multiples of 16"
            )

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        return Corrupted(self.decode(self.encode(clean)))

    def encode(self, x: Tensor) -> Coefficients:
        """Return the coefficients of images x [B, 3, H, W] in [-1, 1], rounded to the nearest, halves to even."""
        luma = _mix(self.to_luma, x).add_(LUMA_SHIFT)
        chroma = _mix(self.to_chroma, x[:, :, ::2, ::2])
        return Coefficients(
            (_to_blocks(luma) @ self.luma_forward).round_().unflatten(-1, (8, 8)),
            (_to_blocks(chroma) @ self.chroma_forward).round_().unflatten(-1, (8, 8)),
        )

    def decode(self, coefficients: Coefficients) -> Tensor:
        """Return the images [B, 3, H, W], not clamped to [-1, 1], that the coefficients stand for."""
        luma = _from_blocks(coefficients.luma.flatten(-2) @ self.luma_backward)
        chroma = _from_blocks(coefficients.chroma.flatten(-2) @ self.chroma_backward)
        batch, _, height, width = luma.shape
        luma = luma.sub_(LUMA_SHIFT).div_(HALF_RANGE)
        # Chroma's share of each colour, repeated 2x2: along a row, then for two rows at once while luma is added.
        chroma = _mix(self.from_chroma, chroma).repeat_interleave(2, -1)
        image = chroma.unsqueeze(-2) + luma.view(batch, 1, height // 2, 2, width)
        return image.view(batch, 3, height, width)


def quantisation_table(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return the table [8, 8] for a quality from 1 to 100, float64 whole numbers from 1 to 255."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((scale * torch.tensor(table, dtype=torch.float64) + 50) / 100).floor().clamp(1, 255)


def _cosine_transform() -> Tensor:
    """Return the orthonormal DCT-II [frequency, pixel] of eight pixels, float64."""
    i = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * i + 1) * i[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """Mix the channels of x [B, C, H, W] with matrix [C', C]."""
    return (matrix @ x.flatten(2)).unflatten(-1, x.shape[-2:])


def _to_blocks(x: Tensor) -> Tensor:
    """Cut [B, C, H, W] into 8x8 blocks, [B, C, H / 8, W / 8, 64]."""
    return x.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2).flatten(-2)


def _from_blocks(blocks: Tensor) -> Tensor:
    """Put blocks [B, C, H / 8, W / 8, 64] back together, [B, C, H, W]."""
    return blocks.unflatten(-1, (8, 8)).transpose(-3, -2).flatten(-2).flatten(-3, -2)
