"""Degradations of the user's own: the page's example works, mistakes are named, and code runs only when asked for."""

from __future__ import annotations

import re

import pytest
import torch

from corruption import build_corruption
from helpers.programs import ROOT, run_python
from helpers.tiny_run import TINY, as_flags

EXAMPLE = next(
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "degradations.md").read_text(), flags=re.DOTALL)
    if "class " in block
)


@pytest.fixture
def own(tmp_path):
    """Write a file of the user's; returns its name as a degradation."""

    def write(source: str, class_name: str = "Own") -> str:
        path = tmp_path / "own.py"
        path.write_text(source)
        return f"{path}:{class_name}"

    return write


def test_the_documented_example_is_ten_lines_and_does_what_it_says(own):
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10
    clean = torch.zeros(4, 3, 64, 64)
    image = build_corruption(own(EXAMPLE, "SaltAndPepper"), 64)(clean, torch.Generator().manual_seed(0)).image
    shares = [(image == value).float().mean().item() for value in (-1, 0, 1)]
    assert shares == pytest.approx([0.05, 0.9, 0.05], abs=0.01)


def test_the_documented_example_trains_restores_and_scores(own, tmp_path, dataset_dir):
    name = own(EXAMPLE.replace("class", f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\nclass", 1), "SaltAndPepper")
    settings = {**TINY, "num_itr": 2, "name": "salt", "results_dir": tmp_path, "dataset_dir": dataset_dir}
    run_python("train.py", *as_flags({**settings, "corrupt": name}))
    (tmp_path / "ran").unlink()

    common = ["--ckpt", "salt", "--results-dir", tmp_path, "--device", "cpu", "--workers", 0]
    refused = run_python("sample.py", *common, "--nfe", 2, check=False)
    assert refused.returncode == 2 and f"give --corrupt {name} if you trust that file" in refused.stderr
    assert not (tmp_path / "ran").exists()
    run_python("sample.py", *common, "--nfe", 2, "--corrupt", name)
    (tmp_path / "ran").unlink()
    refused = run_python("compute_metrices.py", *common, "--sample-dir", "samples_nfe2", check=False)
    assert refused.returncode == 2 and f"give --corrupt {name}" in refused.stderr
    assert not (tmp_path / "ran").exists()
    done = run_python("compute_metrices.py", *common, "--sample-dir", "samples_nfe2", "--corrupt", name)
    assert "PSNR" in done.stdout


HEAD = "import torch\nfrom corruption import Corrupted, Corruption\n"
OWN = HEAD + "class Own(Corruption):\n"
DEGRADE = "  def degrade(self, clean, draws): return Corrupted(clean)\n"


def mistake(returned: str) -> str:
    return OWN + f"  def degrade(self, clean, draws): return {returned}"


@pytest.mark.parametrize(
    ("source", "class_name", "words"),
    [
        ("raise RuntimeError('oh')", "Own", "failed: RuntimeError: oh"),
        ("x = 1", "Own", "holds no class Own derived from corruption.Corruption"),
        ("class Own: pass", "Own", "holds no class Own derived from corruption.Corruption"),
        (OWN + "  def __init__(self, strength): pass\n" + DEGRADE, "Own", "it must need no arguments"),
        (
            HEAD + "class Own(Corruption):\n  def degrade(self, clean, draws): return clean",
            "Own",
            "must return Corrupted",
        ),
        (
            HEAD + "class Own(Corruption):\n  def degrade(self, clean, draws): return Corrupted(clean[:, :, ::2])",
            "Own",
            "returned as image [3, 3, 8, 16], torch.float32; it must be [3, 3, 16, 16]",
        ),
        (
            HEAD + "class Own(Corruption):\n  def degrade(self, clean, draws): return Corrupted(clean / 0)",
            "Own",
            "not finite",
        ),
        ("", "", "name the class too, as path/to/file.py:ClassName"),
        ("raise SystemExit(0)", "Own", "failed: SystemExit: 0"),
        (HEAD + "class Own(Corruption): pass", "Own", "Own lacks its method degrade(self, clean, draws)"),
        (OWN + "  def __init__(self): 1 / 0\n" + DEGRADE, "Own", "Own() failed: ZeroDivisionError"),
        (OWN + "  def __init__(self): pass\n" + DEGRADE, "Own", "must call super().__init__()"),
        (mistake("Corrupted(clean.mul_(0.5))"), "Own", "changes the clean images it is given"),
        (mistake("Corrupted(torch.randn_like(clean))"), "Own", "other images for the same seeds"),
        (mistake("Corrupted((clean + 1) * 127.5)"), "Own", "images are in [-1, 1]"),
        (mistake("Corrupted(clean, 7 * torch.ones_like(clean[:, :1]))"), "Own", "not 1 inside the hole and 0 outside"),
        (mistake("Corrupted(clean, clean[:, :1] / 0)"), "Own", "returned as mask values that are not finite"),
        (mistake("Corrupted(clean, [1])"), "Own", "returned as mask list"),
        (mistake("Corrupted(clean[:2])"), "Own", "returned as image [2, 3, 16, 16]"),
    ],
)
def test_mistakes_are_named(own, source, class_name, words):
    name = own(source, class_name)
    with pytest.raises(ValueError) as error:
        build_corruption(name, 16)
    assert f"corrupt {name}: " in str(error.value) and words in str(error.value)


def test_a_file_may_hold_dataclasses(own):
    lines = "from __future__ import annotations\nimport dataclasses\n", "\n@dataclasses.dataclass\nclass A:\n  b: int\n"
    name = own(lines[0] + mistake("Corrupted(clean * 0.5)") + lines[1], "Own")
    assert build_corruption(name, 16)(torch.ones(1, 3, 16, 16)).image.unique().item() == 0.5


def test_missing_file_is_named():
    with pytest.raises(ValueError, match=r"corrupt nowhere.py:Own: there is no file nowhere.py"):
        build_corruption("nowhere.py:Own", 16)


# --- What lists and draws degradations -------------------------------------------------------------------------------


def test_help_lists_every_degradation_with_a_line_each():
    from corruption import CORRUPTIONS

    families = {"jpeg-5": "jpeg-Q", "jpeg-10": "jpeg-Q", "sr4x-pool": "srNx-pool", "sr4x-bicubic": "srNx-bicubic"}
    for program in ("train.py", "sample.py"):
        lines = run_python(program, "--corrupt", "help").stdout.splitlines()
        assert [line.split()[0] for line in lines] == [
            *dict.fromkeys(families.get(name, name) for name in CORRUPTIONS),
            "paired",
            "file.py:ClassName",
            "jpeg-5,sr4x-pool,…",
        ]
        assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.slow
def test_contact_sheet_shows_every_degradation(tmp_path, dataset_dir):
    from PIL import Image

    image, sheet = dataset_dir / "val" / "cat" / "0.png", tmp_path / "sheet.png"
    script = ROOT / "scripts" / "show_corruptions.py"
    assert "12 degradations" in run_python(script, image, sheet, "--size", 64).stdout
    with Image.open(sheet) as drawn:
        width, height = drawn.size
        tiles = [
            drawn.crop((6 + x * 70, 6 + y * 86, 6 + x * 70 + 64, 6 + y * 86 + 64)).tobytes()
            for y in range(3)
            for x in range(5)
        ][:13]
    cut_off = tmp_path / "cut_off.png"
    cut_off.write_bytes(image.read_bytes()[:-30])
    assert (width, height) == (5 * 70 + 6, 3 * 86 + 6) and len(set(tiles)) == 13
    for arguments, words in (
        ([image, sheet], "is there already"),
        ([image, tmp_path / "new.png", "jpeg-500"], "between 1 and 100"),
        ([cut_off, tmp_path / "new.png"], "cut_off.png"),
        ([image, tmp_path / "new.png", "--size", 40, "jpeg-5"], "40x40 pixels"),  # names may follow flags
        ([tmp_path / "nowhere.png", tmp_path / "new.png"], "nowhere.png: there is no such file"),
    ):
        refused = run_python(script, *arguments, check=False)
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count("\n") == 1
