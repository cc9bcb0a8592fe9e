"""Data sets on disk: LMDB and folders, and what is said where they are not as they should be."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch

from helpers.pictures import write_images
from helpers.small_data import open_tiny, pack_lmdb
from i2sb.data.dataset import NO_CLASS, UnreadableImageError
from i2sb.data.loading import load_in_order
from i2sb.data.stores import list_files
from i2sb.errors import UserError


def test_class_folders_have_classes_in_order(dataset_dir):
    images = open_tiny(dataset_dir)
    assert images.keys == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    assert [images.label(i) for i in range(12)] == [0] * 6 + [1] * 6
    assert not images.paired


def test_flat_folder_has_no_classes(tmp_path):
    write_images(tmp_path / "train", ["b.png", "a.PNG", "c.webp"])
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    images = open_tiny(tmp_path)
    assert images.keys == ["a.PNG", "b.png", "c.webp"]
    assert images.label(0) == NO_CLASS


def test_lmdb_gives_the_same_as_its_folder(dataset_dir, lmdb_dir):
    for split in ("train", "val"):
        folder, packed = open_tiny(dataset_dir, split), open_tiny(lmdb_dir, split)
        assert packed.keys == folder.keys
        for i in range(len(folder)):
            assert packed.label(i) == folder.label(i)
            assert torch.equal(packed.read(i)[0], folder.read(i)[0])


def test_lmdb_cut_off_is_named(lmdb_dir, tmp_path):
    whole = (lmdb_dir / "train_faster_imagefolder.lmdb").read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 8192, 100, 0):
        (tmp_path / f"{length}").mkdir()
        (tmp_path / f"{length}" / "train_faster_imagefolder.lmdb").write_bytes(whole[:length])
        with pytest.raises(UserError, match="train_faster_imagefolder.lmdb: (is cut off|cannot be opened|holds no)"):
            open_tiny(tmp_path / f"{length}")


def test_damaged_lmdb_is_named(lmdb_dir, tmp_path):
    """Any of its pages overwritten: it reads as before (the page held an image, or nothing), or says what is wrong."""
    whole = (lmdb_dir / "train_faster_imagefolder.lmdb").read_bytes()
    refused = []
    for page in range(2, len(whole) // 4096):  # the first two say where the others are
        path = tmp_path / str(page) / "train_faster_imagefolder.lmdb"
        path.parent.mkdir()
        path.write_bytes(whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :])
        try:
            images = open_tiny(path.parent)
            for i in range(len(images)):
                images.read(i)
        except UnreadableImageError as error:  # the image is gone, or where it is listed
            assert str(error).startswith(f"{path}:") and "unreadable image" in str(error)
        except UserError as error:
            assert str(error).startswith(f"{path}: is damaged (") and "copy or make it again" in str(error)
            refused.append(page)
    assert refused


def test_missing_empty_and_mismatched_sets_say_what_was_found(tmp_path):
    def message(root=tmp_path):
        with pytest.raises(UserError) as error:
            open_tiny(root)
        return str(error.value)

    assert message(tmp_path / "nowhere").endswith("nowhere: there is no such folder")
    assert message().endswith("needs train_faster_imagefolder.lmdb or a folder train/; found nothing")
    (tmp_path / "training").mkdir()
    assert message().endswith("found training")
    (tmp_path / "train").mkdir()
    assert "train: holds no images" in message()
    write_images(tmp_path / "train", ["loose.png", "cat/a.png"])
    assert "beside and inside folders (loose.png, cat/a.png)" in message()
    shutil.rmtree(tmp_path / "train")
    write_images(tmp_path / "train" / "clean", ["a.png", "b.png", "c.png"])
    write_images(tmp_path / "train" / "degraded", ["c.png"])
    assert "degraded: lacks 2 of the 3 images" in message() and "first a.png" in message()
    (tmp_path / "train_faster_imagefolder.lmdb").write_bytes(b"not a database")
    assert "cannot be opened as LMDB" in message()


RELEASED_KEYS = ["/data/train/wolf/c.png", "/data/train/ape/d.png", "/data/train/cat/a.png"]


def test_keys_of_a_released_lmdb_are_absolute_and_their_last_folder_is_the_class(tmp_path):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    pack_lmdb(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    images = open_tiny(tmp_path / "out")
    assert images.keys == [RELEASED_KEYS[1], RELEASED_KEYS[2], RELEASED_KEYS[0]]
    assert [images.label(i) for i in range(3)] == [0, 1, 2]
    assert torch.equal(images.read(2)[0], open_tiny_folder(tmp_path / "in").read(0)[0])


def open_tiny_folder(folder):
    (folder.parent / "as_train").mkdir()
    shutil.copytree(folder, folder.parent / "as_train" / "train")
    return open_tiny(folder.parent / "as_train")


def image_folder(imgs):
    """A real torchvision ImageFolder, as the released program pickled it."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    folder = ImageFolder.__new__(ImageFolder)
    folder.root, folder.loader, folder.extensions = "/data/train", default_loader, (".png",)
    folder.transform = folder.target_transform = folder.transforms = None
    folder.imgs = folder.samples = imgs
    folder.targets = [label for _, label in imgs]
    return folder


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_lmdb_index_gives_order_and_classes(tmp_path, save):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    path = pack_lmdb(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    save(image_folder([(key, 7 - i) for i, key in enumerate(RELEASED_KEYS)]), path.with_name(f"{path.name}.pt"))
    images = open_tiny(tmp_path / "out")
    assert images.keys == RELEASED_KEYS
    assert [images.label(i) for i in range(3)] == [7, 6, 5]
    (batch,) = load_in_order(images, range(3), batch_size=3)
    assert batch.label.tolist() == [7, 6, 5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([(key, 0) for key in RELEASED_KEYS[:2]], "lists 2 images, its LMDB holds 3, and 0 of the listed"),
        ([("/x.png", 0), ("/y.png", 0), (RELEASED_KEYS[0], 0)], "2 of the listed are not among them, first /x.png"),
        ([(RELEASED_KEYS[0], 0)] * 3, "lists 3 images, its LMDB holds 3"),
        ([(key, "0") for key in RELEASED_KEYS], "holds no ImageFolder whose imgs"),
        (["a", "b", "c"], "holds no ImageFolder whose imgs"),
        (None, "holds no ImageFolder whose imgs"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path, value, words):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    path = pack_lmdb(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    folder = image_folder([])
    folder.imgs = folder.samples = value
    torch.save(folder, path.with_name(f"{path.name}.pt"))
    with pytest.raises(UserError, match="train_faster_imagefolder.lmdb.pt: ") as error:
        open_tiny(tmp_path / "out")
    assert words in str(error.value)


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    """Two that lead to their own folder would be followed without end, and each picture found again and again."""
    root = tmp_path / "data"
    for path in ("data/a/1.png", "data/b/2.png", "elsewhere/3.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    for link, target in (("self", "."), ("a/up", ".."), ("a/b", "../b"), ("b/a", "../a"), ("a/here", "../a")):
        (root / link).symlink_to(target)
    (root / "c/above").symlink_to(tmp_path)
    found = ["a/1.png", "a/b/2.png", "again/3.png", "b/2.png", "b/a/1.png", "c/3.png"]
    assert sorted(list_files(root)) == found
    (root / "c/above").unlink()
    (root / "loop").symlink_to("loop")  # is no folder
    assert sorted(list_files(root)) == [*found, "loop"]
