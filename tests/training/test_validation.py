"""Validation while training."""

from __future__ import annotations

import pytest
import torch

from corruption import build_corruption
from i2sb import load_model
from i2sb.data.dataset import open_split
from i2sb.metrics.feature_networks import FeatureNetwork, FeatureOutput
from i2sb.training.validation import ValidationSet, choose_images, choose_metrics, find_classifier, summarise, validate


def test_validation_counts_what_a_classifier_recognises_where_there_is_one(trained_run, dataset_dir, tmp_path):
    class SaysDog(FeatureNetwork):
        def forward(self, images):
            return FeatureOutput(None, torch.tensor([[0.0, 1.0]]).expand(len(images), 2))

    images = open_split(dataset_dir, "val", image_size=16)  # two cats, three dogs
    assert find_classifier(images, tmp_path, torch.device("cpu")) is None  # two classes are not ImageNet's
    metrics = choose_metrics(SaysDog(), 16)
    found = validate(
        load_model(trained_run),
        ValidationSet(images, build_corruption("sr4x-pool", 16), metrics),
        range(5),
        batch_size=2,
        nfe=2,
        clip_denoise=False,
        seed=0,
    )
    values, count = summarise(found.sums, metrics)
    assert count == 5 and values["accuracy_restored"] == pytest.approx(60) and values["psnr_degraded"] > 5
    assert list(choose_metrics(None, 11)) == ["psnr", "ssim"]
    assert list(choose_metrics(None, 10)) == ["psnr"]


@pytest.mark.parametrize(
    ("available", "wanted", "kinds"), [(16, 8, 2), (100, 9, 9), (13, 8, 2), (1000, 16, 3), (5, 8, 2)]
)
def test_images_of_a_mixture_take_turns(available, wanted, kinds):
    chosen = choose_images(available, wanted, kinds)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(wanted, available) and chosen[-1] < available
    assert {number % kinds for number in chosen} == set(range(min(kinds, len(chosen))))
    assert choose_images(100, 4) == [0, 25, 50, 75]
