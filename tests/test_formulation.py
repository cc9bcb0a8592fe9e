"""The formulations beside the bridge: what they train, Gaussians with known denoisers, agreement with measured y."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch

from corruption import LinearCorruption, build_corruption
from corruption.base import FlatCorruption
from helpers.degradations import LINEAR, SIDE
from helpers.programs import ROOT
from helpers.tiny_run import NEEDED
from i2sb.baselines.diffusion import CLEAN, SCHEDULES, Diffusion, step_grid
from i2sb.baselines.formulations import ConditionalDiffusion, Regression, UnconditionalDiffusion
from i2sb.baselines.inverse import DDNM, DDRM
from i2sb.batch import Batch
from i2sb.bridge import Bridge
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.consistency import make_consistency, measure
from i2sb.formulation import Formulation, Hooks, SchroedingerBridge
from i2sb.formulation_table import FORMULATIONS
from i2sb.network import build_network
from i2sb.tasks import build_formulation

FLOAT = torch.float64


def noise_source(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def degraded(x1, mask=None, cond=None, x0=None) -> Batch:
    return Batch(x0=x0, x1=x1, mask=mask, cond=cond, shown=x1, hole=mask)


def diffusion(schedule: str = "linear", interval: int = 1000) -> Diffusion:
    return Diffusion(interval, schedule, dtype=FLOAT)


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
    "regression_of_images": lambda: Regression(whole=True),
    "diffusion": lambda: UnconditionalDiffusion(diffusion()),
}
MASKED = [name for name in FORMULATION_OBJECTS if name != "diffusion"]


def exact_net(formulation: Formulation, x0: torch.Tensor):
    """The network that knows x0, in the formulation's own terms."""

    def net(xt, step, cond=None):
        if isinstance(formulation, SchroedingerBridge):
            return formulation.bridge.compute_label(step, x0, xt)
        if isinstance(formulation, Regression):
            return x0 if formulation.whole else xt - x0
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
        options = formulation.settle(SamplingOptions(nfe=1))
        if name != "diffusion":
            formulation.sample(net, degraded(x1, cond=cond), options, noise_source())
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
    if name.startswith("regression") and nfe > 1:
        return
    x1 = (1 - mask) * x0 + mask * torch.randn_like(x0)
    formulation.ot_ode = True  # the bridge's known region is without noise on this way only
    options = formulation.settle(SamplingOptions(nfe=nfe))
    net = lambda x, step, cond: 0.1 * x
    done = formulation.sample(net, degraded(x1, mask), options, noise_source(), Hooks(log_count=10))
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
        options = formulation.settle(SamplingOptions(nfe=1, clip_denoise=clip))
        x0 = formulation.sample(lambda x, step, cond: -5 * x, degraded(x1), options, noise_source()).x0
        assert (x0.abs().max() < 1.01) == clip  # on the bridge the state at the end has its share


def test_networks_are_told_the_time_on_a_scale_of_a_thousand():
    for interval in (100, 1000):
        levels = diffusion("cosine", interval).noise_levels
        assert (levels[0], levels[-1]) == (0, 1000 - 1000 / interval) and len(levels) == interval


def test_parameters_are_equal_but_for_the_input_layer():
    """And the difference is what the run prints."""
    shapes = {}
    for name in FORMULATIONS:
        settings = {"corrupt": "sr4x-pool", "network": "tiny", "formulation": name, **NEEDED.get(name, {})}
        formulation = build_formulation(TrainConfig(name="a", dataset_dir="b", **settings))
        kind = {"cond_x1": formulation.cond_x1, "sees_noise": formulation.sees_noise}
        net = build_network("tiny", formulation.noise_levels, **kind)
        shapes[name] = {key: tuple(p.shape) for key, p in net.named_parameters()}
        assert net.count_condition_parameters() == (32 * 3 * 9 if name == "conditional_diffusion" else 0)
        differing = {key for key in shapes[name] if shapes[name][key] != shapes["bridge"][key]}
        sees_more = name in ("conditional_diffusion", "student")
        assert differing == ({"diffusion_model.input_blocks.0.0.weight"} if sees_more else set())
        assert shapes[name].keys() == shapes["bridge"].keys()


def test_one_table_knows_the_names():
    names = get_args(get_type_hints(TrainConfig)["formulation"])
    assert tuple(FORMULATIONS) == names and TrainConfig.formulation == names[0] == "bridge"
    for path in [*ROOT.glob("*.py"), *ROOT.glob("i2sb/*.py"), *ROOT.glob("scripts/**/*.py")]:
        text = path.read_text()
        for name in ("conditional_diffusion", "regression"):  # the others are words of their own
            assert f'"{name}"' not in text or path.name == "formulation_table.py", path
        assert "formulation ==" not in text and "formulation !=" not in text and "formulation in" not in text, path
    options = {f.name: f for f in fields(TrainConfig)}
    assert options["formulation"].metadata["later"]
    assert all(setting in options for entry in FORMULATIONS.values() for setting in entry.uses)


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
        options = formulation.settle(SamplingOptions(nfe=nfe, sampler=sampler))
        x0 = formulation.sample(task.conditional_net, degraded(x1), options, noise_source(nfe)).x0
        errors.append(covariance_error(x0, task.conditional_mean(x1[:1])[0], task.conditional))
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[0] > 5 * WITHIN and errors[-1] < WITHIN, errors


@pytest.mark.parametrize("whole", [False, True])
def test_regression_is_the_posterior_mean_and_has_no_spread(whole):
    task = GaussianTask(diffusion())
    mean = lambda x1: task.conditional_mean(x1).view_as(x1)
    net = lambda x1, step, cond: mean(x1) if whole else x1 - mean(x1)
    x1 = torch.randn(50, 2, 1, 1, dtype=FLOAT)
    regression = Regression(whole=whole)
    options = regression.settle(SamplingOptions())
    done = regression.sample(net, degraded(x1), options, noise_source())
    torch.testing.assert_close(done.x0, mean(x1))
    # The network that restores exactly is the one whose loss is zero.
    batch = Batch(x0=mean(x1), x1=x1, mask=None, cond=None, shown=x1)
    assert regression.loss(net, torch.zeros(50, dtype=torch.long), batch, noise_source()) < 1e-20
    with pytest.raises(ValueError, match="nfe 2: a regression restores in one evaluation"):
        regression.sample(net, degraded(x1), replace(options, nfe=2), noise_source())


class FirstChannel(FlatCorruption):
    """Keeps the first channel, doubled."""

    def degrade(self, clean, draws):
        raise NotImplementedError

    def A(self, x, mask=None):
        return 2 * x[:, :1]

    def A_pinv(self, y, mask=None):
        return torch.cat([y / 2, torch.zeros_like(y)], dim=1)

    def measure(self, degraded, mask=None):
        return degraded

    def show(self, y, mask=None):
        return y

    def singular_value(self):
        return 2.0


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
        options = SamplingOptions(nfe=nfe, sampler=sampler, eta=eta)
        batch = replace(degraded(torch.zeros(COUNT, 2, 1, 1, dtype=FLOAT)), shown=y, corruption=FirstChannel())
        x0 = formulation.sample(task.unconditional_net, batch, options, noise_source(nfe)).x0
        torch.testing.assert_close(x0[:, 0], torch.full_like(x0[:, 0], 0.7))
        second = x0[:, 1].flatten()
        errors.append(max(abs(second.mean().item() + 0.1), abs(second.var().item() - 0.3)))
    assert errors[0] > 0.2 and errors[-1] < (0.1 if (sampler, eta) == ("ddrm", 0.85) else WITHIN), errors
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors)), errors


# --- Inverse methods on the degradations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("sampler", ["ddnm", "ddrm"])
@pytest.mark.parametrize("clip", [False, True])
def test_restored_images_agree_with_what_was_measured(name, sampler, clip):
    """A x0 = y at the end, for every linear degradation there is and a network that knows nothing."""
    corruption = build_corruption(name, SIDE)
    clean = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown, mask = corruption(clean, torch.Generator().manual_seed(2))
    formulation = UnconditionalDiffusion(Diffusion())
    options = formulation.settle(SamplingOptions(nfe=3, sampler=sampler, clip_denoise=clip))
    net = lambda x, step, cond: 0.9 * x
    batch = replace(degraded(shown, mask), corruption=corruption)
    x0 = formulation.sample(net, batch, options, noise_source()).x0
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
    formulation, nfe, steps = FORMULATION_OBJECTS[name]().float(), 1 if name.startswith("regression") else 3, []
    refine = make_consistency(kind, corruption, shown)
    options = formulation.settle(SamplingOptions(nfe=nfe))
    hooks, batch = Hooks(refine, steps.append), replace(degraded(shown), corruption=corruption)
    net = lambda x, step, cond: 0.9 * x
    x0 = formulation.sample(net, batch, options, noise_source(), hooks).x0
    plain = formulation.sample(net, batch, options, noise_source(), hooks._replace(refine=None)).x0
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


class SingularComponents:
    """A step's images in the basis of the right singular vectors of A, a dense matrix: x̄ = Vᵀ x, and ȳ = Σ⁺ Uᵀ y."""

    def __init__(self, name: str, side: int, noise: float) -> None:
        self.corruption = build_corruption(name, side, degradation_noise=noise)
        self.shape = (2, 3, side, side)
        # The published blur's factors are kept in float32, and its inverse enlarges a thousandfold.
        self.tolerance = 1e-3 if name == "blur-uni" else 1e-4
        clean, self.x_n, self.pred, self.fresh = (
            torch.randn(self.shape, dtype=FLOAT, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
        )
        mask = self.corruption(clean).mask
        basis = torch.eye(clean[0].numel(), dtype=FLOAT).view(-1, *self.shape[1:])
        A = self.corruption.A(basis, None if mask is None else mask[:1]).flatten(1).T
        U, s, Vt = torch.linalg.svd(A, full_matrices=True)
        s = torch.cat([s, s.new_zeros(len(Vt) - len(s))])
        self.s = torch.where(s < 1e-4, 0.0, s)  # where the exact blur's pseudo-inverse ends
        self.seen = self.s > 0
        self.Vt = Vt
        y = self.corruption.A(clean, mask)
        y = y + noise * torch.randn(y.shape, dtype=FLOAT, generator=torch.Generator().manual_seed(5))
        self.measurement = measure(self.corruption, self.corruption.show(y, mask), mask)
        self.y_bar = torch.zeros(2, len(Vt), dtype=FLOAT)
        rank = min(A.shape)
        self.y_bar[:, :rank] = (self.measurement.y.flatten(1) @ U)[:, :rank]
        self.y_bar = torch.where(self.seen, self.y_bar / self.s.where(self.seen, torch.ones_like(self.s)), 0.0)

    def to_bar(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.Vt.T

    def back(self, x_bar: torch.Tensor) -> torch.Tensor:
        return (x_bar @ self.Vt).view(self.shape)


OPERATORS = [("sr4x-bicubic", 8), ("sr3x-pool", 9), ("sr3x-bicubic", 9), ("blur-gauss-exact", 8), ("blur-uni", 8)]
OPERATORS += [("inpaint-center", 8), ("decolor", 8)]
STEPS = ((600, 250), (250, 40), (40, 3))  # in the noise of the measurement or beyond it


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.4])
@pytest.mark.parametrize(("name", "side"), OPERATORS)
@pytest.mark.parametrize("eta", [0.3, 0.85])
def test_ddrm_steps_every_singular_component_as_the_paper_says(name, side, eta, noise):
    """Against the paper's update in the basis of A's singular vectors, variance-exploding, with η_b = 1."""
    components, d = SingularComponents(name, side, noise), diffusion()
    ddrm = DDRM(d, components.measurement, eta, lambda x: components.fresh)
    z, theta, s = components.to_bar(components.fresh), components.to_bar(components.pred), components.s
    level = torch.where(components.seen, noise / s, math.inf)
    for n, nprev in STEPS:
        sigma = {i: math.sqrt((1 - d.alpha_bar[i]) / d.alpha_bar[i]) for i in (n, nprev)}
        # All of the exploding kind: x / √ᾱ = x0 + σ ε.
        x_bar = components.to_bar(components.x_n) / math.sqrt(d.alpha_bar[n])
        share = math.sqrt(1 - eta**2) * sigma[nprev]
        unseen = theta + share * (x_bar - theta) / sigma[n] + eta * sigma[nprev] * z
        noisier = theta + share * (components.y_bar - theta) / level + eta * sigma[nprev] * z
        drawn = components.y_bar + (sigma[nprev] ** 2 - level**2).clamp(min=0).sqrt() * z
        want = torch.where(components.seen, torch.where(sigma[nprev] < level, noisier, drawn), unseen)
        got = ddrm(nprev, n, components.x_n, components.pred) / math.sqrt(d.alpha_bar[nprev])
        torch.testing.assert_close(got, components.back(want), rtol=1e-4, atol=components.tolerance)
    if noise:
        assert torch.equal(ddrm(CLEAN, 3, components.x_n, components.pred), components.pred)
    last = math.sqrt((1 - d.alpha_bar[-1]) / d.alpha_bar[-1])
    known = level <= last
    want = torch.where(known, components.y_bar + (last**2 - level**2).clamp(min=0).sqrt() * z, last * z)
    got = ddrm.start(components.x_n) / math.sqrt(d.alpha_bar[-1])
    torch.testing.assert_close(got, components.back(want), rtol=1e-4, atol=components.tolerance)


@pytest.mark.parametrize("noise", [0.05, 0.4])
@pytest.mark.parametrize(("name", "side"), OPERATORS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddnm_steps_every_singular_component_as_the_paper_says(name, side, eta, noise):
    """DDNM+: Σ_t = V diag(λ) Vᵀ, Φ_t = V diag(γ) Vᵀ; at η = 1 with a and σ_t of DDPM's posterior, as published."""
    components, d = SingularComponents(name, side, noise), diffusion()
    ddnm = DDNM(d, components.measurement, eta, lambda x: components.fresh)
    z, theta, s, seen = (
        components.to_bar(components.fresh),
        components.to_bar(components.pred),
        components.s,
        components.seen,
    )
    for n, nprev in STEPS:
        if eta == 1:
            a, b, std = d.posterior(nprev, n)
        else:
            kept, std = d.ddim_noise(nprev, n, eta)
            b = kept / math.sqrt(1 - d.alpha_bar[n])
            a = math.sqrt(d.alpha_bar[nprev]) - b * math.sqrt(d.alpha_bar[n])
        room = std * s / (a * noise)
        λ = torch.where(seen & (room < 1), room, 1.0)
        γ = std**2 - torch.where(seen, (a * λ * noise / s) ** 2, 0.0)
        x0 = theta + torch.where(seen, λ * (components.y_bar - theta), 0.0)
        want = a * x0 + b * components.to_bar(components.x_n) + γ.clamp(min=0).sqrt() * z
        got = ddnm(nprev, n, components.x_n, components.pred)
        torch.testing.assert_close(got, components.back(want), rtol=1e-4, atol=components.tolerance)
    assert torch.equal(ddnm(CLEAN, 3, components.x_n, components.pred), components.pred)


@pytest.mark.parametrize("method", [DDNM, DDRM])
@pytest.mark.parametrize("name", ["sr3x-bicubic", "decolor"])
def test_steps_without_measurement_noise_are_the_limit(method, name):
    """Of ever less noise, on every step but the last, which has no noise to hide that of the measurement in."""
    d, got = diffusion(), {}
    for noise in (0.0, 1e-9):
        components = SingularComponents(name, 9, noise)
        step = method(d, components.measurement, 0.85, lambda x, fresh=components.fresh: fresh)
        got[noise] = [step(nprev, n, components.x_n, components.pred) for n, nprev in STEPS] + [
            step.start(components.x_n)
        ]
    for exact, nearly in zip(*got.values(), strict=True):
        torch.testing.assert_close(nearly, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_ddrm_keeps_the_marginals_of_the_diffusion_in_measurement_noise(noise, eta):
    """With a denoiser that knows x0, x_t ~ N(√ᾱ x0, 1 − ᾱ) at every t, over the noise of y: the paper's proposition."""
    d, corruption = diffusion(), FirstChannel()
    corruption.noise = noise
    x0 = torch.tensor([0.3, -0.7], dtype=FLOAT).view(1, 2, 1, 1).expand(COUNT, -1, -1, -1)
    y = corruption.A(x0) + noise * torch.randn(COUNT, 1, 1, 1, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
    step = DDRM(d, measure(corruption, y), eta, noise_source(2))
    # p(x_T | y) begins with noise alone where A sees nothing, and so little is left of x0 that this cannot be told.
    state, grid = step.start(x0), step_grid(1000, 12)[1:]
    for nprev, n in reversed(list(pairwise(grid))):
        state = step(nprev, n, state, x0)
        off = ((state - math.sqrt(d.alpha_bar[nprev]) * x0) / math.sqrt(1 - d.alpha_bar[nprev])).flatten(1)
        assert off.mean(0).abs().max() < WITHIN, (n, nprev)
        assert (torch.cov(off.T) - torch.eye(2)).abs().max() < WITHIN, (n, nprev)


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("eta", [0.85, 1.0])
def test_a_step_of_ddnm_has_the_right_noise_with_that_of_the_measurement_in_it(noise, eta):
    d, corruption = diffusion(), FirstChannel()
    corruption.noise = noise
    x0 = torch.tensor([0.3, -0.7], dtype=FLOAT).view(1, 2, 1, 1).expand(COUNT, -1, -1, -1)
    for n, nprev in STEPS:
        draw = noise_source(n)
        y = corruption.A(x0) + noise * draw(x0[:, :1])
        x_n = d.q_sample(torch.full((COUNT,), n), x0, draw(x0))
        state = DDNM(d, measure(corruption, y), eta, draw)(nprev, n, x_n, x0)
        off = ((state - math.sqrt(d.alpha_bar[nprev]) * x0) / math.sqrt(1 - d.alpha_bar[nprev])).flatten(1)
        assert off.mean(0).abs().max() < WITHIN, (n, nprev)
        assert (torch.cov(off.T) - torch.eye(2)).abs().max() < WITHIN, (n, nprev)


@pytest.mark.parametrize("sampler", ["ddnm", "ddrm"])
def test_who_knows_of_the_noise_restores_better(sampler):
    """Gaussian images with their exact denoiser, 20 evaluations, noise as strong as the signal.

    Neither method draws from p(x0 | y): with ever more steps both end near A⁺y. The least error there can be is that of
    the posterior's mean; a draw from the posterior has twice that.
    """
    task, corruption, noise = GaussianTask(diffusion()), FirstChannel(), 2.0
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(COUNT, 2, dtype=FLOAT, generator=generator) @ torch.linalg.cholesky(task.covariance).T + task.mean
    x0 = x0.view(COUNT, 2, 1, 1)
    y = corruption.A(x0) + noise * torch.randn(COUNT, 1, 1, 1, dtype=FLOAT, generator=generator)
    H = torch.tensor([[2.0, 0.0]], dtype=FLOAT)
    gain = task.covariance @ H.T / (H @ task.covariance @ H.T + noise**2)
    least = (task.covariance - gain @ H @ task.covariance).trace().item()
    errors = {}
    for known in (0.0, noise):
        corruption.noise = known
        batch = replace(degraded(torch.zeros_like(x0)), shown=y, corruption=corruption)
        options = SamplingOptions(nfe=20, sampler=sampler, eta=0.85)
        restored = UnconditionalDiffusion(task.d).sample(task.unconditional_net, batch, options, noise_source())
        errors[known] = (restored.x0 - x0).square().sum(1).mean().item()
    assert least < errors[noise] < 0.9 * errors[0.0] and errors[noise] < 2 * least, (least, errors)


def test_what_noise_asks_of_a_method_and_of_a_degradation():
    class Unknown(LinearCorruption):
        """Whose singular values nobody says."""

    corruption = build_corruption("sr4x-pool", 16, degradation_noise=0.1)
    formulation = UnconditionalDiffusion(Diffusion())
    batch = replace(degraded(torch.zeros(1, 3, 16, 16)), corruption=corruption)
    with pytest.raises(ValueError, match="eta 0.0: must be above 0 with `degradation_noise`"):
        formulation.sample(
            lambda x, step, cond: x, batch, SamplingOptions(nfe=2, sampler="ddnm", eta=0.0), noise_source()
        )
    unknown = Unknown()
    formulation.check_degradation(unknown)
    with pytest.raises(ValueError, match=r"Unknown lacks its method show\(self, y, mask\)"):
        unknown.set_noise(0.1)
    unknown.noise = 0.1
    with pytest.raises(ValueError, match="degradation_noise 0.1: restoring needs the singular values .*Unknown lacks"):
        formulation.check_degradation(unknown)


def test_degradations_without_an_operator_are_refused():
    formulation = UnconditionalDiffusion(Diffusion())
    for corruption in (None, build_corruption("jpeg-5", 16), build_corruption("mixture", 16)):
        with pytest.raises(ValueError, match="formulation diffusion: .* linear degradation, and \\w+ has none; give"):
            formulation.check_degradation(corruption)
        FORMULATION_OBJECTS["conditional_diffusion"]().check_degradation(corruption)
