"""Batches, whichever process decodes them."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import find_crop, make_image, write_images
from helpers.small_data import open_native, open_tiny, take
from i2sb.data.dataset import UnreadableImageError
from i2sb.data.loading import load_in_order, load_training
from i2sb.data.order import TrainingPositions, TrainingStream


def sixteen_bit(path):
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(path)


def cut_off(path):
    make_image(0, 64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def test_lmdb_is_read_in_worker_processes_while_open_here(lmdb_dir):
    images = open_tiny(lmdb_dir)
    images.read(0)
    (batch,) = load_in_order(images, range(5), batch_size=5, workers=1)
    assert torch.equal(batch.image[3], images.read(3)[0])
    assert torch.equal(pickle.loads(pickle.dumps(images)).read(2)[0], images.read(2)[0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_off, "truncated"),
        (lambda path: path.write_bytes(b""), "not an image, or cut off"),
        (lambda path: path.write_text("hello"), "not an image, or cut off"),
        (lambda path: path.write_bytes(b"P6 2 2 65535\n" + bytes(24)), "more than 8 bits"),
        (sixteen_bit, "has 1 channel, `image_channels` is 3"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_named_in_one_line(tmp_path, spoil, words, workers):
    write_images(tmp_path / "train", ["a.png", "b.png"])
    spoil(tmp_path / "train" / "b.png")
    with pytest.raises(UnreadableImageError) as error:
        list(load_in_order(open_tiny(tmp_path), [0, 1], batch_size=1, workers=workers))
    assert re.search(f"train/b.png: .*{words}", str(error.value))
    assert "\n" not in str(error.value)


def test_loading_from_a_position_continues_what_loading_from_the_start_gave(dataset_dir):
    images = open_tiny(dataset_dir)
    load = lambda first: load_training(images, seed=5, positions=TrainingPositions(first, 4, 2), workers=0)
    whole, late = take(load(0), 10), take(load(8), 6)
    assert [b.numbers for b in late] == [b.numbers for b in whole[4:]]
    assert all(torch.equal(a.image, b.image) for a, b in zip(late, whole[4:], strict=True))


@pytest.mark.parametrize(("world_size", "microbatch", "workers"), [(1, 4, 0), (1, 2, 2), (2, 1, 0)])
def test_several_crops_of_a_file_are_the_same_however_they_are_loaded(photographs, world_size, microbatch, workers):
    """Batch, position, and crop depend on neither ranks, microbatches, loader processes, nor where a run goes on."""
    images = open_native(photographs)
    whole = TrainingStream(images, seed=1, batch_size=4, crops_per_image=3)
    want = [find_crop(whole[position].image) for position in range(32)]
    for batch in (0, 3):  # three global batches see the same files, at other places
        files = [[number for number, *_ in want[4 * i : 4 * i + 4]] for i in range(batch, batch + 3)]
        assert files[0] == files[1] == files[2]
        assert len(set(want[4 * batch : 4 * batch + 12])) == 12
    assert [spot[0] for spot in want[:4]] != [spot[0] for spot in want[12:16]]
    for first in (0, 4, 20):
        for rank in range(world_size):
            positions = TrainingPositions(first, 4, microbatch, rank, world_size)
            loaded = load_training(images, seed=1, positions=positions, workers=workers, crops_per_image=3)
            for part in take(loaded, 8 // world_size // microbatch):
                assert [find_crop(image) for image in part.image] == [want[number] for number in part.numbers]
