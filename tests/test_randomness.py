"""Seeds, and noise of an image's own."""

from __future__ import annotations

import torch

from i2sb.randomness import ImageNoise, Purpose, make_seed


def test_seeds_differ_by_run_purpose_and_number():
    seeds = {make_seed(run, purpose, number) for run in range(3) for purpose in Purpose for number in range(50)}
    assert len(seeds) == 3 * len(Purpose) * 50
    assert make_seed(0, Purpose.TRAIN, 7) == 893270077250725738, "what existing runs draw must not change"


def test_noise_of_an_image_does_not_depend_on_its_batch():
    x = torch.empty(4, 3, 8, 8)
    whole, part = ImageNoise(0, Purpose.SAMPLE, range(4)), ImageNoise(0, Purpose.SAMPLE, [2, 3])
    for _ in range(3):
        assert torch.equal(whole.randn_like(x)[2:], part.randn_like(x[2:]))
        assert torch.equal(whole.randint(1000)[2:], part.randint(1000))
    draws = ImageNoise(0, Purpose.SAMPLE, range(500)).randn_like(torch.empty(500, 1, 8, 8))
    assert abs(draws.mean()) < 0.03 and abs(draws.std() - 1) < 0.03
    assert draws.flatten(1).unique(dim=0).shape[0] == 500
