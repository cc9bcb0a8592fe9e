"""The benchmark runs every part and compares like with like; what it measures is no test's business."""

from __future__ import annotations

import json
import math
from argparse import Namespace

import pytest
import torch

from corruption import CORRUPTIONS
from helpers.programs import OLD_PROCESSOR, ROOT, needs_x86, run_python
from i2sb.unet import UNet


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "figures.json"
    small = ["--preset", "tiny", "--size", 32, "--batch", 4, "--repeats", 1, "--nfe", 2, "--images", 32, "--workers", 1]
    run_python(ROOT / "scripts" / "benchmark.py", "all", *small, "--device", "cpu", "--json", out)
    return json.loads(out.read_text())


def measured(rows):
    return [row for row in rows if "skipped" not in row]


def test_every_degradation_is_measured(figures):
    assert [row["degradation"] for row in figures["corruption"]] == list(CORRUPTIONS)
    assert all(row["units"] > 0 for row in figures["corruption"])


def test_every_variant_stands_beside_the_released_settings_and_computes_the_same(figures):
    for what in ("train", "sample"):
        rows = figures[what]
        assert rows[0]["variant"] == "released" and rows[0]["times released"] == 1
        assert {row["variant"] for row in rows} == {"released", "fp32", "fp32+channels-last", "bf16"}
        assert {row["variant"] for row in rows if "skipped" in row} <= {"bf16"}  # where the processor emulates it
        assert all(row["images/s"] > 0 and row["% of peak"] > 0 for row in measured(rows))
    for row in measured(figures["train"]):
        # bf16 rounds each operation to 2^-9 of its value, and the errors of twenty layers add up.
        assert row["output error"] < (0.05 if row["variant"] == "bf16" else 1e-5)
        assert row["gradient error"] < (0.1 if row["variant"] == "bf16" else 1e-4)
    assert all(0 <= row["overhead %"] < 100 for row in measured(figures["sample"][1:]))


@needs_x86
def test_what_a_processor_emulates_is_skipped_with_a_row_that_says_so(tmp_path):
    out = tmp_path / "figures.json"
    small = ["--quick", "--preset", "tiny", "--size", 16, "--batch", 2, "--repeats", 1, "--nfe", 1]
    script = ROOT / "scripts" / "benchmark.py"
    printed = run_python(script, "train", *small, "--device", "cpu", "--json", out, env=OLD_PROCESSOR).stdout
    rows = json.loads(out.read_text())["train"]
    (skipped,) = (row for row in rows if "skipped" in row)
    assert skipped["variant"] == "bf16" and len(rows) == 4
    assert "--precision bf16: this processor emulates it" in skipped["skipped"] and skipped["skipped"] in printed


def test_what_there_is_no_time_for_is_skipped_with_a_row_that_says_so(capsys):
    from benchmark import BENCHMARKS

    sizes = {"preset": "tiny", "size": 16, "batch": 2, "repeats": 1, "nfe": 1, "images": 1, "workers": [1]}
    options = Namespace(**sizes, quick=True, compile=False, deadline=0.0)
    for what in ("corruption", "train", "sample", "data"):
        rows = BENCHMARKS[what](options, torch.device("cpu"))
        assert rows and all(row["skipped"] == "no time left" for row in rows)
        assert capsys.readouterr().out.count("no time left") == len(rows)


def test_both_kinds_of_lmdb_are_loaded(figures):
    rows = [(row["stored"], row.get("crops an image"), row["workers"]) for row in figures["data"]]
    crops = [("12 megapixels", count, 1) for count in (1, 4, 16)]
    assert rows == [("full size", None, 1), ("pre-resized", None, 1), *crops]


def test_every_network_is_timed_under_its_own_precision():
    """The released settings let convolutions use TF32, fp32 does not; what is prepared last must not decide."""
    from benchmark import BENCHMARKS
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen = set()

    def look(module, inputs):
        if isinstance(module, UNet):
            released = any(type(part).__name__ == "MaterialisedAttention" for part in module.modules())
            seen.add((released, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    sizes = {"preset": "tiny", "size": 16, "batch": 2, "repeats": 1, "nfe": 1}
    options = Namespace(**sizes, quick=False, compile=False, deadline=math.inf)
    with register_module_forward_pre_hook(look):
        for what in ("train", "sample"):
            BENCHMARKS[what](options, torch.device("cpu"))
            assert seen == {(True, True, "highest"), (False, False, "highest")}
            seen.clear()


def test_released_attention_is_the_same_function(figures):
    from benchmarks.network import Variant, vary

    from i2sb.bridge import Bridge
    from i2sb.network import build_network

    torch.manual_seed(0)
    network = build_network("tiny", Bridge().noise_levels)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    released = vary(network, Variant(released=True), torch.device("cpu"))
    assert any(type(module).__name__ == "MaterialisedAttention" for module in released.modules())
    x, step = torch.randn(2, 3, 16, 16), torch.tensor([5, 900])
    torch.testing.assert_close(released(x, step), network(x, step))


def test_flops_are_counted_as_the_published_figure_counts_them():
    """ADM-256 at 256 pixels: 2.239 TFLOP an image and evaluation, multiply and add being two (shapes only)."""
    from torch.utils.flop_counter import FlopCounterMode

    from i2sb.bridge import Bridge
    from i2sb.network import build_network

    with torch.device("meta"):
        network = build_network("adm256", Bridge().noise_levels)
        image, time = torch.empty(1, 3, 256, 256), torch.zeros(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.diffusion_model(image, time)
    assert counter.get_total_flops() == pytest.approx(2.239e12, rel=0.01)


@pytest.mark.slow
def test_wrong_options_are_named():
    script = ROOT / "scripts" / "benchmark.py"
    for flags, words in (
        (["--batch", 0], "--batch 0: must be at least 1"),
        (["--preset", "x"], "--network x: unknown"),
        (["--quick", "--compile"], "--compile: takes minutes, so not with --quick"),
    ):
        refused = run_python(script, "train", *flags, check=False)
        assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr


def test_memory_of_a_run_of_the_released_format_is_measured_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "memory.json"
    script = ROOT / "scripts" / "benchmark.py"
    run_python(script, "memory", "--preset", "tiny", "--size", 32, "--device", "cpu", "--json", out)
    figures = json.loads(out.read_text())["memory"]
    assert figures["finite"] and figures["parameters"] > 100_000 and 0.05 < figures["peak_resident_gb"] < 6
