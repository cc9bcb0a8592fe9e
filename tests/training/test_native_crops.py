"""The shipped config of random crops in real processes: what a degradation of one's own is given, pixel by pixel."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import find_crop
from helpers.programs import ENVIRONMENT, ROOT, run_python
from helpers.tiny_run import TINY, as_flags

ITERATIONS, SAVE_EVERY = 8, 4
KILLED_AT = 11  # call of the degradation, two an iteration: in the sixth iteration, the checkpoint being of the fourth
# What the config says else, that crops are taken at random above all, is as it is shipped.
SHIPPED = ROOT / "configs" / "photos-sr4x.yaml"
SETTINGS = {**TINY, "num_itr": ITERATIONS, "save_every": SAVE_EVERY, "eval_every": 0}
SETTINGS["crops_per_image"] = 3  # so that the checkpoint falls between two crops of the same files

# Saves what it is given, a file a call and process, and leaves it as it is. Before training it is tried on noise, whose
# values are not those of 8-bit images.
KEEP = """
import os
import signal
import numpy as np
from corruption import Corrupted, Corruption

class Keep(Corruption):
    calls = 0

    def degrade(self, clean, draws):
        pixels = (clean.numpy() + 1) * 127.5
        if abs(pixels - pixels.round()).max() < 1e-3:
            name = f"{os.environ.get('RANK', 0)}_{self.calls:03d}.npy"
            np.save(os.path.join(os.environ["KEPT"], name), pixels.round().astype(np.uint8))
            self.calls += 1
            if self.calls == int(os.environ.get("KILLED_AT", 0)):
                os.kill(os.getpid(), signal.SIGKILL)
        return Corrupted(clean.clone())
"""


@pytest.fixture
def see(tmp_path, photographs, monkeypatch):
    """A function that runs train.py, and returns its exit status and each process's crops in the order they came."""
    (tmp_path / "keep.py").write_text(KEEP)
    starts = iter(range(10))

    def run(*launcher: str, **changes) -> tuple[int, list[list[np.ndarray]]]:
        kept = tmp_path / f"kept{next(starts)}"
        kept.mkdir()
        monkeypatch.setitem(ENVIRONMENT, "KEPT", str(kept))
        places = {"corrupt": f"{tmp_path / 'keep.py'}:Keep", "results_dir": tmp_path, "dataset_dir": photographs}
        flags = ["--config", SHIPPED, *as_flags({**SETTINGS, **places, **changes})]
        done = run_python(*launcher, "train.py", *flags, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        ranks = sorted({path.name.split("_")[0] for path in kept.iterdir()})
        return done.returncode, [
            [crop for path in sorted(kept.glob(f"{rank}_*")) for crop in np.load(path)] for rank in ranks
        ]

    return run


def locate(crop: np.ndarray, photographs: Path) -> tuple[int, int, int, bool]:
    """Return which file a crop was taken from, where, and whether it is mirrored; every pixel must be that file's."""
    number, top, left, mirrored = find_crop(crop)
    with Image.open(photographs / "train" / f"{number}.png") as image:
        pixels = np.asarray(image)[top : top + 16, left : left + 16]
    assert np.array_equal(crop.transpose(1, 2, 0), pixels[:, ::-1] if mirrored else pixels)
    return number, top, left, mirrored


@pytest.mark.cluster
def test_training_shows_the_files_pixels_and_the_same_in_two_processes_and_after_a_kill(see, photographs, monkeypatch):
    # Two processes, each of which sees its half of every batch.
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    status, halves = see(*launcher, name="two")
    first, second = ([locate(crop, photographs) for crop in half] for half in halves)
    whole = [spot for i in range(0, len(first), 2) for spot in first[i : i + 2] + second[i : i + 2]]
    assert status == 0 and len(first) == len(second) == 2 * ITERATIONS
    assert {number for number, *_ in whole} == set(range(5)) and {mirrored for *_, mirrored in whole} == {False, True}
    assert len({(top, left) for _, top, left, _ in whole}) > 25  # of 32: from anywhere, and seldom twice

    # One process, killed while it trains; then the same command, which sees again what followed the checkpoint.
    with monkeypatch.context() as killing:
        killing.setitem(ENVIRONMENT, "KILLED_AT", str(KILLED_AT))
        status, [crops] = see(name="one", workers=1)
    assert status == -signal.SIGKILL
    assert [locate(crop, photographs) for crop in crops] == whole[: 2 * KILLED_AT]
    status, [crops] = see(name="one", workers=1)
    assert status == 0
    assert [locate(crop, photographs) for crop in crops] == whole[4 * SAVE_EVERY :]
