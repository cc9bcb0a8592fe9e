"""Meters: what they keep of images, in batches and in shares of several processes."""

from __future__ import annotations

import pytest
import torch

from i2sb.metrics.feature_networks import FeatureNetwork, FeatureOutput
from i2sb.metrics.kid import kernel_distance
from i2sb.metrics.meters import EvaluationBatch, ImageMeter, NetworkMeter, choose_pool
from i2sb.metrics.neighbours import find_overlap


class KnowsColours(FeatureNetwork):
    """A classifier of three classes, each of which is one colour channel."""

    def forward(self, images):
        return FeatureOutput(None, images.float().mean(dim=(2, 3)))


def test_accuracy_is_whole_on_images_a_toy_classifier_knows():
    labels = torch.tensor([0, 1, 2, 1])
    clean = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    clean[range(4), labels] = 200
    degraded = clean.roll(1, dims=1)
    degraded[0] = clean[0]
    meter = NetworkMeter(KnowsColours(), 4, labels=labels)
    for part in ([2, 0], [3, 1]):
        meter.add(EvaluationBatch(degraded[part], clean[part], clean[part], part))
    meter.reduce(lambda value: value)
    assert meter.accuracy("restored") == 100 and meter.agreement("restored") == 100
    assert meter.accuracy("degraded") == 25 and meter.agreement("degraded") == 25


class Flat(FeatureNetwork):
    """Pixels as features, and the brightest of them as class."""

    def forward(self, images):
        features = images.float().flatten(1) / 255
        return FeatureOutput(features, features)


def test_two_shares_of_the_images_make_a_whole():
    generator = torch.Generator().manual_seed(0)
    degraded, restored, clean = torch.randint(0, 256, (3, 30, 3, 2, 2), generator=generator).byte()
    pool = torch.arange(1, 30, 2)

    def meter(*parts):
        made = NetworkMeter(Flat(), 30, pool=pool, seed=1)
        for part in parts:
            made.add(EvaluationBatch(degraded[part], restored[part], clean[part], part))
        return made

    whole = meter(list(range(30)))
    whole.reduce(lambda value: value)
    one, other, values = meter([0, 3, 7], list(range(10, 20))), meter([1, 2, 4, 5, 6, 8, 9], list(range(20, 30))), []
    other.reduce(lambda value: values.append(value.clone()) or value)
    others = iter(values)
    one.reduce(lambda value: value + next(others))
    for column in ("degraded", "restored"):
        assert one.frechet(column) == pytest.approx(whole.frechet(column), rel=1e-9)
        assert one.kernel(column) == whole.kernel(column)
        assert one.overlap(column) == whole.overlap(column)
        assert one.agreement(column) == whole.agreement(column)
    pooled, pooled_clean = restored[pool].flatten(1) / 255, clean[pool].flatten(1) / 255
    want = kernel_distance(pooled, pooled_clean, seed=1)
    assert whole.kernel("restored").mean == pytest.approx(want.mean, rel=1e-9)
    assert whole.overlap("restored") == find_overlap(pooled, pooled_clean) != whole.overlap("degraded")


def test_features_of_a_bounded_number_of_images_are_kept():
    assert choose_pool(7, seed=0).tolist() == list(range(7))
    pool = choose_pool(1000, seed=3, size=50).tolist()
    assert len(set(pool)) == 50 and pool == sorted(pool) and pool == choose_pool(1000, seed=3, size=50).tolist()
    assert max(pool) > 800 and min(pool) < 200


@pytest.mark.parametrize("compare", [lambda a, b: torch.tensor(3.0), lambda a, b: torch.zeros(len(a), 1)])
def test_a_metric_that_gives_other_than_a_number_an_image_is_named(compare):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"<lambda>: returned \(.*\) for 2 images, not one each"):
        ImageMeter(compare, 2).add(EvaluationBatch(images, images, images, [0, 1]))
