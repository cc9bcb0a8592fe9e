"""Validation while training."""

from __future__ import annotations

import pytest
import torch

from corruption import build_corruption
from i2sb import load_model
from i2sb.data.dataset import open_split
from i2sb.metrics.features import FeatureNetwork, Seen
from i2sb.training.validation import ValidationSet, choose_metrics, find_classifier, summarise, validate


def test_validation_counts_what_a_classifier_recognises_where_there_is_one(trained_run, dataset_dir, tmp_path):
    class SaysDog(FeatureNetwork):
        def forward(self, images):
            return Seen(None, torch.tensor([[0.0, 1.0]]).expand(len(images), 2))

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
