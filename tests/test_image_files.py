"""Images of any type and number of channels: decoded whole, resized and cut as pictures are, written as they came."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from helpers.deep_images import deep_bytes, make_pixels, npy_bytes
from i2sb.data.dataset import UnreadableImageError, open_split
from i2sb.data.loading import load_in_order
from i2sb.image_files import ARRAY, ARRAYS, PNG, TIFF, Form, encode, is_deep_png, open_planes, read_whole, turn_upright
from i2sb.images import TYPES, from_pixels, from_uint8, to_pixels, whole_range

KINDS = [
    *((dtype, channels, Form(dtype, ending, axis)) for dtype in TYPES for channels in (1, 2, 4, 13)
      for ending, axis in ((ARRAY, -1), (ARRAY, 0), (ARRAYS, 0), (TIFF, -1), (TIFF, 0))
      if not (ending == TIFF and channels == 1)),
    *((dtype, 1, Form(dtype, ending, None)) for dtype in TYPES if dtype != "uint8" for ending in (ARRAY, TIFF)),
    *(("uint16", channels, Form("uint16", PNG, -1 if channels > 1 else None)) for channels in (1, 3, 4)),
    *((dtype, 3, Form(dtype, TIFF, -1, colour=True)) for dtype in ("uint16", "float32")),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "channels", "form"), KINDS)
def test_images_come_back_whole_in_the_form_they_had(dtype, channels, form):
    pixels = make_pixels(dtype, channels)
    content = encode(torch.from_numpy(pixels), form, b"a profile")
    decoded = read_whole(content, channels)
    assert decoded.form == form and decoded.pixels.dtype == dtype and np.array_equal(decoded.pixels, pixels)
    assert decoded.profile == (b"a profile" if form.ending in (PNG, TIFF) else None)
    assert is_deep_png(content) == (form.ending == PNG)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("value_range", [None, (10.5, 30000.25)])
def test_every_integer_of_16_bits_comes_back(dtype, value_range):
    kind = np.iinfo(dtype)
    pixels = np.arange(kind.min, kind.max + 1).astype(dtype)
    if value_range:
        pixels = pixels[(pixels >= value_range[0]) & (pixels <= value_range[1])]
    images = from_pixels(pixels, value_range)
    assert images.dtype == np.float32 and images.min() >= -1 and images.max() <= 1
    assert np.array_equal(to_pixels(torch.from_numpy(images), dtype, value_range).numpy(), pixels)


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_a_range_of_values_becomes_the_network_s(dtype):
    low, high = whole_range(dtype)
    ends = from_pixels(np.array([low, high]).astype(dtype), None)
    assert ends.tolist() == [-1, 1]
    beyond = torch.tensor([-3.0, 3.0])
    assert to_pixels(beyond, dtype, None).tolist() == [low, high]
    assert to_pixels(beyond, dtype, (1.0, 3.0)).tolist() == [1, 3]


def test_values_beyond_the_range_are_refused_with_what_was_found():
    pixels = np.array([[3, 700]], np.uint16)
    with pytest.raises(ValueError, match=r"^holds values from 3 to 700, outside of `value_range` 0 500$"):
        from_pixels(pixels, (0.0, 500.0))
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            from_pixels(np.array([0.5, value], np.float32), None)


def test_deep_images_are_resized_and_cut_as_pictures_are(tmp_path):
    """The same image of 8 and of 16 bits: what is cut of it differs by the rounding of 8 bits alone."""
    (tmp_path / "val").mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (3, 30, 40)).astype(np.uint8)
    Image.fromarray(levels.transpose(1, 2, 0)).save(tmp_path / "val" / "a.png")
    deep = encode(torch.from_numpy(levels.astype(np.uint16) * 257), Form("uint16"))
    (tmp_path / "val" / "b.png").write_bytes(deep)
    for native in (False, True):
        images = open_split(tmp_path, "val", image_size=16, native=native)
        (plain, _), (exact, _) = images.read(0), images.read(1)
        assert plain.dtype == torch.uint8 and exact.dtype == torch.float32
        limit = 1e-6 if native else 1.01 / 127.5  # Pillow rounds after each of two passes
        assert (from_uint8(plain) - exact).abs().max() <= limit
        (batch,) = load_in_order(images, [0, 1], batch_size=2)
        assert torch.equal(batch.image, torch.stack([from_uint8(plain), exact]))
        assert [form.dtype for form in batch.forms] == ["uint8", "uint16"]


def test_8_bit_images_with_a_range_of_their_own(tmp_path):
    (tmp_path / "val").mkdir()
    Image.fromarray(np.array([[0, 100], [150, 200]], np.uint8)).save(tmp_path / "val" / "a.png")
    read = open_split(tmp_path, "val", image_size=2, image_channels=1, value_range=(0.0, 200.0)).read(0)[0]
    assert read.flatten().tolist() == [-1, 0, 0.5, 1]
    with pytest.raises(UnreadableImageError, match="a.png: holds values from 0 to 200, outside of `value_range` 0 100"):
        open_split(tmp_path, "val", image_size=2, image_channels=1, value_range=(0.0, 100.0)).read(0)


def test_arrays_of_8_bits_are_plain_images():
    pixels = make_pixels("uint8", 3)
    planes = open_planes(encode(torch.from_numpy(pixels), Form("uint8", ARRAY, -1)), 3, None, upright=True)
    assert np.array_equal(planes.tensor().numpy(), pixels)
    assert planes.form.numbered(3) == Form() and planes.form.numbered(5) == planes.form


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_a_channel_where_two_or_four_are_wanted(mode):
    content = io.BytesIO()
    pixels = make_pixels("uint8", len(mode))
    Image.fromarray(pixels.transpose(1, 2, 0), mode).save(content, format="PNG")
    assert np.array_equal(open_planes(content.getvalue(), len(mode), None, upright=True).tensor(), pixels)


def test_the_axis_of_channels_is_the_one_that_is_as_long_and_the_last_if_both_are():
    array = np.random.default_rng(0).random((3, 4, 3))
    content = io.BytesIO()
    np.save(content, array)
    assert np.array_equal(read_whole(content.getvalue(), 3).pixels, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright_as_pictures_are(orientation):
    pixels = make_pixels("uint8", 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, format="PNG", exif=exif)
    upright = open_planes(content.getvalue(), 3, None, upright=True).tensor()
    assert np.array_equal(turn_upright(pixels, orientation), upright)
    tagged = io.BytesIO()
    extratags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tagged, pixels.transpose(1, 2, 0).astype(np.uint16) * 257, photometric="rgb", extratags=extratags)
    assert torch.equal(open_planes(tagged.getvalue(), 3, None, upright=True).tensor() > 0, from_uint8(upright) > 0)


def two_arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    return content.getvalue()


def header_alone() -> bytes:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 10000000, 3), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117) + b"\n"


# What a file holds, how many channels are wanted, and what is said of it.
REFUSED = {
    "channels": (lambda: deep_bytes("uint16", 4, PNG), 3, "has 4 channels, `image_channels` is 3"),
    "shape": (lambda: deep_bytes("float32", 5, ARRAY), 4, r"is of shape \[17, 23, 5\], .* is 4: \[H, W, 4\]"),
    "grey": (lambda: deep_bytes("float32", 1, ARRAY), 2, "has 1 channel, `image_channels` is 2"),
    "type": (lambda: deep_bytes("int32", 1, ARRAY), 1, "holds pixels of type int32; there are uint8, uint16"),
    "complex": (lambda: deep_bytes("complex64", 1, ARRAY), 1, "holds pixels of type complex64"),
    "truth": (lambda: deep_bytes("bool", 1, ARRAY), 1, "holds pixels of type bool"),
    "signed": (lambda: deep_bytes("int8", 1, TIFF), 1, "holds pixels of type int8"),
    "stack": (lambda: npy_bytes(np.zeros((2, 2, 5, 5))), 2, r"is of shape \[2, 2, 5, 5\]"),
    "empty": (lambda: npy_bytes(np.zeros((0, 5))), 1, "holds no pixels"),
    "two": (two_arrays, 1, r"holds 2 arrays \(a, b\), one is wanted"),
    "pages": (lambda: deep_bytes("uint16", 1, TIFF, pages=2), 1, "holds 2 pictures; one is wanted"),
    "cmyk": (lambda: deep_bytes("uint16", 4, TIFF, photometric="separated"), 4, "has SEPARATED colours; convert it"),
    "inverse": (lambda: deep_bytes("uint16", 1, TIFF, photometric="miniswhite"), 1, "has MINISWHITE colours"),
    "ppm": (lambda: b"P6 2 2 65535\n" + bytes(24), 3, "is a PPM of more than 8 bits a channel; save it as PNG, TIFF"),
    "objects": (lambda: npy_bytes(np.array([[None]])), 1, "Object arrays cannot be loaded"),
    "cut npy": (lambda: deep_bytes("float32", 5, ARRAY)[:200], 5, "."),
    "cut npz": (lambda: deep_bytes("float32", 5, ARRAYS)[:200], 5, "."),
    "cut png": (lambda: deep_bytes("uint16", 3, PNG)[:-30], 3, "truncated"),
    "cut tiff": (lambda: deep_bytes("float32", 5, TIFF)[:300], 5, "."),
    "tiff": (lambda: b"II*\0abcdefgh", 5, "cut off, or damaged"),
    "huge": (header_alone, 3, "allocate"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_what_cannot_be_used_is_refused_in_a_line(tmp_path, name, capfd):
    make, channels, words = REFUSED[name]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.npy").write_bytes(make())  # what it holds counts, not its ending
    with pytest.raises(UnreadableImageError, match=f"a.npy: .*{words}") as error:
        open_split(tmp_path, "val", image_size=16, image_channels=channels).read(0)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("channels", "mode"), [(2, "RGBA"), (4, "RGB"), (5, "RGB")])
def test_pictures_have_as_many_channels_as_are_wanted(tmp_path, channels, mode):
    (tmp_path / "val").mkdir()
    Image.new(mode, (16, 16)).save(tmp_path / "val" / "a.png")
    with pytest.raises(
        UnreadableImageError, match=rf"has {len(mode)} channels \({mode}\), `image_channels` is {channels}"
    ):
        open_split(tmp_path, "val", image_size=16, image_channels=channels).read(0)


def test_packages_that_are_missing_are_named(monkeypatch):
    content = io.BytesIO()
    levels = make_pixels("uint16", 1)[0]
    Image.fromarray(levels).save(content, format="TIFF", compression="tiff_lzw")
    if find_spec("imagecodecs"):
        assert np.array_equal(read_whole(content.getvalue(), 1).pixels[0], levels)
    else:
        with pytest.raises(ValueError, match=r"needs the package imagecodecs \(pip install -r scripts/requirements-ar"):
            read_whole(content.getvalue(), 1)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        ValueError, match=r"needs the package tifffile \(pip install -r scripts/requirements-arrays.txt"
    ):
        read_whole(content.getvalue(), 1)


def test_an_npz_keeps_the_name_of_its_array():
    content = encode(torch.from_numpy(make_pixels("float32", 5)), Form("float32", ARRAYS, 0, name="file"))
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["file.npy"]
    assert read_whole(content, 5).form.name == "file"
