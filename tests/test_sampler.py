"""The reverse pass against golden vectors, and against a Gaussian whose exact denoiser is known."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch

from helpers.golden import golden
from i2sb.bridge import Bridge
from i2sb.sampler import logged_steps, sample, step_grid
from i2sb.steps import SAMPLERS, Sampler, advise


def refuse_noise(x):
    raise AssertionError("noise was drawn")


@pytest.mark.parametrize("case", ["s0", "s1", "s2", "s3", "s4"])
def test_sampler_equals_golden(case):
    arrays = golden("sampler")
    interval, beta_max, ot_ode, nfe, masked, clip = arrays[f"{case}_meta"].tolist()
    x1 = arrays[f"{case}_x1"]
    noises = [arrays[f"{case}_noise{j}"] for j in range(sum(key.startswith(f"{case}_noise") for key in arrays))]
    mask = None
    if masked:  # the released program fills the hole a second time; here it is filled when x1 is built
        mask = arrays[f"{case}_mask"]
        x1 = (1 - mask) * x1 + mask * noises.pop(0)
    draws = iter(noises)

    def net(xt, step, cond=None):
        return 0.7 * torch.tanh(xt) + 0.1 * step.view(-1, 1, 1, 1) / interval

    done = sample(
        Bridge(int(interval), beta_max),
        net,
        x1,
        nfe=int(nfe),
        mask=mask,
        ot_ode=bool(ot_ode),
        clip_denoise=bool(clip),
        log_count=10,
        randn=lambda x: next(draws),
    )
    torch.testing.assert_close(done.states, arrays[f"{case}_xs"], rtol=0, atol=1e-5)
    torch.testing.assert_close(done.pred_x0s, arrays[f"{case}_pred_x0"], rtol=0, atol=1e-5)
    assert torch.equal(done.x0, done.states[:, 0])
    assert next(draws, None) is None, "fewer draws than the released program"


def test_grid_ends_and_refusals():
    assert step_grid(1000, 999) == list(range(1000))
    assert step_grid(1000, 1) == [0, 999]
    for nfe in (0, -1, 1000):
        with pytest.raises(ValueError, match=f"nfe {nfe}: .* between 1 and 999"):
            step_grid(1000, nfe)


def test_condition_and_step_reach_the_network():
    seen = []

    def net(xt, step, cond=None):
        seen.append((step.tolist(), cond))
        return torch.zeros_like(xt)

    x1, cond = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    done = sample(Bridge(100), net, x1, nfe=2, cond=cond, ot_ode=True)
    assert [step for step, _ in seen] == [[99, 99], [50, 50]]
    assert all(c is cond for _, c in seen)
    assert done.states is None and done.pred_x0s is None
    # A silent network predicts x0 = xt, and the deterministic bridge stays where it is.
    torch.testing.assert_close(done.x0, x1)


def test_known_region_survives_exactly_without_noise():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    x1 = torch.randn(3, 3, 8, 8)
    done = sample(Bridge(100, 1.0), lambda x, step, cond: x, x1, nfe=5, mask=mask, ot_ode=True, randn=refuse_noise)
    known = (mask == 0).expand_as(x1)
    assert torch.equal(done.x0[known], x1[known])
    assert not torch.allclose(done.x0[~known], x1[~known])


class GaussianToy:
    """x0 ~ N(m, C) in two dimensions, x1 = K x0 + c + noise: E[x0 | xt] is known in closed form."""

    mean = torch.tensor([0.2, -0.1], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 0.75]], dtype=torch.float64)
    K = torch.tensor([[0.7, 0.2], [0.1, 0.8]], dtype=torch.float64)
    shift = torch.tensor([0.1, 0.0], dtype=torch.float64)
    noise_var = 0.1

    def __init__(self, bridge: Bridge, ot_ode: bool) -> None:
        self.bridge, self.ot_ode = bridge, ot_ode
        self.mean_x1 = self.K @ self.mean + self.shift
        self.cross = self.covariance @ self.K.T
        self.covariance_x1 = self.K @ self.covariance @ self.K.T + self.noise_var * torch.eye(2, dtype=torch.float64)

    def draw_x1(self, count: int, generator: torch.Generator) -> torch.Tensor:
        root = torch.linalg.cholesky(self.covariance_x1)
        draws = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return (self.mean_x1 + draws @ root.T).view(count, 2, 1, 1)

    def denoiser(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gain G and offset o of E[x0 | xt] = G xt + o at step n."""
        u, v, s = self.bridge.mu_x0[n], self.bridge.mu_x1[n], self.bridge.std_sb[n]
        spread = u * u * self.covariance + u * v * (self.cross + self.cross.T) + v * v * self.covariance_x1
        if not self.ot_ode:
            spread = spread + s * s * torch.eye(2, dtype=torch.float64)
        gain = (u * self.covariance + v * self.cross) @ torch.linalg.inv(spread)
        return gain, self.mean - gain @ (u * self.mean + v * self.mean_x1)

    def net(self, xt: torch.Tensor, step: torch.Tensor, cond: torch.Tensor | None = None) -> torch.Tensor:
        gain, offset = self.denoiser(int(step[0]))
        x0 = (xt.flatten(1) @ gain.T + offset).view_as(xt)
        return self.bridge.compute_label(step, x0, xt)

    def propagate(self, nfe: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance at index 0 after `nfe` exact steps, without Monte Carlo: every step is affine."""
        mean, covariance = self.mean_x1, self.covariance_x1
        eye = torch.eye(2, dtype=torch.float64)
        grid = step_grid(self.bridge.interval, nfe)
        for p, n in reversed(list(pairwise(grid))):
            gain, offset = self.denoiser(n)
            var_n, var_p = self.bridge.std_fwd[n] ** 2, self.bridge.std_fwd[p] ** 2
            pull, keep = (var_n - var_p) / var_n, var_p / var_n
            step = pull * gain + keep * eye
            noise = 0.0 if p == 0 or self.ot_ode else var_p * (var_n - var_p) / var_n
            mean, covariance = step @ mean + pull * offset, step @ covariance @ step.T + noise * eye
        return mean, covariance


@pytest.mark.parametrize("beta_max", [0.3, 1.0])
@pytest.mark.parametrize("ot_ode", [False, True])
def test_hundred_steps_reach_a_gaussian_target(beta_max, ot_ode):
    """Mean and covariance of 20,000 samples agree with the target within Monte-Carlo error (4 standard errors)."""
    toy = GaussianToy(Bridge(1000, beta_max, dtype=torch.float64), ot_ode)
    count, generator = 20_000, torch.Generator().manual_seed(1)
    x1 = toy.draw_x1(count, generator)
    randn = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    x0 = sample(toy.bridge, toy.net, x1, nfe=100, ot_ode=ot_ode, randn=randn).x0.flatten(1)

    variances = toy.covariance.diagonal()
    assert ((x0.mean(0) - toy.mean).abs() < 4 * (variances / count).sqrt()).all()
    error_of_covariance = ((variances[:, None] * variances + toy.covariance**2) / count).sqrt()
    assert ((torch.cov(x0.T) - toy.covariance).abs() < 4 * error_of_covariance).all()
    # The start is far from the target by the same measure: the bridge did the work.
    assert ((toy.covariance_x1 - toy.covariance).abs() > 8 * error_of_covariance).any()


@pytest.mark.parametrize("ot_ode", [False, True])
def test_error_falls_with_the_number_of_steps(ot_ode):
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode)
    errors = []
    for nfe in (1, 5, 25, 125):
        mean, covariance = toy.propagate(nfe)
        assert (mean - toy.mean).abs().max() < 1e-3
        errors.append((covariance - toy.covariance).abs().max().item())
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.01 and math.isfinite(errors[0])


# --- other ways to step back -----------------------------------------------------------------------------------------


def run_toy(toy: GaussianToy, sampler: str, nfe: int, eta: float = 1.0, count: int = 20_000):
    generator = torch.Generator().manual_seed(2)
    randn = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    x1 = toy.draw_x1(count, generator)
    return sample(toy.bridge, toy.net, x1, nfe=nfe, ot_ode=toy.ot_ode, sampler=sampler, eta=eta, randn=randn).x0


@pytest.mark.parametrize("ot_ode", [False, True])
@pytest.mark.parametrize("nfe", [1, 2, 10])
def test_eta_one_is_the_posterior(ot_ode, nfe):
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode)
    torch.testing.assert_close(run_toy(toy, "eta", nfe), run_toy(toy, "posterior", nfe), rtol=0, atol=1e-9)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 1:3, 1:3] = 1
    x1 = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    one, other = (
        sample(toy.bridge, lambda x, step, cond: x.tanh(), x1, nfe=nfe, mask=mask, sampler=name, randn=torch.ones_like)
        for name in ("eta", "posterior")
    )
    torch.testing.assert_close(one.x0, other.x0, rtol=0, atol=1e-9)


def test_eta_zero_draws_noise_once_only():
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode=False)
    draws = []
    randn = lambda x: draws.append(1) or torch.randn(x.shape, dtype=x.dtype)
    sample(
        toy.bridge, toy.net, torch.zeros(4, 2, 1, 1, dtype=torch.float64), nfe=5, sampler="eta", eta=0.0, randn=randn
    )
    assert len(draws) == 1


def covariance_error(toy: GaussianToy, x0: torch.Tensor) -> float:
    return (torch.cov(x0.flatten(1).T) - toy.covariance).abs().max().item()


@pytest.mark.parametrize(("sampler", "eta"), [("eta", 0.0), ("eta", 0.5), ("second_order", 1.0)])
def test_other_steps_reach_the_gaussian_target(sampler, eta):
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode=False)
    variances = toy.covariance.diagonal()
    worst = 4 * ((variances[:, None] * variances + toy.covariance**2) / 20_000).sqrt().max().item()
    assert covariance_error(toy, run_toy(toy, sampler, 100, eta)) < worst
    assert covariance_error(toy, run_toy(toy, sampler, 1, eta)) > 2 * worst


def test_second_order_without_noise_converges_faster():
    """Against the flow itself (999 steps): halving the step of a second-order method quarters the error."""
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode=True)
    want = run_toy(toy, "second_order", 999, count=50)
    error = lambda name, nfe: (run_toy(toy, name, nfe, count=50) - want).abs().max().item()
    assert error("second_order", 40) < 0.35 * error("second_order", 20)
    assert error("second_order", 80) < 0.25 * error("posterior", 80)
    assert 0.35 < error("posterior", 40) / error("posterior", 20) < 0.7


def exact_law(toy: GaussianToy, sampler: str, nfe: int, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance at index 0, without Monte Carlo: with this denoiser x0 is affine in x1 and in every draw.

    The rows of a batch are the parts of that map: one for its offset, one for each component of x1 and of each draw.
    """
    rows = 1 + 2 + 2 * nfe
    x1 = torch.zeros(rows, 2, 1, 1, dtype=torch.float64)
    x1[1:3, :, 0, 0] = torch.eye(2, dtype=torch.float64)
    drawn = 0

    def randn(x):
        nonlocal drawn
        noise = torch.zeros_like(x)
        noise[3 + 2 * drawn : 5 + 2 * drawn, :, 0, 0] = torch.eye(2, dtype=x.dtype)
        drawn += 1
        return noise

    out = sample(toy.bridge, toy.net, x1, nfe=nfe, ot_ode=toy.ot_ode, sampler=sampler, eta=eta, randn=randn).x0
    offset, parts = out[0].flatten(), (out[1:] - out[:1]).flatten(1)
    of_x1, of_draws = parts[:2], parts[2 : 2 + 2 * drawn]
    mean = offset + of_x1.T @ toy.mean_x1
    return mean, of_x1.T @ toy.covariance_x1 @ of_x1 + of_draws.T @ of_draws


@pytest.mark.parametrize(
    ("sampler", "eta", "ot_ode"),
    [
        ("posterior", 1.0, False),
        ("eta", 0.0, False),
        ("eta", 0.5, False),
        ("second_order", 1.0, False),
        ("posterior", 1.0, True),
        ("second_order", 1.0, True),
    ],
)
def test_exact_error_of_every_sampler_falls_with_the_number_of_steps(sampler, eta, ot_ode):
    toy = GaussianToy(Bridge(1000, 0.3, dtype=torch.float64), ot_ode)
    errors = []
    for nfe in (1, 10, 40):  # the SDE's flow has an error of its own, 0.008, that shows beyond
        mean, covariance = exact_law(toy, sampler, nfe, eta)
        assert (mean - toy.mean).abs().max() < 1e-3
        errors.append((covariance - toy.covariance).abs().max().item())
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors)), errors
    if sampler == "posterior":  # the same as its own closed form
        torch.testing.assert_close(covariance, toy.propagate(40)[1], rtol=0, atol=1e-9)


def exact_error(ot_ode: bool, sampler: str, nfe: int, eta: float = 1.0, interval: int = 1000) -> float:
    toy = GaussianToy(Bridge(interval, 0.3, dtype=torch.float64), ot_ode)
    return (exact_law(toy, sampler, nfe, eta)[1] - toy.covariance).abs().max().item()


def test_less_noise_and_second_order_need_fewer_steps():
    """At ten evaluations each is closer to the target than the published sampler."""
    published, less_noise = exact_error(False, "posterior", 10), exact_error(False, "eta", 10, 0.0)
    assert less_noise < 0.9 * published
    assert exact_error(False, "second_order", 10) < 0.7 * less_noise


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10, 20])
def test_second_order_without_noise_is_no_worse_on_the_published_bridge(nfe):
    """Its last step, long in λ, is of first order: extrapolated, two steps would have an error of 0.7."""
    assert exact_error(True, "second_order", nfe) < 1.01 * exact_error(True, "posterior", nfe)


def test_second_order_without_noise_overshoots_on_short_bridges():
    """Why the user is warned: after a step that is short in λ, a long one extrapolates far."""
    assert exact_error(True, "second_order", 3, interval=4) > 10 * exact_error(True, "posterior", 3, interval=4)
    assert exact_error(True, "second_order", 20, interval=100) < 0.5 * exact_error(True, "posterior", 20, interval=100)


def test_steps_without_noise_on_any_bridge():
    toy = GaussianToy(Bridge(100, 0.3, dtype=torch.float64), ot_ode=False)
    x1 = torch.ones(3, 2, 1, 1, dtype=torch.float64)
    forced = sample(toy.bridge, toy.net, x1, nfe=5, sampler="ot_ode", randn=refuse_noise).x0
    assert torch.equal(forced, sample(toy.bridge, toy.net, x1, nfe=5, ot_ode=True, randn=refuse_noise).x0)


@pytest.mark.parametrize(
    ("sampler", "eta", "nfe", "ot_ode", "words"),
    [
        ("posterior", 1.0, 5, False, ""),
        ("eta", 0.3, 5, False, ""),
        ("second_order", 1.0, 5, False, ""),
        ("second_order", 1.0, 20, True, ""),
        ("ot_ode", 1.0, 5, True, ""),
        ("eta", 0.0, 5, True, "no noise to leave out"),
        ("eta", 1.0, 5, False, "is the posterior itself"),
        ("ot_ode", 1.0, 5, False, "blurry"),
        ("second_order", 1.0, 5, True, "with `nfe` 5: .* may overshoot"),
    ],
)
def test_samplers_that_cannot_help_or_harm_are_named(sampler, eta, nfe, ot_ode, words):
    assert (
        re.search(words, advise(sampler, eta, nfe, ot_ode=ot_ode))
        if words
        else not advise(sampler, eta, nfe, ot_ode=ot_ode)
    )


def test_callback_and_refinement_see_every_step():
    bridge, x1 = Bridge(100, 0.3), torch.zeros(2, 3, 4, 4)
    seen, shares = [], []

    def refine(x0, share):
        shares.append(share)
        return x0 + 1

    done = sample(bridge, lambda x, step, cond: x, x1, nfe=4, refine=refine, callback=seen.append, log_count=2)
    assert [(step.number, step.count, step.n, step.nprev) for step in seen] == [
        (1, 4, 99, 74),
        (2, 4, 74, 50),
        (3, 4, 50, 25),
        (4, 4, 25, 0),
    ]
    assert torch.equal(seen[-1].state, done.x0) and torch.equal(seen[-1].pred_x0, done.pred_x0s[:, 0])
    var = bridge.std_fwd**2
    want = [(1 - var[step.nprev] / var[step.n]).item() for step in seen]
    assert shares == pytest.approx([*want, 0.0], abs=1e-6)
    assert [step.number for step in seen if any(torch.equal(step.state, s) for s in done.states.unbind(1))] == [1, 4]
    assert logged_steps(4, 2) == [1, 4] and logged_steps(100, 10)[-1] == 100 and logged_steps(1, 10) == [1]


def test_unknown_samplers_are_named():
    bridge, x = Bridge(10), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="sampler heun: unknown; choose one of posterior, eta, second_order"):
        sample(bridge, lambda x, step, cond: x, x, nfe=1, sampler="heun")
    with pytest.raises(ValueError, match="eta 2: must be between 0 and 1"):
        sample(bridge, lambda x, step, cond: x, x, nfe=1, sampler="eta", eta=2)


@pytest.mark.parametrize(
    ("step_back", "found"),
    [
        (lambda nprev, n, x_n, x0: x_n[:, :1], r"\[2, 1, 4, 4\]"),
        (lambda nprev, n, x_n, x0: x0.mean(dim=(2, 3), keepdim=True), r"\[2, 3, 1, 1\]"),
        (lambda nprev, n, x_n, x0: (x_n, x0), "tuple"),
        (lambda nprev, n, x_n, x0: None, "NoneType"),
    ],
)
def test_a_step_of_the_users_own_that_returns_no_state_is_named(monkeypatch, step_back, found):
    monkeypatch.setitem(SAMPLERS, "own", Sampler(lambda reverse: step_back))
    x1 = torch.zeros(2, 3, 4, 4)
    mask = torch.ones(2, 1, 4, 4)  # which would make a state of the right shape of some of them
    with pytest.raises(ValueError, match=rf"^sampler own: its step from 9 to 0 returned {found}, not \[2, 3, 4, 4\]$"):
        sample(Bridge(10), lambda xt, step, cond: xt, x1, nfe=1, mask=mask, sampler="own")
