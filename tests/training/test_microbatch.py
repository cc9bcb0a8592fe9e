"""`--microbatch auto` and `--precision auto`: what they come to on which device."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.programs import run_python
from helpers.tiny_run import TINY, as_flags
from i2sb.config import TrainConfig
from i2sb.distributed import World
from i2sb.errors import UserError
from i2sb.precision import advise_precision, choose_precision
from i2sb.training.memory import CPU_BUDGET, advise_memory, estimate_memory, find_free_memory, measure_activations
from i2sb.training.microbatch import find_microbatch, fits_gpu
from i2sb.training.trainer import Trainer

ONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("share", "most", "tries"),
    [(32, 40, [32]), (32, 9, [32, 16, 8]), (32, 1, [32, 16, 8, 4, 2, 1]), (36, 7, [36, 18, 9, 4]), (7, 3, [7, 1])],
)
def test_half_as_many_until_they_fit(share, most, tries):
    tried = []
    assert find_microbatch(share, lambda size: tried.append(size) or size <= most, ONE) == tries[-1]
    assert tried == tries and share % tried[-1] == 0


def test_not_even_one_image_is_one_line():
    with pytest.raises(UserError, match="microbatch auto: not one image fits"):
        find_microbatch(4, lambda size: False, ONE)


def raises(error):
    def rehearse():
        raise error

    return rehearse


def test_a_full_memory_does_not_fit_and_other_errors_go_on():
    assert fits_gpu(lambda: None)
    assert not fits_gpu(raises(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        fits_gpu(raises(RuntimeError("a fault of ours")))


@pytest.mark.parametrize("formulation", ["bridge", "conditional_diffusion", "regression", "diffusion"])
def test_the_rehearsal_leaves_no_trace(tmp_path, dataset_dir, formulation):
    settings = {**TINY, "name": "run", "results_dir": str(tmp_path), "dataset_dir": str(dataset_dir), "eval_every": 0}
    trainer = Trainer(TrainConfig(**settings, formulation=formulation), World(0, 1, torch.device("cpu")))
    before, state = [p.clone() for p in trainer.network.parameters()], torch.get_rng_state()
    trainer._rehearse(4)
    assert all(p.grad is None for p in trainer.network.parameters())
    assert all(map(torch.equal, before, trainer.network.parameters()))
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_finds_its_microbatch_and_goes_on_with_another(tmp_path, dataset_dir):
    settings = {**TINY, "name": "run", "results_dir": tmp_path, "dataset_dir": dataset_dir, "eval_every": 0}
    settings |= {"batch_size": 6, "precision": "auto"}
    said = run_python("train.py", *as_flags({**settings, "num_itr": 1, "microbatch": "auto"})).stdout
    assert "batch     6 = 1 processes x 6 x 1 accumulated" in said and "in fp32 on cpu" in said
    said = run_python("train.py", *as_flags({**settings, "num_itr": 2, "microbatch": 3})).stdout
    assert "1 processes x 6 until now" in said
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == 2


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [(None, "fp32"), ((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_is_the_best_that_the_card_has(capability, chosen):
    assert choose_precision("auto", capability) == chosen
    assert choose_precision("fp32", capability) == "fp32"


def build(tmp_path, dataset_dir, **changes) -> Trainer:
    settings = {**TINY, "name": "run", "results_dir": str(tmp_path), "dataset_dir": str(dataset_dir), "eval_every": 0}
    return Trainer(TrainConfig(**{**settings, **changes}), ONE)


def test_the_estimate_knows_what_needs_memory(tmp_path, dataset_dir):
    trainer = build(tmp_path, dataset_dir)
    per_image = measure_activations(trainer, 1)
    assert measure_activations(trainer, 8) == pytest.approx(8 * per_image, rel=0.2)
    saving = build(tmp_path, dataset_dir, grad_checkpoint=True)
    assert measure_activations(saving, 8) < 0.7 * measure_activations(trainer, 8)
    larger = build(tmp_path, dataset_dir, image_size=32)
    assert measure_activations(larger, 1) > 3 * per_image
    parameters = 4 * sum(p.numel() for p in trainer.network.parameters())
    assert estimate_memory(trainer) > 5 * parameters + 2 * per_image


def test_on_a_cpu_activations_have_a_budget(tmp_path, dataset_dir):
    trainer = build(
        tmp_path, dataset_dir, network="mini", image_size=256, batch_size=64, microbatch="auto", crop="random"
    )
    assert measure_activations(trainer, trainer.microbatch) <= CPU_BUDGET
    assert measure_activations(trainer, 2 * trainer.microbatch) > CPU_BUDGET
    assert trainer.microbatch * trainer.accumulation == 64


def test_too_much_is_said_with_what_lowers_it():
    free = find_free_memory(torch.device("cpu"))
    assert free is None or 1e6 < free < 1e15
    assert advise_memory(3e9, 4e9) == advise_memory(3e9, None) == ""
    assert "needs about 5.0 GB of memory, and 4.0 GB are free; lower `microbatch`" in advise_memory(5e9, 4e9)


@pytest.mark.parametrize(("capability", "better"), [((9, 0), "bf16"), ((7, 0), "fp16"), ((6, 1), "")])
def test_float32_on_a_card_that_could_do_better_is_said(monkeypatch, capability, better):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = advise_precision("fp32", torch.device("cuda"))
    assert f"many times as much in {better} (`precision` auto)" in said if better else not said
    assert not advise_precision("bf16", torch.device("cuda"))
