"""Runs of the released program, and the pickles they bring: read right, and nothing in them runs."""

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
from conftest import TINY, golden, run_python, write_images
from small_data import pack_lmdb
from test_unet import formula_network

from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.config import TrainConfig
from i2sb.errors import UserError
from i2sb.network import build_network
from i2sb.network_sizes import PRESETS, find_preset
from i2sb.parsing import to_yaml
from i2sb.storage.released import recognise_network
from i2sb.unpickle import IMAGE_FOLDER, NAMESPACE, read_pickle

# The flags that the released program saved with a run, and what it added to them.
OPTIONS = {
    "name": "small",
    "image_size": 16,
    "corrupt": "sr4x-pool",
    "interval": 100,
    "beta_max": 0.3,
    "t0": 1e-4,
    "T": 1.0,
    "ot_ode": False,
    "cond_x1": False,
    "add_x1_noise": False,
    "lr": 5e-5,
    "num_itr": 1000000,
    "dataset_dir": Path("/dataset"),
    "log_writer": None,
    "device": "cuda",
    "distributed": True,
    "ckpt_path": Path("results/small"),
    "global_size": 16,
}


def write_released_run(run_dir: Path, case: str = "tiny", **changes) -> Path:
    """A run in the released format: raw weights of noise, the golden formula's averaged; ... removes a flag."""
    run_dir.mkdir(parents=True)
    net = formula_network(case)[0]
    shadow = [p.detach() for p in net.parameters()]
    noise = {f"diffusion_model.{name}": torch.randn_like(p) for name, p in net.state_dict().items()}
    ema = {"decay": 0.99, "num_updates": 12, "shadow_params": shadow, "collected_params": None}
    torch.save({"net": noise, "ema": ema, "optimizer": {}, "sched": None}, run_dir / "latest.pt")
    options = {name: value for name, value in {**OPTIONS, **changes}.items() if value is not ...}
    (run_dir / "options.pkl").write_bytes(pickle.dumps(argparse.Namespace(**options)))
    return run_dir


def test_released_run_gives_the_golden_outputs(tmp_path):
    """The golden networks' weights, as averaged weights of a released run; the size is recognised from the shapes."""
    for case, options, channels in (("tiny", {}, 3), ("mid_cond", {"cond_x1": True}, 6)):
        run = write_released_run(tmp_path / case, case, **options)
        want, x = golden("unet_formula"), formula_network(case)[1]
        averaged, raw = load_model(run), load_model(run, ema=False)
        assert averaged.network.diffusion_model.input_blocks[0][0].in_channels == channels
        with torch.no_grad():
            y = averaged.network.diffusion_model(x, want[f"{case}_t"])
        assert (y - want[f"{case}_y"]).norm() / want[f"{case}_y"].norm() < 1e-4
        saved = torch.load(run / "latest.pt", weights_only=True)["net"]
        assert all(torch.equal(p, saved[name]) for name, p in raw.network.state_dict().items())


def test_released_settings_are_taken_over(tmp_path):
    run = write_released_run(tmp_path / "small", ot_ode=True, beta_max=1, num_itr=7)
    model = load_model(run)
    config = model.config
    assert (config.ot_ode, config.beta_max, config.interval, config.image_size) == (True, 1.0, 100, 16)
    assert (config.name, config.corrupt, config.num_itr, model.iteration) == ("small", "sr4x-pool", 7, 12)
    assert config.dataset_dir == "/dataset" and config.run_dir == run
    assert model.bridge.std_fwd.shape == (100,)
    assert model.restore(torch.zeros(1, 3, 16, 16), nfe=2).shape == (1, 3, 16, 16)


def test_programs_take_a_released_run(tmp_path):
    write_released_run(tmp_path / "results" / "small")
    write_images(tmp_path / "data" / "val", ["a/0.png", "b/1.png"])
    common = ["--ckpt", "small", "--results-dir", tmp_path / "results", "--device", "cpu", "--workers", 0]
    refused = run_python("sample.py", *common, "--nfe", 2, check=False)
    assert refused.returncode == 2 and "--dataset-dir /dataset: there is no such folder" in refused.stderr
    run_python("sample.py", *common, "--nfe", 2, "--dataset-dir", tmp_path / "data")
    done = run_python("compute_metrices.py", *common, "--sample-dir", "samples_nfe2")
    assert "PSNR" in done.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ot_ode": ...}, "options.pkl: lacks ot_ode"),
        ({"dataset_dir": ..., "beta_max": ...}, "options.pkl: lacks beta_max, dataset_dir"),
        ({"dataset_dir": 3}, "options.pkl: lacks dataset_dir"),
        ({"interval": "1000"}, "options.pkl: interval is a str, int is wanted"),
        ({"ot_ode": 1}, "options.pkl: ot_ode is a int, bool is wanted"),
        ({"beta_max": None}, "options.pkl: beta_max is a NoneType, float is wanted"),
        ({"interval": 11}, "options.pkl: `interval` 11: must be even"),
        ({"name": "../up"}, "options.pkl: `name` ../up"),
        ({"seed": [1]}, "options.pkl: seed is a list, int is wanted"),
    ],
)
def test_wrong_options_are_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match="options.pkl") as error:
        load_model(write_released_run(tmp_path / "small", **changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_wrong_checkpoints_are_named(tmp_path):
    run = write_released_run(tmp_path / "small")
    state = torch.load(run / "latest.pt", weights_only=True)

    def message(changes):
        torch.save({**state, **changes}, run / "latest.pt")
        with pytest.raises(ValueError) as error:
            load_model(run)
        return str(error.value)

    shadow = state["ema"]["shadow_params"]
    assert "averaged weights (ema) are not those" in message({"ema": {"shadow_params": shadow[:-1]}})
    assert "averaged weights (ema) are not those" in message({"ema": {}})
    assert "lack num_updates" in message({"ema": {"shadow_params": shadow}})
    assert "its 1 tensors are no U-Net of ADM's kind" in message(
        {"net": {"a": torch.zeros(1)}, "ema": {"num_updates": 1, "shadow_params": [torch.zeros(1)]}}
    )
    short = {name: tensor for name, tensor in state["net"].items() if not name.endswith("out.2.bias")}
    ema = {"num_updates": 1, "shadow_params": shadow[:-1]}
    said = message({"net": short, "ema": ema})
    assert "out.2.bias missing in the file, 3 in the network" in said
    (run / "latest.pt").unlink()
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        load_model(run)


def preset_shapes(name: str, **options) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_network(name, Bridge(10).noise_levels, **options).state_dict()


@pytest.mark.parametrize(
    "name",
    [
        *(n for n, size in PRESETS.items() if size.patch_size == 1),
        "unet-64x2-blocks3-attention-heads32",
        "unet-32x1.4.4-blocks1-attention1.4-heads8",
    ],
)
@pytest.mark.parametrize("options", [{}, {"cond_x1": True}, {"image_channels": 1}])
def test_every_size_is_recognised_from_its_shapes(tmp_path, name, options):
    assert recognise_network(preset_shapes(name, **options), tmp_path) == name


def test_described_networks_read_back():
    for preset in PRESETS.values():
        assert find_preset(preset.describe()) == preset
    for wrong in ("unet-0x1-blocks1-attention-heads1", "unet-32x-blocks1-attention-heads1", "unet-32x1"):
        with pytest.raises(ValueError, match=f"network {wrong}: unknown"):
            find_preset(wrong)


# --- nothing runs ----------------------------------------------------------------------------------------------------


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
        with pytest.raises(ValueError) as error:
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
        with pytest.raises(ValueError, match=f"options.pkl: refused .it asks for .*{words}"):
            read_pickle(tmp_path / "options.pkl", NAMESPACE, max_bytes=1000)


def test_large_files_are_refused_unread(tmp_path):
    for content in (pickle.dumps("x" * 5000), as_torch_file(pickle.dumps("x" * 5000))):
        (tmp_path / "options.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="at most 1000 are expected"):
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
    with pytest.raises(ValueError, match="config.yaml: cannot be read as YAML"):
        load_model(tmp_path)
    assert not (tmp_path / "it_ran").exists()
