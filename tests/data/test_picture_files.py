"""People's pictures: read as they are seen, written back in the form they had, refused by name where that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import make_image
from i2sb.data.picture_files import check_picture, find_pictures, read_mask, read_picture, write_picture


def save(path: Path, mode: str, **options) -> np.ndarray:
    image = make_image(3, 23, 17).convert("RGBA")
    image.putalpha(make_image(4, 23, 17).convert("L"))
    image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
    image.save(path, **options)
    return np.asarray(Image.open(path).convert("RGBA"))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.JPEG", "L"),
        ("a.png", "RGB"),
        ("b.png", "RGBA"),
        ("c.png", "LA"),
        ("d.png", "P"),
        ("e.png", "L"),
        ("f.png", "1"),
        ("a.webp", "RGB"),
        ("b.webp", "RGBA"),
        ("a.tif", "RGBA"),
        ("a.tiff", "L"),
        ("a.bmp", "RGB"),
        ("a.ppm", "RGB"),
        ("a.pgm", "L"),
    ],
)
def test_pictures_keep_their_form(tmp_path, name, mode):
    path, out = tmp_path / name, tmp_path / "out" / name
    seen = save(path, mode, icc_profile=b"a profile" if name in ("a.jpg", "b.png") else None)
    picture = read_picture(path, 3)
    assert picture.image.shape == (3, 17, 23) and check_picture(path, 3) == (17, 23)
    assert np.array_equal(picture.image.permute(1, 2, 0).numpy(), seen[..., :3])
    write_picture(out, picture.image, picture)
    with Image.open(out) as written, Image.open(path) as before:
        assert written.size == before.size and written.format == before.format
        assert written.info.get("icc_profile") == before.info.get("icc_profile")
        assert ("A" in written.mode) == ("A" in mode) and written.mode.startswith("L") == (mode in ("1", "L", "LA"))
        after = np.asarray(written.convert("RGBA"))
    limit = {".jpg": 4, ".jpeg": 4, ".webp": 16}.get(path.suffix.lower(), 0)  # small waves, hard on WebP
    assert np.abs(after[..., :3].astype(int) - seen[..., :3])[seen[..., 3] > 0].mean() <= limit
    assert np.array_equal(after[..., 3], seen[..., 3])


def test_a_grey_picture_may_come_back_in_colour(tmp_path):
    save(tmp_path / "a.png", "L")
    picture = read_picture(tmp_path / "a.png", 3)
    write_picture(tmp_path / "b.png", picture.image, picture, colours=True)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "RGB"


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    make_image(3, 23, 17).save(tmp_path / "a.png", exif=exif)
    assert check_picture(tmp_path / "a.png", 3) == (23, 17)
    picture = read_picture(tmp_path / "a.png", 3)
    upright = np.rot90(np.asarray(make_image(3, 23, 17)), k=-1)
    assert np.array_equal(picture.image.permute(1, 2, 0).numpy(), upright)
    write_picture(tmp_path / "b.png", picture.image, picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (17, 23) and image.getexif().get(0x0112, 1) == 1


def test_what_cannot_be_restored_is_refused_by_name(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    deep.save(tmp_path / "grey16.png")
    deep.save(tmp_path / "grey16.tif")
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "two.tif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGBA", (4, 4)).save(tmp_path / "png.jpg", format="PNG")
    for name, words in {
        "grey16.png": "has 1 channel, `image_channels` is 3",
        "grey16.tif": "has 1 channel, `image_channels` is 3",
        "deep.ppm": "is a PPM of more than 8 bits a channel; save it as PNG, TIFF or .npy",
        "print.jpg": "has CMYK colours; convert it to RGB first",
        "two.tif": "holds 2 pictures",
        "text.png": "unreadable picture .not an image",
        "png.jpg": "is transparent, which .jpg files cannot be",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            check_picture(tmp_path / name, 3)
    make_image(0).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="is in colour, but this run restores grey pictures"):
        check_picture(tmp_path / "colour.png", 1)
    whole = (tmp_path / "colour.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.png: unreadable picture"):
        read_picture(tmp_path / "cut.png", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    wrong = {"nothing": "there is no such file", "empty": "holds no pictures", "a.txt": "pictures end in"}
    for place, words in wrong.items():
        with pytest.raises(ValueError, match=f"input .*{place}: {words}"):
            find_pictures(tmp_path / place)


def test_masks_are_white_where_something_is_missing(tmp_path):
    hole = Image.new("L", (6, 4))
    hole.paste(255, (1, 1, 3, 2))
    hole.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 4, 6)
    assert mask.shape == (1, 4, 6) and mask.sum() == 2 and mask[0, 1, 1] == 1
    with pytest.raises(ValueError, match="the mask is 6x4 pixels, its picture 4x6"):
        read_mask(tmp_path / "mask.png", 6, 4)
    Image.new("L", (6, 4)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="black all over"):
        read_mask(tmp_path / "mask.png", 4, 6)
