"""PSNR and SSIM against other people's functions and closed forms."""

from __future__ import annotations

import pytest
import torch

from i2sb.metrics.pixels import psnr, ssim


def test_psnr_agrees_with_torchmetrics_and_closed_forms():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    for i in range(3):
        want = peak_signal_noise_ratio(a[i].float(), b[i].float(), data_range=255.0)
        assert psnr(a, b)[i].item() == pytest.approx(want.item(), rel=1e-5)
    off_by_one = psnr(a.clamp(max=254), a.clamp(max=254) + 1)
    assert off_by_one.tolist() == pytest.approx([48.1308] * 3, abs=1e-3)  # 20 log10 255
    assert psnr(a, a).tolist() == [60.0] * 3
    nearly = a.clone()
    nearly[:, 0, 0, 0] ^= 1  # one value off by one level: 83 dB without the limit
    assert psnr(nearly, a).tolist() == [60.0] * 3


@pytest.mark.parametrize("size", [(11, 13), (40, 29)])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_published_one(channels, size):
    """Of noise, of a flat image that is a little off, and of equal images."""
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, channels, *size), dtype=torch.uint8, generator=generator)
    clean[1] = 250
    images = (clean.float() + torch.randn(clean.shape, generator=generator) * 20).clamp(0, 255).byte()
    images[1] = 250 + torch.randint(0, 2, images[1].shape, dtype=torch.uint8, generator=generator)
    images[2] = clean[2]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    want = [
        structural_similarity(*(x.numpy() for x in pair), channel_axis=0, **settings)
        for pair in zip(images, clean, strict=True)
    ]
    assert want[0] < 1 and want[1] < 1 and want[2] == 1
    assert ssim(images, clean).tolist() == pytest.approx(want, abs=1e-10)


def test_ssim_needs_images_as_large_as_its_window():
    small = torch.zeros(1, 3, 10, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match="^images of 12x10 pixels: SSIM needs 11 a side or more$"):
        ssim(small, small)
