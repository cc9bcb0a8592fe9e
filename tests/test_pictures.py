"""One's own pictures: read, restored whole or in tiles, and written back as they were, never over what is there."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image
from PIL import Image

from i2sb import load_model
from i2sb.config import SampleConfig
from i2sb.images import from_uint8, to_uint8
from i2sb.sampling import split as sampling
from i2sb.sampling.picture_files import check_picture, find_pictures, read_mask, read_picture, write_picture
from i2sb.tiles import lay_tiles, pad_reflect, tiled

# --- Tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "tile", "overlap"), [(16, 16, 4), (17, 16, 4), (100, 32, 8), (64, 32, 0), (7, 16, 4)])
def test_tiles_cover_everything_and_their_weights_add_up(side, tile, overlap):
    axis = lay_tiles(side, tile, overlap)
    total = torch.zeros(side)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert len(weight) == min(tile, side) and (weight > 0).all()
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(side))
    assert axis.starts[0] == 0 and axis.starts[-1] + min(tile, side) == side
    assert all(b - a <= tile - overlap for a, b in zip(axis.starts, axis.starts[1:], strict=False))


def test_tiles_of_a_local_network_change_nothing():
    """A network that works pixel by pixel is the same in tiles; one step and the condition reach every tile."""
    net = lambda x, step, cond: 2 * x + cond + step.view(-1, 1, 1, 1)
    x, cond, step = torch.randn(2, 3, 50, 41), torch.randn(2, 3, 50, 41), torch.tensor([3, 7])
    for batch_size in (1, 5, 100):
        done = tiled(net, 16, 6, batch_size)(x, step, cond=cond)
        torch.testing.assert_close(done, net(x, step, cond), rtol=0, atol=1e-5)


def test_seams_are_blended():
    """Tiles that disagree by 1 meet in steps as small as the overlap is long."""
    calls = []

    def net(x, step, cond):
        calls.append(len(x))
        return torch.full_like(x, len(calls) % 2)

    done = tiled(net, 16, 8)(torch.zeros(1, 1, 16, 40), torch.tensor([0]), cond=None)[0, 0, 0]
    assert calls == [1, 1, 1, 1] and done.min() == 0 and done.max() == 1
    assert done.diff().abs().max() < 0.15


@pytest.mark.parametrize(("height", "width"), [(5, 8), (1, 3), (8, 8), (9, 33)])
def test_padding_mirrors_and_keeps_the_picture(height, width):
    x = torch.randn(1, 2, height, width)
    padded = pad_reflect(x, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(padded[..., :height, :width], x)
    if height == 5:
        assert torch.equal(padded[..., 5:8, :], x[..., [3, 2, 1], :])


# --- Files -----------------------------------------------------------------------------------------------------------


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


def write_deep_png(path: Path) -> None:
    """A PNG of 16 bits a channel in colour, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(24)) for _ in range(4)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_what_cannot_be_restored_is_refused_by_name(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    write_deep_png(tmp_path / "deep.png")
    deep.save(tmp_path / "grey16.png")
    deep.save(tmp_path / "grey16.tif")
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "two.tif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGBA", (4, 4)).save(tmp_path / "png.jpg", format="PNG")
    for name, words in {
        "deep.png": "has more than 8 bits a channel; convert it to 8 bits first",
        "grey16.png": "more than 8 bits",
        "grey16.tif": "more than 8 bits",
        "deep.ppm": "more than 8 bits",
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


# --- Restoring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    make_image(1, 37, 21).save(folder / "a.png")
    make_image(2, 5, 90).save(folder / "b.png")
    make_image(3, 30, 30).convert("L").save(folder / "more" / "c.jpg")
    return folder


@pytest.fixture
def restore(trained_run, tmp_path):
    """Restore pictures of one's own in this process; returns the folder they go to."""

    def run(source: Path, run: Path = trained_run, out: str = "out", **changes) -> Path:
        common = {"ckpt": run.name, "results_dir": str(run.parent), "device": "cpu", "nfe": 2}
        sampling.run(SampleConfig(input=str(source), output=str(tmp_path / out), **{**common, **changes}))
        return tmp_path / out

    return run


def pixels(path: Path) -> torch.Tensor:
    return read_picture(path, 3).image


@pytest.mark.parametrize("tile", [0, 16])
def test_command_and_python_give_the_same(restore, photos, trained_run, tile):
    out = restore(photos, tile=tile, overlap=6, sampler="eta", eta=0.5, seed=4)
    model = load_model(trained_run)
    for name in ("a.png", "b.png"):
        degraded = from_uint8(pixels(photos / name))[None]
        restored = model.restore(degraded, nfe=2, seed=4, sampler="eta", eta=0.5, tile=tile, overlap=6)
        assert restored.shape == degraded.shape
        assert torch.equal(to_uint8(restored)[0], pixels(out / name))
    with Image.open(out / "more" / "c.jpg") as image:
        assert image.size == (30, 30) and image.mode == "L"
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "b.png", "more/c.jpg"]
    assert lines[0]["settings"]["tile"] == tile and (lines[1]["height"], lines[1]["width"]) == (90, 5)


def test_tiles_hardly_change_what_is_seen(restore, photos):
    whole, cut = (
        pixels(restore(photos / "a.png") / "a.png"),
        pixels(restore(photos / "a.png", out="cut", tile=16, overlap=8) / "a.png"),
    )
    assert (whole.int() - cut.int()).abs().float().mean() < 8


def test_large_pictures_are_tiled_by_default(restore, photos, monkeypatch):
    from i2sb.sampling import own_pictures

    monkeypatch.setattr(own_pictures, "LARGE_PIXELS", 700)
    out = restore(photos)
    tiles = [json.loads(line)["settings"]["tile"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert tiles == [256, 0, 256]


def test_a_picture_is_restored_as_if_alone(restore, photos):
    together, alone = restore(photos), restore(photos / "b.png", out="alone", batch_size=1)
    assert (together / "b.png").read_bytes() == (alone / "b.png").read_bytes()


def test_the_same_command_goes_on_and_others_are_refused(restore, photos, tmp_path):
    out = restore(photos)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "b.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in before if path.name != "manifest.jsonl" and path.exists()}
    (out / "manifest.jsonl").write_bytes(before[out / "manifest.jsonl"] + b'{"file": "more/c')  # cut off
    restore(photos)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert times == {path: path.stat().st_mtime_ns for path in times}, "made again"

    with pytest.raises(ValueError, match=r"a.png: was made with other settings \(nfe 2 there, 3 now\)"):
        restore(photos, nfe=3)
    make_image(7, 37, 21).save(photos / "a.png")
    with pytest.raises(ValueError, match="a.png: was restored from another a.png"):
        restore(photos)
    restore(photos, overwrite=True, nfe=3)
    assert (out / "b.png").read_bytes() != before[out / "b.png"]


def test_nothing_of_the_users_is_replaced(restore, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("mine")
    with pytest.raises(ValueError, match="out/b.png: exists already and is not listed in manifest.jsonl"):
        restore(photos)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    assert (tmp_path / "out" / "b.png").read_text() == "mine"
    with pytest.raises(ValueError, match="a.png: is the picture itself; name another `output`"):
        restore(photos / "a.png", out="photos", overwrite=True)
    with pytest.raises(ValueError, match="output .*lies in `input`"):
        restore(photos, out="photos/restored")
    with pytest.raises(ValueError, match="output .*name a folder"):
        restore(photos / "a.png", out="restored.jpg")


@pytest.fixture(scope="module")
def inpainting_run(tmp_path_factory, dataset_dir) -> Path:
    from conftest import TINY

    from i2sb.config import TrainConfig
    from i2sb.training.loop import train

    changes = {"corrupt": "inpaint-center", "ot_ode": True, "cond_x1": True, "num_itr": 2, "eval_every": 0}
    results = str(tmp_path_factory.mktemp("holes"))
    config = TrainConfig(name="holes", results_dir=results, dataset_dir=str(dataset_dir), **{**TINY, **changes})
    train(config)
    return config.run_dir


def test_holes_are_filled_and_the_rest_is_kept(restore, photos, tmp_path, inpainting_run):
    with pytest.raises(ValueError, match="mask: is missing: holes fills holes .inpaint-center."):
        restore(photos / "a.png", inpainting_run)
    (tmp_path / "masks").mkdir()
    hole = Image.new("L", (37, 21))
    hole.paste(255, (5, 4, 20, 15))
    hole.save(tmp_path / "masks" / "a.webp", lossless=True)
    out = restore(photos / "a.png", inpainting_run, mask=str(tmp_path / "masks"))
    before, after = pixels(photos / "a.png").int(), pixels(out / "a.png").int()
    assert (before - after)[:, :, 20:].abs().max() <= 1 and (before - after)[:, 4:15, 5:20].abs().float().mean() > 5
    with pytest.raises(ValueError, match="mask .*masks: lacks 2 of 3 masks, first that of b.png"):
        restore(photos, inpainting_run, mask=str(tmp_path / "masks"))
    model = load_model(inpainting_run)
    x, mask = from_uint8(pixels(photos / "a.png"))[None], read_mask(tmp_path / "masks" / "a.webp", 21, 37)[None]
    assert torch.equal(to_uint8(model.restore(x, mask=mask, nfe=2))[0], pixels(out / "a.png"))
    other = model.restore(x, mask=mask, cond=torch.zeros_like(x), nfe=2)
    assert not torch.equal(to_uint8(other)[0], pixels(out / "a.png")), "the condition does nothing"


def test_degrading_first_and_consistency(restore, photos, trained_run, capsys):
    from corruption import build_corruption

    out = restore(photos, corrupt="sr4x-pool", consistency="project", save_trajectory=True)
    clean = pad_reflect(from_uint8(pixels(photos / "a.png"))[None], 16)
    degraded = build_corruption("sr4x-pool", 32)(clean).image
    restored = load_model(trained_run).restore(degraded, nfe=2, consistency="project")[..., :21, :37]
    assert torch.equal(to_uint8(restored)[0], pixels(out / "a.png"))
    with Image.open(out / "trajectories" / "a.png.webp") as animation, Image.open(out / "a.png") as image:
        assert animation.n_frames == 3 and animation.size == image.size
    assert (out / "trajectories" / "more" / "c.jpg.png").exists()
    with pytest.raises(ValueError, match=r"a.png: images of 32x48 pixels, 3 channels: the published blur"):
        restore(photos, out="blur", corrupt="blur-uni")
    assert "3 pictures" in capsys.readouterr().out


def test_own_settings_and_the_split_do_not_mix():
    for changes, words in [
        ({"input": "a.png"}, "output: is missing"),
        ({"output": "b"}, "output b: needs `input`"),
        ({"overlap": 64}, "overlap 64: needs `input`"),
        ({"tile": 64}, "tile 64: needs `input`"),
        ({"input": "a", "output": "b", "subset": "c"}, "subset c: is about the val split"),
        ({"input": "a", "output": "b", "mask": "c", "corrupt": "d"}, "mask c: choose it or `corrupt` d"),
        ({"input": "a", "output": "b", "corrupt": "paired"}, "corrupt paired: pictures of `input` are degraded"),
        ({"input": "a", "output": "b", "tile": 16, "overlap": 16}, "overlap 16: must be below `tile` 16"),
        ({"sampler": "eta", "eta": 2.0}, "eta 2.0: must be between 0 and 1"),
        (
            {"consistency": "project", "consistency_weight": 2.0},
            "consistency_weight 2.0: only `consistency` gradient",
        ),
        ({"limit": 0}, "limit 0: must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            SampleConfig(ckpt="run", **changes)


def test_pictures_of_a_mixture_are_restored_whether_they_get_a_hole_or_not(restore, photos):
    """The picture is image 0 of an evaluation, so the first part of the mixture is its degradation: it gets no hole."""
    from corruption import build_corruption

    out = restore(photos / "a.png", corrupt="sr4x-pool,inpaint-center")
    clean = pad_reflect(from_uint8(pixels(photos / "a.png"))[None], 16)
    degraded = to_uint8(build_corruption("sr4x-pool", 32)(clean).image)[0, :, :21, :37]
    assert (pixels(out / "a.png").int() - degraded.int()).abs().float().mean() > 3, "taken for known all over"


def train_tiny(results: Path, dataset_dir: Path, **changes) -> Path:
    from conftest import TINY

    from i2sb.config import TrainConfig
    from i2sb.training.loop import train

    settings = {**TINY, "num_itr": 1, "eval_every": 0, "results_dir": str(results), "dataset_dir": str(dataset_dir)}
    config = TrainConfig(**{**settings, **changes})
    train(config)
    return config.run_dir


# It makes holes and its name says nothing of it.
OWN_HOLES = """
import torch
from corruption import Corrupted, Corruption

class Patch(Corruption):
    def degrade(self, clean, draws):
        mask = torch.zeros_like(clean[:, :1])
        mask[..., 4:8, 4:8] = 1
        return Corrupted(clean * (1 - mask), mask)
"""


def test_what_a_run_was_trained_on_says_itself_whether_it_fills_holes(
    restore, photos, tmp_path, dataset_dir, trained_run, inpainting_run, capsys
):
    hole = Image.new("L", (37, 21))
    hole.paste(255, (5, 4, 20, 15))
    hole.save(tmp_path / "hole.png")
    (tmp_path / "own.py").write_text(OWN_HOLES)
    own = f"{tmp_path}/own.py:Patch"
    results = tmp_path / "results"
    runs = {
        "sr": (trained_run, True),
        "holes": (inpainting_run, False),
        "code": (train_tiny(results, dataset_dir, name="code", corrupt=own), False),  # who knows
        "mixed": (train_tiny(results, dataset_dir, name="mixed", corrupt="jpeg-5,inpaint-center"), False),
    }
    for name, (run, warned) in runs.items():
        restore(photos / "a.png", run, out=f"{name}-masked", mask=str(tmp_path / "hole.png"))
        assert ("not to fill holes" in capsys.readouterr().err) == warned, name
        if name != "holes":  # of a mixture not every picture has a hole
            restore(photos / "a.png", run, out=f"{name}-whole")
    restore(photos / "a.png", runs["code"][0], out="degraded", corrupt=own)  # code that is named is run


def test_grey_pictures_come_back_in_colour_where_that_was_learned(restore, photos, tmp_path, dataset_dir, trained_run):
    make_image(1, 16, 16).convert("L").save(tmp_path / "grey.png")
    mixed = train_tiny(tmp_path / "results", dataset_dir, name="mixed", corrupt="jpeg-5,decolor")
    for run, mode in ((mixed, "RGB"), (trained_run, "L")):
        with Image.open(restore(tmp_path / "grey.png", run, out=run.name) / "grey.png") as image:
            assert image.mode == mode
