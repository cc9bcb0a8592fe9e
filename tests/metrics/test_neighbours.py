"""Precision, recall, density and coverage, against closed forms, their definition and another program."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_part

from helpers.features import draw
from i2sb.metrics import neighbours
from i2sb.metrics.neighbours import DENSITY_K, PRECISION_K, find_overlap


def test_a_set_overlaps_wholly_with_itself_and_not_with_one_far_away():
    x = draw(50, 6, seed=0)
    assert find_overlap(x, x) == (1, 1, 1, 1)  # closer than its 5th nearest are a feature itself and four others
    shuffled = find_overlap(x, x[torch.randperm(50)])
    assert shuffled.precision == shuffled.recall == shuffled.coverage == 1
    assert 1 <= shuffled.density <= 6 / 5  # whether the 5th itself is closer than the 5th, rounding decides
    assert find_overlap(x, x + 1000) == (0, 0, 0, 0)


def test_numbers_on_a_line():
    """Worked out by hand. Reaches of 0 … 5: to the 3rd nearest 3, 2, 2, 2, 2, 3; to the 5th 5, 4, 3, 3, 4, 5."""
    clean = torch.arange(6.0)[:, None]
    images = torch.tensor([[-3.0], [-3.5], [2.0], [7.0], [9.0]])
    # -3 is 3 from 0, within its reach of 3; -3.5 is not; 2 is; 7 is 2 from 5; 9 is 4 from it.
    # Reaches of the images, to their 3rd nearest: 10, 10.5, 5.5, 10, 12.5: of 2 alone it covers all six numbers.
    # Strictly within the 5th: of -3: 0 (3 < 5) alone, as 1 is 4 away; of -3.5: 0; of 2: all six; of 7: 4, 5; of 9: 5.
    got = find_overlap(images, clean)
    assert got.precision == 3 / 5 and got.recall == 1
    assert got.density == pytest.approx((1 + 1 + 6 + 2 + 1) / (5 * 5), rel=1e-12) and got.coverage == 1
    # Without 2: only 0 and 4, 5 have an image strictly within reach (1 reaches to -3, 3 to 6).
    assert find_overlap(images[[0, 1, 3, 4]], clean).coverage == 3 / 6


def by_definition(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """A pair at a time: x are the images, y the reference."""

    def distance(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def reach(of, k):
        return [sorted(distance(a, b) for b in of)[k] for a in of]

    x3, y3, y5 = reach(x, PRECISION_K), reach(y, PRECISION_K), reach(y, DENSITY_K)
    precision = np.mean([any(distance(a, b) <= r for b, r in zip(y, y3, strict=True)) for a in x])
    recall = np.mean([any(distance(a, b) <= r for a, r in zip(x, x3, strict=True)) for b in y])
    within = np.array([[distance(a, b) < r for b, r in zip(y, y5, strict=True)] for a in x])
    return precision, recall, within.sum() / (DENSITY_K * len(x)), within.any(axis=0).mean()


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_overlap_follows_its_definition(shift, monkeypatch):
    x, y = draw(40, 4, seed=1), draw(30, 4, seed=2, shift=shift)
    want = by_definition(x.numpy(), y.numpy())
    assert min(want) > 0 and want[1] < 1
    assert find_overlap(x, y) == pytest.approx(want, rel=1e-12)
    monkeypatch.setattr(neighbours, "_ROWS", 7)  # in several parts
    assert find_overlap(x, y) == pytest.approx(want, rel=1e-12)


def test_precision_and_recall_are_those_of_torch_fidelity():
    x, y = draw(300, 5, seed=3), draw(200, 5, seed=4, shift=0.3)
    got = find_overlap(x, y)
    precision, recall = calculate_precision_recall_part(x, y)
    assert (got.precision, got.recall) == pytest.approx((precision, recall), abs=1e-6)  # it returns float32
    assert 0.2 < precision < 0.95 and 0.2 < recall < 0.95


def test_equal_features_are_no_distance_apart():
    """As of images all alike: rounding gives each pair another distance, some below zero."""
    x = 1000 + 1000 * draw(1, 2048, seed=5).expand(41, -1).contiguous()
    assert find_overlap(x, x) == (1, 1, 0, 0)  # nothing is strictly within a reach of nothing
    assert find_overlap(x, x + 1) == (0, 0, 0, 0)
