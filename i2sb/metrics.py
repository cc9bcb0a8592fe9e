"""Image quality: 8-bit images in, numbers out, one per image."""

from __future__ import annotations

import torch
from torch import Tensor

PEAK = 255.0


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels of each image, [B].

    Both are uint8 [B, C, H, W]; equal images give infinity.
    """
    error = (images.double() - reference.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(PEAK**2 / error)


def mae(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute error over all pixels and channels of each image, in 8-bit levels (0 to 255), [B]."""
    return (images.double() - reference.double()).abs().flatten(1).mean(dim=1)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, σ = 1.5) of each image, [B]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(
        images.float(), reference.float(), data_range=PEAK, sigma=1.5, kernel_size=11, reduction="none"
    )
    return value.reshape(len(images)).double()
