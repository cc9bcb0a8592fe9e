"""The Fréchet distance, against closed forms and other people's functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from helpers.features import draw
from i2sb.metrics.frechet import Gaussian, Moments, frechet_distance


def moments(*parts: torch.Tensor) -> Moments:
    summed = Moments()
    for part in parts:
        summed.add(part)
    return summed


def test_moments_are_those_of_all_features_at_once():
    features = draw(500, 12, seed=0, shift=3.0)
    gaussian = moments(*features.split([100, 1, 399])).gaussian()
    np.testing.assert_allclose(gaussian.mean, features.mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-10, atol=1e-13)
    assert gaussian.covariance.dtype == torch.float64


def test_moments_of_two_processes_are_those_of_one():
    features = draw(50, 5, seed=1)
    one, two = moments(features[::2]), moments(features[1::2])
    whole = moments(features).gaussian()
    others = iter([torch.tensor([two.count]), two.sum, two.outer])
    shared = one.gaussian(lambda mine: mine + next(others))
    np.testing.assert_allclose(shared.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(shared.covariance, whole.covariance, rtol=1e-10, atol=1e-13)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="needs at least 2 images, not 1"):
        moments(torch.ones(1, 3)).gaussian()


def test_frechet_distance_has_its_closed_form():
    """Covariances with the same eigenvectors: |μ₁ − μ₂|² + Σ (√a − √b)²."""
    basis = torch.from_numpy(ortho_group.rvs(30, random_state=0))
    generator = torch.Generator().manual_seed(0)
    a, b = 5 * torch.rand(2, 30, generator=generator, dtype=torch.float64)
    means = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    one, other = (Gaussian(m, basis @ torch.diag(v) @ basis.T) for m, v in zip(means, (a, b), strict=True))
    want = (means[0] - means[1]).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(one, other) == pytest.approx(want.item(), rel=1e-10)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("dim", [2, 64, 200])
def test_frechet_distance_agrees_with_pytorch_fid(dim):
    from pytorch_fid.fid_score import calculate_frechet_distance

    one, other = draw(1000, dim, seed=2), draw(700, dim, seed=3, shift=0.3)
    statistics = [(x.numpy().mean(axis=0), np.cov(x.numpy(), rowvar=False)) for x in (one, other)]
    want = calculate_frechet_distance(*statistics[0], *statistics[1])
    assert frechet_distance(moments(one).gaussian(), moments(other).gaussian()) == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_few_images():
    """Fewer images than features: covariances are singular, and all the distance is in what the images span."""
    one, other = draw(6, 40, seed=4), draw(9, 40, seed=5)
    got = frechet_distance(moments(one).gaussian(), moments(other).gaussian())
    # tr (Σ₁ Σ₂)^½ is the nuclear norm of X₁ X₂ᵀ for centred, scaled features.
    centred = [(x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (one, other)]
    traces = sum(x.square().sum() for x in centred) - 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    want = (one.mean(dim=0) - other.mean(dim=0)).square().sum() + traces
    assert got == pytest.approx(want.item(), rel=1e-6)
    assert frechet_distance(moments(one).gaussian(), moments(one).gaussian()) == pytest.approx(0, abs=1e-5)
