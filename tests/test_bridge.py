"""The bridge against golden vectors, and its identities in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from helpers.golden import golden, golden_json
from i2sb.bridge import Bridge, make_betas, space_indices

SETTINGS = [(1000, 0.3), (1000, 1.0), (100, 0.3), (10, 1.0)]


def make(interval: int = 1000, beta_max: float = 0.3) -> Bridge:
    return Bridge(interval, beta_max, dtype=torch.float64)


@pytest.mark.parametrize(("interval", "beta_max"), SETTINGS)
def test_schedule_equals_golden(interval, beta_max):
    want = golden("schedule")
    bridge = Bridge(interval, beta_max)
    for name in ("std_fwd", "std_bwd", "std_sb", "mu_x0", "mu_x1", "noise_levels"):
        buffer = getattr(bridge, name)
        assert buffer.dtype == torch.float32
        torch.testing.assert_close(buffer, want[f"N{interval}_b{beta_max}_{name}"], rtol=1e-6, atol=0)
    betas = make_betas(interval, beta_max)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, want[f"N{interval}_b{beta_max}_betas"].numpy(), rtol=1e-12)


def test_published_check_values():
    bridge = make(1000, 0.3)
    assert bridge.std_fwd[[0, 499, 999]].tolist() == pytest.approx([0.01, 0.265544, 0.375536], abs=1e-6)
    assert bridge.betas.max().item() == pytest.approx(1.86502e-4, rel=1e-5)
    assert bridge.std_sb.max().item() == pytest.approx(0.187892, abs=1e-6)
    assert make(1000, 1.0).std_fwd[999].item() == pytest.approx(0.496919, abs=1e-6)
    # The total variance depends on the number of steps, since the ramp's start is not scaled by it.
    assert make(1000, 0.3).betas.sum().item() == pytest.approx(0.1410, abs=1e-4)
    assert make(100, 0.3).betas.sum().item() == pytest.approx(0.0487, abs=1e-4)


@pytest.mark.parametrize("case", ["q0", "q1", "q2"])
def test_bridge_equals_golden(case):
    arrays = golden("bridge")
    interval, beta_max, ot_ode = arrays[f"{case}_meta"].tolist()
    bridge = Bridge(int(interval), beta_max)
    x0, x1, step = (arrays[f"{case}_{name}"] for name in ("x0", "x1", "step"))

    xt = bridge.q_sample(step, x0, x1, ot_ode=bool(ot_ode), randn=lambda x: arrays[f"{case}_noise"])
    torch.testing.assert_close(xt, arrays[f"{case}_xt"], rtol=0, atol=1e-5)
    torch.testing.assert_close(bridge.compute_label(step, x0, xt), arrays[f"{case}_label"], rtol=1e-5, atol=1e-5)

    posteriors = [key[: -len("_pair")] for key in arrays if key.startswith(f"{case}_post") and key.endswith("_pair")]
    assert len(posteriors) >= 5
    for key in posteriors:
        nprev, n = arrays[f"{key}_pair"].tolist()
        noise = lambda x, key=key: arrays[f"{key}_noise"]
        out = bridge.p_posterior(nprev, n, x1, x0, ot_ode=bool(ot_ode), randn=noise)
        torch.testing.assert_close(out, arrays[f"{key}_out"], rtol=0, atol=1e-5)


def test_step_grids_equal_golden():
    for key, grids in golden_json("step_grids").items():
        interval, nfe = map(int, key.split("/"))
        steps = space_indices(interval, nfe + 1)
        assert steps == grids["steps"], key
        assert [steps[i] for i in space_indices(nfe, min(nfe, 10))] == grids["log_steps"], key


@pytest.mark.parametrize(("interval", "beta_max"), SETTINGS)
def test_schedule_is_symmetric(interval, beta_max):
    bridge = make(interval, beta_max)
    for name, mirror in (("betas", "betas"), ("std_fwd", "std_bwd"), ("mu_x0", "mu_x1"), ("std_sb", "std_sb")):
        torch.testing.assert_close(getattr(bridge, name), getattr(bridge, mirror).flip(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(bridge.mu_x0 + bridge.mu_x1, torch.ones(interval, dtype=torch.float64))


def compose(bridge: Bridge, grid: list[int], ot_ode: bool) -> tuple[float, float, float]:
    """Weights of x0 and x1 and the variance at grid[0], after stepping down from x1 at grid[-1] knowing x0.

    p_posterior is affine in (x_n, x0, noise), so probing it with ones and zeros gives its coefficients.
    """
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    weight_x0, weight_x1, variance = 0.0, 1.0, 0.0
    for nprev, n in reversed(list(pairwise(grid))):
        step = lambda x_n, x0, noise, p=nprev, n=n: bridge.p_posterior(
            p, n, x_n, x0, ot_ode=ot_ode, randn=lambda x: noise
        ).item()
        keep, pull, spread = step(one, zero, zero), step(zero, one, zero), step(zero, zero, one)
        weight_x0, weight_x1 = keep * weight_x0 + pull, keep * weight_x1
        variance = keep**2 * variance + spread**2
    return weight_x0, weight_x1, variance


@pytest.mark.parametrize(("interval", "beta_max"), SETTINGS)
@pytest.mark.parametrize("stride", [1, 2, 7])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_composed_posteriors_give_the_marginal_on_any_grid(interval, beta_max, stride, target):
    """Stepping down from x1 at N - 1, over whatever indices, gives q(x_n | x0, x1) at n."""
    bridge = make(interval, beta_max)
    n = max(1, int(target * interval) - 1)
    grid = sorted({*range(n, interval, stride), interval - 1})
    weight_x0, weight_x1, variance = compose(bridge, grid, ot_ode=False)

    var, total = bridge.std_fwd[n].item() ** 2, bridge.std_fwd[-1].item() ** 2
    assert weight_x1 == pytest.approx(var / total, rel=1e-9)
    assert weight_x0 == pytest.approx(1 - var / total, rel=1e-9, abs=1e-12)
    assert variance == pytest.approx(var * (total - var) / total, rel=1e-9, abs=1e-15)
    # Eq. 11 with the published inclusive sums counts β_n on both sides: the same, but for the factor S / (S + β_n).
    assert bridge.mu_x1[n].item() == pytest.approx(weight_x1 * total / (total + bridge.betas[n].item()), rel=1e-9)


def test_composing_from_a_marginal_gives_the_marginal():
    """From x_n ~ q(· | x0, x1), p_posterior gives q at its mirror image N - 1 - n exactly (β is equal there)."""
    bridge = make()
    for n in (501, 700, 950, 999):
        p = 999 - n
        var_n, var_p = bridge.std_fwd[n] ** 2, bridge.std_fwd[p] ** 2
        keep = var_p / var_n
        torch.testing.assert_close(keep * bridge.mu_x1[n], bridge.mu_x1[p], rtol=1e-9, atol=0)
        variance = keep**2 * bridge.std_sb[n] ** 2 + var_p * (var_n - var_p) / var_n
        torch.testing.assert_close(variance, bridge.std_sb[p] ** 2, rtol=1e-9, atol=0)


def test_label_inverts():
    bridge = make()
    x0, x1 = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    step = torch.tensor([0, 1, 333, 500, 998, 999])
    xt = bridge.q_sample(step, x0, x1)
    label = bridge.compute_label(step, x0, xt)
    torch.testing.assert_close(bridge.compute_pred_x0(step, xt, label), x0, rtol=0, atol=1e-12)
    clipped = bridge.compute_pred_x0(step, xt, label, clip_denoise=True)
    torch.testing.assert_close(clipped, x0.clamp(-1, 1), rtol=0, atol=1e-12)


def test_q_sample_has_the_stated_moments():
    bridge = make(1000, 1.0)
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.full((2, 1, 1, 200, 500), 0.25, dtype=torch.float64)
    x1 = x1 - 1
    step = torch.tensor([300])
    randn = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    xt = bridge.q_sample(step, x0, x1, randn=randn)
    mean, std = 0.25 * bridge.mu_x0[300] - 0.75 * bridge.mu_x1[300], bridge.std_sb[300]
    assert abs(xt.mean() - mean) < 5 * std / math.sqrt(xt.numel())
    assert abs(xt.std() / std - 1) < 5 / math.sqrt(2 * xt.numel())
    assert torch.equal(bridge.q_sample(step, x0, x1, ot_ode=True), torch.full_like(x0, mean.item()))


def test_last_step_and_ot_ode_draw_no_noise():
    bridge = make()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def refuse(x):
        raise AssertionError("noise was drawn")

    bridge.p_posterior(0, 500, x, x, randn=refuse)
    bridge.p_posterior(250, 500, x, x, ot_ode=True, randn=refuse)
    with pytest.raises(AssertionError):
        bridge.p_posterior(250, 500, x, x, randn=refuse)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_betas(999, 0.3), "interval 999"),
        (lambda: make_betas(0, 0.3), "interval 0"),
        (lambda: make_betas(10, 0.0), "beta_max 0.0"),
        (lambda: space_indices(10, 11), "between 1 and 10"),
        (lambda: space_indices(10, 0), "between 1 and 10"),
        (lambda: make(10).p_posterior(5, 5, None, None), "0 <= nprev < n < 10"),
        (lambda: make(10).p_posterior(-1, 5, None, None), "0 <= nprev < n < 10"),
        (lambda: make(10).p_posterior(5, 10, None, None), "0 <= nprev < n < 10"),
    ],
)
def test_wrong_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
