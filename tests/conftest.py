"""What the tests share: golden vectors, a small data set, tiny settings, and the programs as real processes."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"

# Small networks gain nothing from threads, and equal counts make equal sums.
torch.set_num_threads(1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT["no_proxy"] = "127.0.0.1"  # where test_download's server stands

# With these a processor of any age computes as an old one does: it emulates bf16 and fp16. x86 only.
OLD_PROCESSOR = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="others lack such switches")

# After so many seconds a process is taken to hang. A minute is much for one, on a slow and busy machine too.
HANGS = 1200


def golden(name: str) -> dict[str, torch.Tensor]:
    """Load a golden .npz as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def run_python(
    *arguments: object, cwd: Path = ROOT, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run python as a real process; with `check` its failure fails the test, showing what it printed.

    env: environment variables besides the tests' own.
    """
    command = [sys.executable, *map(str, arguments)]
    variables = {**ENVIRONMENT, **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=HANGS)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def make_image(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth colour image that depends on `number`."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(0.11 * (number + 2) * x + 0.07 * (c + 1) * y + c) for c in range(3)]
    return Image.fromarray((127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8))


def write_images(folder: Path, names: list[str], first: int = 0) -> None:
    for number, name in enumerate(names, first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(path)


def assert_equal_states(one, other, where=""):
    """Compare nested dicts and lists of tensors and numbers, to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_states(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(a, b, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_equal_but_for_rounding(one: bytes, other: bytes) -> None:
    """Compare two files of pictures that were computed in other batches: rounding may carry a value over one level."""
    pixels, want = (np.asarray(Image.open(io.BytesIO(content)), dtype=np.int16) for content in (one, other))
    assert pixels.shape == want.shape and abs(pixels - want).max() <= 1


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


def find_crop(crop: torch.Tensor | np.ndarray) -> tuple[int, int, int, bool]:
    """Return (file, top, left, mirrored) of a 16-pixel crop of `photographs`, having checked every pixel of it."""
    rows, columns, number = crop[0, :, 0], crop[1, 0], crop[2, 0, 0]
    flip = bool(columns[0] > columns[-1])
    top, left = int(rows[0]), int(columns.min())
    y, x = np.mgrid[top : top + 16, left : left + 16]
    want = np.stack([y, x[:, ::-1] if flip else x, np.full_like(x, int(number))])
    assert np.array_equal(crop, want)
    return int(number), top, left, flip


# The smallest run that has every part: 16-pixel images, two microbatches an iteration, validation, checkpoints.
TINY = {
    "corrupt": "sr4x-pool",
    "image_size": 16,
    "network": "tiny",
    "batch_size": 4,
    "microbatch": 2,
    "num_itr": 6,
    "lr": 1e-3,
    "lr_step": 2,
    "save_every": 2,
    "log_every": 1,
    "eval_every": 4,
    "eval_nfe": 2,
    "eval_images": 3,
    "workers": 0,
    "log_writer": "none",
    "device": "cpu",
}


def as_flags(settings: dict[str, object]) -> list[str]:
    """Turn settings into flags."""
    flags = []
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        flags += (
            [f"--{dashed}" if value else f"--no-{dashed}"] if isinstance(value, bool) else [f"--{dashed}", str(value)]
        )
    return flags


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, dataset_dir: Path) -> Path:
    """results/NAME of a finished tiny run; treat it as read-only."""
    from i2sb.config import TrainConfig
    from i2sb.training.loop import train

    results = tmp_path_factory.mktemp("results")
    config = TrainConfig(name="tiny", results_dir=str(results), dataset_dir=str(dataset_dir), **TINY)
    train(config)
    return config.run_dir


# --- Weights for the metrics, of the right shapes and drawn from a seed ----------------------------------------------


def write_seeded(module: torch.nn.Module, path: Path, keep: str = "") -> dict[str, torch.Tensor]:
    """Give a module weights drawn from a seed, save those whose names begin with `keep`, and return them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    state = {name: value for name, value in module.state_dict().items() if name.startswith(keep)}
    torch.save(state, path)
    return state


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
