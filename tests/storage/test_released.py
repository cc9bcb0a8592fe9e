"""Runs of the released program."""

from __future__ import annotations

import pytest
import torch

from helpers.formula_network import formula_network
from helpers.golden import golden
from helpers.pictures import write_images
from helpers.programs import run_python
from helpers.released_run import write_released_run
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.errors import UserError
from i2sb.network import build_network
from i2sb.network_sizes import NETWORKS, UNetSize, find_network
from i2sb.storage.released import recognise_network


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
    with pytest.raises(UserError, match="options.pkl") as error:
        load_model(write_released_run(tmp_path / "small", **changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_heads_that_the_weights_do_not_tell_are_warned_of_and_can_be_given(tmp_path, capsys):
    """The guess is right for the golden network, which has 4 heads of 16 channels; with 2 its output is another."""
    run = write_released_run(tmp_path / "small")
    guessed = load_model(run)
    warning = capsys.readouterr().err
    assert "the heads of attention" in warning and "give --network" in warning and warning.count("\n") == 1
    name = guessed.config.network
    assert name in warning and name.endswith("-heads16")
    right, wrong = (load_model(run, network=name.replace("-heads16", heads)) for heads in ("-heads4x", "-heads2x"))
    assert not capsys.readouterr().err and wrong.config.network.endswith("-heads2x")
    want, x = golden("unet_formula"), formula_network("tiny")[1]
    with torch.no_grad():
        errors = [(m.network.diffusion_model(x, want["tiny_t"]) - want["tiny_y"]).norm() for m in (right, wrong)]
    assert errors[0] < 1e-4 * want["tiny_y"].norm() < errors[1]
    with pytest.raises(UserError, match="network adm256: .* holds another architecture"):
        load_model(run, network="adm256")


def test_networks_that_are_known_are_not_warned_of_nor_to_be_said_otherwise(tmp_path, trained_run, capsys):
    run, net = write_released_run(tmp_path / "small"), build_network("tiny", Bridge(10).noise_levels).state_dict()
    ema = {"num_updates": 1, "shadow_params": list(net.values())}
    torch.save({"net": net, "ema": ema, "optimizer": {}, "sched": None}, run / "latest.pt")
    assert load_model(run).config.network == load_model(trained_run).config.network == "tiny"
    assert load_model(trained_run, network="tiny").config.network == "tiny"
    with pytest.raises(UserError, match="network mini: the run's is tiny; leave it out"):
        load_model(trained_run, network="mini")
    assert not capsys.readouterr().err


def test_wrong_checkpoints_are_named(tmp_path):
    run = write_released_run(tmp_path / "small")
    state = torch.load(run / "latest.pt", weights_only=True)

    def message(changes):
        torch.save({**state, **changes}, run / "latest.pt")
        with pytest.raises(UserError) as error:
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
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load_model(run)


def preset_shapes(name: str, **options) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_network(name, Bridge(10).noise_levels, **options).state_dict()


@pytest.mark.parametrize(
    "name",
    [
        *(n for n, size in NETWORKS.items() if size.patch_size == 1),
        "unet-64x2-blocks3-attention-heads32",
        "unet-32x1.4.4-blocks1-attention1.4-heads8",
        "unet-64x1/2.1.3/2-blocks2-attention2-heads16",
    ],
)
@pytest.mark.parametrize("options", [{}, {"cond_x1": True}, {"image_channels": 1}])
def test_every_size_is_recognised_from_its_shapes(tmp_path, name, options):
    assert recognise_network(preset_shapes(name, **options), tmp_path) == name


def test_a_row_with_a_number_of_heads_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "counted", UNetSize(64, (0.5, 1), 1, (1,), 0, num_heads=2))
    assert recognise_network(preset_shapes("counted"), tmp_path) == "counted"


def test_described_networks_read_back():
    for preset in NETWORKS.values():
        assert find_network(preset.describe()) == preset
    for wrong in ("unet-0x1-blocks1-attention-heads1", "unet-32x-blocks1-attention-heads1", "unet-32x1"):
        with pytest.raises(UserError, match=f"network {wrong}: unknown"):
            find_network(wrong)
