"""Pickles of other programs: read right, and nothing in them runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch

from helpers.pictures import write_images
from helpers.released_run import OPTIONS, write_released_run
from helpers.small_data import pack_lmdb
from helpers.tiny_run import TINY
from i2sb import load_model
from i2sb.config import TrainConfig
from i2sb.errors import UserError
from i2sb.parsing import to_yaml
from i2sb.unpickle import IMAGE_FOLDER, NAMESPACE, read_pickle


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(trace: Path) -> dict[str, bytes]:
    """Pickles by name, each of which would leave a folder `trace` in an ordinary unpickler."""
    command = f"__import__('os').mkdir({str(trace)!r})"
    text, place = command.encode(), str(trace).encode()
    objects = {
        "os.system": Call(os.system, f"mkdir {trace}"),
        "os.mkdir": Call(os.mkdir, str(trace)),
        "builtins.eval": Call(eval, command),
        "builtins.exec": Call(exec, command),
        "nested": argparse.Namespace(**OPTIONS, deep=[{"a": (Call(eval, command),)}]),
        "in a path": Path("/x"),
    }
    pickles = {
        f"{name} {protocol}": pickle.dumps(value, protocol) for name, value in objects.items() for protocol in (2, 4)
    }
    for protocol in (2, 4):
        pickles[f"in a path {protocol}"] = pickle.dumps(Call(Path, Call(eval, command)), protocol)
    short = lambda word: b"\x8c" + bytes([len(word)]) + word
    namespace = b"\x80\x04" + short(b"argparse") + short(b"Namespace") + b"\x93)\x81"
    return pickles | {
        # Dotted names: from an allowed module or class to what lies behind it.
        "argparse._os.mkdir": b"\x80\x04"
        + short(b"argparse")
        + short(b"_os.mkdir")
        + b"\x93"
        + short(place)
        + b"\x85R.",
        "Namespace.__class__": b"\x80\x04" + short(b"argparse") + short(b"Namespace.__init__.__globals__") + b"\x93.",
        "getattr": b"cbuiltins\ngetattr\n(cargparse\nNamespace\nS'mro'\ntR.",
        "inst": b"(S'" + text.replace(b"'", b'"') + b"'\nibuiltins\neval\n.",
        "obj": b"(cbuiltins\neval\n\x8c" + bytes([len(text)]) + text + b"o.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02Pos.mkdir\n.",
        "state by setattr": namespace + b"N}" + short(b"__class__") + b"cos\nsystem\ns\x86b.",
        "__setstate__": namespace + b"}" + short(b"__setstate__") + b"cos\nmkdir\nsb" + short(place) + b"b.",
        "memory": namespace + b"r\xff\xff\xff\x7f.",
        "cut off": namespace[:-3],
        "nothing": b"",
        "text": b"options",
    }


def test_the_hostile_files_would_run_elsewhere(tmp_path):
    """The test below proves something: an ordinary unpickler runs them."""
    ran = 0
    for number, name in enumerate(["os.mkdir 4", "builtins.eval 2", "nested 4", "argparse._os.mkdir", "inst", "obj"]):
        trace = tmp_path / str(number)
        try:
            pickle.loads(hostile(trace)[name])
        except Exception as error:
            assert isinstance(error, (TypeError, AttributeError)), (name, error)
        ran += trace.exists()
    assert ran == 6


NAMES = list(hostile(Path("/trace")))


def as_torch_file(content: bytes) -> bytes:
    """Wrap a pickle as torch.save's zip file does."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [bytes, as_torch_file], ids=["pickle", "zip"])
@pytest.mark.parametrize("name", NAMES)
def test_no_door_runs_code(tmp_path, name, wrap):
    from i2sb.data.dataset import open_split
    from i2sb.training.initial_weights import read_initial_weights

    trace = tmp_path / "it_ran"
    content = wrap(hostile(trace)[name])
    run = write_released_run(tmp_path / "small")
    whole = {path: path.read_bytes() for path in run.iterdir()}
    write_images(tmp_path / "val", ["a/0.png"])
    lmdb_path = pack_lmdb(tmp_path / "val", tmp_path / "lmdb", "val")

    doors = {
        run / "options.pkl": lambda path: load_model(run),
        run / "latest.pt": lambda path: load_model(run),
        Path(f"{lmdb_path}.pt"): lambda path: open_split(path.parent, "val", image_size=16),
        tmp_path / "init.pt": lambda path: read_initial_weights(str(path), tmp_path),
        tmp_path / "init.safetensors": lambda path: read_initial_weights(str(path), tmp_path),
        tmp_path / "export.safetensors": load_model,
    }
    for path, enter in doors.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            enter(path)
        assert str(path if path.name != "latest.pt" else run) in str(error.value), (path, error.value)
        assert "\n" not in str(error.value)
        assert not trace.exists(), f"{path.name} ran code"
        if path in whole:
            path.write_bytes(whole[path])
    assert load_model(run)


def test_refused_classes_are_named(tmp_path):
    for name, words in (("os.system 4", "posix.system"), ("builtins.eval 4", "builtins.eval"), ("getattr", "getattr")):
        (tmp_path / "options.pkl").write_bytes(hostile(tmp_path / "trace")[name])
        with pytest.raises(UserError, match=f"options.pkl: refused .it asks for .*{words}"):
            read_pickle(tmp_path / "options.pkl", NAMESPACE, max_bytes=1000)


def test_large_files_are_refused_unread(tmp_path):
    for content in (pickle.dumps("x" * 5000), as_torch_file(pickle.dumps("x" * 5000))):
        (tmp_path / "options.pkl").write_bytes(content)
        with pytest.raises(UserError, match="at most 1000 are expected"):
            read_pickle(tmp_path / "options.pkl", NAMESPACE, max_bytes=1000)


def test_a_few_bytes_cannot_claim_much_memory(tmp_path):
    path = tmp_path / "options.pkl"
    tracemalloc.start()
    try:
        path.write_bytes(b"\x80\x02Nr\xff\xff\xff\x00.")  # a memo index of 16 million: an array as long would be made
        assert read_pickle(path, NAMESPACE, max_bytes=1000) is None
        path.write_bytes(b"\x80\x05\x96" + (1 << 30).to_bytes(8, "little") + b".")  # a bytearray of a gigabyte
        with pytest.raises(UserError, match="options.pkl: refused .it holds a bytearray"):
            read_pickle(path, NAMESPACE, max_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_trouble_of_the_disk_is_no_refusal(tmp_path):
    (tmp_path / "options.pkl").mkdir()
    with pytest.raises(IsADirectoryError):
        read_pickle(tmp_path / "options.pkl", NAMESPACE, max_bytes=1 << 20)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_are_read(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(argparse.Namespace(a=1, b=[(PurePosixPath("/x/y"), 2.5)], c=None), protocol))
    held = read_pickle(path, NAMESPACE, max_bytes=10_000).attributes
    assert held["a"] == 1 and held["c"] is None and held["b"][0][1] == 2.5
    for zipped in (True, False):
        torch.save({"imgs": [("a", 1)]}, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        assert read_pickle(path, IMAGE_FOLDER, max_bytes=10_000) == {"imgs": [("a", 1)]}


def test_config_of_a_run_runs_nothing(tmp_path, trained_run):
    (tmp_path / "latest.pt").symlink_to(trained_run / "latest.pt")
    text = to_yaml(TrainConfig(name="a", dataset_dir="b", **TINY))
    (tmp_path / "config.yaml").write_text(text + f"evil: !!python/object/apply:os.mkdir [{tmp_path}/it_ran]\n")
    with pytest.raises(UserError, match="config.yaml: cannot be read as YAML"):
        load_model(tmp_path)
    assert not (tmp_path / "it_ran").exists()
