"""Packing a data set: what is unreadable is named, and nothing half done is taken for a data set."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from helpers.full_disk import full_disk
from helpers.pictures import write_images
from helpers.programs import ROOT, run_python
from i2sb.data.dataset import UnreadableImageError, open_split
from i2sb.errors import UserError
from scripts.make_lmdb import make_lmdb as make_in_this_process


def make_lmdb(*arguments, check=True):
    return run_python(ROOT / "scripts/make_lmdb.py", *arguments, "--workers", 1, check=check)


def test_make_lmdb_lists_unreadable_images_and_resizes(tmp_path):
    write_images(tmp_path / "in", ["a/0.png", "a/1.png", "b/0.png"])
    (tmp_path / "in" / "a" / "1.png").write_bytes(b"\x89PNG broken")
    done = make_lmdb(tmp_path / "in", tmp_path / "out", "--split", "val", "--resize", "10")
    assert "left out 1 unreadable images" in done.stderr and "in/a/1.png" in done.stderr
    images = open_split(tmp_path / "out", "val", image_size=10)
    assert images.keys == ["a/0.png", "b/0.png"] and images.label(1) == 1
    assert not list((tmp_path / "out").glob(".*"))

    before = (tmp_path / "out" / "val_faster_imagefolder.lmdb").read_bytes()
    again = make_lmdb(tmp_path / "in", tmp_path / "out", "--split", "val", check=False)
    assert again.returncode == 2 and "exists already; delete it first" in again.stderr
    assert (tmp_path / "out" / "val_faster_imagefolder.lmdb").read_bytes() == before


def test_make_lmdb_refuses_what_the_data_set_would_not_read(tmp_path):
    """A pipe would never end."""
    write_images(tmp_path / "in", ["good.png"])
    np.save(tmp_path / "in" / "objects.npy", np.array([None]), allow_pickle=True)
    (tmp_path / "in" / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / "in" / "good.png").read_bytes())
    done = make_lmdb(tmp_path / "in", tmp_path / "out", "--resize", 8)
    assert "left out 4 unreadable images" in done.stderr and "BytesIO" not in done.stderr
    for name, reason in (
        ("deep.ppm", "more than 8 bits"),
        ("objects.npy", "allow_pickle"),
        ("pipe.png", "is no regular file"),
        ("\\udcff.png", "is no UTF-8"),
    ):
        assert [reason in line for line in done.stderr.splitlines() if name in line] == [True]
    assert open_split(tmp_path / "out", "train", image_size=8).keys == ["good.png"]
    folder = open_split(tmp_path, "in", image_size=8)
    for index in (0, 2, 3):
        with pytest.raises(UnreadableImageError, match="more than 8 bits|allow_pickle|is no regular file"):
            folder.read(index)


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere", "there is no such folder"), ("empty", "holds no images"), ("bad", "a.png: not an image, or cut off")],
)
def test_make_lmdb_refuses(tmp_path, source, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    done = make_lmdb(tmp_path / source, tmp_path / "out", check=False)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    write_images(tmp_path / "in", [f"{i}.png" for i in range(30)])
    with (
        full_disk(16384),
        pytest.raises(UserError, match=r"train_faster_imagefolder.lmdb: cannot be written .* full\?"),
    ):
        make_in_this_process(tmp_path / "in", tmp_path / "out", "train", resize=None, workers=1)
    assert not list((tmp_path / "out").iterdir())


def test_interrupted_make_lmdb_is_never_mistaken_for_a_finished_one(tmp_path):
    """Killed between writing and naming the file: no LMDB is there, and the next build succeeds."""
    write_images(tmp_path / "in", ["0.png", "1.png"])
    killed = f"""
import os, runpy, signal, sys
os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["make_lmdb.py", {str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}, "--workers", "1"]
runpy.run_path({str(ROOT / "scripts/make_lmdb.py")!r}, run_name="__main__")
"""
    assert run_python("-c", killed, check=False).returncode == -9
    assert not (tmp_path / "out" / "train_faster_imagefolder.lmdb").exists()
    make_lmdb(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train_faster_imagefolder.lmdb"]


def test_make_lmdb_keeps_deep_images_as_they_are_and_shrinks_none(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "in" / "deep.png")
    np.save(tmp_path / "in" / "bands.npy", np.linspace(0, 1, 5 * 400, dtype=np.float32).reshape(5, 20, 20))
    with pytest.raises(UserError, match="resize 8: shrinks 8-bit pictures alone, and .*bands.npy is none"):
        make_in_this_process(tmp_path / "in", tmp_path / "out", "val", resize=8, workers=1)
    assert not list((tmp_path / "out").iterdir())
    make_in_this_process(tmp_path / "in", tmp_path / "out", "val", resize=None, workers=1)
    store = open_split(tmp_path / "out", "val", image_size=8, image_channels=5).clean
    for name in ("deep.png", "bands.npy"):
        assert store.read(name) == (tmp_path / "in" / name).read_bytes()


# --- The released program's index ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels"),
    [(["dog/0.png", "cat/1.png", "cat/0.png", "ant/b/0.png"], [0, 1, 1, 2]), (["1.png", "0.png"], [-1, -1])],
    ids=["classes", "flat"],
)
def test_an_index_for_the_released_program(tmp_path, names, labels):
    write_images(tmp_path / "in", names)
    make_in_this_process(tmp_path / "in", tmp_path / "plain", "val", resize=None, workers=1)
    make_in_this_process(tmp_path / "in", tmp_path / "out", "val", resize=None, workers=1, released=True)
    plain, images = (open_split(tmp_path / name, "val", image_size=16) for name in ("plain", "out"))
    assert images.clean.labels is not None and plain.clean.labels is None
    assert images.keys == plain.keys and sorted(images.keys) == sorted(names)
    assert [[of.label(i) for i in range(len(of))] for of in (images, plain)] == [labels, labels]

    # As the released program reads it: with torchvision's class.
    path = tmp_path / "out" / "val_faster_imagefolder.lmdb.pt"
    folder = torch.load(path, weights_only=False)
    assert type(folder) is ImageFolder and folder.imgs == list(zip(images.keys, labels, strict=True))
    assert len(folder) == len(names) and str(tmp_path / "in") in repr(folder)
    if labels[0] >= 0:  # one without classes is none of torchvision's
        made = vars(ImageFolder(tmp_path / "in"))
        assert vars(folder).keys() == made.keys()
        assert all(folder.__dict__[name] == made[name] for name in ("classes", "class_to_idx", "targets", "loader"))


def test_the_index_lists_what_the_lmdb_holds(tmp_path):
    write_images(tmp_path / "in", ["a/0.png", "a/1.png", "b/0.png"])
    (tmp_path / "in" / "a" / "0.png").write_bytes(b"")
    make_lmdb(tmp_path / "in", tmp_path / "out", "--split", "val", "--released")
    assert open_split(tmp_path / "out", "val", image_size=16).keys == ["a/1.png", "b/0.png"]
    (tmp_path / "out" / "val_faster_imagefolder.lmdb").unlink()
    again = make_lmdb(tmp_path / "in", tmp_path / "out", "--split", "val", check=False)
    assert again.returncode == 2 and "val_faster_imagefolder.lmdb.pt: exists already; delete it first" in again.stderr


def test_names_that_the_released_program_cannot_read_are_refused(tmp_path):
    write_images(tmp_path / "in", ["a/0.png", "a/blüte.png"])
    with pytest.raises(UserError, match=r"a/blüte.png: its name is not ASCII"):
        make_in_this_process(tmp_path / "in", tmp_path / "out", "val", resize=None, workers=1, released=True)
    assert not (tmp_path / "out").exists()
