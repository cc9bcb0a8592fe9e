"""Fixtures that the tests share: data sets, a finished run, weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.register_assert_rewrite("helpers")  # so that a failing assert in there shows its values, too

from helpers.pictures import write_images  # noqa: E402
from helpers.programs import ROOT, run_python  # noqa: E402
from helpers.seeded_weights import write_seeded  # noqa: E402
from helpers.tiny_run import TINY  # noqa: E402

# Small networks gain nothing from threads, and equal counts make equal sums.
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch finds none")


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of class folders: 12 training and 5 validation images of 24x20 pixels."""
    root = tmp_path_factory.mktemp("dataset")
    write_images(root / "train", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)])
    write_images(root / "val", ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"], first=50)
    return root


@pytest.fixture(scope="session")
def lmdb_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared data set, packed by scripts/make_lmdb.py."""
    out = tmp_path_factory.mktemp("lmdb")
    for split in ("train", "val"):
        run_python(ROOT / "scripts/make_lmdb.py", dataset_dir / split, out, "--split", split, "--workers", "1")
    return out


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of larger images in which every pixel is another, so that a crop tells where it was taken."""
    root = tmp_path_factory.mktemp("photographs")
    for split in ("train", "val"):
        (root / split).mkdir()
        for number in range(5):
            y, x = np.mgrid[: 40 + number, :60]
            pixels = np.stack([y, x, np.full_like(x, number)], axis=-1).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, dataset_dir: Path) -> Path:
    """results/NAME of a finished tiny run; treat it as read-only."""
    from i2sb.config import TrainConfig
    from i2sb.training.loop import train

    results = tmp_path_factory.mktemp("results")
    config = TrainConfig(name="tiny", results_dir=str(results), dataset_dir=str(dataset_dir), **TINY)
    train(config)
    return config.run_dir


@pytest.fixture(scope="session")
def inception_dir(tmp_path_factory) -> Path:
    """A folder with Inception's file, its weights drawn from a seed."""
    import torch_fidelity.feature_extractor_inceptionv3 as source

    from i2sb.metrics.feature_networks import INCEPTION_FILES

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = source.FeatureExtractorInceptionV3("inception", ["2048"])
    write_seeded(network, folder / INCEPTION_FILES[0])
    return folder
