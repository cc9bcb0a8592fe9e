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
from i2sb.precision import choose_precision
from i2sb.training.microbatch import ON_CPU, find_microbatch
from i2sb.training.trainer import Trainer

GPU = World(0, 1, torch.device("meta"))  # any device but a CPU: nothing is computed there


def takes(most: int, tried: list[int]):
    """Stands for a GPU whose memory is full beyond so many images."""

    def rehearse(size: int) -> None:
        tried.append(size)
        if size > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    return rehearse


@pytest.mark.parametrize(
    ("share", "most", "tries"),
    [(32, 40, [32]), (32, 9, [32, 16, 8]), (32, 1, [32, 16, 8, 4, 2, 1]), (36, 7, [36, 18, 9, 4]), (7, 3, [7, 1])],
)
def test_half_as_many_until_they_fit(share, most, tries):
    tried = []
    assert find_microbatch(share, takes(most, tried), GPU) == tries[-1]
    assert tried == tries and share % tried[-1] == 0


def test_not_even_one_image_is_one_line():
    with pytest.raises(UserError, match="microbatch auto: not even one image fits"):
        find_microbatch(4, takes(0, []), GPU)


def test_other_errors_are_no_full_memory():
    def rehearse(size: int) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        find_microbatch(4, rehearse, GPU)


@pytest.mark.parametrize("share", [1, 2, 3, 8])
def test_on_a_cpu_it_is_as_published(share):
    def rehearse(size: int) -> None:
        raise AssertionError("nothing is tried on a CPU")

    assert find_microbatch(share, rehearse, World(0, 1, torch.device("cpu"))) == (ON_CPU if share % 2 == 0 else 1)


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
    assert f"batch     6 = 1 processes x {ON_CPU} x 3 accumulated" in said and "in fp32 on cpu" in said
    said = run_python("train.py", *as_flags({**settings, "num_itr": 2, "microbatch": 3})).stdout
    assert "1 processes x 2 until now" in said
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == 2


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [(None, "fp32"), ((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_is_the_best_that_the_card_has(capability, chosen):
    assert choose_precision("auto", capability) == chosen
    assert choose_precision("fp32", capability) == "fp32"
