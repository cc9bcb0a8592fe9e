"""Checkpoints: whole or not at all, newest first, broken ones named, nothing in them runs."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from i2sb.storage.checkpoint import (
    BrokenCheckpointError,
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


def state(value: float) -> dict:
    parts = {"ema": {}, "optimizer": {}, "sched": None, "progress": {"iteration": int(value)}}
    return {"net": {"w": torch.full((300,), value)}, **parts}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "checkpoints.json")


def test_keeps_the_newest_and_points_to_it(tmp_path):
    for iteration in (5, 10, 15, 100):
        save_checkpoint(tmp_path, state(iteration), iteration, keep_last=2)
    assert names(tmp_path) == ["checkpoint_00000015.pt", "checkpoint_00000100.pt", "latest.pt"]
    assert os.readlink(tmp_path / "latest.pt") == "checkpoint_00000100.pt"
    path, found = find_checkpoint(tmp_path)
    assert path.name == "checkpoint_00000100.pt" and found["progress"]["iteration"] == 100


def test_a_broken_newer_one_neither_counts_nor_is_deleted(tmp_path):
    save_checkpoint(tmp_path, state(9), 9, keep_last=2)
    (tmp_path / "checkpoint_00000009.pt").write_bytes(b"broken")
    for iteration in (1, 2, 3):
        save_checkpoint(tmp_path, state(iteration), iteration, keep_last=1)
        assert names(tmp_path) == [f"checkpoint_0000000{iteration}.pt", "checkpoint_00000009.pt", "latest.pt"]
    assert find_checkpoint(tmp_path)[1]["progress"]["iteration"] == 3


def test_none_at_all_is_no_error(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_a_lone_latest_is_read(tmp_path):
    torch.save(state(1), tmp_path / "latest.pt")
    assert find_checkpoint(tmp_path)[0].name == "latest.pt"


def test_cut_off_anywhere_is_named_and_the_one_before_is_used(tmp_path, capsys):
    save_checkpoint(tmp_path, state(1), 1, keep_last=5)
    newest = save_checkpoint(tmp_path, state(2), 2, keep_last=5)
    whole = newest.read_bytes()
    for length in [0, 1, 50, *range(100, len(whole), 97), len(whole) - 1]:
        newest.write_bytes(whole[:length])
        path, found = find_checkpoint(tmp_path)
        assert path.name == "checkpoint_00000001.pt" and found["net"]["w"][0] == 1
        said = capsys.readouterr().err
        assert "checkpoint_00000002.pt: broken checkpoint" in said and said.count("\n") == 1
    (tmp_path / "checkpoint_00000001.pt").write_bytes(b"")
    with pytest.raises(BrokenCheckpointError, match="none of its 2 checkpoints is whole"):
        find_checkpoint(tmp_path)


def test_trouble_of_the_disk_is_not_taken_for_a_broken_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1), 1, keep_last=5)
    (tmp_path / "checkpoint_00000002.pt").mkdir()
    with pytest.raises(IsADirectoryError):
        find_checkpoint(tmp_path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it_ran"),)

    for name, save in (
        ("torch.pt", torch.save),
        ("plain.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        save({"net": Hostile()}, tmp_path / name)
        with pytest.raises(BrokenCheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "other.pt")
    with pytest.raises(BrokenCheckpointError, match="lacks net, ema, optimizer, sched, progress"):
        read_checkpoint(tmp_path / "other.pt")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("mmap", [False, True])
def test_flipped_bytes_are_noticed(tmp_path, mmap):
    path = save_checkpoint(tmp_path, state(1.0), 1, keep_last=1)
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((4,), 1.0).numpy().tobytes())
    content[place + 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BrokenCheckpointError, match="checkpoint_00000001.pt: broken checkpoint"):
        read_checkpoint(path, mmap=mmap)


def test_a_link_to_a_checkpoint_that_is_gone_is_named(tmp_path):
    save_checkpoint(tmp_path, state(1), 1, keep_last=1).unlink()
    with pytest.raises(BrokenCheckpointError, match="latest.pt: points to checkpoint_00000001.pt, which is gone"):
        find_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_checkpoint(tmp_path, state(1), 1, keep_last=1)
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path, {**state(2), "net": lambda: None}, 2, keep_last=1)
    path, found = find_checkpoint(tmp_path)
    assert path.name == "checkpoint_00000001.pt" and found["net"]["w"][0] == 1


def test_a_manifest_tells_a_cut_off_file_before_it_is_read(tmp_path, capsys):
    import json

    for iteration in (1, 2):
        save_checkpoint(tmp_path, state(iteration), iteration, keep_last=2)
    path = tmp_path / "checkpoint_00000002.pt"
    size = path.stat().st_size
    manifest = json.loads((tmp_path / "checkpoints.json").read_text())
    assert manifest["format"] == 1 and manifest["bytes"][path.name] == size and len(manifest["bytes"]) == 2
    path.write_bytes(path.read_bytes()[:-1])
    assert find_checkpoint(tmp_path)[1]["progress"]["iteration"] == 1
    assert f"{path}: broken checkpoint ({size - 1} of {size} bytes); passed over" in capsys.readouterr().err
    (tmp_path / "checkpoints.json").write_text("no manifest")
    assert find_checkpoint(tmp_path)[1]["progress"]["iteration"] == 1


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    save_checkpoint(tmp_path, {**state(1), "format": 2}, 1, keep_last=2)
    with pytest.raises(ValueError, match="is of format 2, this version of the program reads 1"):
        find_checkpoint(tmp_path)
