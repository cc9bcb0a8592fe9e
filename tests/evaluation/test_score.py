"""Scoring whole folders: PNGs and released files, one process and two, references, and what cannot be computed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.functional import pil_to_tensor

from corruption import build_corruption
from helpers.pictures import write_images
from helpers.programs import ROOT, run_python
from i2sb import load_model
from i2sb.config import EvalConfig, SampleConfig, SamplingOptions
from i2sb.data.dataset import open_split
from i2sb.errors import UserError
from i2sb.evaluation import score as evaluation
from i2sb.metrics.feature_networks import NETWORKS, FeatureNetwork, FeatureOutput
from i2sb.metrics.frechet import Gaussian
from i2sb.metrics.reference import MadeFrom, read_reference, write_reference
from i2sb.metrics.table import INCEPTION, METRICS, RESNET50, Metric
from i2sb.sampling import split as sampling
from i2sb.storage.sample_folder import SampleFolder, SampleSettings, describe_masks
from i2sb.training.validation import ValidationSet, choose_metrics, summarise, validate

CHEAP = "psnr,ssim,mae,features-frechet"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    """A feature function in a file: means over thirds of the image, three numbers."""
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(
        "from torch.nn.functional import adaptive_avg_pool2d\n"
        "def thirds(images): return adaptive_avg_pool2d(images[:, :1], (1, 3)).flatten(1)\n"
    )
    return f"{file}:thirds"


@pytest.fixture(scope="module")
def results(tmp_path_factory, trained_run) -> Path:
    """A results folder with a run and its restored images; treat it as read-only, but for what scoring writes."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "tiny").mkdir()
    for name in ("config.yaml", "latest.pt"):
        (folder / "tiny" / name).symlink_to(trained_run / name)
    sampling.run(SampleConfig(ckpt="tiny", results_dir=str(folder), nfe=2, device="cpu", workers=0))
    return folder


@pytest.fixture
def config(results, own) -> EvalConfig:
    places = {"results_dir": str(results), "device": "cpu", "workers": 0, "batch_size": 2}
    return EvalConfig(ckpt="tiny", sample_dir="samples_nfe2", metrics=CHEAP, features=own, **places)


def score(config: EvalConfig) -> dict:
    evaluation.run(config)
    return json.loads((config.run_dir / config.sample_dir / "metrics.json").read_text())


def restored_pixels(results: Path) -> torch.Tensor:
    paths = sorted((results / "tiny" / "samples_nfe2" / "000").glob("*.png"))
    return torch.stack([pil_to_tensor(Image.open(path)) for path in paths])


def write_recon(folder: Path, *parts: slice, pixels: torch.Tensor, labels=(0, 0, 1, 1, 1)) -> None:
    """Write 8-bit images as the released program keeps them: floats that become these levels again."""
    folder.mkdir(parents=True, exist_ok=True)
    floats = (pixels.float() + 0.5) / 127.5 - 1
    for i, part in enumerate(parts or [slice(None)]):
        name = f"recon_{i}_{len(parts)}.pt" if parts else "recon.pt"
        torch.save({"arr": floats[part].clone(), "label_arr": torch.tensor(labels)[part]}, folder / name)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_metrics_json_says_what_every_number_is(config, results):
    report = score(config)
    assert list(report["metrics"]) == ["psnr", "ssim", "mae", "features-frechet"]
    for metric in report["metrics"].values():
        assert metric["n"] == 5 and metric["definition"] and metric["degraded"] > 0 and metric["restored"] > 0
    assert config.features in report["metrics"]["features-frechet"]["definition"]
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["scored_with"]["mode"] == "legacy_pytorch" and report["settings"]["nfe"] == 2

    images = open_split(report["settings"]["dataset_dir"], "val", image_size=16)
    clean = np.stack([images.read(i)[0].numpy() for i in range(5)]).astype(float)
    restored = restored_pixels(results).numpy().astype(float)
    assert report["metrics"]["mae"]["restored"] == pytest.approx(np.abs(restored - clean).mean())
    mse = ((restored - clean) ** 2).mean(axis=(1, 2, 3))
    assert report["metrics"]["psnr"]["restored"] == pytest.approx((10 * np.log10(255**2 / mse)).mean())
    folder = config.run_dir / "samples_nfe2"
    assert {"metrics.json", "report.html", "comparison.png"} <= {path.name for path in folder.iterdir()}


def test_several_answers_add_their_mean_and_diversity_and_change_nothing_else(config, results, capsys):
    one = score(config)
    common = {"ckpt": "tiny", "results_dir": str(results), "nfe": 2, "device": "cpu", "workers": 0}
    sampling.run(SampleConfig(**common, sample_dir="several", samples=3))
    report = score(replace(config, sample_dir="several"))
    assert report["metrics"] == one["metrics"] and "answers" not in one
    folder = config.run_dir / "several"
    images = open_split(report["settings"]["dataset_dir"], "val", image_size=16)
    clean = torch.stack([images.read(i)[0] for i in range(5)])
    paths = [folder / f"answers/000/{i:06d}" for i in range(5)]
    mean = torch.stack([pil_to_tensor(Image.open(path / "mean.png")) for path in paths])
    psnr = METRICS["psnr"].compare(mean, clean).mean().item()
    assert report["answers"]["psnr_of_mean"]["value"] == pytest.approx(psnr)
    diversity = float(np.mean([np.load(path / "std.npy").mean() for path in paths]))
    assert report["answers"]["diversity"]["value"] == pytest.approx(diversity, rel=1e-5)
    assert f"3 answers to each: PSNR of the mean {psnr:.2f} dB, diversity {diversity:.4f}" in capsys.readouterr().out
    assert (folder / "report.html").read_text().count(", answer 2") == 5
    (paths[3] / "2.png").unlink()
    with pytest.raises(UserError, match="several: 1 of 5 images are missing, first number 3; finish sample.py first"):
        score(replace(config, sample_dir="several"))


@pytest.mark.parametrize("parts", [(), (slice(0, 2), slice(2, 5))], ids=["whole", "parts"])
def test_a_released_file_scores_as_the_images_it_was_made_from(config, results, parts):
    folder = f"samples_nfe7_parts{len(parts)}"
    write_recon(results / "tiny" / folder, *parts, pixels=restored_pixels(results))
    want, got = score(config), score(replace(config, sample_dir=folder))
    assert got["metrics"] == want["metrics"] and got["settings"]["nfe"] == 7


def test_a_released_folder_needs_no_settings_of_ours(config, results, dataset_dir, tmp_path):
    write_recon(tmp_path / "theirs" / "samples_nfe2", pixels=restored_pixels(results))
    theirs = replace(config, ckpt="theirs", results_dir=str(tmp_path))
    with pytest.raises(UserError, match="does not say what it was restored from: give `corrupt` and `dataset_dir`"):
        score(theirs)
    flags = {"corrupt": "sr4x-pool", "dataset_dir": str(dataset_dir)}
    assert score(replace(theirs, **flags))["metrics"] == score(config)["metrics"]
    with pytest.raises(UserError, match="give the published masks that .* used with `mask_file`"):
        score(replace(theirs, **{**flags, "corrupt": "inpaint-freeform1020"}))


def test_a_released_file_of_listed_images(config, tmp_path):
    """The published 10,000: the list's order is the file's."""
    write_images(tmp_path / "data" / "val", [f"{i}.png" for i in range(4)])
    (tmp_path / "list.txt").write_text("/elsewhere/3.png\n/elsewhere/1.png\n")
    images = open_split(tmp_path / "data", "val", image_size=16)
    pixels = torch.stack([images.read(i)[0] for i in (3, 1)])
    write_recon(tmp_path / "theirs" / "samples_nfe2", pixels=pixels, labels=(0, 0))
    places = {
        "ckpt": "theirs",
        "results_dir": str(tmp_path),
        "corrupt": "jpeg-10",
        "dataset_dir": str(tmp_path / "data"),
    }
    with pytest.raises(UserError, match=": holds 4 images, .* 2: give the `dataset_dir`, and the `subset`"):
        score(replace(config, **places))
    report = score(replace(config, subset=str(tmp_path / "list.txt"), **places))
    assert report["images"] == 2 and report["metrics"]["mae"]["restored"] == 0
    assert report["metrics"]["psnr"]["restored"] == 60


@pytest.mark.cluster
def test_two_processes_score_what_one_scores(config):
    """In batches of one, so that all images are seen alike. What networks keep is held by test_meters.py."""
    config = replace(config, batch_size=1)
    one = score(config)["metrics"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in vars(config).items() if value not in ("", None)]
    run_python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "compute_metrices.py", *flags
    )
    two = json.loads((config.run_dir / config.sample_dir / "metrics.json").read_text())["metrics"]
    assert [two[name] for name in ("psnr", "ssim", "mae")] == [one[name] for name in ("psnr", "ssim", "mae")]
    for column in ("degraded", "restored"):
        assert two["features-frechet"][column] == pytest.approx(one["features-frechet"][column], rel=1e-6)
    assert two["features-frechet"]["n"] == 5


class KnowsBrightness(FeatureNetwork):
    """Tells dark images from bright ones; class 0 is dark."""

    name = "toy"

    def forward(self, images):
        brightness = images.double().mean(dim=(1, 2, 3))
        return FeatureOutput(None, torch.stack([127.5 - brightness, brightness - 127.5], dim=1))


def test_accuracy_is_100_on_images_the_classifier_knows(tmp_path, monkeypatch, results):
    """The whole way: class folders, labels, restored PNGs, the table."""
    monkeypatch.setitem(METRICS, "ca", replace(METRICS["ca"], classes=2))
    monkeypatch.setitem(NETWORKS, RESNET50, lambda options: KnowsBrightness())
    for name, level in (("a_dark", 20), ("b_bright", 240)):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), (level, level - i, level)).save(tmp_path / "data" / "val" / name / f"{i}.png")
    labels, levels = [0, 0, 0, 1, 1, 1], torch.tensor([30, 30, 30, 200, 200, 30])  # the last one went wrong
    pixels = levels[:, None, None, None].expand(6, 3, 16, 16)
    write_recon(tmp_path / "toy" / "samples_nfe1", pixels=pixels, labels=labels)
    config = EvalConfig(
        ckpt="toy",
        results_dir=str(tmp_path),
        sample_dir="samples_nfe1",
        corrupt="sr4x-pool",
        dataset_dir=str(tmp_path / "data"),
        metrics="ca",
        device="cpu",
        workers=0,
    )
    ca = score(config)["metrics"]["ca"]
    assert ca["degraded"] == 100 and ca["restored"] == pytest.approx(100 * 5 / 6) and ca["unit"] == "%"


# --- references ------------------------------------------------------------------------------------------------------


def make_reference(config: EvalConfig, path: Path, **changes) -> Path:
    settings = {"ckpt": "", "sample_dir": "", "make_reference": str(path), "image_size": 16, **changes}
    evaluation.run(replace(config, **settings))
    return path


def test_reference_of_the_scored_split_gives_what_its_clean_images_give(config, dataset_dir, tmp_path):
    reference = make_reference(config, tmp_path / "val.npz", dataset_dir=str(dataset_dir))
    made_from = read_reference(reference).made_from
    assert (made_from.split, made_from.images, made_from.image_size) == ("val", 5, 16)
    assert made_from.network == config.features and made_from.data == dataset_dir.name
    want = score(config)["metrics"]["features-frechet"]
    got = score(replace(config, reference=str(reference), reference_split="val"))["metrics"]["features-frechet"]
    assert got["restored"] == pytest.approx(want["restored"], rel=1e-9)
    assert got["reference"] == {"file": str(reference), "made_from": vars(made_from)}
    with pytest.raises(UserError, match="is there already"):
        make_reference(config, reference, dataset_dir=str(dataset_dir))


def test_reference_of_something_else_is_refused(config, dataset_dir, tmp_path, own):
    """By default super-resolution is compared with the training set, as published."""
    reference = make_reference(config, tmp_path / "val.npz", dataset_dir=str(dataset_dir))
    with pytest.raises(UserError, match=r"val.npz: made from something else \(split val there, train wanted\)"):
        score(replace(config, reference=str(reference)))
    train = {"dataset_dir": str(dataset_dir), "reference_split": "train"}
    larger = make_reference(config, tmp_path / "larger.npz", **{**train, "image_size": 20})
    with pytest.raises(UserError, match="image size 20 there, 16 wanted"):
        score(replace(config, reference=str(larger)))
    score(replace(config, reference=str(make_reference(config, tmp_path / "train.npz", **train))))
    with pytest.raises(UserError, match=f"made with {own}; give `features`"):
        score(replace(config, features="", metrics="psnr", reference=str(reference)))
    with pytest.raises(UserError, match="but `metrics` psnr leaves out features-frechet"):
        score(replace(config, metrics="psnr", reference=str(reference)))


def test_reference_of_another_mode_or_network_is_refused(config, tmp_path, inception_dir):
    config = replace(config, metrics="fid", weights_dir=str(inception_dir))
    statistics = Gaussian(torch.zeros(2048).double(), torch.eye(2048).double())
    path = tmp_path / "a.npz"
    right = MadeFrom(network="Inception", mode="legacy_pytorch", split="train", image_size=16)
    for made_from, words in (
        (replace(right, mode="clean"), "`mode` clean there, legacy_pytorch wanted"),
        (replace(right, weights="0123456789abcdef"), "digest of the network's file 0123456789abcdef there"),
    ):
        write_reference(path, statistics, made_from)
        with pytest.raises(UserError, match=words):
            score(replace(config, reference=str(path)))
    write_reference(path, Gaussian(torch.zeros(3).double(), torch.eye(3).double()), right)
    with pytest.raises(UserError, match="holds 3 features, Inception has 2048"):
        score(replace(config, reference=str(path)))


class SmallInception(FeatureNetwork):
    """Six features in place of Inception's 2048, to save time."""

    name, dim = INCEPTION, 6

    def forward(self, images):
        return FeatureOutput(adaptive_avg_pool2d(images.double() / 255, (1, 2)).flatten(1), None)


def test_the_overlap_with_the_clean_images_needs_a_few_and_no_reference(config, dataset_dir, tmp_path, own):
    reason = "not computed: needs at least 6 images"
    assert score(replace(config, metrics="features-recall"))["not_computed"] == {"features-recall": reason}
    images = open_split(dataset_dir, "train", image_size=16)
    pixels = torch.stack([images.read(i)[0] for i in range(len(images))])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(dataset_dir / "train")
    write_recon(tmp_path / "theirs" / "samples_nfe2", pixels=pixels, labels=[0] * 6 + [1] * 6)
    reference = make_reference(config, tmp_path / "val.npz", dataset_dir=str(tmp_path / "data"))
    theirs = replace(config, ckpt="theirs", results_dir=str(tmp_path), corrupt="jpeg-10", reference=str(reference))
    names = [f"features-{part}" for part in ("precision", "recall", "density", "coverage")]
    whole = score(replace(theirs, dataset_dir=str(tmp_path / "data"), metrics=f"features-frechet,{','.join(names)}"))
    assert not whole["not_computed"]
    for name in names:
        metric = whole["metrics"][name]
        assert metric["restored"] == 1 and metric["title"] == f"{name.removeprefix('features-')}, {own}"
        assert metric["pool_size"] == metric["n"] == 12 and "12 images and their clean partners" in metric["definition"]
    assert whole["metrics"]["features-precision"]["degraded"] > 0


def test_statistics_as_adm_keeps_them(config, tmp_path, monkeypatch, capsys):
    """mu and sigma alone: known by name, or taken as they are with a warning."""
    monkeypatch.setitem(NETWORKS, INCEPTION, lambda options: SmallInception())
    config = replace(config, metrics="fid")
    known, unknown = tmp_path / "VIRTUAL_imagenet256_labeled.npz", tmp_path / "statistics.npz"
    for path in (known, unknown):
        np.savez(path, mu=np.zeros(6), sigma=np.eye(6, dtype=np.float32), arr_0=np.zeros(3, dtype=np.uint8))
    with pytest.raises(UserError, match="image size 256 there, 16 wanted"):
        score(replace(config, reference=str(known)))
    fid = score(replace(config, reference=str(unknown)))["metrics"]["fid"]
    assert "does not say what it was made from" in capsys.readouterr().err
    assert fid["restored"] > 0 and fid["reference"]["made_from"] == "not said" and "statistics.npz" in fid["definition"]
    assert "5 images are few for 6 features" in fid["definition"]


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile_was_here"),))


def test_references_and_released_files_cannot_run_code(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", mu=np.array([Hostile(), 1], dtype=object), sigma=np.eye(2))
    with pytest.raises(UserError, match="a.npz: cannot be used"):
        read_reference(tmp_path / "a.npz")
    (tmp_path / "theirs" / "samples_nfe2").mkdir(parents=True)
    torch.save({"arr": Hostile()}, tmp_path / "theirs" / "samples_nfe2" / "recon.pt")
    with pytest.raises(UserError, match="recon.pt: cannot be read"):
        score(replace(config, ckpt="theirs", results_dir=str(tmp_path)))
    assert not Path("hostile_was_here").exists()


# --- what cannot be computed, and what is refused --------------------------------------------------------------------


def test_what_is_missing_is_said_and_the_rest_computed(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = replace(config, metrics="ssim,fid,kid,ca,lpips-vgg", weights_dir=str(tmp_path))
    report = score(config)
    assert set(report["metrics"]) == {"psnr", "ssim"}
    reasons = report["not_computed"]
    assert "needs pt_inception-2015-12-05-6726825d.pth in" in reasons["fid"] == reasons["kid"]
    assert "needs vgg16-397923af.pth" in reasons["lpips-vgg"]
    assert "needs the 1000 class folders of ImageNet, the data set has 2" in reasons["ca"]
    assert "fid, kid not computed: needs" in capsys.readouterr().out
    score(replace(config, require="ssim"))
    with pytest.raises(SystemExit) as stop:
        score(replace(config, require="psnr,fid"))
    assert stop.value.code == 3
    assert "--require: fid (not computed: needs pt_inception" in capsys.readouterr().err
    assert (config.run_dir / config.sample_dir / "metrics.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": (0, 0, 1, 1, 0)}, "val: image 4 is of class 1, in .* of class 0 \\(1 differ\\)"),
        ({"pixels": torch.zeros(4, 3, 16, 16), "labels": (0, 0, 1, 1)}, "val: holds 5 images, .* 4: give the"),
        ({"pixels": torch.full((5, 3, 16, 16), torch.nan)}, "recon.pt: image 0 holds values that are not finite"),
        ({"pixels": torch.zeros(5, 3, 16, 12)}, "12x16 pixels, square ones are wanted"),
        ({"pixels": torch.zeros(5, 48, 16)}, r"arr is torch.float32 \[5, 48, 16\]"),
    ],
)
def test_released_files_that_do_not_fit(config, tmp_path, results, dataset_dir, changes, words):
    write_recon(tmp_path / "theirs" / "samples_nfe2", **{"pixels": torch.zeros(5, 3, 16, 16), **changes})
    places = {"ckpt": "theirs", "results_dir": str(tmp_path), "corrupt": "sr4x-pool", "dataset_dir": str(dataset_dir)}
    with pytest.raises(UserError, match=words):
        score(replace(config, **places))


def test_released_files_that_are_broken_or_gone(config, tmp_path, results):
    folder = tmp_path / "tiny" / "samples_nfe2"
    shutil.copytree(results / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("samples*"))
    config = replace(config, results_dir=str(tmp_path))
    write_recon(folder, slice(0, 2), slice(2, 4), slice(4, 5), pixels=restored_pixels(results))
    (folder / "recon_1_3.pt").unlink()
    with pytest.raises(UserError, match="lacks 1 of 3 parts, first recon_1_3.pt"):
        score(config)
    write_recon(folder, slice(0, 5), slice(5, 5), pixels=restored_pixels(results))
    with pytest.raises(UserError, match=r"holds parts of several sets \(of 2, 3 parts\)"):
        score(config)
    for content in (b"", b"PK\x03\x04", b"\x80\x04K\x01."):
        (folder / "recon.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"recon.pt: cannot be read"):
            score(config)
    torch.save({"arr": Path("x")}, folder / "recon.pt")
    with pytest.raises(UserError, match=r"recon.pt: cannot be read \(it holds more than tensors"):
        score(config)
    torch.save({"arr": torch.zeros(1)}, folder / "recon.pt")
    with pytest.raises(UserError, match="holds no restored images"):
        score(config)


def test_one_image_is_enough_for_what_one_image_can_tell(config, tmp_path):
    write_images(tmp_path / "data" / "val", ["0.png"])
    write_recon(tmp_path / "one" / "samples_nfe1", pixels=torch.zeros(1, 3, 16, 16), labels=(0,))
    places = {"ckpt": "one", "results_dir": str(tmp_path), "corrupt": "jpeg-10", "dataset_dir": str(tmp_path / "data")}
    report = score(replace(config, sample_dir="samples_nfe1", **places))
    assert report["not_computed"]["features-frechet"] == "not computed: needs at least 2 images"
    assert report["metrics"]["psnr"]["n"] == 1


def test_a_flat_image_does_not_carry_the_mean(config, tmp_path, trained_run):
    """In scoring and in validation: pooling leaves the flat image as it is, so that its PSNR would be infinite."""
    write_images(tmp_path / "data" / "val", ["1.png"])
    Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / "data" / "val" / "0.png")
    images = open_split(tmp_path / "data", "val", image_size=16)
    clean = torch.stack([images.read(i)[0] for i in range(2)])
    write_recon(tmp_path / "flat" / "samples_nfe1", pixels=torch.stack([clean[0], clean[1] ^ 1]), labels=(0, 0))
    places = {"results_dir": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "sample_dir": "samples_nfe1"}
    psnr = score(replace(config, ckpt="flat", corrupt="sr4x-pool", metrics="psnr", **places))["metrics"]["psnr"]
    assert psnr["restored"] == pytest.approx((60 + 20 * np.log10(255)) / 2)
    assert psnr["images_at_limit"] == {"degraded": 1, "restored": 1} and "at most 60 dB" in psnr["definition"]

    metrics, settings = choose_metrics(None, 16), {"batch_size": 2, "nfe": 1, "clip_denoise": False, "seed": 0}
    validation_set = ValidationSet(images, build_corruption("sr4x-pool", 16), metrics)
    validation = validate(load_model(trained_run), validation_set, [0, 1], **settings)
    assert summarise(validation.sums, metrics)[0]["psnr_degraded"] == pytest.approx(psnr["degraded"])


def test_images_under_11_pixels_have_no_ssim(config, tmp_path):
    write_images(tmp_path / "data" / "val", ["0.png", "1.png"])
    write_recon(tmp_path / "small" / "samples_nfe1", pixels=torch.zeros(2, 3, 8, 8), labels=(0, 0))
    places = {"results_dir": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "sample_dir": "samples_nfe1"}
    report = score(replace(config, ckpt="small", corrupt="sr4x-pool", metrics="ssim", **places))
    assert report["not_computed"] == {"ssim": "not computed: needs images of 11 pixels a side or more"}
    assert report["metrics"]["psnr"]["n"] == 2


def test_a_row_in_the_table_is_all_that_a_metric_takes(config, monkeypatch, capsys):
    rmse = Metric(
        "RMSE",
        "Root mean squared error in 8-bit levels, mean over images",
        compare=lambda images, clean: (images.double() - clean.double()).square().flatten(1).mean(dim=1).sqrt(),
        digits=3,
        higher_is_better=False,
    )
    monkeypatch.setitem(METRICS, "rmse", rmse)
    value = score(replace(config, metrics="mae,rmse", require="rmse"))["metrics"]["rmse"]
    assert value["restored"] > 0 and value["definition"] == rmse.definition and value["n"] == 5
    assert f"RMSE{value['degraded']:16.3f}{value['restored']:10.3f}" in capsys.readouterr().out
    assert "RMSE ↓" in (config.run_dir / "samples_nfe2" / "report.html").read_text()


def test_images_too_small_for_a_network_are_no_fault_of_ours(config):
    report = score(replace(config, metrics="lpips-alex"))
    assert report["not_computed"] == {"lpips-alex": "not computed: needs images of 31 pixels a side or more"}


def test_released_images_need_the_published_masks_where_their_degradation_has_some(config, tmp_path, dataset_dir):
    """The mixture has: without them its degraded images would be others. A user's class has none, whatever its name."""
    write_recon(tmp_path / "theirs" / "samples_nfe2", pixels=torch.zeros(5, 3, 16, 16))
    file = tmp_path / "my_freeform.py"
    file.write_text(
        "from corruption import Corrupted, Corruption\n"
        "class Dark(Corruption):\n"
        "    def degrade(self, clean, draws): return Corrupted(clean * 0.5)\n"
    )
    theirs = replace(config, ckpt="theirs", results_dir=str(tmp_path), dataset_dir=str(dataset_dir), metrics="psnr")
    for corrupt in ("mixture", "jpeg-10,inpaint-freeform2030"):
        with pytest.raises(UserError, match=f"corrupt {corrupt}: give the published masks that"):
            score(replace(theirs, corrupt=corrupt))
    assert score(replace(theirs, corrupt=f"{file}:Dark"))["metrics"]["psnr"]["n"] == 5


def test_masks_are_those_that_the_images_were_made_with(config, trained_run, tmp_path):
    """Others would show as degraded what nobody restored."""
    write_images(tmp_path / "data" / "val", ["0.png"])
    hole = np.zeros((1, 256, 256), dtype=np.uint8)
    hole[:, :100, :100] = 1
    for name, mask in (("a.npz", hole), ("b.npz", hole[:, ::-1])):
        np.savez(tmp_path / name, **{"10-20% freeform": np.packbits(mask)})
    run = tmp_path / "tiny"
    run.mkdir()
    for name in ("config.yaml", "latest.pt"):
        (run / name).symlink_to(trained_run / name)
    places = {"ckpt": "tiny", "results_dir": str(tmp_path), "dataset_dir": str(tmp_path / "data"), "device": "cpu"}
    images = open_split(tmp_path / "data", "val", image_size=256)
    options = SamplingOptions(nfe=1, sampler="posterior", eta=1.0, tile=0).record()
    data = {"image_size": 256, "num_images": 1, "fingerprint": images.fingerprint, "dataset_dir": str(tmp_path)}
    made = {"run": "tiny", "corrupt": "inpaint-freeform1020", **describe_masks(str(tmp_path / "a.npz"))}
    folder = SampleFolder.begin(run / "samples_nfe1", SampleSettings(**options, **data, **made))
    folder.save(0, images.read(0)[0])
    shutil.move(tmp_path / "a.npz", tmp_path / "moved.npz")
    ours = replace(config, **places, sample_dir="samples_nfe1", metrics="psnr", features="")
    assert score(replace(ours, mask_file=str(tmp_path / "moved.npz")))["settings"]["masks"]
    with pytest.raises(UserError, match="mask_file .*b.npz: the images in .* were made with the masks in .*a.npz"):
        score(replace(ours, mask_file=str(tmp_path / "b.npz")))


def test_images_that_another_run_restored_are_refused(config, results, trained_run, tmp_path):
    """A run's settings say how images are cut out and degraded: another's would be applied to them."""
    for name in ("renamed", "other"):
        (tmp_path / name).mkdir()
        shutil.copy(trained_run / "config.yaml", tmp_path / name / "config.yaml")
        shutil.copytree(results / "tiny/samples_nfe2", tmp_path / name / "samples_nfe2")
    saved = tmp_path / "other/config.yaml"
    saved.write_text(saved.read_text().replace("name: tiny", "name: other"))
    copied = replace(config, results_dir=str(tmp_path), metrics="psnr", features="")
    score(replace(copied, ckpt="renamed"))
    score(replace(copied, ckpt=f"{tmp_path.name}/renamed", results_dir=str(tmp_path.parent)))
    score(replace(config, ckpt=f"{results.name}/tiny", results_dir=str(results.parent), metrics="psnr", features=""))
    with pytest.raises(UserError, match="ckpt other: the images in .*other/samples_nfe2 were restored by the run tiny"):
        score(replace(copied, ckpt="other"))


def test_a_reference_of_features_that_were_edited_since_is_refused(config, dataset_dir, tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def means(images): return images.mean((2, 3))\n")
    edited = replace(config, features=f"{file}:means", metrics="features-frechet", reference_split="val")
    path = make_reference(edited, tmp_path / "val.npz", dataset_dir=str(dataset_dir))
    score(replace(edited, reference=str(path)))
    reference = read_reference(path)
    file.write_text("def means(images): return images.amax((2, 3))\n")
    words = r"made from something else \(digest of the network's file \w+ there, \w+ wanted"
    with pytest.raises(UserError, match=words):
        score(replace(edited, reference=str(path)))
    write_reference(path, reference.gaussian, replace(reference.made_from, weights=""))  # an older version's
    score(replace(edited, reference=str(path)))
