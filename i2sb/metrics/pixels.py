"""Image quality: images in, numbers out, one per image.

Images are uint8, or floats whose range of values was put to 0 to 255 (i2sb.images.to_levels), so that the peak is one.

The table of metrics, which the command line reads, imports this file: torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PEAK = 255.0
PSNR_LIMIT = 60.0  # dB
SSIM_WINDOW = 11


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels of each image, [B].

    Both are [B, C, H, W], 0 to 255. At most PSNR_LIMIT, which equal images have: without it, theirs is infinite, and
    that of images that are nearly equal large enough to outweigh all others in a mean.
    """
    error = (images.double() - reference.double()).square().flatten(1).mean(dim=1)
    return (10 * (PEAK**2 / error).log10()).clamp(max=PSNR_LIMIT)


def mae(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute error over all pixels and channels of each image, in levels (0 to 255), [B].

    Both are [B, C, H, W], 0 to 255.
    """
    return (images.double() - reference.double()).abs().flatten(1).mean(dim=1)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004) of each image, mean over pixels and channels, [B], up to 1.

    Both are [B, C, H, W], 0 to 255. The window is a Gaussian of 11 pixels, σ = 1.5, and stands only where it lies
    within the image. Raises ValueError for images smaller than it.
    """
    import torch
    from torch.nn.functional import conv2d

    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images of {images.shape[-1]}x{images.shape[-2]} pixels: SSIM needs {SSIM_WINDOW} a side or more"
        )
    # In float64: in float32 the rounding of squares is larger than the variances of flat regions.
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=images.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    x, y = (t.double().flatten(0, 1).unsqueeze(1) for t in (images, reference))
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    # Wang et al. 2004, eq. 13
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.view(len(images), -1).mean(dim=1)
