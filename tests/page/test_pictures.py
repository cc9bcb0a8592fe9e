"""What is taken of people's files, and what is shown of pictures."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from helpers.pictures import make_image
from helpers.wrong_uploads import encode, make_wrong
from i2sb.config import PageConfig
from i2sb.page.pictures import EXAMPLES, HOLE_COLOUR, RefusedError, Upload, draw, read_painting, take_upload

CONFIG = PageConfig(max_megapixels=1, max_megabytes=2)
WRONG = make_wrong()


def take(tmp_path, content: bytes, config: PageConfig = CONFIG) -> Upload:
    source, folder = tmp_path / "dropped", tmp_path / "visitor"
    folder.mkdir(exist_ok=True)
    source.write_bytes(content)
    return take_upload(source, "dropped.png", folder, config)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_uploads_are_refused_in_a_line_without_a_path(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # as the server sets it
    with pytest.raises(RefusedError) as refused:
        take(tmp_path, WRONG[name]).read(3, None)
    line = str(refused.value)
    assert "\n" not in line and str(tmp_path) not in line and "/" not in line


def test_there_are_twenty_of_them():
    assert len(set(WRONG.values())) == 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_taken_and_read(tmp_path, kind):
    upload = take(tmp_path, encode(make_image(3, 24, 20), kind))
    assert upload.name == "dropped" and upload.path.parent == tmp_path / "visitor"
    assert upload.read(3, None).image.shape == (3, 20, 24) and upload.read(3, None).image.dtype == torch.uint8


def test_a_picture_of_a_camera_with_a_preview_in_it_is_its_first(tmp_path):
    content = encode(make_image(3, 24, 20), "MPO", save_all=True, append_images=[make_image(4, 12, 10)])
    assert take(tmp_path, content).read(3, None).image.shape == (3, 20, 24)


def test_files_and_pictures_that_are_too_large_are_refused_by_what_was_found(tmp_path):
    content = encode(make_image(0, 24, 20), "PNG")
    with pytest.raises(RefusedError, match="megabytes"):
        take(tmp_path, content, PageConfig(max_megabytes=len(content) / 1e6 - 1e-6))
    with pytest.raises(RefusedError, match="0.0 megapixels; 0.0004 megapixels are the most"):
        take(tmp_path, content, PageConfig(max_megapixels=0.0004))
    assert take(tmp_path, content, PageConfig(max_megapixels=0.00048, max_megabytes=len(content) / 1e6))


def test_paint_is_a_hole_of_the_pictures_size():
    layer = Image.new("RGBA", (10, 8))
    layer.paste((*HOLE_COLOUR, 255), (2, 1, 5, 4))
    hole = read_painting([layer, Image.new("RGBA", (10, 8))], 16, 20)
    wanted = torch.zeros(1, 1, 16, 20)
    wanted[..., 2:8, 4:10] = 1
    assert torch.equal(hole, wanted)
    assert read_painting([Image.new("RGBA", (10, 8))], 16, 20) is None and read_painting([], 16, 20) is None


def test_a_hole_is_drawn_in_colour_and_large_pictures_smaller():
    mask = torch.zeros(1, 1, 6, 8)
    mask[..., 2, 3] = 1
    drawn = draw(torch.ones(1, 3, 6, 8), mask)
    assert drawn.getpixel((3, 2)) == HOLE_COLOUR and drawn.getpixel((0, 0)) == (255, 255, 255)
    assert draw(torch.zeros(1, 1, 40, 2560)).size == (1280, 20)


def test_the_examples_are_small_pictures_with_a_licence_each():
    licences = (EXAMPLES / "LICENCES.md").read_text()
    files = list(EXAMPLES.glob("*.jpg"))
    assert len(files) == 3 and sum(file.stat().st_size for file in files) < 300_000
    for file in files:
        assert f"`{file.name}`" in licences
        assert Upload(file.stem, file).read(3, None).image.shape == (3, 288, 384)
