"""The learning rate, and what happens to bad gradients."""

from __future__ import annotations

import pytest
import torch

from i2sb.training.optimizer import build_optimizer, build_scheduler, guard_update, scaled_rate


def test_the_rate_is_scaled_for_a_step_and_no_longer():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], lr=0.5, weight_decay=0.0)
    parameter.grad = torch.ones(1)
    with scaled_rate(optimizer, 0.25) as lr:
        optimizer.step()
    assert lr == 0.125 and abs(parameter.item() + 0.125) < 1e-6  # Adam's first step is the learning rate
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_learning_rate_falls_in_steps():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], lr=1.0, weight_decay=0.0)
    scheduler = build_scheduler(optimizer, gamma=0.5, iterations=3)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert build_scheduler(optimizer, gamma=1.0, iterations=3) is None


def test_gradients_are_clipped_to_the_norm_that_is_asked_for():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = build_optimizer([parameter], lr=0.1, weight_decay=0.0)
    for clip, want in ((0.0, 10.0), (2.0, 2.0), (20.0, 10.0)):
        parameter.grad = torch.full((4,), 5.0)
        norm, bad = guard_update(optimizer, clip)
        assert norm == 10 and not bad and parameter.grad.norm().item() == pytest.approx(want, rel=1e-5)
