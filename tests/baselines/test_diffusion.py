"""The diffusion of the baselines: identities and closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch

from i2sb.baselines.diffusion import CLEAN, SCHEDULES, Diffusion, make_betas, step_grid

FLOAT = torch.float64


def diffusion(schedule: str = "linear", interval: int = 1000) -> Diffusion:
    return Diffusion(interval, schedule, dtype=FLOAT)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("interval", [50, 1000])
def test_forward_steps_compose_to_the_marginal(schedule, interval):
    """x_n = √(1 − β) x_{n−1} + √β ε, a step at a time, has the closed form's mean and variance."""
    d = diffusion(schedule, interval)
    of_x0, variance = 1.0, 0.0
    for n, beta in enumerate(make_betas(interval, schedule)):
        of_x0, variance = math.sqrt(1 - beta) * of_x0, (1 - beta) * variance + beta
        assert d.std_signal[n].item() == pytest.approx(of_x0, rel=1e-9)
        assert d.std_noise[n].item() == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert of_x0 < 0.01  # hardly anything of the image is left: sampling may start from noise


def test_schedules_are_the_published_ones():
    linear, cosine = make_betas(1000, "linear"), make_betas(1000, "cosine")
    assert (linear[0], linear[-1]) == (1e-4, 0.02) and cosine[-1] == 0.999
    middle = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert diffusion("cosine").alpha_bar[499] == pytest.approx(middle, rel=1e-9)
    # Scaled to other numbers of steps the linear one ends at about as much noise.
    of_hundred, of_thousand = (math.log(diffusion("linear", interval).alpha_bar[-1]) for interval in (100, 1000))
    assert of_hundred == pytest.approx(of_thousand, rel=0.1)


def test_schedule_refusals():
    with pytest.raises(ValueError, match="interval 20: `schedule` linear needs more than 20 steps"):
        Diffusion(20, "linear")
    Diffusion(4, "cosine")
    with pytest.raises(ValueError, match="schedule quadratic: unknown; choose one of linear, cosine"):
        Diffusion(100, "quadratic")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("nprev", "n"), [(CLEAN, 0), (0, 1), (10, 11), (3, 700), (400, 999), (CLEAN, 999)])
def test_posterior_is_bayes_rule(schedule, nprev, n):
    """q(x_p | x_0) q(x_n | x_p) = q(x_p | x_n, x_0) q(x_n | x_0): precisions add, and so do weighted means."""
    d = diffusion(schedule)
    before, after = d.find_alpha_bar(nprev), d.alpha_bar[n]
    alpha = after / before
    of_x0, of_x_n, std = d.posterior(nprev, n)
    if nprev == CLEAN:
        assert (of_x0, of_x_n, std) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12), pytest.approx(0.0))
        return
    precision = 1 / (1 - before) + alpha / (1 - alpha)
    assert std**2 == pytest.approx(1 / precision, rel=1e-9)
    assert of_x0 == pytest.approx(math.sqrt(before) / (1 - before) / precision, rel=1e-9)
    assert of_x_n == pytest.approx(math.sqrt(alpha) / (1 - alpha) / precision, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_keeps_the_marginals_and_with_eta_one_is_the_posterior(schedule, eta):
    d, (x0, noise) = diffusion(schedule), torch.randn(2, 5, 1, 4, 4, dtype=FLOAT)
    for nprev, n in ((0, 1), (200, 201), (100, 900), (CLEAN, 500)):
        steps = torch.full((5,), n)
        x_n = d.q_sample(steps, x0, noise)
        mean = d.ddim_step(nprev, n, x_n, x0, eta=eta, randn=torch.zeros_like)
        one = d.ddim_step(nprev, n, x_n, x0, eta=eta, randn=torch.ones_like)
        variance = (one - mean).flatten()[0].item() ** 2
        before = d.find_alpha_bar(nprev)
        # Of the noise in x_n the share `kept` stays; with the fresh one it makes up what belongs to nprev.
        kept = ((mean - math.sqrt(before) * x0) / noise).flatten()
        torch.testing.assert_close(kept**2 + variance, torch.full_like(kept, 1 - before), rtol=1e-7, atol=1e-10)
        if eta == 1:
            want = [d.ancestral_step(nprev, n, x_n, x0, randn=randn) for randn in (torch.zeros_like, torch.ones_like)]
            torch.testing.assert_close(mean, want[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(one, want[1], rtol=0, atol=1e-9)
            assert variance == pytest.approx(d.posterior(nprev, n)[2] ** 2, rel=1e-7, abs=1e-14)
        if eta == 0:
            assert variance == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_and_clean_image_stand_for_each_other(schedule):
    d, (x0, noise) = diffusion(schedule), torch.randn(2, 4, 3, 4, 4, dtype=FLOAT)
    step = torch.tensor([0, 300, 700, 990])
    xt = d.q_sample(step, x0, noise)
    torch.testing.assert_close(d.compute_pred_x0(step, xt, noise), x0, rtol=0, atol=1e-8)
    assert d.compute_pred_x0(step, xt, noise, clip_denoise=True).abs().max() <= 1
    for i, n in enumerate(step.tolist()):
        torch.testing.assert_close(d.compute_noise(n, xt[i], x0[i]), noise[i], rtol=0, atol=1e-8)


def test_grid_ends_and_refusals():
    assert step_grid(1000, 1) == [-1, 999]
    assert step_grid(4, 4) == [-1, 0, 1, 2, 3]
    for nfe in (0, 1001):
        with pytest.raises(ValueError, match=f"nfe {nfe}: .* between 1 and 1000"):
            step_grid(1000, nfe)
    d, x = diffusion(), torch.zeros(1, 1, 1, 1)
    for nprev, n in ((3, 3), (-2, 3), (0, 1000)):
        with pytest.raises(ValueError, match="cannot step"):
            d.ancestral_step(nprev, n, x, x)
