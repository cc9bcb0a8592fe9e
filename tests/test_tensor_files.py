"""Tensors in files: what is broken or does not fit is named, and told apart from a failing disk or no memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from helpers.programs import run_python
from i2sb.errors import UserError
from i2sb.tensor_files import UnreadableFileError, is_named_tensors, load_weights, read_tensors


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile_was_here"),))


def test_files_that_hold_more_than_tensors_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save({"a": Hostile()}, path)
    with pytest.raises(UnreadableFileError, match="a.pt: cannot be read .it holds more than tensors and plain values"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UnreadableFileError):
        read_tensors(path)
    assert not Path("hostile_was_here").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_off_anywhere_are_unreadable(tmp_path, zipped):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(50)}, path, _use_new_zipfile_serialization=zipped)
    assert is_named_tensors(read_tensors(path, mmap=True))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableFileError):
            read_tensors(path)
    for start in range(1, len(whole), 101) if zipped else ():  # offsets in it then lead to before its start
        path.write_bytes(whole[start:])
        with pytest.raises(UnreadableFileError):
            read_tensors(path)


def test_trouble_of_the_disk_is_not_taken_for_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.pt")
    with pytest.raises(IsADirectoryError):
        read_tensors(tmp_path)


def test_too_little_memory_is_not_taken_for_a_broken_file(tmp_path):
    torch.save(torch.zeros(100, 1 << 20, dtype=torch.uint8), tmp_path / "a.pt")
    code = """
import resource, sys
from pathlib import Path
from i2sb.tensor_files import read_tensors
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20), -1))
try:
    read_tensors(Path(sys.argv[1]))
except MemoryError:
    print("no memory")
"""
    assert run_python("-c", code, tmp_path / "a.pt").stdout == "no memory\n"


def test_other_architectures_are_listed_shortest_first_and_cut_at_ten(tmp_path):
    net = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(8)])
    other = torch.nn.Sequential(*[torch.nn.Linear(3, 5 if i else 3) for i in range(8)], torch.nn.Linear(1, 1))
    with pytest.raises(UserError) as error:
        load_weights(net, other.state_dict(), tmp_path / "x.pt")
    message = str(error.value)
    assert "x.pt: holds another architecture" in message
    assert "architecture, 16 parameters differ: 1.bias 5 in the file, 3 in the network; 2.bias" in message
    assert message.count(" in the file") == 10 and message.endswith("; …")
    load_weights(net, {name: torch.zeros_like(p) for name, p in net.state_dict().items()}, tmp_path / "x.pt")
    assert net[3].weight.abs().sum() == 0
