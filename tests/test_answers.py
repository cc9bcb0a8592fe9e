"""Several answers to an image: they draw from its posterior, to one measurement, in memory that does not grow."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from corruption import build_corruption
from helpers.tiny_run import NEEDED
from i2sb import Bridge, load_model
from i2sb.answers import RunningMoments, measure_diversity
from i2sb.batch import Batch, make_batch
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.errors import UserError
from i2sb.formulation import SchroedingerBridge
from i2sb.formulation_table import FORMULATIONS
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import RestorationModel
from i2sb.sampler import step_grid
from i2sb.tasks import build_formulation

X = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
HOLE = torch.zeros(2, 1, 16, 16)
HOLE[..., 4:12, 6:10] = 1
CONFIG = TrainConfig(name="a", dataset_dir="b", corrupt="sr4x-pool")


class Formula(nn.Module):
    """A network that is a formula."""

    multiple = 1

    def __init__(self, formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, xt, step, cond=None):
        return self.formula(xt, step, cond)


def make_model(formula, config: TrainConfig = CONFIG) -> RestorationModel:
    return RestorationModel(Formula(formula), build_formulation(config), config, iteration=0)


def halve(xt, step, cond=None):
    return xt / 2


def test_running_moments_are_mean_and_standard_deviation():
    values = torch.randn(7, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 5
    moments = RunningMoments()
    for value in values:
        moments.add(value)
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.std, values.std(0), rtol=1e-13, atol=0)
    same = RunningMoments()
    for _ in range(5):
        same.add(X)
    assert torch.equal(same.mean, X) and torch.equal(same.std, torch.zeros_like(X))


def test_diversity_is_the_mean_deviation_in_the_region():
    std = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(measure_diversity(std), std.double().mean((1, 2, 3)))
    inside = std[:, :, 4:12, 6:10].double().mean((1, 2, 3))
    torch.testing.assert_close(measure_diversity(std, HOLE), inside)
    assert measure_diversity(std, torch.zeros(2, 1, 16, 16)).tolist() == [0, 0]


class PixelwiseGaussian:
    """x0 given x1 is N(0.6 x1 + 0.1, σ²), with another σ in every four rows; the exact denoiser sees x_t and x1."""

    x1 = torch.linspace(-0.8, 0.8, 256).view(1, 1, 16, 16)
    mean = 0.6 * x1 + 0.1
    std = torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat_interleave(4).view(1, 1, 16, 1).expand(1, 1, 16, 16)

    def __init__(self) -> None:
        self.bridge = Bridge(1000)

    def gain(self, n: int, bridge: Bridge) -> torch.Tensor:
        u, s = bridge.mu_x0[n], bridge.std_sb[n]
        return u * self.std**2 / (u**2 * self.std**2 + s**2)

    def net(self, xt, step, cond):
        assert torch.equal(cond, self.x1)
        n = int(step)
        expected = self.bridge.mu_x0[n] * self.mean + self.bridge.mu_x1[n] * cond
        return self.bridge.compute_label(step, self.mean + self.gain(n, self.bridge) * (xt - expected), xt)

    def law(self, nfe: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation at index 0 after `nfe` steps from x1, without Monte Carlo: each is affine."""
        bridge, mean, var = Bridge(1000, dtype=torch.float64), self.x1.double(), torch.zeros_like(self.x1).double()
        for p, n in reversed(list(pairwise(step_grid(1000, nfe)))):
            gain = self.gain(n, bridge)
            offset = self.mean - gain * (bridge.mu_x0[n] * self.mean + bridge.mu_x1[n] * self.x1)
            var_n, var_p = bridge.std_fwd[n] ** 2, bridge.std_fwd[p] ** 2
            pull, keep = (var_n - var_p) / var_n, var_p / var_n
            mean = (pull * gain + keep) * mean + pull * offset
            var = (pull * gain + keep) ** 2 * var + (var_p * pull if p > 0 else 0)
        return mean, var.sqrt()


def test_answers_draw_from_the_posterior_of_a_gaussian():
    toy, count = PixelwiseGaussian(), 40
    mean, std = toy.law(999)
    assert ((mean - toy.mean).abs() / toy.std).max() < 0.01 and (std / toy.std - 1).abs().max() < 0.02

    mean, std = toy.law(50)
    model = make_model(toy.net, replace(CONFIG, image_channels=1, cond_x1=True))
    answers = model.restore(toy.x1, nfe=50, samples=count)
    # Of K draws the mean is off by σ/√K: of 256 pixels, the mean square of that is 1 up to √(2/256).
    off = ((answers.mean - mean) / std).square().mean() * count
    assert abs(off - 1) < 4.5 * (2 / 256) ** 0.5
    # The variance of 64 pixels that share σ is off by √(2/(64 (K − 1))) of itself.
    share = (answers.std.double() / std).square().view(4, 64).mean(1)
    assert (share - 1).abs().max() < 4.5 * (2 / (64 * (count - 1))) ** 0.5


# --- From Python -----------------------------------------------------------------------------------------------------


def test_answer_0_is_what_one_answer_is_and_others_differ(trained_run):
    model, kept = load_model(trained_run), {}
    how = {"nfe": 3, "seed": 5, "numbers": [7, 2]}
    answers = model.restore(X, samples=4, on_answer=kept.__setitem__, **how)
    assert list(kept) == [0, 1, 2, 3]
    assert torch.equal(answers.first, model.restore(X, **how)) and torch.equal(answers.first, kept[0])
    everything = torch.stack(list(kept.values()))
    assert everything.flatten(1).unique(dim=0).shape[0] == 4
    torch.testing.assert_close(answers.mean, everything.mean(0))
    torch.testing.assert_close(answers.std, everything.std(0))
    torch.testing.assert_close(answers.diversity, everything.std(0).double().mean((1, 2, 3)))
    options = SamplingOptions(nfe=3, seed=5)
    assert torch.equal(model.follow(X, options, numbers=[7, 2], answer=3).x0, kept[3])
    alone = model.follow(X[1:], options, numbers=[2], answer=3).x0
    torch.testing.assert_close(alone[0], kept[3][1])  # in a batch of another size, but for rounding


def test_only_the_hole_differs_where_the_bridge_is_without_noise():
    config = replace(CONFIG, corrupt="inpaint-center", ot_ode=True)
    model = make_model(halve, config)
    answers = model.restore(X, mask=HOLE, nfe=3, samples=3)
    assert (answers.std * (1 - HOLE)).max() == 0 and (answers.std[:, :, 4:12, 6:10] > 0).all()
    torch.testing.assert_close(answers.diversity, answers.std[:, :, 4:12, 6:10].double().mean((1, 2, 3)))
    words = "samples 3: no noise is drawn with `nfe` 3, `sampler` posterior and no noise in a hole"
    with pytest.raises(UserError, match=words):
        make_model(halve, replace(config, hole_fill="grey")).restore(X, mask=HOLE, nfe=3, samples=3)


def test_numbers_of_answers_that_cannot_be_meant_are_refused():
    model = make_model(halve)
    for samples in (1, 0, -2, 2.5):
        with pytest.raises(
            UserError, match=f"samples {samples}: must be a whole number from 2 on; for one answer leave it out"
        ):
            model.restore(X, nfe=3, samples=samples)
    with pytest.raises(UserError, match="on_answer: is for several answers; give their number with `samples`"):
        model.restore(X, nfe=3, on_answer=print)


def test_memory_does_not_grow_with_the_number_of_answers():
    def count_bytes() -> int:
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def measure(samples: int) -> int:
        """Return what there is when the network is called for the last time."""
        calls, seen = 0, []

        def net(xt, step, cond):
            nonlocal calls
            calls += 1
            if calls == 2 * samples:
                seen.append(count_bytes())
            return xt / 2

        make_model(net).restore(X, nfe=2, samples=samples)
        return seen[0]

    assert measure(3) == measure(12)


# --- What differs, and what does not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("corrupt", ["inpaint-freeform1020", "sr4x-pool", "jpeg-5,inpaint-center"])
def test_all_answers_are_to_the_same_measurement(corrupt):
    images = (127.5 * (X + 1)).to(torch.uint8)

    def make(answer: int) -> Batch:
        noise = ImageNoise(3, Purpose.SAMPLE, [4, 9], answer=answer)
        labels = torch.zeros(2, dtype=torch.int64)
        return make_batch(images, None, labels, build_corruption(corrupt, 16), noise, add_x1_noise=True)

    first, second = make(0), make(1)
    assert torch.equal(first.shown, second.shown) and not torch.equal(first.x1, second.x1)
    if first.mask is not None:
        assert torch.equal(first.mask, second.mask)


def test_formulations_say_themselves_whether_they_draw_noise():
    said = set()
    for name in FORMULATIONS:
        formulation = build_formulation(replace(CONFIG, formulation=name, **NEEDED.get(name, {})))
        variants = [formulation]
        if isinstance(formulation, SchroedingerBridge):
            variants.append(SchroedingerBridge(formulation.bridge, ot_ode=True))
        for variant in variants:
            for options in variant.list_samplers():
                for nfe in (1, 2, 3):
                    try:
                        settled = variant.settle(replace(options, nfe=nfe))
                    except UserError:  # a regression takes one
                        continue
                    drawn = []

                    def randn(x, drawn=drawn):
                        drawn.append(x)
                        return torch.ones_like(x)

                    corruption = build_corruption("sr4x-pool", 16)
                    batch = Batch(x0=None, x1=X, mask=None, cond=None, shown=X, corruption=corruption)
                    variant.sample(halve, batch, settled, randn)
                    assert variant.draws_noise(settled) == bool(drawn), (name, settled)
                    said.add((name, bool(drawn)))
    assert {("bridge", True), ("bridge", False), ("regression", False), ("diffusion", True)} <= said
