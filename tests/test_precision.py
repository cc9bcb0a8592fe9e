"""Other number formats and savings: close to or the same as plain float32, and under the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from corruption import build_corruption
from helpers.fake_cuda import FakeCuda
from helpers.pictures import write_images
from helpers.programs import OLD_PROCESSOR, needs_x86, run_python
from helpers.tiny_run import TINY, as_flags
from i2sb import load_model
from i2sb.bridge import Bridge
from i2sb.config import SampleConfig, TrainConfig
from i2sb.network import BridgeNetwork, build_network
from i2sb.precision import EMULATED, make_scaler, measure_slowdown, prepare, set_tf32, tf32
from i2sb.sampling import split as sampling
from i2sb.storage.checkpoint import find_checkpoint, save_checkpoint
from i2sb.training.loop import train
from i2sb.unet import Norm

NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def loud(cond_x1: bool = False) -> BridgeNetwork:
    """A small network of which every path shows in the output."""
    torch.manual_seed(0)
    net = build_network("unet-32x1.2-blocks1-attention2-heads16", Bridge(10).noise_levels, cond_x1=cond_x1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def outputs_and_gradients(net: BridgeNetwork) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    y = net(x, torch.tensor([0, 9]))
    y.square().mean().backward()
    return y, [p.grad for p in net.parameters()]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (one, other))
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointed_gradients_are_the_same(precision, monkeypatch):
    from i2sb import unet

    plain, saving = loud(), loud()
    prepare(plain, precision)
    prepare(saving, precision, grad_checkpoint=True)
    calls, original = [], unet.checkpoint
    monkeypatch.setattr(unet, "checkpoint", lambda *a, **k: calls.append(a[0]) or original(*a, **k))
    (y, gradients), (want, expected) = outputs_and_gradients(saving), outputs_and_gradients(plain)
    assert torch.equal(y, want)
    assert all(torch.equal(g, e) for g, e in zip(gradients, expected, strict=True))
    # Every residual and attention block, once, and none without gradients.
    blocks = [m for m in saving.modules() if isinstance(m, (unet.ResBlock, unet.AttentionBlock))]
    assert calls == [m for stage in all_stages(saving) for m in stage if m in blocks] and len(calls) == len(blocks)
    with torch.no_grad():
        saving(torch.zeros(1, 3, 16, 16), torch.tensor([0]))
    assert len(calls) == len(blocks)


def all_stages(net):
    unet = net.diffusion_model
    return [*unet.input_blocks, unet.middle_block, *unet.output_blocks]


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_autocast_is_close_and_leaves_weights_and_outputs_in_float32(precision, limit):
    plain, cast = loud(), loud()
    prepare(cast, precision)
    (y, gradients), (want, expected) = outputs_and_gradients(cast), outputs_and_gradients(plain)
    assert y.dtype == torch.float32 and all(g.dtype == torch.float32 for g in gradients)
    assert 0 < difference([y], [want]) < limit and 0 < difference(gradients, expected) < limit
    assert all(p.dtype == torch.float32 for p in cast.parameters())


@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (2, 64, 50)])
def test_norms_in_bf16_are_as_close_as_casts_would_make_them(shape):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1).bfloat16()
    norm = Norm(64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    want = norm(x.float())
    done = norm(x)
    assert done.dtype == torch.bfloat16 and difference([done.float()], [want]) < 5e-3  # 2^-9 for each rounding


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_that_are_not_trained_are_cast_once_to_what_autocast_makes_of_them(precision):
    trained, frozen = loud(), loud().requires_grad_(False)
    prepare(trained, precision)
    prepare(frozen, precision)
    x, step = torch.randn(2, 3, 16, 16), torch.tensor([0, 9])
    assert torch.equal(frozen(x, step), trained(x, step))
    assert list(frozen.state_dict()) == list(trained.state_dict())
    assert frozen.diffusion_model.middle_block[0].in_layers[2].weight.dtype == getattr(torch, NAMES[precision])
    assert trained.diffusion_model.middle_block[0].in_layers[2].weight.dtype == torch.float32


# For ADM-256, an image of 256 pixels: operations on a GPU, those among them that change a type alone, and the GB that
# these write. Attention counts as torch's plain one, six casts each, which fused kernels do without.
@pytest.mark.parametrize(
    ("precision", "trained", "kernels", "casts", "gigabytes"),
    [("fp32", True, 802, 0, 0.0), ("bf16", True, 1466, 664, 1.69), ("bf16", False, 928, 126, 0.58)],
)
def test_adm256_takes_so_many_kernels(precision, trained, kernels, casts, gigabytes):
    with torch.device("meta"):
        network = build_network("adm256", Bridge(10).noise_levels).requires_grad_(trained)
    gpu = FakeCuda()
    prepare(network, precision)
    gpu.move(network)
    image, step = gpu.put(torch.zeros(1, 3, 256, 256)), gpu.put(torch.zeros(1, dtype=torch.long))
    with gpu:
        network(image, step)
    found = gpu.kernels.total(), gpu.casts, round(gpu.cast_bytes / 1e9, 2)
    use = "trained" if trained else "frozen"
    print(f"ADM-256, {precision}, {use}: {found[0]} kernels, {found[1]} casts, {found[2]} GB")
    assert found == (kernels, casts, gigabytes)


def test_channels_last_computes_the_same():
    plain, last = loud(), loud()
    prepare(last, "fp32", channels_last=True)
    kernel = last.diffusion_model.middle_block[0].in_layers[2].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    (y, gradients), (want, expected) = outputs_and_gradients(last), outputs_and_gradients(plain)
    assert difference([y], [want]) < 1e-5 and difference(gradients, expected) < 1e-5


def test_compiling_keeps_names_and_results(monkeypatch):
    """Traced as torch.compile does it, but run by torch itself: its compiler would take minutes here."""
    original, traced = torch.compile, []

    def trace(function, **options):
        def backend(graph, inputs):
            traced.append(graph)
            return graph

        return original(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", trace)
    net, plain = loud(), loud()
    prepare(net, "fp32", compile=True)
    assert list(net.state_dict()) == list(plain.state_dict())
    (y, gradients), (want, expected) = outputs_and_gradients(net), outputs_and_gradients(plain)
    assert len(traced) == 1, "the U-Net falls into several graphs"
    assert difference([y], [want]) < 1e-5 and difference(gradients, expected) < 1e-5


def test_the_network_compiles_without_graph_breaks():
    """In training and sampling, of full and of short batches: six graphs are enough for all."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    net = loud()
    prepare(net, "bf16")
    net.diffusion_model.compile(backend=keep, fullgraph=True)  # which raises at a break
    for _ in range(2):  # the second time all is there
        for batch in (4, 3):
            x, step = torch.randn(batch, 3, 16, 16), torch.zeros(batch, dtype=torch.long)
            net.train()(x, step).sum().backward()
            with torch.no_grad():
                net.eval()(x, step)
    print(f"{len(graphs)} graphs")
    assert 1 <= len(graphs) <= 6


def test_tf32_needs_a_gpu_and_fp32_means_it():
    with pytest.raises(ValueError, match="precision tf32: only GPUs compute so, and this is a cpu"):
        prepare(loud(), "tf32")
    set_tf32(products=True, convolutions=True)
    prepare(loud(), "fp32")
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


def test_one_process_goes_from_one_precision_to_another_and_degrades_under_each():
    """torch raises where its older and its newer switches were mixed."""
    image = torch.rand(1, 3, 16, 16)
    gpu = FakeCuda()
    on_gpu = gpu.move(loud())
    for precision in ("tf32", "fp32", "bf16", "tf32", "fp16"):
        with gpu:
            prepare(on_gpu, precision)
        switches = (True, "high") if precision == "tf32" else (False, "highest")
        for _ in range(2):
            assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == switches
            build_corruption("sr4x-pool", 16)(image)
            with tf32(products=False, convolutions=False):  # as scores are computed
                build_corruption("sr4x-pool", 16)(image)
                assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")


ADVISE = """
import torch
from i2sb.precision import advise_precision
for device, precision in (("cpu", "fp32"), ("cpu", "bf16"), ("cpu", "fp16"), ("cuda", "bf16"), ("cuda", "fp16")):
    print(advise_precision(precision, torch.device(device)))
"""


@needs_x86
def test_what_the_processor_emulates_is_named_with_the_factor_measured():
    said = run_python("-c", ADVISE, env=OLD_PROCESSOR).stdout.splitlines()
    assert len(said) == 5 and [line for line in said if line] == said[1:3]
    for line, precision in zip(said[1:3], ("bf16", "fp16"), strict=True):
        emulated = rf"`precision` {precision}: this processor emulates it; a matrix product takes (\d+) times .*"
        assert int(re.fullmatch(emulated, line)[1]) >= EMULATED


@needs_x86
def test_programs_warn_of_what_the_processor_emulates(tmp_path, dataset_dir, trained_run):
    (tmp_path / "tiny").mkdir()
    for name in ("config.yaml", "latest.pt"):
        (tmp_path / "tiny" / name).symlink_to(trained_run / name)
    flags = ["--ckpt", "tiny", "--results-dir", tmp_path, "--nfe", 1, "--limit", 1, "--device", "cpu", "--workers", 0]
    done = run_python("sample.py", *flags, "--use-fp16", env=OLD_PROCESSOR)
    assert "warning: --use-fp16: this processor emulates it" in done.stderr
    places = {"name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir}
    short = as_flags({**TINY, "num_itr": 1, "eval_every": 0, "precision": "bf16", **places})
    done = run_python("train.py", *short, env=OLD_PROCESSOR)
    assert "warning: --precision bf16: this processor emulates it" in done.stderr


def test_measuring_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert measure_slowdown(torch.bfloat16) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precisions_exclude_each_other():
    with pytest.raises(ValueError, match="precision bf16: cannot go together with `use_fp16`; choose one"):
        SampleConfig(ckpt="a", use_fp16=True, precision="bf16")


# --- in the programs -------------------------------------------------------------------------------------------------


def settings(tmp_path, dataset_dir, **changes) -> TrainConfig:
    places = {"results_dir": str(tmp_path), "dataset_dir": str(dataset_dir)}
    return TrainConfig(**{**TINY, "name": "run", "num_itr": 4, "eval_every": 0, **places, **changes})


def test_training_with_all_savings_learns_what_plain_training_learns(tmp_path, dataset_dir):
    """Up to rounding, of which Adam can make whole steps; in float64, test_end_to_end.py holds fp32's to 1e-6."""
    runs = {
        "plain": {},
        "unchanged": {"lr": 1e-30},
        "saving": {"grad_checkpoint": True, "channels_last": True},
        "bf16": {"precision": "bf16", "grad_checkpoint": True},
    }
    for name, changes in runs.items():
        train(settings(tmp_path, dataset_dir, name=name, **changes))
    plain, *others = (find_checkpoint(tmp_path / name)[1]["ema"]["shadow_params"] for name in runs)
    learned, saving, bf16 = (difference(other, plain) for other in others)
    assert saving < learned / 4 and 0 < bf16 < learned / 2
    train(settings(tmp_path, dataset_dir, name="plain", num_itr=5, precision="bf16"))  # a run may change over


def test_fp16_training_scales_its_loss_and_resumes_the_same(tmp_path, dataset_dir, monkeypatch):
    train(settings(tmp_path, dataset_dir, name="whole", precision="fp16"))
    whole = find_checkpoint(tmp_path / "whole")[1]
    assert whole["scaler"]["scale"] > 1 and whole["scaler"]["_growth_tracker"] + 2 >= 4
    train(settings(tmp_path, dataset_dir, precision="fp16", num_itr=2))
    state = find_checkpoint(tmp_path / "run")[1]
    # Half the scale, saved: were it not taken up again, the end would show the default.
    state["scaler"]["scale"] /= 2
    save_checkpoint(tmp_path / "run", state, 2, keep_last=2)
    train(settings(tmp_path, dataset_dir, precision="fp16"))
    resumed = find_checkpoint(tmp_path / "run")[1]
    assert resumed["scaler"] == {**whole["scaler"], "scale": whole["scaler"]["scale"] / 2}
    assert difference(resumed["ema"]["shadow_params"], whole["ema"]["shadow_params"]) < 1e-2


def test_a_gradient_that_overflows_is_skipped_not_applied():
    scaler = make_scaler("fp16", torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    scaler.scale(parameter.sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert parameter.item() == 1.0 and scaler.get_scale() == 65536 / 2
    assert not make_scaler("bf16", torch.device("cpu")).is_enabled()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sampling_in_other_precisions(tmp_path, dataset_dir, trained_run, precision):
    (tmp_path / "tiny").mkdir()
    for name in ("config.yaml", "latest.pt"):
        (tmp_path / "tiny" / name).symlink_to(trained_run / name)
    common = {"ckpt": "tiny", "results_dir": str(tmp_path), "nfe": 1, "device": "cpu", "workers": 0}
    sampling.run(SampleConfig(**common, precision=precision, channels_last=True))
    with pytest.raises(ValueError, match=f"precision {precision} there, fp32 now"):
        sampling.run(SampleConfig(**common))
    settings_file = tmp_path / "tiny" / "samples_nfe1" / "settings.yaml"
    assert f"precision: {precision}" in settings_file.read_text()
    # A folder of an older version says nothing of precision or subset: it was fp32, and whole.
    lines = [line for line in settings_file.read_text().splitlines() if not line.startswith(("precision", "subset"))]
    settings_file.write_text("\n".join(lines))
    sampling.run(SampleConfig(**common))


def test_a_listed_part_is_restored_and_scored(tmp_path, dataset_dir, trained_run):
    from i2sb.config import EvalConfig
    from i2sb.evaluation import score as evaluation

    (tmp_path / "tiny").mkdir()
    for name in ("config.yaml", "latest.pt"):
        (tmp_path / "tiny" / name).symlink_to(trained_run / name)
    data = tmp_path / "data"
    for number, name in enumerate(["cat/x.png", "cat/y.png", "dog/z.png"]):
        write_images(data / "val", [name], first=number)
    (tmp_path / "list.txt").write_text("/val/z.png\n/val/x.png\n")
    common = {"ckpt": "tiny", "results_dir": str(tmp_path), "device": "cpu", "workers": 0, "dataset_dir": str(data)}
    sampling.run(SampleConfig(**common, nfe=1, subset=str(tmp_path / "list.txt")))
    assert len(list((tmp_path / "tiny" / "samples_nfe1" / "000").iterdir())) == 2
    with pytest.raises(ValueError, match="num_images 2 there, 3 now; fingerprint"):
        sampling.run(SampleConfig(**common, nfe=1))
    evaluation.run(EvalConfig(**common, sample_dir="samples_nfe1"))
    report = json.loads((tmp_path / "tiny" / "samples_nfe1" / "metrics.json").read_text())
    assert report["images"] == 2
    (tmp_path / "other.txt").write_text("/val/x.png\n/val/z.png\n")
    with pytest.raises(ValueError, match="holds images of other names"):
        evaluation.run(EvalConfig(**common, sample_dir="samples_nfe1", subset=str(tmp_path / "other.txt")))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("ema", [True, False])
def test_weights_are_used_where_the_file_has_them(trained_run, ema):
    """No second copy: each parameter lies in the mapped checkpoint; changing one changes no file."""
    network = load_model(trained_run, ema=ema).network
    file = str((trained_run / "latest.pt").resolve())
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    mapped = [range(*(int(end, 16) for end in line.split()[0].split("-"))) for line in lines]
    assert all(any(p.data_ptr() in part for part in mapped) for p in network.parameters())
    with torch.no_grad():
        first = next(network.parameters()).add_(1.0)
    assert torch.equal(next(load_model(trained_run, ema=ema).network.parameters()) + 1.0, first)
