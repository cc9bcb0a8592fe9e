"""One's own pictures: restored whole or in tiles, and never over what is not this program's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corruption import build_corruption
from helpers.pictures import make_image
from helpers.tiny_run import TINY, train_anew
from i2sb import load_model, tiles
from i2sb.cli.program import describe, report_errors
from i2sb.config import SampleConfig, TrainConfig
from i2sb.data.picture_files import read_mask, read_picture
from i2sb.errors import UserError
from i2sb.images import from_uint8, to_uint8
from i2sb.sampling import own_pictures
from i2sb.sampling import split as sampling
from i2sb.storage.exported import write_export
from i2sb.storage.runs import read_weights
from i2sb.tiles import pad_reflect
from i2sb.training.loop import train


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


@pytest.mark.slow
def test_several_answers_lie_beside_the_first_and_python_gives_the_same(restore, photos, trained_run):
    how = {"seed": 4, "tile": 16, "overlap": 6}
    (photos / "b.png").unlink()
    grown = restore(photos, out="grown", **how)
    alone = (grown / "a.png").read_bytes()
    restore(photos, out="grown", samples=3, **how)
    out = restore(photos, samples=3, **how)
    files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert files == {path.relative_to(grown): path.read_bytes() for path in grown.rglob("*") if path.is_file()}
    names = sorted(name.as_posix() for name in files if name.match("more/c.jpg/*"))
    several = ["1.jpg", "2.jpg", "answers.json", "mean.jpg", "std.npy", "std.png"]
    assert names == [f"answers/more/c.jpg/{name}" for name in several]
    with Image.open(out / "answers/more/c.jpg/mean.jpg") as image:
        assert image.size == (30, 30) and image.mode == "L"

    model, lines = load_model(trained_run), (out / "manifest.jsonl").read_text().splitlines()
    told, kept = json.loads(lines[0]), {}
    assert (out / "a.png").read_bytes() == alone
    degraded = from_uint8(pixels(photos / "a.png"))[None]
    answers = model.restore(degraded, nfe=2, samples=3, **how, on_answer=kept.__setitem__)
    for which, x0 in ((1, kept[1]), (2, kept[2]), ("mean", answers.mean)):
        there = pixels(out / f"answers/a.png/{which}.png").int()
        assert (to_uint8(x0)[0].int() - there).abs().max() <= 1
    std = torch.from_numpy(np.load(out / "answers/a.png/std.npy"))
    torch.testing.assert_close(std, answers.std[0], rtol=1e-3, atol=1e-5)  # other tiles at once: other roundings
    assert told["diversity"] == pytest.approx(answers.diversity.item()) and told["settings"]["samples"] == 3


@pytest.mark.slow
def test_several_answers_go_on_and_nothing_old_stays_among_them(restore, photos):
    (photos / "b.png").unlink()
    out = restore(photos, samples=3)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for lost in ("a.png", "answers/a.png/1.png", "answers/a.png/std.npy", "answers/a.png/answers.json"):
        (out / lost).unlink()
        restore(photos, samples=3)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="a.png: has 3 answers to an image, 2 now; ask for `samples` 3, or name"):
        restore(photos, samples=2)
    restore(photos, samples=2, seed=5, overwrite=True)
    assert not list(out.rglob("2.*")) and (out / "answers/a.png/1.png").read_bytes() not in before.values()
    restore(photos, seed=5, overwrite=True)
    assert [path.name for path in out.rglob("answers/**/*") if path.is_file()] == []


def test_answers_take_the_place_of_nothing(restore, photos, tmp_path):
    mine = tmp_path / "out/answers/a.png/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="answers/a.png: exists already and is not listed in manifest.jsonl"):
        restore(photos, samples=2)
    (photos / "answers").mkdir()
    make_image(1, 9, 9).save(photos / "answers" / "x.png")
    with pytest.raises(UserError, match="input .*photos: holds a folder answers, as `output` will; rename it"):
        restore(photos, out="other", samples=2)
    assert mine.read_text() == "mine" and not (tmp_path / "other").exists()
    restore(photos, out="other")


def test_several_answers_differ_in_the_hole_alone(restore, photos, tmp_path, inpainting_run):
    hole = Image.new("L", (37, 21))
    hole.paste(255, (5, 4, 20, 15))
    hole.save(tmp_path / "hole.png")
    out = restore(photos / "a.png", inpainting_run, mask=str(tmp_path / "hole.png"), samples=2)
    std, inside = np.load(out / "answers/a.png/std.npy"), (slice(None), slice(4, 15), slice(5, 20))
    assert (std[inside] > 0).all() and std.sum() == pytest.approx(std[inside].sum())
    line = json.loads((out / "manifest.jsonl").read_text())
    assert line["diversity"] == pytest.approx(std[inside].mean())
    with pytest.raises(UserError, match="samples 2: no noise is drawn with `nfe` 1"):
        restore(photos, out="none", nfe=1, samples=2)


def test_a_picture_that_was_about_to_be_replaced_is_not_taken_for_the_new_one(restore, photos, monkeypatch):
    want = (restore(photos / "a.png", out="want", seed=5) / "a.png").read_bytes()
    restore(photos / "a.png", seed=0)

    def stop(*args, **kwargs):
        raise OSError("stopped here")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped here"):
        patch.setattr(own_pictures, "write_picture", stop)
        restore(photos / "a.png", seed=5, overwrite=True)
    assert (restore(photos / "a.png", seed=5) / "a.png").read_bytes() == want


def test_a_factor_larger_than_the_picture_is_refused(restore, photos):
    with pytest.raises(UserError, match=r"a.png: is 37x21 pixels, too small for `corrupt` sr99x-pool, which tak"):
        restore(photos / "a.png", corrupt="sr99x-pool")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_mask_may_be_as_deep_as_its_picture(tmp_path, dtype):
    hole = np.zeros((6, 8), dtype)
    hole[2:4] = 1 if dtype is np.float32 else 65535
    np.save(tmp_path / "hole.npy", hole)
    assert np.array_equal(read_mask(tmp_path / "hole.npy", 6, 8)[0].numpy(), hole > 0)


def test_files_that_are_passed_over_are_counted_and_named(restore, photos, capsys):
    restore(photos)
    assert "passed over" not in capsys.readouterr().err
    for name in ("b.gif", "more/a.heic", "c.txt", ".hidden", "d.x", "e.x", "f.x"):
        (photos / name).write_bytes(b"")
    restore(photos)
    said = capsys.readouterr().err
    assert "warning: --input: 6 files are passed over, since" in said and ": b.gif, c.txt, d.x, e.x, f.x, …\n" in said


def test_pictures_of_one_and_two_pixels_keep_their_size(restore, tmp_path):
    for name, size in (("a.png", (1, 1)), ("b.png", (2, 2)), ("c.png", (1, 40))):
        make_image(1, *size).save(tmp_path / name)
        with Image.open(restore(tmp_path / name) / name) as image:
            assert image.size == size


def test_a_pipe_among_the_pictures_is_named_at_once(restore, photos):
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(OSError, match=r"is no regular file: .*pipe.png"):
        restore(photos)


def test_names_that_are_no_utf_8_are_restored_and_found_again(restore, photos, capsys):
    (photos / "a.png").rename(photos / os.fsdecode(b"\xff.png"))
    for _ in range(2):
        with report_errors():  # as the program does
            out = restore(photos)
    assert (out / os.fsdecode(b"\xff.png")).exists()
    assert "3 pictures, 0 to restore here" in capsys.readouterr().out


def test_tiles_hardly_change_what_is_seen(restore, photos):
    whole, cut = (
        pixels(restore(photos / "a.png") / "a.png"),
        pixels(restore(photos / "a.png", out="cut", tile=16, overlap=8) / "a.png"),
    )
    assert (whole.int() - cut.int()).abs().float().mean() < 8


def test_large_pictures_are_tiled_by_default(restore, photos, monkeypatch):
    monkeypatch.setattr(tiles, "LARGE_PIXELS", 700)
    out = restore(photos)
    sides = [json.loads(line)["settings"]["tile"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sides == [256, 0, 256]


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


def train_tiny(results: Path, dataset_dir: Path, **changes) -> Path:
    settings = {**TINY, "num_itr": 1, "eval_every": 0, "results_dir": str(results), "dataset_dir": str(dataset_dir)}
    config = TrainConfig(**{**settings, **changes})
    train(config)
    return config.run_dir


@pytest.fixture(scope="module")
def inpainting_run(tmp_path_factory, dataset_dir) -> Path:
    changes = {"corrupt": "inpaint-center", "ot_ode": True, "cond_x1": True, "num_itr": 2}
    return train_tiny(tmp_path_factory.mktemp("holes"), dataset_dir, name="holes", **changes)


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


def test_a_mask_of_the_pictures_own_name_goes_before_one_of_its_stem(restore, tmp_path, inpainting_run):
    """a.png and a.jpg may both be there, each with its mask."""
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    for name, left in (("a.png", 2), ("a.bmp", 20)):
        make_image(1, 32, 16).save(tmp_path / "pictures" / name)
        hole = Image.new("L", (32, 16))
        hole.paste(255, (left, 4, left + 8, 12))
        hole.save(tmp_path / "masks" / name)
    out = restore(tmp_path / "pictures", inpainting_run, mask=str(tmp_path / "masks"))
    before = make_image(1, 32, 16)
    for name, kept in (("a.png", (16, 0, 32, 16)), ("a.bmp", (0, 0, 16, 16))):
        with Image.open(out / name) as after:
            near = [abs(x - y) <= 1 for x, y in zip(*(i.crop(kept).tobytes() for i in (before, after)), strict=True)]
        assert all(near), name
    make_image(2, 32, 16).save(tmp_path / "a.webp")
    with pytest.raises(UserError, match="masks: holds a.bmp and a.png for a.webp; keep one, or give it the picture's"):
        restore(tmp_path / "a.webp", inpainting_run, mask=str(tmp_path / "masks"))


def test_degrading_first_and_consistency(restore, photos, trained_run, capsys):
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


def test_sides_suit_the_degradation(restore, photos, trained_run):
    """a.png has 21x37 pixels: multiples of three, and of what the others take."""
    out = restore(photos / "a.png", corrupt="sr3x-bicubic", consistency="project")
    clean = pad_reflect(from_uint8(pixels(photos / "a.png"))[None], 48)
    corruption = build_corruption("sr3x-bicubic", 48)
    degraded = corruption(clean).image
    model = load_model(trained_run)
    want = model.restore(degraded, nfe=2, consistency="project", corruption=corruption)
    assert torch.equal(to_uint8(want)[0, :, :21, :37], pixels(out / "a.png"))
    assert (corruption.A(want) - corruption.A(clean)).abs().max() < 1e-5


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
        ({"sampler": "eta", "eta": 2.0}, "eta 2.0: must be at least 0 and at most 1"),
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
    out = restore(photos / "a.png", corrupt="sr4x-pool,inpaint-center")
    clean = pad_reflect(from_uint8(pixels(photos / "a.png"))[None], 16)
    degraded = to_uint8(build_corruption("sr4x-pool", 32)(clean).image)[0, :, :21, :37]
    assert (pixels(out / "a.png").int() - degraded.int()).abs().float().mean() > 3, "taken for known all over"


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


def test_an_exported_file_and_a_path_to_a_run_restore_as_the_run(restore, photos, trained_run, tmp_path):
    write_export(tmp_path / "mine.safetensors", read_weights(trained_run))
    before = {name: pixels(restore(photos) / name) for name in ("a.png", "more/c.jpg")}
    for ckpt, out in ((tmp_path / "mine.safetensors", "by file"), (trained_run, "by path")):
        restored = restore(photos, out=out, ckpt=str(ckpt), results_dir=str(tmp_path / "none"))
        for name, image in before.items():
            assert torch.equal(pixels(restored / name), image)
    restore(photos, out="by path")  # the same run, by its name: nothing is refused
    line = json.loads((tmp_path / "by file" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["settings"]["run"] == "mine.safetensors"
    assert not (tmp_path / "none").exists()
    for ckpt, words in (("mine.safetensors", "mine.safetensors: there is no such file"), ("nobody", "no such run")):
        with pytest.raises(UserError, match=words):
            restore(photos, ckpt=ckpt)


def test_pictures_of_a_run_that_was_trained_anew_are_not_kept(restore, photos, tmp_path, trained_run):
    restore(photos / "a.png")
    restore(photos / "a.png")
    with pytest.raises(UserError, match=r"a.png: was made with other settings \(weights \w+ there, \w+ now\)"):
        restore(photos, train_anew(trained_run, tmp_path / "anew"))


def test_pictures_of_before_an_option_was_there_are_continued(restore, photos):
    """Their manifest lacks its line: it is as by default."""
    out = restore(photos)
    path = out / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["settings"]["overlap"], line["settings"]["consistency_weight"], line["settings"]["weights"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "b.png").unlink()
    restore(photos)
    with pytest.raises(ValueError, match=r"a.png: was made with other settings \(overlap 32 there, 8 now\)"):
        restore(photos, overlap=8)


def test_all_bad_pictures_are_named_at_once_and_can_be_skipped(restore, photos, tmp_path, capsys):
    good = ["a.png", "b.png", "more/c.jpg"]
    (photos / "bad_a.png").write_bytes(b"no picture")
    (photos / "bad_b.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / good[0]).read_bytes()[:-200])
    with pytest.raises(UserError) as error:
        restore(photos)
    said = describe(error.value)
    assert f"--input {photos}: 3 of its {len(good) + 3} pictures cannot be restored: " in said
    assert "bad_a.png: " in said and "bad_b.jpg: " in said and "go on without them with --skip-bad" in said
    out = restore(photos, skip_bad=True)
    restored = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.suffix in (".png", ".jpg")]
    assert sorted(restored) == good
    warned = capsys.readouterr().err
    assert all(f"{name}: " in warned for name in ("bad_a.png", "bad_b.jpg", "cut.png")) and "; skipped" in warned
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="bad.png"):
        restore(tmp_path / "only", skip_bad=True)
