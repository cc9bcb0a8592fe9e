"""Data consistency: predictions are brought into line with what was measured, to rounding."""

from __future__ import annotations

import pytest
import torch

from corruption import build_corruption
from helpers.degradations import LINEAR, SIDE
from i2sb.bridge import Bridge
from i2sb.consistency import advise_consistency, check_consistency, make_consistency
from i2sb.sampler import sample


def draw(seed: int, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def net(xt, step, cond=None):
    """No good denoiser: what it predicts is far from what was measured."""
    return 0.7 * torch.tanh(xt) + 0.1


def excess(corruption, x, degraded, mask):
    return (corruption.A(x.double(), mask) - corruption.measure(degraded.double(), mask)).abs().max().item()


@pytest.mark.parametrize("nfe", [1, 5])
@pytest.mark.parametrize("name", LINEAR)
def test_projection_ends_where_the_measurement_is(name, nfe):
    corruption = build_corruption(name, SIDE)
    degraded, mask = corruption(draw(0), torch.Generator().manual_seed(0))
    refine = make_consistency("project", corruption, degraded, mask)
    seen = []
    plain = sample(Bridge(100), net, degraded, nfe=nfe).x0
    x0 = sample(Bridge(100), net, degraded, nfe=nfe, refine=refine, callback=seen.append).x0
    # The exact blurs leave out components that A shrinks below a ten-thousandth: those cannot be seen in y either.
    limit = 2e-4 if name.endswith("-exact") else 2e-6
    assert excess(corruption, plain, degraded, mask) > 1e-2
    for image in (x0, *(step.pred_x0 for step in seen)):
        assert excess(corruption, image, degraded, mask) < limit
    assert x0.dtype == torch.float32


@pytest.mark.parametrize("name", LINEAR)
def test_projection_changes_only_what_the_operator_sees(name):
    """What is consistent already stays as it is, and a second projection changes nothing."""
    corruption = build_corruption(name, SIDE)
    clean = draw(1)
    degraded, mask = corruption(clean, torch.Generator().manual_seed(0))
    refine = make_consistency("project", corruption, degraded, mask)
    tolerance = 5e-3 if "blur" in name else 1e-5  # float32 measurements, enlarged up to a thousandfold
    torch.testing.assert_close(refine(clean, 1.0), clean, rtol=0, atol=tolerance)
    once = refine(draw(2), 1.0)
    torch.testing.assert_close(refine(once, 1.0), once, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LINEAR)
def test_gradient_is_that_of_the_squared_distance(name):
    corruption = build_corruption(name, SIDE).double()
    degraded, mask = build_corruption(name, SIDE)(draw(3), torch.Generator().manual_seed(0))
    x0 = draw(4, torch.float64).requires_grad_()
    mask = None if mask is None else mask.double()
    (corruption.A(x0, mask) - corruption.measure(degraded.double(), mask)).square().sum().backward()
    refine = make_consistency("gradient", corruption, degraded, mask, weight=0.3)
    torch.testing.assert_close(refine(x0.detach(), 0.5), x0.detach() - 0.3 * 0.5 * x0.grad, rtol=0, atol=1e-9)
    assert torch.equal(refine(x0.detach(), 0.0), x0.detach()), "the finished image is moved"


def test_gradient_brings_restored_images_closer():
    corruption = build_corruption("sr4x-bicubic", SIDE)
    degraded, _ = corruption(draw(5))
    far = excess(corruption, sample(Bridge(100), net, degraded, nfe=10).x0, degraded, None)
    refine = make_consistency("gradient", corruption, degraded, weight=6.0)
    assert excess(corruption, sample(Bridge(100), net, degraded, nfe=10, refine=refine).x0, degraded, None) < 0.5 * far


@pytest.mark.parametrize("name", ["jpeg-5", "jpeg-40"])
def test_jpeg_keeps_the_quantised_coefficients(name):
    jpeg = build_corruption(name, SIDE)
    clean = draw(6)
    degraded = jpeg(clean).image
    refine = make_consistency("project", jpeg, degraded)
    x0 = sample(Bridge(100), net, degraded, nfe=3, refine=refine).x0
    for found, wanted in zip(jpeg.encode(x0), jpeg.encode(clean), strict=True):
        assert (found != wanted).float().mean() < 2e-3  # halves may round either way
    # What rounding took away of the prediction is kept: the image is not the degraded one again.
    assert (x0 - degraded).abs().mean() > 0.01
    torch.testing.assert_close(refine(clean, 1.0), clean, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("gradient", "jpeg-5", "the rounding of `corrupt` jpeg-5 has no gradient; use project"),
        ("project", "mixture", "`corrupt` mixture has no operator"),
        ("gradient", "paired", "`corrupt` paired has no operator"),
        (
            "project",
            "sr3x-pool noisy",
            "consistency project: would put the noise of `degradation_noise` into the image",
        ),
        ("both", "sr4x-pool", "consistency both: unknown; choose one of none, project, gradient"),
    ],
)
def test_what_cannot_be_is_refused(kind, name, words):
    name, _, noisy = name.partition(" ")
    noise = {"degradation_noise": 0.1} if noisy else {}
    corruption = None if name == "paired" else build_corruption(name, SIDE, **noise)
    with pytest.raises(ValueError, match=words):
        check_consistency(kind, name, corruption)


def test_advice_on_8_bit_blurs():
    assert "8-bit" in advise_consistency("project", build_corruption("blur-uni", SIDE))
    assert not advise_consistency("gradient", build_corruption("blur-uni", SIDE))
    assert not advise_consistency("project", build_corruption("sr4x-pool", SIDE))
    check_consistency("none", "mixture", build_corruption("mixture", SIDE))
    assert make_consistency("none", None, draw(0)) is None
