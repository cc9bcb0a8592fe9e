"""Networks of the user's own: documented, tried before any work, refused in a line, and run only when asked for."""

from __future__ import annotations

import re

import pytest
import torch

from helpers.programs import ROOT, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.config import SampleConfig, TrainConfig
from i2sb.errors import UserError
from i2sb.network import build_network, check_network
from i2sb.precision import prepare
from i2sb.restore import read_run_config
from i2sb.sampling import split as sampling
from i2sb.storage.checkpoint import find_checkpoint
from i2sb.training.loop import train

EXAMPLE = next(
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
    if "class PlainNetwork" in block
)


@pytest.fixture
def own(tmp_path):
    """Write a file of the user's; returns its name as a network, and of a file that is there when it was run."""

    def write(source: str = EXAMPLE, class_name: str = "PlainNetwork") -> str:
        path = tmp_path / "own.py"
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{source}")
        return f"{path}:{class_name}"

    return write


def settings(tmp_path, dataset_dir, **changes) -> dict[str, object]:
    places = {"name": "own", "results_dir": str(tmp_path), "dataset_dir": str(dataset_dir)}
    return {**TINY, "num_itr": 4, **places, **changes}


def build(name: str, **options):
    network = build_network(name, Bridge(10).noise_levels, **options)
    check_network(network, name, 3, 16)
    return network


@pytest.mark.parametrize("cond_x1", [False, True])
def test_the_documented_network_runs_and_tells_what_sees_the_condition(own, cond_x1):
    network, x = build(own(), cond_x1=cond_x1), torch.randn(2, 3, 8, 12)
    assert network(x, torch.tensor([0, 9]), cond=x if cond_x1 else None).shape == x.shape
    assert network.multiple == 4 and network.count_condition_parameters() == 0  # it does not say
    assert network.training


def test_it_is_trained_and_restored_with_only_when_asked_for(own, tmp_path, dataset_dir, capsys):
    name = own()
    train(TrainConfig(**settings(tmp_path, dataset_dir, network=name)))
    assert f"sample.py --ckpt own --results-dir {tmp_path} --network {name}" in capsys.readouterr().out
    (tmp_path / "ran").unlink()
    refused = run_python("sample.py", "--ckpt", "own", "--results-dir", tmp_path, "--device", "cpu", check=False)
    assert refused.returncode == 2 and f"give --network {name} if you trust that file" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    run = tmp_path / "own"
    assert read_run_config(run).network == name and not (tmp_path / "ran").exists()
    common = {"ckpt": "own", "results_dir": str(tmp_path), "network": name, "nfe": 2, "workers": 0, "device": "cpu"}
    sampling.run(SampleConfig(**common))
    assert (tmp_path / "ran").exists() and (run / "samples_nfe2" / "settings.yaml").exists()
    with pytest.raises(UserError, match=r"^use_fp16: the network PlainNetwork has no half_convolutions\(\)$"):
        sampling.run(SampleConfig(**common, use_fp16=True))
    # The averaged weights, bit for bit, and the file may have another name by now.
    (tmp_path / "own.py").rename(tmp_path / "moved.py")
    moved = f"{tmp_path / 'moved.py'}:PlainNetwork"
    torch.manual_seed(0)
    model = load_model(run, network=moved)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    averaged = find_checkpoint(run)[1]["ema"]["shadow_params"]
    assert all(torch.equal(p, q) for p, q in zip(model.network.parameters(), averaged, strict=True))
    assert model.config.network == moved and model.iteration == 4
    assert model.restore(torch.zeros(1, 3, 10, 13), nfe=2, tile=8, overlap=4).shape == (1, 3, 10, 13)
    with pytest.raises(UserError, match="tile 6: `network` .* takes multiples of 4, such as 4 or 8"):
        model.restore(torch.zeros(1, 3, 16, 16), nfe=2, tile=6, overlap=2)
    with pytest.raises(UserError, match="network tiny: .* holds another architecture, .* missing in the network"):
        load_model(run, network="tiny")


def test_resuming_and_beginning_with_its_weights(own, tmp_path, dataset_dir, trained_run):
    whole, part = (settings(tmp_path, dataset_dir, network=own(), name=name) for name in ("whole", "part"))
    train(TrainConfig(**whole))
    train(TrainConfig(**{**part, "num_itr": 2}))
    train(TrainConfig(**part))
    ends = [find_checkpoint(tmp_path / name)[1]["net"] for name in ("whole", "part")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match="whole: holds another architecture"):
        train(TrainConfig(**{**whole, "name": "next", "network": "tiny", "init": "whole"}))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="tiny: holds another architecture"):
        train(TrainConfig(**{**whole, "name": "next", "init": str(trained_run)}))
    train(TrainConfig(**{**whole, "name": "next", "num_itr": 1, "init": "whole"}))


def test_exported_weights_know_their_network_and_do_not_run_it(own, tmp_path, dataset_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from export import export

    name = own()
    train(TrainConfig(**settings(tmp_path, dataset_dir, network=name, eval_every=0, num_itr=1)))
    out = tmp_path / "own.safetensors"
    export(tmp_path / "own", out, raw=False, overwrite=False, network=name)
    (tmp_path / "ran").unlink()
    for refused in (lambda: export(tmp_path / "own", out, raw=False, overwrite=True), lambda: load_model(out)):
        with pytest.raises(UserError, match="its network is code, which is not run unasked: give `network`"):
            refused()
    assert not (tmp_path / "ran").exists()
    want, model = load_model(tmp_path / "own", network=name), load_model(out, network=name)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(want.restore(x, nfe=2), model.restore(x, nfe=2))


def test_what_a_network_lacks_is_refused(own):
    network = build(own())
    with pytest.raises(UserError, match=r"^grad_checkpoint: the network PlainNetwork has no checkpoint_gradients\(\)$"):
        prepare(network, "fp32", grad_checkpoint=True)
    prepare(network, "bf16", channels_last=True)
    assert network(torch.zeros(1, 3, 8, 8), torch.tensor([3])).dtype == torch.float32


OWN = """
import torch
class Own(torch.nn.Module):
  def __init__(self, in_channels, out_channels):
    super().__init__()
    self.layer = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)
"""
FORWARD = "  def forward(self, x, timesteps): return "


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('oh')", "failed: RuntimeError: oh"),
        ("x = 1", "holds no class Own derived from torch.nn.Module"),
        ("class Own: pass", "holds no class Own derived from torch.nn.Module"),
        (
            "import torch\nclass Own(torch.nn.Module):\n  def __init__(self): pass",
            "Own(in_channels=3, out_channels=3) fa",
        ),
        (OWN + "    1 / 0", "failed: ZeroDivisionError"),
        (OWN + "    self.downsampling = 0", "its downsampling is 0; it must be a whole number"),
        (OWN + "    self.downsampling = 5", "image_size 16: `network` "),
        (OWN + "    del self.layer", "Own has no parameters to train"),
        (OWN + "    self.norm = torch.nn.BatchNorm2d(3)", "its state must be parameters alone"),
        (OWN + FORWARD + "self.layer(x)[:, :2]", "returned [2, 2, 16, 16], torch.float32; it must be [2, 3, 16, 16]"),
        (OWN + FORWARD + "self.layer(x).double()", "returned [2, 3, 16, 16], torch.float64"),
        (OWN + FORWARD + "(self.layer(x),)", "returned tuple; it must be"),
        (OWN + FORWARD + "self.layer(x) / 0", "returned values that are not finite"),
    ],
)
def test_mistakes_are_named(own, source, words):
    with pytest.raises(UserError) as error:
        build(own(source, "Own"))
    assert words in str(error.value) and "own.py:Own" in str(error.value)


def test_mistakes_are_named_before_training_begins(own, tmp_path, dataset_dir):
    with pytest.raises(UserError, match="network nowhere.py:Own: there is no file nowhere.py"):
        build("nowhere.py:Own")
    name = own(OWN + "    self.downsampling = 3\n" + FORWARD + "self.layer(x)", "Own")
    wrong = {"network": name, "image_size": 12, "eval_image_size": 16}
    with pytest.raises(UserError, match="eval_image_size 16: .* takes multiples of 3, such as 15 or 18"):
        train(TrainConfig(**settings(tmp_path, dataset_dir, **wrong)))
    assert not (tmp_path / "own").exists()
    (tmp_path / "ran").unlink()
    asked = as_flags(settings(tmp_path, dataset_dir, network=name))
    assert name in run_python("train.py", *asked, "--dry-run").stdout
    assert not (tmp_path / "ran").exists()
