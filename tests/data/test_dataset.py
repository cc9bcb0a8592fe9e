"""Images decoded and cut, pairs, labels, lists of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import find_crop, make_image, write_images
from helpers.small_data import open_native, open_tiny
from i2sb.data.dataset import UnreadableImageError, View, open_split
from i2sb.data.loading import load_in_order, load_training
from i2sb.data.order import TrainingPositions
from i2sb.errors import UserError


def test_paired_folders_keep_pairs_together(tmp_path):
    write_images(tmp_path / "train" / "clean", ["x/a.png", "b.png"])
    write_images(tmp_path / "train" / "degraded", ["x/a.png", "b.png"], first=7)
    images = open_tiny(tmp_path)
    assert images.paired
    (batch,) = load_in_order(images, [0, 1], batch_size=2)
    assert batch.image.shape == batch.degraded.shape == (2, 3, 16, 16)
    assert not torch.equal(batch.image, batch.degraded)
    clean, degraded = images.read(0)
    mirrored, mirrored_degraded = images.read(0, View(flip=True))
    assert torch.equal(mirrored, clean.flip(-1)) and torch.equal(mirrored_degraded, degraded.flip(-1))


def test_transform_is_resize_of_the_shorter_side_then_centre_crop(tmp_path):
    (tmp_path / "train").mkdir()
    make_image(3, width=48, height=32).save(tmp_path / "train" / "a.png")
    small = make_image(3, width=48, height=32).resize((24, 16), Image.Resampling.BILINEAR)
    want = np.asarray(small)[:, 4:20].transpose(2, 0, 1)
    assert np.array_equal(open_tiny(tmp_path).read(0)[0].numpy(), want)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_kinds_of_pixels(tmp_path, mode):
    (tmp_path / "train").mkdir()
    make_image(0).convert(mode).save(tmp_path / "train" / ("a.jpg" if mode == "CMYK" else "a.png"))
    assert open_tiny(tmp_path).read(0)[0].shape == (3, 16, 16)
    assert open_tiny(tmp_path, image_channels=1).read(0)[0].shape == (1, 16, 16)


def test_pairs_of_other_sizes_are_named(tmp_path):
    write_images(tmp_path / "train" / "clean", ["a.png"])
    (tmp_path / "train" / "degraded").mkdir()
    make_image(0, 10, 20).save(tmp_path / "train" / "degraded" / "a.png")
    with pytest.raises(UnreadableImageError, match=r"degraded/a.png: is 10x20 pixels, its clean partner 24x20"):
        open_tiny(tmp_path).read(0)


def test_native_crops_of_the_evaluation_are_the_middle(photographs):
    for index in range(5):
        assert find_crop(open_native(photographs, "val").read(index)[0]) == (index, round((24 + index) / 2), 22, False)


def test_files_smaller_than_the_crop_are_enlarged_just_enough_and_counted(photographs, tmp_path):
    images = open_native(photographs, side=42)  # two of five have 40 and 41 rows
    batch = next(load_training(images, seed=0, positions=TrainingPositions(0, 5, 5), workers=0))
    assert batch.image.shape == (5, 3, 42, 42) and batch.enlarged == 2
    want = np.asarray(Image.open(photographs / "train" / "0.png").resize((63, 42), Image.Resampling.BILINEAR))
    assert np.array_equal(images.read(0, View(crop_at=(0.0, 0.5)))[0].numpy(), want[:, 11:53].transpose(2, 0, 1))


def test_listed_images_come_in_the_order_of_the_list_with_their_classes(dataset_dir, tmp_path):
    write_images(tmp_path / "val", ["cat/x.png", "dog/y.png", "dog/z.png"])
    (tmp_path / "list.txt").write_text("/their/val/z.png\nC:\\val\\x.png\n\n")
    whole = open_tiny(tmp_path, "val")
    images = whole.subset(tmp_path / "list.txt")
    assert images.keys == ["dog/z.png", "cat/x.png"] and len(images) == 2 and len(whole) == 3
    assert [images.label(i) for i in range(2)] == [1, 0]
    assert torch.equal(images.read(0)[0], whole.read(2)[0])
    assert images.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a/x.png\nno.png\nb/y.png\nnor.png", "lists 4 images, 2 of them are in", ),
        ("a/x.png\nno.png\nb/y.png\nnor.png", "2 are missing, first no.png"),
        ("x.png\na/x.png", "lists x.png 2 times"),
        ("twice.png", "has cat/twice.png and dog/twice.png"),
        ("\n", "lists no images"),
        (b"\xff", "cannot be read"),
        (None, "cannot be read"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_say_how(tmp_path, content, words):
    write_images(tmp_path / "val", ["cat/x.png", "dog/y.png", "cat/twice.png", "dog/twice.png"])
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="^subset .*list.txt: ") as error:
        open_tiny(tmp_path, "val").subset(tmp_path / "list.txt")
    assert words in str(error.value)


def test_photographs_are_turned_as_their_exif_says_and_published_ones_are_not(tmp_path):
    (tmp_path / "train").mkdir()
    lying = make_image(3, width=40, height=24)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was held upright
    lying.save(tmp_path / "train" / "a.png", exif=exif)
    upright = np.asarray(lying.rotate(-90, expand=True)).transpose(2, 0, 1)
    native = open_split(tmp_path, "train", image_size=16, native=True)
    assert np.array_equal(native.read(0, View(crop_at=(0.0, 0.0)))[0].numpy(), upright[:, :16, :16])
    published = open_split(tmp_path, "train", image_size=24)
    assert np.array_equal(published.read(0)[0].numpy(), np.asarray(lying)[:, 8:32].transpose(2, 0, 1))
