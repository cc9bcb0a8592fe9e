"""The baselines beside the bridge: identities in float64, Gaussians with known denoisers, agreement with measured y."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import pairwise
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, as_flags, make_image, write_images
from PIL import Image

from corruption import CORRUPTIONS, LinearCorruption, build_corruption
from i2sb import load_model
from i2sb.batch import Batch
from i2sb.bridge import Bridge
from i2sb.config import SampleConfig, TrainConfig
from i2sb.consistency import make_consistency, measure
from i2sb.diffusion import CLEAN, SCHEDULES, Diffusion, make_betas, step_grid
from i2sb.formulation import (
    ConditionalDiffusion,
    Formulation,
    Regression,
    Sampler,
    SchroedingerBridge,
    UnconditionalDiffusion,
    Way,
)
from i2sb.inverse import DDRM
from i2sb.network import build_network
from i2sb.tasks import FORMULATIONS, build_formulation

FLOAT = torch.float64


def noise_source(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def degraded(x1, mask=None, cond=None, x0=None) -> Batch:
    return Batch(x0=x0, x1=x1, mask=mask, cond=cond, shown=x1)


def diffusion(schedule: str = "linear", interval: int = 1000) -> Diffusion:
    return Diffusion(interval, schedule, dtype=FLOAT)


# --- Identities of the diffusion -------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="--interval 20: --schedule linear needs more than 20 steps"):
        Diffusion(20, "linear")
    Diffusion(4, "cosine")
    with pytest.raises(ValueError, match="--schedule quadratic: unknown; choose one of linear, cosine"):
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
        with pytest.raises(ValueError, match=f"--nfe {nfe}: .* between 1 and 1000"):
            step_grid(1000, nfe)
    d, x = diffusion(), torch.zeros(1, 1, 1, 1)
    for nprev, n in ((3, 3), (-2, 3), (0, 1000)):
        with pytest.raises(ValueError, match="cannot step"):
            d.ancestral_step(nprev, n, x, x)


# --- What is trained -------------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    x0, x1, cond = torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    mask = torch.zeros(4, 1, 8, 8, dtype=FLOAT)
    mask[..., :2, :] = 1  # a quarter of the pixels
    return x0, x1, cond, mask


FORMULATION_OBJECTS = {
    "bridge": lambda: SchroedingerBridge(Bridge(1000, dtype=FLOAT)),
    "conditional_diffusion": lambda: ConditionalDiffusion(diffusion()),
    "regression": lambda: Regression(),
    "diffusion": lambda: UnconditionalDiffusion(diffusion()),
}
MASKED = [name for name in FORMULATION_OBJECTS if name != "diffusion"]


def exact_net(formulation: Formulation, x0: torch.Tensor):
    """The network that knows x0, in the formulation's own terms."""

    def net(xt, step, cond=None):
        if isinstance(formulation, SchroedingerBridge):
            return formulation.bridge.compute_label(step, x0, xt)
        if isinstance(formulation, Regression):
            return x0
        d = formulation.diffusion
        return torch.stack([d.compute_noise(n, xt[i], x0[i]) for i, n in enumerate(step.tolist())])

    return net


@pytest.mark.parametrize("name", FORMULATION_OBJECTS)
def test_loss_is_zero_for_the_exact_network_and_one_off_for_one_off(name, batch):
    x0, x1, _, _ = batch
    formulation = FORMULATION_OBJECTS[name]()
    step = torch.tensor([0, 30, 700, 998]) % formulation.interval
    exact = exact_net(formulation, x0)
    run = lambda net: formulation.loss(net, step, degraded(x1, x0=x0), noise_source()).item()
    assert run(exact) == pytest.approx(0.0, abs=1e-12)
    assert run(lambda *a, **k: exact(*a, **k) + 1) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_only_the_hole_counts_and_the_mean_is_over_all_pixels(name, batch):
    x0, x1, _, mask = batch
    formulation = FORMULATION_OBJECTS[name]()
    step = torch.tensor([0, 30, 700, 998]) % formulation.interval
    exact = exact_net(formulation, x0)
    run = lambda off: formulation.loss(
        lambda *a, **k: exact(*a, **k) + off, step, degraded(x1, mask, x0=x0), noise_source()
    ).item()
    assert run(2 * (1 - mask)) == pytest.approx(0.0, abs=1e-12)
    assert run(2 * mask) == pytest.approx(1.0, abs=1e-6)


def test_a_diffusion_of_clean_images_sees_no_hole(batch):
    x0, x1, _, mask = batch
    formulation = FORMULATION_OBJECTS["diffusion"]()
    step = torch.tensor([0, 30, 700, 998])
    exact = exact_net(formulation, x0)
    off = lambda *a, **k: exact(*a, **k) + 2 * (1 - mask)
    assert formulation.loss(off, step, degraded(x1, mask, x0=x0), noise_source()).item() == pytest.approx(3.0)


def test_who_sees_what(batch):
    """The conditional diffusion sees x_t and the degraded image, the regression that image alone, the other none."""
    x0, x1, cond, _ = batch
    seen = {}
    for name in FORMULATION_OBJECTS:
        formulation = FORMULATION_OBJECTS[name]()

        def net(xt, step, cond=None, name=name):
            seen[name] = (xt, cond)
            return torch.zeros_like(xt)

        step = torch.tensor([0, 30, 700, 998]) % formulation.interval
        formulation.loss(net, step, degraded(x1, cond=cond, x0=x0), noise_source())
        in_training, seen[name] = seen[name], None
        way = Way(1, formulation.choose_sampler())
        if name != "diffusion":
            formulation.sample(net, degraded(x1, cond=cond), way, noise_source())
            assert seen[name][1] is in_training[1], name
            assert name != "regression" or seen[name][0] is in_training[0]
        seen[name] = in_training
    assert seen["conditional_diffusion"][1] is cond and seen["regression"][0] is cond
    assert seen["regression"][1] is None and seen["diffusion"][1] is None
    assert not torch.equal(seen["conditional_diffusion"][0], x0)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("nfe", [1, 4])
def test_known_region_survives_exactly(name, nfe, batch):
    x0, _, _, mask = batch
    formulation = FORMULATION_OBJECTS[name]()
    if name == "regression" and nfe > 1:
        return
    x1 = (1 - mask) * x0 + mask * torch.randn_like(x0)
    formulation.ot_ode = True  # the bridge's known region is without noise on this way only
    way = Way(nfe, formulation.choose_sampler(), log_count=10)
    done = formulation.sample(lambda x, step, cond: 0.1 * x, degraded(x1, mask), way, noise_source())
    torch.testing.assert_close((1 - mask) * done.x0, (1 - mask) * x0, rtol=0, atol=1e-12)
    assert not torch.allclose(mask * done.x0, mask * x1)
    assert done.states.shape == done.pred_x0s.shape == (4, min(nfe, 10), 3, 8, 8)
    assert torch.equal(done.states[:, 0], done.x0)
    # On the way it is as noisy as the state around it.
    if name == "conditional_diffusion" and nfe > 1:
        for state, n in zip(done.states[:, 1:].unbind(1), step_grid(1000, nfe)[1:-1], strict=True):
            noise = formulation.diffusion.compute_noise(n, state, x0)[(1 - mask).expand_as(x0) > 0]
            assert 0.9 < noise.std() < 1.1


@pytest.mark.parametrize("name", MASKED)
def test_predictions_are_clipped_if_asked(name, batch):
    _, x1, _, _ = batch
    formulation = FORMULATION_OBJECTS[name]()
    for clip in (False, True):
        way = Way(1, formulation.choose_sampler(), clip_denoise=clip)
        x0 = formulation.sample(lambda x, step, cond: -5 * x, degraded(x1), way, noise_source()).x0
        assert (x0.abs().max() < 1.01) == clip  # on the bridge the state at the end has its share


def test_networks_are_told_the_time_on_a_scale_of_a_thousand():
    for interval in (100, 1000):
        levels = diffusion("cosine", interval).noise_levels
        assert (levels[0], levels[-1]) == (0, 1000 - 1000 / interval) and len(levels) == interval


def test_parameters_are_equal_but_for_the_input_layer():
    """And the difference is what the run prints."""
    shapes = {}
    for name in FORMULATIONS:
        config = TrainConfig(name="a", dataset_dir="b", corrupt="sr4x-pool", network="tiny", formulation=name)
        formulation = build_formulation(config)
        net = build_network("tiny", formulation.noise_levels, cond_x1=formulation.cond_x1)
        shapes[name] = {key: tuple(p.shape) for key, p in net.named_parameters()}
        want = 32 * 3 * 9 if name == "conditional_diffusion" else 0
        assert net.count_condition_parameters() == want
        differing = {key for key in shapes[name] if shapes[name][key] != shapes["bridge"][key]}
        assert differing == ({"diffusion_model.input_blocks.0.0.weight"} if want else set())
        assert shapes[name].keys() == shapes["bridge"].keys()


def test_one_table_knows_the_names():
    names = get_args(get_type_hints(TrainConfig)["formulation"])
    assert tuple(FORMULATIONS) == names and TrainConfig.formulation == names[0] == "bridge"
    for path in [*ROOT.glob("*.py"), *ROOT.glob("i2sb/*.py"), *ROOT.glob("scripts/**/*.py")]:
        text = path.read_text()
        for name in ("conditional_diffusion", "regression"):  # the others are words of their own
            assert f'"{name}"' not in text or path.name in {"config.py", "tasks.py"}, path
        assert "formulation ==" not in text and "formulation !=" not in text and "formulation in" not in text, path
    assert {f.name: f.metadata["later"] for f in fields(TrainConfig)}["formulation"]


# --- Gaussians whose denoiser is known -------------------------------------------------------------------------------


class GaussianTask:
    """x0 ~ N(m, C) in two dimensions (channels), seen as x1 = K x0 + noise: every method's network in closed form."""

    mean = torch.tensor([0.2, -0.1], dtype=FLOAT)
    covariance = torch.tensor([[1.0, 0.5], [0.5, 0.75]], dtype=FLOAT)
    K = torch.tensor([[0.7, 0.2], [0.1, 0.8]], dtype=FLOAT)
    noise_var = 0.1

    def __init__(self, d: Diffusion) -> None:
        self.d = d
        inner = self.K @ self.covariance @ self.K.T + self.noise_var * torch.eye(2, dtype=FLOAT)
        self.gain = self.covariance @ self.K.T @ torch.linalg.inv(inner)
        # p(x0 | x1): mean m + gain (x1 − K m), covariance C − gain K C.
        self.conditional = self.covariance - self.gain @ self.K @ self.covariance

    def conditional_mean(self, x1: torch.Tensor) -> torch.Tensor:
        return self.mean + (x1.flatten(1) - self.mean @ self.K.T) @ self.gain.T

    def predict_noise(self, xt: torch.Tensor, step: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor):
        n = int(step[0])
        signal, noise_var = math.sqrt(self.d.alpha_bar[n]), 1 - self.d.alpha_bar[n]
        spread = signal**2 * covariance + noise_var * torch.eye(2, dtype=FLOAT)
        # E[x0 | xt], by the conditioning of Gaussians
        x0 = mean + (xt.flatten(1) - signal * mean) @ (signal * covariance @ torch.linalg.inv(spread)).T
        return self.d.compute_noise(n, xt, x0.view_as(xt))

    def conditional_net(self, xt, step, cond=None):
        return self.predict_noise(xt, step, self.conditional_mean(cond), self.conditional)

    def unconditional_net(self, xt, step, cond=None):
        return self.predict_noise(xt, step, self.mean, self.covariance)


def covariance_error(x0: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """Largest error of the samples' mean and covariance."""
    x0 = x0.flatten(1)
    return max((x0.mean(0) - mean).abs().max().item(), (torch.cov(x0.T) - covariance).abs().max().item())


COUNT = 40_000
WITHIN = 4 * math.sqrt(2 / COUNT)  # four standard errors of a variance of one


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_conditional_diffusion_reaches_the_posterior_of_a_gaussian(sampler, schedule):
    task = GaussianTask(diffusion(schedule))
    formulation = ConditionalDiffusion(task.d)
    x1 = torch.tensor([0.5, -0.4], dtype=FLOAT).view(1, 2, 1, 1).expand(COUNT, -1, -1, -1)
    errors = []
    for nfe in (1, 5, 25, 200):
        way = Way(nfe, formulation.choose_sampler(sampler))
        x0 = formulation.sample(task.conditional_net, degraded(x1), way, noise_source(nfe)).x0
        errors.append(covariance_error(x0, task.conditional_mean(x1[:1])[0], task.conditional))
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[0] > 5 * WITHIN and errors[-1] < WITHIN, errors


def test_regression_is_the_posterior_mean_and_has_no_spread():
    task = GaussianTask(diffusion())
    net = lambda x1, step, cond: task.conditional_mean(x1).view_as(x1)
    x1 = torch.randn(50, 2, 1, 1, dtype=FLOAT)
    regression = Regression()
    way = Way(1, regression.choose_sampler())
    done = regression.sample(net, degraded(x1), way, noise_source())
    torch.testing.assert_close(done.x0, net(x1, None, None))
    with pytest.raises(ValueError, match="--nfe 2: a regression restores in one evaluation"):
        regression.sample(net, degraded(x1), replace(way, nfe=2), noise_source())


class FirstChannel(LinearCorruption):
    """Keeps the first channel, doubled."""

    def degrade(self, clean, draws):
        raise NotImplementedError

    def A(self, x, mask=None):
        return 2 * x[:, :1]

    def A_pinv(self, y, mask=None):
        return torch.cat([y / 2, torch.zeros_like(y)], dim=1)

    def measure(self, degraded, mask=None):
        return degraded


@pytest.mark.parametrize(("sampler", "eta"), [("ddnm", 1.0), ("ddnm", 0.0), ("ddrm", 0.85), ("ddrm", 0.0)])
def test_inverse_methods_on_a_gaussian(sampler, eta):
    """Where the channels are independent, what is left to draw is the second one's own distribution.

    Its error falls with the number of evaluations; the first channel is what was measured, always. With its published
    η DDRM draws the same share of noise anew in a step of any length, so that its error does not fall to nothing.
    """
    task = GaussianTask(diffusion())
    task.covariance = torch.diag(torch.tensor([1.0, 0.3], dtype=FLOAT))
    formulation = UnconditionalDiffusion(task.d)
    y = torch.full((COUNT, 1, 1, 1), 1.4, dtype=FLOAT)
    errors = []
    for nfe in (1, 5, 25, 200):
        way = Way(nfe, Sampler(sampler, eta), corruption=FirstChannel())
        batch = Batch(x0=None, x1=torch.zeros(COUNT, 2, 1, 1, dtype=FLOAT), mask=None, cond=None, shown=y)
        x0 = formulation.sample(task.unconditional_net, batch, way, noise_source(nfe)).x0
        torch.testing.assert_close(x0[:, 0], torch.full_like(x0[:, 0], 0.7))
        second = x0[:, 1].flatten()
        errors.append(max(abs(second.mean().item() + 0.1), abs(second.var().item() - 0.3)))
    assert errors[0] > 0.2 and errors[-1] < (0.1 if (sampler, eta) == ("ddrm", 0.85) else WITHIN), errors
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors)), errors


# --- Inverse methods on the degradations -----------------------------------------------------------------------------

LINEAR = [name for name in CORRUPTIONS if isinstance(build_corruption(name, 16), LinearCorruption)]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("sampler", ["ddnm", "ddrm"])
@pytest.mark.parametrize("clip", [False, True])
def test_restored_images_agree_with_what_was_measured(name, sampler, clip):
    """A x0 = y at the end, for every linear degradation there is and a network that knows nothing."""
    corruption = build_corruption(name, 16)
    clean = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown, mask = corruption(clean, torch.Generator().manual_seed(2))
    formulation = UnconditionalDiffusion(Diffusion())
    way = Way(3, formulation.choose_sampler(sampler), clip_denoise=clip, corruption=corruption)
    net = lambda x, step, cond: 0.9 * x
    x0 = formulation.sample(net, degraded(shown, mask), way, noise_source()).x0
    off = (corruption.A(x0, mask) - corruption.A(clean, mask)).abs().max()
    assert off < 1e-5
    # Without noise the Gaussian blur can be undone at this size: nothing is left to guess.
    assert (x0 - clean).abs().max() > 0.05 or name == "blur-gauss-exact"


@pytest.mark.parametrize("name", FORMULATION_OBJECTS)
@pytest.mark.parametrize("kind", ["project", "gradient"])
def test_consistency_and_callbacks_serve_every_formulation(name, kind):
    corruption = build_corruption("sr4x-bicubic", 16)
    clean = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown = corruption(clean).image
    formulation, nfe, steps = FORMULATION_OBJECTS[name]().float(), 1 if name == "regression" else 3, []
    refine = make_consistency(kind, corruption, shown)
    way = Way(nfe, formulation.choose_sampler(), corruption=corruption, refine=refine, callback=steps.append)
    net = lambda x, step, cond: 0.9 * x
    x0 = formulation.sample(net, degraded(shown), way, noise_source()).x0
    plain = formulation.sample(net, degraded(shown), replace(way, refine=None), noise_source()).x0
    off, off_plain = ((corruption.A(x) - corruption.A(clean)).abs().max() for x in (x0, plain))
    assert off < 1e-5 if kind == "project" else off < off_plain or name == "diffusion"
    assert [(step.number, step.count) for step in steps] == [(i + 1, nfe) for i in range(nfe)] * 2
    assert torch.equal(steps[nfe - 1].state, x0)
    assert [step.nprev for step in steps[: nfe - 1]] == [step.n for step in steps[1:nfe]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_share_is_what_the_prediction_gives_to_the_next_state(schedule):
    d = diffusion(schedule)
    for nprev, n in ((0, 1), (200, 201), (100, 900), (CLEAN, 500)):
        of_x0, of_x_n, _ = d.posterior(nprev, n)
        # of x_t/√ᾱ_t, whose weights add up to one
        before, after = math.sqrt(d.find_alpha_bar(nprev)), math.sqrt(d.alpha_bar[n])
        assert d.share(nprev, n) == pytest.approx(of_x0 / before, rel=1e-9)
        assert of_x0 / before + of_x_n * after / before == pytest.approx(1.0, rel=1e-9)


def dense(corruption: LinearCorruption, mask: torch.Tensor | None) -> torch.Tensor:
    """A as a matrix, float64 [measurements, 3·8·8]."""
    basis = torch.eye(3 * 8 * 8, dtype=FLOAT).view(-1, 3, 8, 8)
    return corruption.A(basis, mask).flatten(1).T


@pytest.mark.parametrize("name", ["sr4x-bicubic", "sr4x-pool", "blur-gauss-exact", "inpaint-center", "decolor"])
@pytest.mark.parametrize("eta", [0.3, 0.85])
def test_ddrm_steps_every_singular_component_as_the_paper_says(name, eta):
    """Against the paper's update in the basis of A's singular vectors, variance-exploding, with σ_y = 0."""
    corruption = build_corruption(name, 8)
    clean, x_n, pred = torch.randn(3, 2, 3, 8, 8, dtype=FLOAT, generator=torch.Generator().manual_seed(0))
    mask = corruption(clean.float()).mask
    A = dense(corruption, mask[:1] if mask is not None else None)
    U, s, Vt = torch.linalg.svd(A, full_matrices=True)
    s = torch.cat([s, s.new_zeros(A.shape[1] - len(s))])
    seen = s > 1e-4  # where the exact blur's pseudo-inverse ends
    y = corruption.A(clean, mask)
    y_bar = torch.zeros(2, A.shape[1], dtype=FLOAT)
    rank = min(A.shape)
    y_bar[:, :rank] = (y.flatten(1) @ U)[:, :rank]
    y_bar = torch.where(seen, y_bar / s.where(seen, torch.ones_like(s)), 0.0)

    d, (n, nprev), noise = diffusion(), (600, 250), torch.randn(2, 3, 8, 8, dtype=FLOAT)
    sigma = {i: math.sqrt((1 - d.alpha_bar[i]) / d.alpha_bar[i]) for i in (n, nprev)}
    # All of the exploding kind: x / √ᾱ = x0 + σ ε.
    to_bar = lambda x: x.flatten(1) @ Vt.T
    x_bar, theta, z = to_bar(x_n) / math.sqrt(d.alpha_bar[n]), to_bar(pred), to_bar(noise)
    unseen = theta + math.sqrt(1 - eta**2) * sigma[nprev] * (x_bar - theta) / sigma[n] + eta * sigma[nprev] * z
    want = torch.where(seen, y_bar + sigma[nprev] * z, unseen) @ Vt

    measurement = measure(corruption, corruption.degrade(clean, None).image, mask)
    got = DDRM(d, measurement, eta, lambda x: noise)(nprev, n, x_n, pred) / math.sqrt(d.alpha_bar[nprev])
    torch.testing.assert_close(got.flatten(1), want, rtol=1e-4, atol=1e-4)


def test_degradations_without_an_operator_are_refused():
    formulation = UnconditionalDiffusion(Diffusion())
    for corruption in (None, build_corruption("jpeg-5", 16), build_corruption("mixture", 16)):
        with pytest.raises(ValueError, match="--formulation diffusion: .* linear degradation, and \\w+ has none; give"):
            formulation.check_degradation(corruption)
        FORMULATION_OBJECTS["conditional_diffusion"]().check_degradation(corruption)


# --- At the command line ---------------------------------------------------------------------------------------------


def test_samplers_that_differ_are_listed():
    listed = lambda formulation: [(s.name, s.eta) for s in formulation.list_samplers()]
    both = [("posterior", 1.0), ("second_order", 1.0)]
    assert listed(SchroedingerBridge(Bridge(), ot_ode=True)) == both
    assert listed(SchroedingerBridge(Bridge())) == [both[0], ("eta", 0.0), ("eta", 0.5), both[1], ("ot_ode", 1.0)]
    assert listed(UnconditionalDiffusion(Diffusion()))[:3] == [("ddnm", 0.0), ("ddnm", 0.5), ("ddnm", 0.85)]


def test_unclipped_diffusions_are_warned_of():
    formulation = ConditionalDiffusion(Diffusion())
    assert "counts 157 times" in formulation.advise(formulation.choose_sampler(), 10, clip_denoise=False)
    assert not formulation.advise(formulation.choose_sampler(), 10, clip_denoise=True)


def test_samplers_and_eta_are_chosen_by_name():
    formulation = ConditionalDiffusion(Diffusion())
    assert formulation.choose_sampler() == ("ancestral", 1.0) and formulation.choose_sampler("ddim") == ("ddim", 0.0)
    assert formulation.choose_sampler("ddim", 0.5) == ("ddim", 0.5)
    for arguments, words in (
        (("posterior",), "--sampler posterior: unknown to this run, which has ancestral, ddim"),
        (("ancestral", 0.5), "--eta 0.5: --sampler ancestral does not use it; ask for --sampler ddim"),
        (("ddim", 1.5), "--eta 1.5: must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            formulation.choose_sampler(*arguments)
    with pytest.raises(ValueError, match="--sampler direct does not use it; leave it away"):
        Regression().choose_sampler(eta=0.5)


@pytest.mark.parametrize(
    ("name", "changes", "samplers"),
    [
        ("conditional_diffusion", {"corrupt": "inpaint-center", "schedule": "cosine"}, ["", "ddim0"]),
        ("conditional_diffusion", {"corrupt": "decolor", "add_x1_noise": True, "cond_x1": True}, ["ddim0.5"]),
        ("regression", {"corrupt": "jpeg-5", "eval_nfe": 1}, [""]),
        ("diffusion", {"corrupt": "sr4x-bicubic"}, ["", "ddrm0.85"]),
    ],
)
def test_baselines_take_the_same_path(tmp_path, dataset_dir, capsys, name, changes, samplers):
    """In this process: train, resume to no effect, restore, score."""
    from i2sb import evaluation, sampling, training
    from i2sb.config import EvalConfig

    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    settings = {**TINY, "num_itr": 2, "eval_every": 2, "dataset_dir": str(dataset_dir), "formulation": name}
    config = TrainConfig(name="run", **{**settings, **places, **changes})
    training.train(config)
    weights = (tmp_path / "run" / "latest.pt").read_bytes()
    training.train(config)
    assert (tmp_path / "run" / "latest.pt").read_bytes() == weights
    nfe = changes.get("eval_nfe", 2)
    more = 864 if name == "conditional_diffusion" else 0
    assert f"{more} of them look at the degraded image" in capsys.readouterr().out
    for asked in samplers:
        sampler, eta = asked[:4], float(asked[4:] or 0) if asked else None
        sampling.run(SampleConfig(ckpt="run", nfe=nfe, sampler=sampler, eta=eta, **places))
        folder = f"samples_nfe{nfe}" + (f"_{asked}" if asked else "")
        evaluation.run(EvalConfig(ckpt="run", sample_dir=folder, **places))
        report = json.loads((tmp_path / "run" / folder / "metrics.json").read_text())
        assert not asked or (report["settings"]["sampler"], report["settings"]["eta"]) == (sampler, eta)
        assert report["metrics"]["psnr"]["restored"] > 2
    write_images(tmp_path / "mine", ["a.png"])
    pictures = {"input": str(tmp_path / "mine"), "corrupt": changes["corrupt"], "save_trajectory": True}
    sampling.run(SampleConfig(ckpt="run", nfe=nfe, output=str(tmp_path / "out"), **pictures, **places))
    with Image.open(tmp_path / "out" / "a.png") as restored:
        assert restored.size == make_image(0).size
    model = load_model(tmp_path / "run")
    assert (
        model.restore(torch.zeros(1, 3, 16, 16), clip_denoise=True).isfinite().all()
    )  # as often as it can, 10 at most
    with pytest.raises(ValueError, match="has no bridge"):
        _ = load_model(tmp_path / "run").bridge


def test_clean_images_alone_serve_degradations_that_training_never_saw(tmp_path, dataset_dir):
    from i2sb import sampling, training

    settings = {**TINY, "num_itr": 1, "eval_every": 0, "dataset_dir": str(dataset_dir), "formulation": "diffusion"}
    training.train(TrainConfig(name="run", results_dir=str(tmp_path), **settings))
    model, corruption = load_model(tmp_path / "run"), build_corruption("decolor", 16)
    clean = torch.rand(2, 3, 16, 16) * 2 - 1
    degraded = corruption(clean).image
    restored = model.restore(degraded, nfe=3, corruption=corruption, sampler="ddrm", eta=0.5, clip_denoise=True)
    torch.testing.assert_close(corruption.A(restored), corruption.A(clean), rtol=0, atol=1e-5)
    # Without one it is the degradation that the run was validated on.
    own = build_corruption(TINY["corrupt"], 16)
    restored = model.restore(own(clean).image, nfe=3)
    torch.testing.assert_close(own.A(restored), own.A(clean), rtol=0, atol=1e-5)
    # A mask says itself what is known.
    write_images(tmp_path / "in", ["a.png"])
    hole = Image.new("L", make_image(0).size)
    hole.paste(255, (4, 4, 9, 9))
    hole.save(tmp_path / "mask.png")
    own = {"input": str(tmp_path / "in"), "mask": str(tmp_path / "mask.png"), "output": str(tmp_path / "out")}
    places = {"results_dir": str(tmp_path), "device": "cpu", "workers": 0}
    sampling.run(SampleConfig(ckpt="run", nfe=3, clip_denoise=True, **own, **places))
    with Image.open(tmp_path / "out" / "a.png") as image:
        off = np.abs(np.asarray(image).astype(int) - np.asarray(make_image(0))).max(axis=-1)
    known = np.asarray(hole) == 0
    assert off[known].max() <= 1 < off[~known].max()
    with pytest.raises(ValueError, match="JPEG has none"):
        model.restore(degraded, nfe=3, corruption=build_corruption("jpeg-5", 16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"formulation": "bridges"}, "--formulation bridges: must be one of bridge, conditional_diffusion, regression"),
        ({"formulation": "regression"}, "--eval-nfe 2: a regression restores in one evaluation, so give 1; or train"),
        ({"formulation": "diffusion", "corrupt": "jpeg-5"}, "JPEG has none; give --corrupt sr4x-pool"),
        ({"formulation": "diffusion", "interval": 10}, "--interval 10: --schedule linear needs more than 20 steps"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, dataset_dir, changes, words):
    from i2sb.parsing import read_flags
    from i2sb.training import train

    settings = {**TINY, "name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir, **changes}
    with pytest.raises(ValueError) as error:
        train(read_flags(TrainConfig, as_flags(settings)))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_go_on_as_another_formulation(trained_run, tmp_path):
    from i2sb.config import check_resumable
    from i2sb.parsing import read_config

    saved = trained_run / "config.yaml"
    config = read_config(TrainConfig, saved)
    with pytest.raises(ValueError, match="--formulation bridge there, regression now"):
        check_resumable(config, replace(config, formulation="regression"), trained_run)
    # Runs of older versions say nothing of formulations: they are bridges.
    lines = [line for line in saved.read_text().splitlines() if not line.startswith(("formulation", "schedule"))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert read_config(TrainConfig, tmp_path / "config.yaml").formulation == "bridge"
