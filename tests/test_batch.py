"""Where clean and degraded images meet."""

from __future__ import annotations

import torch

from corruption import Corrupted, build_corruption
from i2sb.batch import begin_bridge, make_batch
from i2sb.images import from_uint8
from i2sb.randomness import ImageNoise, Purpose


def make(name, degradation_noise=0.0, **options):
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = ImageNoise(0, Purpose.TRAIN, [0, 1])
    corruption = build_corruption(name, 16, degradation_noise=degradation_noise)
    return make_batch(pixels, None, torch.tensor([3, 4]), corruption, noise, **options)


def test_hole_is_filled_once_and_the_condition_is_what_the_bridge_starts_from():
    batch = make("inpaint-center", cond_x1=True)
    assert batch.cond is batch.x1
    hole = batch.mask.expand_as(batch.x0) == 1
    assert torch.equal(batch.x1[~hole], batch.x0[~hole])
    assert (batch.shown[hole] == 1).all()
    assert abs(batch.x1[hole].std() - 1) < 0.15 and abs(batch.x1[hole].mean()) < 0.15


def test_a_hole_filled_with_grey_takes_no_noise_and_leaves_the_rest_as_it_is():
    grey, noisy = make("inpaint-center", hole_fill="grey"), make("inpaint-center")
    hole = grey.mask.expand_as(grey.x0) == 1
    assert (grey.x1[hole] == 0).all()
    assert torch.equal(grey.x1[~hole], noisy.x1[~hole]) and torch.equal(grey.shown, noisy.shown)
    assert torch.equal(make("sr4x-pool", hole_fill="grey").x1, make("sr4x-pool").x1)


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


def test_a_run_that_denoises_restores_what_is_around_holes_too():
    plain, noisy = make("inpaint-center"), make("inpaint-center", degradation_noise=0.1, denoises=True)
    assert noisy.mask is None and torch.equal(noisy.hole, plain.mask) and torch.equal(plain.hole, plain.mask)
    known = (plain.mask == 0).expand_as(plain.x1)
    off = (noisy.x1 - plain.x1)[known]
    assert abs(off.std() - 0.1) < 0.01 and torch.equal(noisy.x1[~known], plain.x1[~known]), "other noise in the hole"
    # One that does not leaves the noise where it is.
    assert torch.equal(make("inpaint-center", degradation_noise=0.1).mask, plain.mask)


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
