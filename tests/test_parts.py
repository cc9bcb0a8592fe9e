"""Small rooms: randomness, pixels, batches, averages, logs."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from corruption import Corrupted, build_corruption
from i2sb.batch import begin_bridge, make_batch
from i2sb.images import draw_grid, from_uint8, save_png, to_uint8
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.training.ema import ExponentialMovingAverage
from i2sb.training.optimizer import build_optimizer, build_scheduler, scaled_rate
from i2sb.training.run_log import RunLog, TensorBoardCurves

# --- randomness ------------------------------------------------------------------------------------------------------


def test_seeds_differ_by_run_purpose_and_number():
    seeds = {make_seed(run, purpose, number) for run in range(3) for purpose in Purpose for number in range(50)}
    assert len(seeds) == 3 * len(Purpose) * 50
    assert make_seed(0, Purpose.TRAIN, 7) == 893270077250725738, "what existing runs draw must not change"


def test_noise_of_an_image_does_not_depend_on_its_batch():
    x = torch.empty(4, 3, 8, 8)
    whole, part = ImageNoise(0, Purpose.SAMPLE, range(4)), ImageNoise(0, Purpose.SAMPLE, [2, 3])
    for _ in range(3):
        assert torch.equal(whole.randn_like(x)[2:], part.randn_like(x[2:]))
        assert torch.equal(whole.randint(1000)[2:], part.randint(1000))
    draws = ImageNoise(0, Purpose.SAMPLE, range(500)).randn_like(torch.empty(500, 1, 8, 8))
    assert abs(draws.mean()) < 0.03 and abs(draws.std() - 1) < 0.03
    assert draws.flatten(1).unique(dim=0).shape[0] == 500


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_8_bit_conversions_follow_the_protocol():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 63, 127, 254, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert from_uint8(levels).aminmax() == (torch.tensor(-1.0), torch.tensor(1.0))
    # Truncation may lose one level on the way there and back, never more.
    assert ((levels.int() - to_uint8(from_uint8(levels)).int()) <= 1).all()
    assert (to_uint8(from_uint8(levels)) <= levels).all()


def test_grid_shows_every_image_under_its_title(tmp_path):
    columns = [("a", torch.full((3, 3, 16, 16), 10, dtype=torch.uint8)), ("b", torch.full((3, 3, 16, 16), 200).byte())]
    grid = draw_grid(columns, per_row=2)
    colours = {colour: count for count, colour in grid.getcolors(10**6)}
    assert colours[(10, 10, 10)] == colours[(200, 200, 200)] == 3 * 128 * 128
    save_png(grid, tmp_path / "new" / "grid.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == grid.size


# --- batches ---------------------------------------------------------------------------------------------------------


def make(name, **options):
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = ImageNoise(0, Purpose.TRAIN, [0, 1])
    return make_batch(pixels, None, torch.tensor([3, 4]), build_corruption(name, 16), noise, **options)


def test_hole_is_filled_once_and_the_condition_is_what_the_bridge_starts_from():
    batch = make("inpaint-center", cond_x1=True)
    assert batch.cond is batch.x1
    hole = batch.mask.expand_as(batch.x0) == 1
    assert torch.equal(batch.x1[~hole], batch.x0[~hole])
    assert (batch.shown[hole] == 1).all()
    assert abs(batch.x1[hole].std() - 1) < 0.15 and abs(batch.x1[hole].mean()) < 0.15


def test_a_number_fixes_the_mask_in_evaluation_and_a_draw_in_training():
    evaluated, again, drawn = (make("inpaint-freeform1020", index=index) for index in ([0, 1], [1, 0], None))
    assert torch.equal(evaluated.mask, again.mask.flip(0))
    assert not torch.equal(drawn.mask, evaluated.mask)
    assert torch.equal(drawn.mask, make("inpaint-freeform1020").mask)


def test_a_mixture_restores_holes_and_whole_images_side_by_side():
    """Its mask is the hole where there is one, and everything elsewhere; noise fills holes alone."""
    batch = make("inpaint-center,sr4x-pool", index=[0, 1])
    center, pooled = make("inpaint-center"), make("sr4x-pool")
    assert torch.equal(batch.mask[0], center.mask[0]) and (batch.mask[1] == 1).all()
    assert torch.equal(batch.x1[0], center.x1[0])
    assert torch.equal(batch.x1[1], pooled.x1[1]) and torch.equal(batch.shown[1], pooled.shown[1])


def test_noise_on_x1_comes_after_the_condition():
    image = torch.zeros(2, 3, 16, 16)
    x1, cond = begin_bridge(Corrupted(image), ImageNoise(0, Purpose.TRAIN, [0, 1]), cond_x1=True, add_x1_noise=True)
    assert torch.equal(cond, image)
    assert abs(x1.std() - 1) < 0.1


def test_paired_images_are_used_as_they_are():
    clean, degraded = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    batch = make_batch(clean, degraded, torch.arange(3), None, ImageNoise(0, Purpose.TRAIN, [0, 1, 2]))
    assert torch.equal(batch.x1, from_uint8(degraded)) and torch.equal(batch.x0, from_uint8(clean))
    assert batch.mask is None and batch.cond is None


# --- averages and optimizer ------------------------------------------------------------------------------------------


def test_the_rate_is_scaled_for_a_step_and_no_longer():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], lr=0.5, weight_decay=0.0)
    parameter.grad = torch.ones(1)
    with scaled_rate(optimizer, 0.25) as lr:
        optimizer.step()
    assert lr == 0.125 and abs(parameter.item() + 0.125) < 1e-6  # Adam's first step is the learning rate
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_average_follows_its_definition_and_swaps_back():
    parameter = torch.nn.Parameter(torch.tensor([0.0]))
    ema = ExponentialMovingAverage([parameter], decay=0.5)
    want = 0.0
    for k, value in enumerate([1.0, 2.0, -1.0, 5.0, 4.0, 3.0, 2.0, 1.0], 1):
        parameter.data.fill_(value)
        ema.update()
        keep = min(0.5, (1 + k) / (10 + k))
        want = keep * want + (1 - keep) * value
        assert ema.shadow_params[0].item() == pytest.approx(want, rel=1e-6)
    with ema.applied():
        assert parameter.item() == pytest.approx(want, rel=1e-6)
    assert parameter.item() == 1.0 and ema.shadow_params[0].item() == pytest.approx(want, rel=1e-6)
    assert set(ema.state_dict()) == {"decay", "num_updates", "shadow_params", "collected_params"}


def test_learning_rate_falls_in_steps():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], lr=1.0, weight_decay=0.0)
    scheduler = build_scheduler(optimizer, gamma=0.5, iterations=3)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert build_scheduler(optimizer, gamma=1.0, iterations=3) is None


# --- logs ------------------------------------------------------------------------------------------------------------


def test_log_survives_a_line_cut_off_and_says_that_it_resumed(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "train", "iteration": 1, "loss": 2.0}\n{"event": "tr')
    with RunLog(tmp_path, curves=None, iteration=1, num_itr=3) as log:
        log.record("train", 2, {"loss": 1.0, "images_per_second": 3.0})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[1] == '{"event": "tr'
    assert [json.loads(line) for line in lines[2:]] == [
        {"event": "resumed", "iteration": 1},
        {"event": "train", "iteration": 2, "loss": 1.0, "images_per_second": 3.0},
    ]


def test_curves_and_pictures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(
        tmp_path, curves=lambda iteration: TensorBoardCurves(tmp_path / "tb", iteration), iteration=0, num_itr=3
    ) as log:
        log.record("train", 1, {"loss": 0.5, "images_per_second": 3.0})
        log.picture("validation", 1, Image.new("RGB", (4, 4)))
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5)]
    assert len(events.Images("validation")) == 1


def test_bars_are_drawn_seldom_into_files_and_not_at_all_for_nothing(capsys):
    with progress_bar(1000, "image") as bar:  # pytest's standard error is no terminal
        for _ in range(1000):
            bar.update()
    drawn = capsys.readouterr().err
    assert "1000/1000" in drawn and drawn.count("\r") < 10
    for nothing in (progress_bar(0, "image"), progress_bar(5, "image", quiet=True)):
        nothing.update()
        nothing.close()
    assert capsys.readouterr().err == ""


def test_silent_log_writes_nothing(tmp_path):
    with RunLog(
        tmp_path, curves=lambda iteration: TensorBoardCurves(tmp_path, iteration), iteration=0, num_itr=3, silent=True
    ) as log:
        log.record("train", 1, {"loss": 0.5, "images_per_second": 1.0})
        log.say("hello")
        log.advance(1)
    assert list(tmp_path.iterdir()) == []


# --- validation ------------------------------------------------------------------------------------------------------


def test_validation_counts_what_a_classifier_recognises_where_there_is_one(trained_run, dataset_dir, tmp_path):
    from i2sb import load_model
    from i2sb.data.dataset import open_split
    from i2sb.metrics.feature_networks import FeatureNetwork, FeatureOutput
    from i2sb.training.validation import ValidationSet, choose_metrics, find_classifier, summarise, validate

    class SaysDog(FeatureNetwork):
        def forward(self, images):
            return FeatureOutput(None, torch.tensor([[0.0, 1.0]]).expand(len(images), 2))

    images = open_split(dataset_dir, "val", image_size=16)  # two cats, three dogs
    assert find_classifier(images, tmp_path, torch.device("cpu")) is None  # two classes are not ImageNet's
    metrics = choose_metrics(SaysDog(), 16)
    found = validate(
        load_model(trained_run),
        ValidationSet(images, build_corruption("sr4x-pool", 16), metrics),
        range(5),
        batch_size=2,
        nfe=2,
        clip_denoise=False,
        seed=0,
    )
    values, count = summarise(found.sums, metrics)
    assert count == 5 and values["accuracy_restored"] == pytest.approx(60) and values["psnr_degraded"] > 5
    assert list(choose_metrics(None, 11)) == ["psnr", "ssim"]
    assert list(choose_metrics(None, 10)) == ["psnr"]
