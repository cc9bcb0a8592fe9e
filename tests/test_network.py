"""The network's wrapping: step indices in, condition beside the state, sizes by name, networks of the user's own."""

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
from i2sb.network_sizes import NETWORKS, UNetSize, check_image_size, find_network
from i2sb.precision import prepare
from i2sb.sampling import split as sampling
from i2sb.storage.checkpoint import find_checkpoint
from i2sb.storage.runs import read_run_config
from i2sb.training.loop import train


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "adm256"])
@pytest.mark.parametrize("cond_x1", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_small_presets_run(name, cond_x1, channels):
    net = build_network(name, Bridge(100).noise_levels, image_channels=channels, cond_x1=cond_x1)
    x = torch.randn(2, channels, 16, 16)
    y = net(x, torch.tensor([0, 99]), cond=x if cond_x1 else None)
    assert y.shape == x.shape


def test_step_index_becomes_the_published_time():
    bridge = Bridge(1000)
    net = build_network("tiny", bridge.noise_levels)
    seen = []
    net.diffusion_model.forward = lambda x, timesteps: seen.append(timesteps) or x
    net(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 500, 999]))
    torch.testing.assert_close(seen[0][[0, 1, 3]], torch.tensor([0.1, 1.1009, 1000.0]), rtol=0, atol=1e-4)


def test_state_dict_has_the_released_prefix_and_no_time():
    names = build_network("tiny", Bridge(10).noise_levels).state_dict()
    assert all(name.startswith("diffusion_model.") for name in names)


def test_condition_changes_the_output_through_its_own_channels():
    net = build_network("tiny", Bridge(10).noise_levels, cond_x1=True)
    assert net.diffusion_model.input_blocks[0][0].in_channels == 6
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, step = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert not torch.allclose(net(x, step, cond=x), net(x, step, cond=-x))


@pytest.mark.parametrize(("name", "size"), [("adm256", 256), ("adm256", 32), ("tiny", 2), ("small64", 64)])
def test_sizes_that_fit(name, size):
    check_image_size(name, size)


def test_wrong_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="image_size 100: `network` adm256 takes multiples of 32, such as 96 or 128"):
        check_image_size("adm256", 100)
    with pytest.raises(ValueError, match="network adm512: unknown; choose one of adm256, "):
        check_image_size("adm512", 100)


@pytest.mark.parametrize("channels", [64, 32])
def test_heads_are_told_by_their_number_or_their_channels(channels):
    """Four heads everywhere are heads of 8 channels where there are 32, of 16 where there are 64."""
    name = f"unet-{channels}x1-blocks1-attention1-heads"
    counted, sized = (build_network(name + heads, Bridge(10).noise_levels) for heads in ("4x", str(channels // 4)))
    for parameter in counted.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sized.load_state_dict(counted.state_dict())
    x, step = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert torch.equal(counted(x, step), sized(x, step))
    other = build_network(f"{name}4", Bridge(10).noise_levels)  # of four channels each
    other.load_state_dict(counted.state_dict())
    assert not torch.allclose(counted(x, step), other(x, step))
    assert find_network(f"{name}4x").describe() == f"{name}4x"


def test_multiples_may_be_fractions():
    """ADM's network for 512 pixels begins with half its base width."""
    adm512 = find_network("unet-256x1/2.1.1.2.2.4.4-blocks2-attention16.32.64-heads64")
    assert adm512 == UNetSize(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), 64)
    net = build_network("unet-64x1/2.3/2-blocks1-attention-heads4x", Bridge(10).noise_levels)
    assert net.diffusion_model.first_convolution.out_channels == 32
    assert net.diffusion_model.middle_block[0].in_layers[2].in_channels == 96
    assert find_network("unet-64x1/2.3/2-blocks1-attention-heads4x").describe().startswith("unet-64x1/2.3/2-")
    assert net(torch.zeros(1, 3, 8, 8), torch.tensor([0])).shape == (1, 3, 8, 8)


# --- Patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [2, 4])
def test_a_network_behind_patches_is_the_unet_on_rearranged_pixels(patch):
    """Pixel (py, px) of a patch becomes channel c·p² + py·p + px, there and back; those of the condition come last."""
    name = f"unet-32x1.1-blocks1-attention-heads32-patch{patch}"
    net = build_network(name, Bridge(10).noise_levels, cond_x1=True).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    xt, cond, step = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24), torch.tensor([3, 7])

    def rearrange(x):
        parts = [x[:, c, py::patch, px::patch] for c in range(3) for py in range(patch) for px in range(patch)]
        return torch.stack(parts, dim=1)

    with torch.no_grad():
        out = net(xt, step, cond=cond)
        want = net.diffusion_model(torch.cat([rearrange(xt), rearrange(cond)], dim=1), net.noise_levels[step])
    assert out.shape == xt.shape
    torch.testing.assert_close(rearrange(out), want)
    # Only the condition's inputs are more than an unconditioned network has.
    plain = build_network(name, Bridge(10).noise_levels)
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert net.count_condition_parameters() == count(net) - count(plain) > 0


def test_patches_are_described_and_their_sides_refused():
    assert find_network(NETWORKS["compact"].describe()) == NETWORKS["compact"]
    assert NETWORKS["compact"].describe().endswith("-patch2")
    check_image_size("compact", 64)
    with pytest.raises(ValueError, match="`network` compact takes multiples of 8, such as 56 or 64"):
        check_image_size("compact", 60)
    net = build_network("compact", Bridge(10).noise_levels)
    with pytest.raises(ValueError, match="images of 12x16 pixels: this network takes multiples of 8"):
        net(torch.zeros(1, 3, 12, 16), torch.tensor([0]))


def test_the_compact_network_has_three_million_parameters():
    net = build_network("compact", Bridge(10).noise_levels)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 3.0


# --- Of the user's own -----------------------------------------------------------------------------------------------

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
        (OWN + "    self.downsampling = 5\n" + FORWARD + "x", "image_size 16: `network` "),
        (OWN + "    del self.layer", "Own has no parameters to train"),
        (OWN + "    self.norm = torch.nn.BatchNorm2d(3)", "its state must be parameters alone"),
        (OWN, "Own lacks its method forward(self, x, timesteps)"),
        (OWN + "  def forward(self, x): return self.layer(x)", "(self, x, timesteps): too many positional arguments"),
        (
            OWN + "  def forward(self, x, timesteps, cond): pass",
            "(self, x, timesteps): missing a required argument",
        ),
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


def test_what_its_own_code_raises_keeps_its_traceback(own):
    with pytest.raises(TypeError, match="unsupported operand"):
        build(own(OWN + FORWARD + "self.layer(x) + None", "Own"))


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
