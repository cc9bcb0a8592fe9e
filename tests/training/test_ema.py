"""Averaged weights."""

from __future__ import annotations

import pytest
import torch

from i2sb.training.ema import ExponentialMovingAverage


def test_average_follows_its_definition_and_swaps_back():
    parameter = torch.nn.Parameter(torch.tensor([0.0]))
    ema = ExponentialMovingAverage([parameter], decay=0.5)
    want = 0.0
    for k, value in enumerate([1.0, 2.0, -1.0, 5.0, 4.0, 3.0, 2.0, 1.0], 1):
        parameter.data.fill_(value)
        ema.update()
        keep = min(0.5, (1 + k) / (10 + k))
        want = keep * want + (1 - keep) * value
        assert ema.shadow_params[0].item() == pytest.approx(want, rel=1e-6)
    with ema.applied():
        assert parameter.item() == pytest.approx(want, rel=1e-6)
    assert parameter.item() == 1.0 and ema.shadow_params[0].item() == pytest.approx(want, rel=1e-6)
    assert set(ema.state_dict()) == {"decay", "num_updates", "shadow_params", "collected_params"}
