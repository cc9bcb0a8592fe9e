"""The objective: what the network is asked for, and what counts."""

from __future__ import annotations

import pytest
import torch

from i2sb.bridge import Bridge
from i2sb.loss import bridge_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x0, x1, noise = torch.randn(3, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Bridge(100, dtype=torch.float64), torch.tensor([0, 30, 70, 99]), x0, x1, noise


def test_is_zero_for_the_exact_network_and_one_off_for_one_off(batch):
    bridge, step, x0, x1, noise = batch
    exact = lambda xt, step, cond: bridge.compute_label(step, x0, xt)
    for ot_ode in (False, True):
        loss = lambda net: bridge_loss(bridge, net, step, x0, x1, ot_ode=ot_ode, randn=lambda x: noise)  # noqa: B023
        assert loss(exact).item() == pytest.approx(0.0, abs=1e-20)
        assert loss(lambda *a, **k: exact(*a, **k) + 1).item() == pytest.approx(1.0)


def test_only_the_hole_counts_and_the_mean_is_over_all_pixels(batch):
    bridge, step, x0, x1, noise = batch
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    mask[..., :2, :] = 1  # a quarter of the pixels
    exact = lambda xt, step: bridge.compute_label(step, x0, xt)
    run = lambda net: bridge_loss(bridge, net, step, x0, x1, mask=mask, randn=lambda x: noise).item()
    assert run(lambda xt, step, cond: exact(xt, step) + 2 * (1 - mask)) == pytest.approx(0.0, abs=1e-20)
    assert run(lambda xt, step, cond: exact(xt, step) + 2 * mask) == pytest.approx(4 / 4)


def test_condition_reaches_the_network(batch):
    bridge, step, x0, x1, noise = batch
    seen = []
    bridge_loss(bridge, lambda xt, step, cond: seen.append(cond) or xt, step, x0, x1, cond=x1)
    assert seen[0] is x1
