"""Folders of restored images: those of older versions are continued, and settings that differ are named."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from i2sb.cli.program import describe
from i2sb.errors import UserError, list_differences
from i2sb.storage.sample_folder import OLDER_SETTINGS, SampleFolder, SampleSettings, describe_masks

# As the first versions wrote them, and as those did that came before tiles were told of.
OLDEST = """\
run: tiny
iteration: 6
nfe: 2
corrupt: sr4x-pool
mask_file: ''
clip_denoise: false
use_fp16: false
seed: 0
dataset_dir: /data
image_size: 16
num_images: 5
fingerprint: 5f8f29405f3a0cf8
"""
LATER = """\
subset: ''
precision: fp32
ckpt_file: ''
sampler: posterior
eta: 1.0
consistency: none
consistency_weight: 1.0
"""


def settings(**changes) -> SampleSettings:
    data = {"run": "tiny", "iteration": 6, "corrupt": "sr4x-pool", "dataset_dir": "/data", "image_size": 16}
    options = {"nfe": 2, "sampler": "posterior", "eta": 1.0, "tile": 0}
    return SampleSettings(**{**data, **options, "num_images": 5, "fingerprint": "5f8f29405f3a0cf8", **changes})


@pytest.mark.parametrize("text", [OLDEST, OLDEST + LATER], ids=["oldest", "later"])
def test_folders_of_older_versions_are_continued(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    folder = SampleFolder.begin(tmp_path, settings(dataset_dir="/moved"))
    assert folder.settings == settings() and (tmp_path / "settings.yaml").read_text() == text
    for change, words in (
        ({"sampler": "eta", "eta": 0.0}, "sampler posterior there, eta now; eta 1.0 there, 0.0 now"),
        ({"tile": 8, "overlap": 2}, "tile 0 there, 8 now; overlap 32 there, 2 now"),
        ({"precision": "bf16"}, "precision fp32 there, bf16 now"),
    ):
        with pytest.raises(ValueError) as error:
            SampleFolder.begin(tmp_path, settings(**change))
        said = describe(error.value)
        assert f"holds images made with other settings ({words})" in said and "--sample-dir" in said


def test_files_may_move_but_not_come_or_go(tmp_path):
    SampleFolder.begin(tmp_path, settings(mask_file="a.npz", subset="list.txt"))
    SampleFolder.begin(tmp_path, settings(mask_file="b.npz", subset="moved.txt"))
    with pytest.raises(ValueError, match="mask_file a.npz there,  now"):
        SampleFolder.begin(tmp_path, settings())


def test_masks_are_told_apart_by_what_they_are_not_by_where(tmp_path):
    for name, content in (("a.npz", b"1"), ("moved.npz", b"1"), ("other.npz", b"2")):
        (tmp_path / name).write_bytes(content)
    made = {name: describe_masks(str(tmp_path / name)) for name in ("a.npz", "moved.npz", "other.npz")}
    path = tmp_path / "samples"
    SampleFolder.begin(path, settings(**made["a.npz"]))
    folder = SampleFolder.begin(path, settings(**made["moved.npz"]))
    folder.check_masks(str(tmp_path / "moved.npz"))
    with pytest.raises(UserError, match=r"made with other settings \(masks \w+ there, \w+ now\)"):
        SampleFolder.begin(path, settings(**made["other.npz"]))
    with pytest.raises(UserError, match="mask_file .*other.npz: the images in .*samples were made with .*a.npz"):
        folder.check_masks(str(tmp_path / "other.npz"))
    with pytest.raises(UserError, match="the images in .*samples were made with the masks in .*a.npz"):
        folder.check_masks("")
    with pytest.raises(UserError, match="other.npz: the images in .*drawn were made with no file of masks"):
        SampleFolder.begin(tmp_path / "drawn", settings()).check_masks(str(tmp_path / "other.npz"))
    saved = path / "settings.yaml"
    saved.write_text("".join(line for line in saved.open() if not line.startswith("masks:")))  # an older version's
    SampleFolder.begin(path, settings(**made["other.npz"])).check_masks(str(tmp_path / "other.npz"))


def test_settings_read_back_as_they_were_written(tmp_path):
    written = settings(nfe=7, clip_denoise=True, sampler="eta", eta=0.5, seed=3, subset="1e5", run="01")
    SampleFolder.begin(tmp_path, written)
    assert SampleFolder.open(tmp_path).settings == written


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nfe: 2\n", "", "lacks nfe"),
        ("nfe: 2", "nfe: many", "--nfe many: must be a whole number"),
        ("nfe: 2", "nfe: 0", "--nfe 0: must be at least 1"),
        ("seed: 0", "seed: 0\nsteps: 3", "unknown setting steps"),
    ],
)
def test_broken_settings_are_named(tmp_path, old, new, words):
    (tmp_path / "settings.yaml").write_text(OLDEST.replace(old, new))
    with pytest.raises(ValueError) as error:
        SampleFolder.open(tmp_path)
    said = describe(error.value)
    assert said.startswith(f"{tmp_path}/settings.yaml: ") and words in said


def test_differences_are_only_of_what_is_asked_for():
    before = {"nfe": 2, "somewhere": "here"}
    unchanged = {"nfe": 2, "tile": 0, "consistency": "none", "network": ""}
    assert list_differences(OLDER_SETTINGS | before, unchanged) == ""
    assert list_differences(OLDER_SETTINGS | before, {"nfe": 3}) == "nfe 2 there, 3 now"


def test_an_image_that_is_cut_off_is_named(tmp_path):
    folder = SampleFolder.begin(tmp_path, settings())
    folder.save(0, torch.arange(3 * 16 * 16).view(3, 16, 16).to(torch.uint8))
    assert folder.load(0).shape == (3, 16, 16) and folder.missing([0, 1]) == [1]
    path = folder.image_path(0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="000000.png: unreadable image"):
        folder.load(0)
    with pytest.raises(OSError):
        folder.load(1)


def test_an_empty_file_is_no_image(tmp_path):
    """As a machine that lost its power may leave it: the name is on the disk, the content is not."""
    folder = SampleFolder.begin(tmp_path, settings())
    for index in range(2):
        folder.save(index, torch.zeros(3, 16, 16, dtype=torch.uint8))
    folder.image_path(1).write_bytes(b"")
    assert folder.missing([0, 1, 2]) == [1, 2]


@pytest.mark.parametrize("colours", [1, 3])
def test_images_in_smaller_files_are_the_same(tmp_path, colours):
    """Other programs write the same pixels with a palette, or a bit each."""
    folder = SampleFolder.begin(tmp_path, settings())
    image = (torch.arange(colours * 16 * 16) % 2).view(colours, 16, 16).mul(255).to(torch.uint8)
    image[:, :8] = 255 * torch.arange(colours).view(-1, 1, 1)
    with Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) as drawn:
        smaller = drawn.convert("1", dither=Image.Dither.NONE) if colours == 1 else drawn.quantize(8)
    folder.image_path(0).parent.mkdir()
    smaller.save(folder.image_path(0))
    with Image.open(folder.image_path(0)) as kept:
        assert kept.mode == ("1" if colours == 1 else "P")
    assert torch.equal(folder.load(0), image)
