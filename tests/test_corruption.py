"""Properties that every degradation has, over the whole table, and each one's own definition."""

from __future__ import annotations

import pytest
import torch
from conftest import golden

from corruption import CORRUPTIONS, build_corruption

SIZE = 32


@pytest.fixture(params=CORRUPTIONS)
def name(request):
    return request.param


@pytest.fixture
def clean():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_agrees_with_golden(name):
    arrays = golden("corruption")
    done = build_corruption(name, 64)(arrays["64_clean"])
    torch.testing.assert_close(done.image, arrays[f"64_{name}"], rtol=0, atol=1e-5)
    if f"64_{name}_mask" in arrays:
        assert torch.equal(done.mask, arrays[f"64_{name}_mask"].expand_as(done.mask))


def test_shape_type_range_and_mask(name, clean):
    done = build_corruption(name, SIZE)(clean)
    assert done.image.shape == clean.shape and done.image.dtype == torch.float32
    assert done.image.abs().max() < 1.3  # overshoot, not another scale
    if done.mask is None:
        return
    assert done.mask.shape == (3, 1, SIZE, SIZE) and done.mask.dtype == torch.float32
    assert set(done.mask.unique().tolist()) == {0.0, 1.0}
    outside = (done.mask == 0).expand_as(clean)
    assert torch.equal(done.image[outside], clean[outside])
    assert (done.image[~outside] == 1).all()


def test_does_not_change_its_input(name, clean):
    before = clean.clone()
    build_corruption(name, SIZE)(clean)
    assert torch.equal(clean, before)


def test_is_the_same_under_autocast_and_for_other_types(name, clean):
    corruption = build_corruption(name, SIZE)
    want = corruption(clean).image
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(corruption(clean).image, want)
    assert corruption(clean.double()).image.dtype == torch.float32


def test_is_determined_by_the_seed_and_by_the_image_alone(name, clean):
    corruption = build_corruption(name, SIZE)

    def generators(first, last):
        return [torch.Generator().manual_seed(seed) for seed in range(first, last)]

    whole = corruption(clean, generators(0, 3))
    assert torch.equal(corruption(clean, generators(0, 3)).image, whole.image)
    last = corruption(clean[2:], generators(2, 3))
    torch.testing.assert_close(last.image, whole.image[2:], rtol=0, atol=1e-6)


def test_takes_non_square_images_and_other_channels(name):
    for shape in ((2, 1, 32, 48), (1, 5, 64, 16)):
        assert build_corruption(name, SIZE)(torch.rand(shape)).image.shape == shape


@pytest.mark.parametrize("name", ["sr4x-pool", "sr4x-bicubic"])
def test_super_resolution_repeats_small_pixels_and_keeps_constants(name, clean):
    corruption = build_corruption(name, SIZE)
    image = corruption(clean).image
    small = corruption.A(clean)
    assert small.shape == (3, 3, SIZE // 4, SIZE // 4)
    assert torch.equal(image, small.repeat_interleave(4, -1).repeat_interleave(4, -2))
    torch.testing.assert_close(corruption(torch.full_like(clean, 0.3)).image, torch.full_like(clean, 0.3))


def bicubic_matrix(size: int) -> torch.Tensor:
    """The definition, entry by entry in float64: output k, tap i, on input 4k + 2 - 8 + i, mirrored at the border."""

    def cubic(x, a=-0.5):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    taps = [cubic((i - 8 + 0.5) / 4) for i in range(16)]
    matrix = torch.zeros(size // 4, size, dtype=torch.float64)
    for k in range(size // 4):
        for i, tap in enumerate(taps):
            j = 4 * k + 2 - 8 + i
            j = -1 - j if j < 0 else 2 * size - 1 - j if j >= size else j
            matrix[k, j] += tap / sum(taps)
    return matrix


def test_bicubic_agrees_with_the_dense_matrix():
    x = torch.rand(2, 3, 24, 16, dtype=torch.float64) * 2 - 1
    want = bicubic_matrix(24) @ x @ bicubic_matrix(16).T
    torch.testing.assert_close(build_corruption("sr4x-bicubic").A(x.float()), want.float(), rtol=0, atol=1e-5)


def test_center_hole_is_the_middle_quarter():
    mask = build_corruption("inpaint-center", 16)(torch.zeros(1, 3, 16, 16)).mask[0, 0]
    assert mask.sum() == 64 and mask[4:12, 4:12].all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_corruption("sr4x-pol"), "--corrupt sr4x-pol: unknown degradation; did you mean sr4x-pool?"),
        (lambda: build_corruption("xyz"), "--corrupt xyz: unknown degradation; there are sr4x-pool, "),
        (lambda: build_corruption("sr4x-pool", strength=2), "takes no option strength"),
        (lambda: build_corruption("sr4x-pool", 30), "30x30 pixels: sr4x needs multiples of 4"),
        (lambda: build_corruption("sr4x-bicubic", 64)(torch.zeros(1, 3, 64, 30)), "64x30 pixels"),
        (lambda: build_corruption("inpaint-center", 2), "at least 4 pixels"),
    ],
)
def test_wrong_names_and_sizes_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
