"""The order of the training images, and their crops."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import find_crop
from helpers.small_data import open_native, open_tiny, take
from i2sb.data.dataset import View
from i2sb.data.order import TrainingPositions, TrainingStream


def test_every_epoch_is_a_new_order_of_all_images(dataset_dir):
    images = open_tiny(dataset_dir)
    number = {images.read(i, View(flip))[0].numpy().tobytes(): i for i in range(12) for flip in (False, True)}
    stream = TrainingStream(images, seed=0)
    first, second = ([number[stream[p][0].numpy().tobytes()] for p in epoch] for epoch in (range(12), range(12, 24)))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second != list(range(12)) != first


def test_order_depends_on_the_seed_alone(dataset_dir):
    one, same, other = (TrainingStream(open_tiny(dataset_dir), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[p][0], same[p][0]) for p in range(20))
    assert not all(torch.equal(one[p][0], other[p][0]) for p in range(20))


def test_about_half_the_images_are_mirrored(dataset_dir):
    images = open_tiny(dataset_dir)
    stream = TrainingStream(images, seed=3)
    straight = {images.read(i)[0].numpy().tobytes() for i in range(12)}
    count = sum(stream[p][0].numpy().tobytes() in straight for p in range(240))
    assert 90 < count < 150


@pytest.mark.parametrize(("world_size", "microbatch"), [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_ranks_share_the_same_global_batches(world_size, microbatch):
    rounds = 8 // world_size // microbatch
    dealt = [
        sum(take(TrainingPositions(24, 8, microbatch, rank, world_size), 2 * rounds), []) for rank in range(world_size)
    ]
    half = 8 // world_size
    first, second = [sum((d[:half] for d in dealt), []), sum((d[half:] for d in dealt), [])]
    assert first == list(range(24, 32)) and second == list(range(32, 40))


def test_native_crops_are_the_files_own_pixels_from_anywhere(photographs):
    stream = TrainingStream(open_native(photographs), seed=0)
    found = [find_crop(stream[position].image) for position in range(1500)]
    assert {number for number, *_ in found[:5]} == set(range(5))  # an epoch is every file once
    tops, lefts = ({spot[i] for spot in found if spot[0] == 0} for i in (1, 2))
    assert tops == set(range(40 - 16 + 1)) and lefts == set(range(60 - 16 + 1))
    assert 0.4 < np.mean([flip for *_, flip in found]) < 0.6


def test_crops_are_cut_ahead_and_no_more_of_them_are_kept_than_are_used(photographs, monkeypatch):
    decoded, decode = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file: decoded.append(file) or decode(file))
    stream = TrainingStream(open_native(photographs), seed=1, batch_size=4, crops_per_image=5)
    for position in range(40):
        stream[position]
    assert len(decoded) == 8 and not stream._ready
    for position in range(40, 400, 4):  # a loader process that is asked for the first of each batch alone
        stream[position]
    assert len(stream._ready) < 5


def test_pairs_are_cropped_alike(photographs, tmp_path):
    for kind in ("clean", "degraded"):
        shutil.copytree(photographs / "train", tmp_path / "train" / kind)
    stream = TrainingStream(open_native(tmp_path), seed=0)
    for position in range(20):
        item = stream[position]
        assert torch.equal(item.image, item.degraded)
        find_crop(item.image)
