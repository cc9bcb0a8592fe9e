"""Weights to begin with: from ADM, runs and exported files; made to fit, or refused by name."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from helpers.released_run import write_released_run
from helpers.tiny_run import TINY
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.config import TrainConfig
from i2sb.errors import UserError
from i2sb.network import BridgeNetwork, build_network
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint
from i2sb.storage.exported import Exported, write_export
from i2sb.training.initial_weights import InitialWeights, begin_with, read_initial_weights

FIRST, LAST = "diffusion_model.input_blocks.0.0.weight", "diffusion_model.out.2"


def build(seed: int = 0, preset: str = "tiny", **options) -> BridgeNetwork:
    torch.manual_seed(seed)
    return build_network(preset, Bridge(10).noise_levels, **options)


def adm_weights(path, rows: int = 6):
    """Weights as ADM publishes them: names without the prefix, variances beside means; everything random."""
    generator = torch.Generator().manual_seed(5)
    weights = build().diffusion_model.state_dict()
    for name in ("out.2.weight", "out.2.bias"):
        weights[name] = torch.zeros(rows, *weights[name].shape[1:])
    weights = {name: torch.randn(p.shape, generator=generator) for name, p in weights.items()}
    torch.save(weights, path)
    return {f"diffusion_model.{name}": p for name, p in weights.items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_adm_weights_lose_their_variances(tmp_path, legacy):
    given = adm_weights(tmp_path / "adm.pt")
    if legacy:
        weights = torch.load(tmp_path / "adm.pt", weights_only=True)
        torch.save(weights, tmp_path / "adm.pt", _use_new_zipfile_serialization=False)
    net = build()
    lines = begin_with(net, read_initial_weights(str(tmp_path / "adm.pt"), tmp_path))
    for name, p in net.state_dict().items():
        assert torch.equal(p, given[name][:3] if name.startswith(LAST) else given[name]), name
    count = len(given)
    assert lines == [
        f"{count - 2} of {count} parameters kept as they are",
        "out.2.weight: 3 of its 6 rows kept",
        "out.2.bias: 3 of its 6 rows kept",
    ]


def test_weights_behind_other_patches_are_refused(tmp_path):
    """Their channels mean other things, whatever their shapes: 12 inputs are four pixels of three colours."""
    there = build(preset="compact")
    initial = InitialWeights(there.state_dict(), tmp_path / "compact", "compact")
    lines = begin_with(build(preset="compact", cond_x1=True), initial)
    assert "input_blocks.0.0.weight: 12 of its 12 input channels kept, 12 fresh" in lines
    pixelwise = "unet-32x1.2.4-blocks1-attention-heads32"
    with pytest.raises(UserError, match="`network` compact sees other patches of pixels"):
        begin_with(build(preset=pixelwise), initial)
    with pytest.raises(UserError, match="input_blocks.0.0.weight"):  # a file that does not name its network
        begin_with(there, InitialWeights(build(preset=pixelwise).state_dict(), tmp_path / "a.pt"))


def test_a_conditioned_network_draws_its_new_inputs_from_the_seed(tmp_path):
    given = adm_weights(tmp_path / "adm.pt")
    net, same, other = (build(seed, cond_x1=True) for seed in (1, 1, 2))
    drawn = net.state_dict()[FIRST][:, 3:].clone()
    for each in (net, same, other):
        lines = begin_with(each, InitialWeights(given, tmp_path))
    assert "input_blocks.0.0.weight: 3 of its 3 input channels kept, 3 fresh" in lines
    first = net.state_dict()[FIRST]
    assert torch.equal(first[:, :3], given[FIRST]) and torch.equal(first[:, 3:], drawn) and drawn.std() > 0
    assert torch.equal(first, same.state_dict()[FIRST]) and not torch.equal(first, other.state_dict()[FIRST])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_channels": 1}, ["1 of its 3 input channels kept", "weight: 1 of its 6 rows kept"]),
        ({"image_channels": 8}, ["3 of its 3 input channels kept, 5 fresh", "weight: 6 of its 6 rows kept, 2 fresh"]),
    ],
)
def test_other_channels_keep_the_first_and_say_so(tmp_path, options, words):
    lines = begin_with(build(**options), InitialWeights(adm_weights(tmp_path / "adm.pt"), tmp_path))
    for word in words:
        assert any(line.endswith(word) for line in lines), (word, lines)


def test_misfits_are_listed_shortest_first_ten_at_most(tmp_path):
    net = build_network("mini", Bridge(10).noise_levels)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    with pytest.raises(UserError, match="adm.pt: holds another architecture, .* parameters differ") as error:
        begin_with(net, InitialWeights(adm_weights(tmp_path / "adm.pt"), tmp_path / "adm.pt"))
    listed = str(error.value).split("differ: ")[1].split("; ")
    assert len(listed) == 11 and listed[-1] == "…" and listed[:10] == sorted(listed[:10], key=len)
    assert "in the file" in listed[0] and "in the network" in listed[0]
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("adm", "init adm: data/weights/256x256_diffusion_uncond.pt is not there; fetch it with"),
        ("nobody", "init nobody: give none, adm, a .pt file, a .safetensors file or a run (there is no"),
        ("none.pt", "init none.pt: there is no such file"),
        ("none.safetensors", "none.safetensors: there is no such file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, init, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        read_initial_weights(init, tmp_path)
    assert words in str(error.value)


def test_files_without_weights_are_named(tmp_path):
    for value in ([1], {"a": 1}, {"net": {"a": 1}, "ema": {}}):
        torch.save(value, tmp_path / "a.pt")
        with pytest.raises(UserError, match="a.pt: holds no weights"):
            read_initial_weights(str(tmp_path / "a.pt"), tmp_path)


def train(tmp_path, dataset_dir, capsys, **changes):
    """Train in this process; returns the last state and what was said."""
    from i2sb.training.loop import train

    settings = {**TINY, "num_itr": 1, "eval_every": 0, "results_dir": str(tmp_path), "dataset_dir": str(dataset_dir)}
    config = TrainConfig(**{"name": "run", **settings, **changes})
    capsys.readouterr()
    train(config)
    printed = capsys.readouterr()
    return find_checkpoint(config.run_dir)[1], printed.out + printed.err


def test_every_source_begins_a_run_with_its_averaged_weights(tmp_path, dataset_dir, trained_run, capsys):
    shutil.copytree(trained_run, tmp_path / "tiny")
    shadow = read_checkpoint(trained_run / "latest.pt")["ema"]["shadow_params"]
    model = load_model(trained_run)
    write_export(tmp_path / "tiny.safetensors", Exported(model.network.state_dict(), model.config, 6, averaged=True))
    frozen = {"lr": 1e-30}  # the iteration changes nothing
    for init in ("tiny", trained_run, trained_run / "latest.pt", tmp_path / "tiny.safetensors"):
        state, said = train(tmp_path, dataset_dir, capsys, init=str(init), **frozen)
        assert "begun with" in said and "parameters kept as they are" in said and "fresh" not in said
        for p, mine, averaged in zip(shadow, state["net"].values(), state["ema"]["shadow_params"], strict=True):
            assert torch.equal(p, mine) and torch.equal(p, averaged)
        shutil.rmtree(tmp_path / "run")


def test_init_acts_when_a_run_begins_and_not_when_it_goes_on(tmp_path, dataset_dir, capsys):
    adm_weights(tmp_path / "adm.pt")
    flags = {"init": str(tmp_path / "adm.pt"), "cond_x1": True}
    first, said = train(tmp_path, dataset_dir, capsys, **flags)
    assert "adm.pt; " in said and "3 of its 3 input channels kept, 3 fresh; out.2.weight: 3 of its 6 rows kept" in said
    adm_weights(tmp_path / "adm.pt", rows=9)
    (tmp_path / "adm.pt").unlink()
    second, said = train(tmp_path, dataset_dir, capsys, num_itr=2, **flags)
    assert "resumed from" in said
    assert (second["net"][FIRST] - first["net"][FIRST]).abs().max() < 0.01
    with pytest.raises(UserError, match="`init` .*adm.pt there, none now"):
        train(tmp_path, dataset_dir, capsys, num_itr=3, cond_x1=True)


def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path, dataset_dir, capsys):
    adm_weights(tmp_path / "adm.pt")
    with pytest.raises(UserError, match="adm.pt: holds another architecture"):
        train(tmp_path, dataset_dir, capsys, init=str(tmp_path / "adm.pt"), network="mini")
    assert not (tmp_path / "run").exists()


def test_a_released_run_gives_weights_but_is_not_gone_on_with(tmp_path, dataset_dir, capsys):
    run = write_released_run(tmp_path / "released")
    shadow = torch.load(run / "latest.pt", weights_only=True)["ema"]["shadow_params"]
    network = load_model(run).config.network
    flags = {"network": network, "lr": 1e-30}
    state, _ = train(tmp_path, dataset_dir, capsys, init="released", **flags)
    assert all((p - mine).abs().max() < 1e-20 for p, mine in zip(shadow, state["net"].values(), strict=True))
    for changes in ({"name": "released"}, {"name": "other", "ckpt": "released"}):
        with pytest.raises(UserError, match="a run of the released program, .* with `init`"):
            train(tmp_path, dataset_dir, capsys, **changes)


def test_runs_of_older_versions_lack_the_newer_settings(tmp_path, trained_run):
    shutil.copytree(trained_run, tmp_path / "old")
    later = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata["later"]}
    assert "init" in later
    file = tmp_path / "old" / "config.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if line.split(":")[0] not in later))
    assert load_model(tmp_path / "old").config.init == "none"
