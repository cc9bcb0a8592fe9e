"""The table of metrics: every row is whole, and says what it needs."""

from __future__ import annotations

import string

import pytest

from i2sb.config import EvalConfig
from i2sb.metrics.feature_networks import NETWORKS
from i2sb.metrics.table import METRICS

PLACE = {"ckpt": "a", "sample_dir": "b"}


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("name", METRICS)
def test_a_row_is_computed_in_one_way(name):
    metric = METRICS[name]
    assert metric.compare is None or (metric.summarise is None and not metric.network)
    assert metric.compare is not None or metric.network in NETWORKS
    assert metric.summarise is not None or places(metric.title + metric.definition) <= {"images"}
    assert metric.limit is None or metric.summarise is None
    assert metric.title and metric.definition and metric.digits >= 0


def test_what_images_lack_is_said():
    enough = {"images": 100, "side": 64, "classes": 1000}
    assert not any(metric.find_lack(**enough) for metric in METRICS.values())
    others = {"images": 100, "side": 64, "classes": 1000, "eight_bit_colour": False}
    through_networks = {name for name, metric in METRICS.items() if metric.network}
    assert {name for name, metric in METRICS.items() if metric.find_lack(**others)} == through_networks
    lacks = {name: metric.find_lack(images=1, side=8, classes=0) for name, metric in METRICS.items()}
    assert lacks["psnr"] == lacks["mae"] == lacks["efficientnet-lite0-agreement"] == ""
    assert lacks["ssim"] == "needs images of 11 pixels a side or more"
    assert lacks["lpips-alex"] == "needs images of 31 pixels a side or more"
    assert lacks["precision"] == lacks["features-coverage"] == "needs at least 6 images"
    assert lacks["fid"] == lacks["kid"] == lacks["features-frechet"] == "needs at least 2 images"
    assert lacks["ca"] == "needs the 1000 class folders of ImageNet, the data set has no classes"


def test_wanted_metrics_come_in_the_order_of_the_table():
    assert EvalConfig(**PLACE, metrics="fid, mae").wanted == ("psnr", "mae", "fid")
    assert EvalConfig(**PLACE).wanted == tuple(name for name in METRICS if not name.startswith("features-"))
    assert EvalConfig(**PLACE, features="a.py:f").wanted == tuple(METRICS)
    with pytest.raises(ValueError, match="features: is missing; features-frechet needs the function"):
        EvalConfig(**PLACE, metrics="features-frechet")
