"""Which steps training draws, and how its learning rate ends."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.tiny_run import TINY
from i2sb.config import TrainConfig
from i2sb.distributed import World
from i2sb.formulation import SchroedingerBridge
from i2sb.randomness import ImageNoise, Purpose
from i2sb.storage.checkpoint import read_checkpoint
from i2sb.training.loop import train
from i2sb.training.trainer import Trainer


@pytest.fixture
def configure(tmp_path, dataset_dir):
    """A function that makes the settings of a tiny run without validation."""

    def make(**changes) -> TrainConfig:
        settings = {**TINY, "eval_every": 0, "lr_gamma": 1.0, "name": "run", **changes}
        return TrainConfig(results_dir=str(tmp_path), dataset_dir=str(dataset_dir), **settings)

    return make


# --- the learning rate -----------------------------------------------------------------------------------------------


def logged_rates(config: TrainConfig) -> list[float]:
    lines = map(json.loads, (config.run_dir / "log.jsonl").read_text().splitlines())
    return [line["lr"] for line in lines if line["event"] == "train"]


def test_the_rate_falls_in_a_line_to_the_end_whenever_that_is_decided(configure):
    train(configure(num_itr=4, lr=0.004))
    assert logged_rates(configure()) == [0.004] * 4
    train(configure(num_itr=8, lr=0.004, lr_cooldown=4))  # the run goes on, and now has an end
    assert logged_rates(configure()) == pytest.approx([0.004] * 4 + [0.004, 0.003, 0.002, 0.001])
    train(configure(num_itr=8, lr=0.004, lr_cooldown=4, name="planned"))
    one, other = (read_checkpoint(configure(name=name).run_dir / "latest.pt")["net"] for name in ("run", "planned"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_falls_is_the_rate_that_lr_gamma_leaves(configure):
    config = configure(num_itr=6, lr=0.008, lr_gamma=0.5, lr_step=3, lr_cooldown=2)
    train(config)
    assert logged_rates(config) == pytest.approx([0.008] * 3 + [0.004, 0.004, 0.002])


# --- the steps -------------------------------------------------------------------------------------------------------


def draw_steps(config: TrainConfig, count: int = 4000) -> torch.Tensor:
    trainer = Trainer(config, World(0, 1, torch.device("cpu")))
    return trainer._draw_steps(ImageNoise(0, Purpose.TRAIN, range(count)))


def test_a_share_of_the_images_is_put_at_the_start_and_the_others_stay_where_they_were(configure):
    steps, published = draw_steps(configure(start_share=0.3)), draw_steps(configure())
    moved = steps != published
    assert (steps[moved] == 999).all()
    assert abs(moved.double().mean() - 0.3) < 0.03  # more than four standard deviations
    assert torch.equal(published, ImageNoise(0, Purpose.TRAIN, range(4000)).randint(1000))  # nothing else is drawn
    assert (draw_steps(configure(start_share=1.0)) == 999).all()


def test_training_takes_the_steps_that_were_drawn(configure, monkeypatch):
    seen = []
    loss = SchroedingerBridge.loss
    monkeypatch.setattr(
        SchroedingerBridge, "loss", lambda self, net, step, *rest: seen.append(step) or loss(self, net, step, *rest)
    )
    train(configure(num_itr=2, start_share=1.0))
    drawn = [step for step in seen if type(step) is torch.Tensor]  # others have shapes only: memory is estimated
    assert torch.cat(drawn).tolist() == [999] * 8
