"""The kernel distance, against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from helpers.features import draw
from i2sb.metrics.kid import kernel_distance


def slow_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, a pair at a time."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_follows_its_definition():
    x, y = draw(20, 6, seed=6), draw(20, 6, seed=7, shift=0.5)
    got = kernel_distance(x, y, seed=0, subsets=3)  # every subset is the whole set
    assert got.mean == pytest.approx(slow_mmd(x.numpy(), y.numpy()), rel=1e-9)
    assert got.spread == pytest.approx(0, abs=1e-12) and (got.subsets, got.subset_size) == (3, 20)


def test_kernel_distance_is_a_mean_over_seeded_subsets():
    x, y = draw(60, 6, seed=8), draw(50, 6, seed=9, shift=0.2)
    got = kernel_distance(x, y, seed=5, subsets=8, subset_size=20)
    generator, values = torch.Generator().manual_seed(5), []
    for _ in range(8):
        chosen = [z[torch.randperm(len(z), generator=generator)[:20]].numpy() for z in (x, y)]
        values.append(slow_mmd(*chosen))
    assert got.mean == pytest.approx(np.mean(values), rel=1e-9)
    assert got.spread == pytest.approx(np.std(values), rel=1e-9)
    assert kernel_distance(x, y, seed=6, subsets=8, subset_size=20).mean != got.mean
