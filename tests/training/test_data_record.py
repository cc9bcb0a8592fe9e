"""A run that goes on is given the images that it began with, or says that they are others."""

from __future__ import annotations

import shutil

import pytest

from helpers.pictures import make_image
from helpers.tiny_run import TINY
from i2sb.config import TrainConfig
from i2sb.data.dataset import open_split
from i2sb.errors import UserError
from i2sb.training.data_record import RECORD, describe_images
from i2sb.training.loop import train


@pytest.fixture
def begun(tmp_path, dataset_dir):
    """Settings of a run that has come half its way, on a copy of the data."""
    shutil.copytree(dataset_dir, tmp_path / "data")
    settings = {**TINY, "name": "run", "results_dir": str(tmp_path), "dataset_dir": str(tmp_path / "data")}
    settings |= {"eval_every": 0, "log_writer": "none"}
    train(TrainConfig(**settings | {"num_itr": 2}))
    return settings


def remove(path):
    path.unlink()


def add(path):
    make_image(77).save(path.with_name("added.png"))


def rename(path):
    path.rename(path.with_name("other.png"))


def replace(path):
    make_image(77).save(path)


def replace_by_as_many_bytes(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


CHANGES = {
    remove: r"there were \d+ images, and are \d+",
    add: r"there were \d+ images, and are \d+",
    rename: "images were renamed or exchanged for others",
    replace: "images were replaced under their names",
    replace_by_as_many_bytes: "images were replaced under their names",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_refused_unless_allowed(begun, tmp_path, capsys, change):
    change(next(path for path in sorted((tmp_path / "data" / "train").rglob("*.png"))))
    record = (tmp_path / "run" / RECORD).read_bytes()
    with pytest.raises(UserError, match=CHANGES[change] + " since this run was last started.*`allow_changed_data`"):
        train(TrainConfig(**begun | {"num_itr": 4}))
    assert (tmp_path / "run" / RECORD).read_bytes() == record
    capsys.readouterr()
    train(TrainConfig(**begun | {"num_itr": 4, "allow_changed_data": True}))
    assert "since this run was last started" in capsys.readouterr().err
    train(TrainConfig(**begun | {"num_itr": 5}))  # these are its images now
    assert "since this run" not in capsys.readouterr().err


def test_images_that_were_only_copied_are_the_same(begun, tmp_path, capsys):
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.png"):
        path.touch()
    train(TrainConfig(**begun | {"dataset_dir": str(tmp_path / "elsewhere"), "num_itr": 4}))
    assert "since this run" not in capsys.readouterr().err


def test_a_run_of_an_older_version_has_no_record_and_gets_one(begun, tmp_path):
    (tmp_path / "run" / RECORD).unlink()
    train(TrainConfig(**begun | {"num_itr": 4}))
    assert (tmp_path / "run" / RECORD).exists()


def test_partners_and_unreadable_files_count(tmp_path):
    for folder in ("clean", "degraded"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        make_image(1).save(tmp_path / "train" / folder / "a.png")
    images = open_split(tmp_path, "train", image_size=16)
    before = describe_images(images)
    make_image(2).save(tmp_path / "train/degraded/a.png")
    partner = describe_images(images)
    (tmp_path / "train/degraded/a.png").unlink()
    gone = describe_images(images)
    assert len({str(record) for record in (before, partner, gone)}) == 3
