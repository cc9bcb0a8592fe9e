"""Runs of the released program."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.formula_network import formula_network
from helpers.golden import golden
from helpers.pictures import write_images
from helpers.programs import ROOT, run_python
from helpers.released_run import write_released_run
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.config import TrainConfig, fixed_settings
from i2sb.errors import UserError
from i2sb.network import build_network
from i2sb.network_sizes import NETWORKS, UNetSize, find_network
from i2sb.parsing import to_yaml
from i2sb.storage.checkpoint import save_checkpoint
from i2sb.storage.released import NEEDED, PARTS, TAKEN, check_expressible, recognise_network


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


# --- Writing ---------------------------------------------------------------------------------------------------------

# The flags that the released program saved with a run, in their order, and their types.
SAVED = {
    "int": "seed n_gpu_per_node node_rank num_proc_node image_size interval batch_size microbatch num_itr lr_step "
    "local_rank global_rank global_size",
    "float": "t0 T beta_max lr lr_gamma l2_norm ema",
    "bool": "ot_ode clip_denoise cond_x1 add_x1_noise distributed use_fp16",
    "str": "name master_address corrupt device",
    "PosixPath": "dataset_dir log_dir ckpt_path",
    "NoneType": "ckpt gpu log_writer wandb_api_key wandb_user load",
}


@pytest.fixture
def export_released(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from export import export_released

    return export_released


def test_a_run_goes_to_the_released_program_and_back(tmp_path, trained_run, monkeypatch, export_released):
    """With a small network in ADM-256's place."""
    monkeypatch.setitem(NETWORKS, "adm256", NETWORKS["tiny"])
    out = tmp_path / "theirs"
    export_released(trained_run, out, overwrite=False)
    assert sorted(path.name for path in out.iterdir()) == ["latest.pt", "options.pkl"]
    for ema in (True, False):
        want, got = (load_model(run, ema=ema) for run in (trained_run, out))
        weights = got.network.state_dict()
        assert list(weights) == list(want.network.state_dict())
        assert all(torch.equal(weights[name], p) for name, p in want.network.state_dict().items())
    assert (got.iteration, got.config.name, got.config.run_dir) == (
        want.iteration,
        "theirs",
        out,
    ) and got.iteration == 6
    for name in (*NEEDED, *TAKEN, "dataset_dir"):
        assert getattr(got.config, name) == getattr(want.config, name), name

    options = pickle.loads((out / "options.pkl").read_bytes())
    assert type(options) is argparse.Namespace
    types = {name: kind for kind, names in SAVED.items() for name in names.split()}
    assert {name: type(value).__name__ for name, value in vars(options).items()} == types
    assert (options.dataset_dir, options.microbatch, options.global_size) == (Path(want.config.dataset_dir), 2, 1)
    assert b"pathlib\nPosixPath" in (out / "options.pkl").read_bytes()  # Python before and after 3.13 finds it there

    with pytest.raises(UserError, match="latest.pt: exists already; delete it first, or allow it with `overwrite`"):
        export_released(trained_run, out, overwrite=False)
    export_released(trained_run, out, overwrite=True)
    with pytest.raises(UserError, match="holds a run of this program; name another folder"):
        export_released(trained_run, trained_run, overwrite=True)
    with pytest.raises(UserError, match="theirs: is a run of the released program already; copy it"):
        export_released(out, tmp_path / "more", overwrite=False)
    with pytest.raises(UserError, match="name no run: begin with a letter"):
        export_released(trained_run, tmp_path / "no run", overwrite=False)
    assert not (tmp_path / "more").exists() and not (tmp_path / "no run").exists()


def test_the_released_program_can_go_on_with_it(tmp_path, trained_run, monkeypatch, export_released):
    """Its optimizer is AdamW with StepLR, neither of them fused nor on this machine's device."""
    monkeypatch.setitem(NETWORKS, "adm256", NETWORKS["tiny"])
    export_released(trained_run, tmp_path / "theirs", overwrite=False)
    state = torch.load(tmp_path / "theirs" / "latest.pt", weights_only=True)
    assert tuple(state) == PARTS and list(state["ema"]) == ["decay", "num_updates", "shadow_params", "collected_params"]
    net = build_network("tiny", Bridge(10).noise_levels)
    net.load_state_dict(state["net"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["sched"])
    ours = torch.load(trained_run / "latest.pt", weights_only=True)
    assert optimizer.param_groups[0]["fused"] is None and ours["optimizer"]["param_groups"][0]["fused"]
    assert scheduler.get_last_lr() == [group["lr"] for group in ours["optimizer"]["param_groups"]]
    moments = [ours["optimizer"]["state"][i]["exp_avg"] for i in range(len(ours["optimizer"]["state"]))]
    for p, want in zip(net.parameters(), moments, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], want)
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # Nothing is stored twice, as by tensors that share the mapped file: what is left out is small.
    sizes = [(folder / "latest.pt").stat().st_size for folder in (trained_run, tmp_path / "theirs")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "compact"}, "network compact: the released program has adm256 alone"),
        ({"network": "my.py:Net"}, "network my.py:Net: the released program has adm256 alone"),
        ({"corrupt": "paired"}, "corrupt paired: the released program has jpeg-5, jpeg-10, "),
        ({"corrupt": "blur-uni-exact"}, "corrupt blur-uni-exact: the released"),
        ({"corrupt": "jpeg-5,jpeg-10"}, "corrupt jpeg-5,jpeg-10: the released"),
        ({"corrupt": "my.py:Fog"}, "corrupt my.py:Fog: the released"),
        ({"image_channels": 1}, "image_channels 1: the released program has no such setting, and works as with 3"),
        ({"crop": "random"}, "crop random: the released program has no such setting, and works as with center"),
        ({"formulation": "regression"}, "formulation regression: the released .* works as with bridge"),
        ({"formulation": "diffusion"}, "formulation diffusion: the released .* works as with bridge"),
    ],
)
def test_what_the_released_program_cannot_express_is_refused(changes, words):
    config = TrainConfig(name="a", dataset_dir="b", corrupt="mixture")
    check_expressible(config)
    same_network = "unet-256x1.1.2.2.4.4-blocks2-attention8.16.32-heads64"
    check_expressible(replace(config, start_share=0.5, init="adm", mask_file="m.npz", network=same_network, T=2.0))
    with pytest.raises(UserError, match=words):
        check_expressible(replace(config, **changes))


def test_export_says_in_a_line_what_it_refuses(tmp_path, trained_run, export_released, monkeypatch, capsys):
    from export import main

    def refuse(*flags):
        monkeypatch.setattr("sys.argv", ["export.py", *map(str, flags), "--results-dir", str(trained_run.parent)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1, said
        return said

    released = ["--released", tmp_path / "theirs"]
    assert "config.yaml: --network tiny: the released program has adm256 alone" in refuse(trained_run.name, *released)
    assert "--half: leave it out" in refuse(trained_run.name, *released, "--half")
    either = "give a file to write, or a folder with --released, or a repository with --push"
    assert either in refuse(trained_run.name) and either in refuse(trained_run.name, "a.safetensors", *released)
    assert "nowhere: there is no such run" in refuse("nowhere", *released)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.slow
def test_the_full_size_network_goes_to_the_released_program_and_back(tmp_path, export_released):
    """Three and a half gigabytes of memory, four and a half of disk."""
    config = TrainConfig(name="large", dataset_dir="/dataset", corrupt="inpaint-center", ot_ode=True, beta_max=1.0)
    with torch.device("meta"):
        shapes = build_network(config.network, Bridge().noise_levels).state_dict()
    generator = torch.Generator().manual_seed(0)
    net = {name: torch.randn(p.shape, generator=generator) for name, p in shapes.items()}
    ema = {"decay": 0.99, "num_updates": 3, "shadow_params": list(net.values()), "collected_params": None}
    progress = {"iteration": 3, "num_images_seen": 0, "bad_steps": 0, "world_size": 1, "microbatch": 2}
    state = {"net": net, "ema": ema, "optimizer": {"state": {}, "param_groups": []}, "sched": None}
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.yaml").write_text(to_yaml(config))
    save_checkpoint(tmp_path / "large", {**state, "progress": progress, "settings": fixed_settings(config)}, 3, 1)
    export_released(tmp_path / "large", tmp_path / "theirs", overwrite=False)
    options = pickle.loads((tmp_path / "theirs" / "options.pkl").read_bytes())
    assert options.microbatch == 2  # which `microbatch` auto had come to
    model = load_model(tmp_path / "theirs")
    assert model.config.network == "adm256" and model.config.corrupt == "inpaint-center" and model.iteration == 3
    assert all(torch.equal(p, net[name]) for name, p in model.network.state_dict().items())
