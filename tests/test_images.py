"""8-bit images, and pictures drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from i2sb.images import draw_grid, draw_heat, from_pixels, from_uint8, save_png, to_pixels, to_uint8


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


def test_a_map_of_heat_has_a_scale_that_ends_at_a_round_number():
    values = torch.linspace(0, 0.13, 128).expand(128, -1)
    heat = draw_heat(values, "m")
    colour = lambda x, y: heat.getpixel((x, y))
    assert heat.width == 256 and colour(0, 10) == (0, 0, 4)
    # The scale stands 4 pixels below the map. It ends at 0.2, so 0.13 has the colour that is 0.65 along it.
    assert max(abs(a - b) for a, b in zip(colour(255, 10), colour(166, 265), strict=True)) <= 2
    assert colour(255, 265) == (252, 255, 164)
    brightness = [sum(colour(x, 265)) for x in range(256)]
    assert brightness == sorted(brightness)
    assert draw_heat(torch.zeros(16, 16), "m").getpixel((8, 8)) == (0, 0, 4)
    assert draw_heat(torch.ones(90, 2), "a name longer than it is wide").width > 60


def test_limits_are_what_the_type_makes_of_them():
    pixels = np.array([[0.1, 0.05]], np.float32)
    assert from_pixels(pixels, (0, 0.1)).max() == 1
    assert (to_pixels(torch.tensor([[1.0, 0.0]]), "float32", (0, 0.1)).numpy() == pixels).all()


@pytest.mark.parametrize(("dtype", "value_range"), [("float16", (0, 1e6)), ("uint8", (0, 1e4)), ("uint16", (-1, 9))])
def test_a_range_that_the_type_cannot_hold_is_refused(dtype, value_range):
    with pytest.raises(ValueError, match=f"holds pixels of type {dtype}, which cannot have all of `value_range`"):
        from_pixels(np.ones((2, 2), dtype), value_range)
