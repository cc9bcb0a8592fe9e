"""One option of sampling is one definition: flags, library, folder name, settings, manifest and comparison follow."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import asdict, fields, replace

import pytest
import torch

from helpers.programs import ROOT, run_python
from i2sb.bridge import Bridge
from i2sb.cli.program import describe
from i2sb.config import SampleConfig, SamplingOptions
from i2sb.formulation import SchroedingerBridge
from i2sb.restore import RestorationModel, load_model
from i2sb.sampling import split as sampling
from i2sb.sampling.split import folder_name
from i2sb.storage.sample_folder import SampleFolder, SampleSettings

# Of every option a value that is not its default, with what it needs of the others.
CHANGES = {
    "nfe": {"nfe": 3},
    "clip_denoise": {"clip_denoise": True},
    "sampler": {"sampler": "second_order"},
    "eta": {"eta": 0.25, "sampler": "eta"},
    "consistency": {"consistency": "project"},
    "consistency_weight": {"consistency_weight": 2.0, "consistency": "gradient"},
    "seed": {"seed": 7},
    "tile": {"tile": 16, "overlap": 4},
    "overlap": {"overlap": 5, "tile": 16},
}


def test_the_library_has_every_option_with_its_default():
    keywords = inspect.signature(RestorationModel.restore).parameters
    for f in fields(SamplingOptions):
        assert keywords[f.name].default == f.default and keywords[f.name].kind is inspect.Parameter.KEYWORD_ONLY, f.name


def test_the_library_uses_every_option(trained_run):
    """Keyword by keyword as the options at once, and not as without."""
    model, x = load_model(trained_run), torch.linspace(-1, 1, 3 * 24 * 24).reshape(1, 3, 24, 24)
    assert CHANGES.keys() == {f.name for f in fields(SamplingOptions)}
    usual = model.follow(x, SamplingOptions(nfe=2), states=None).x0
    for name, change in CHANGES.items():
        options = SamplingOptions(**{"nfe": 2, **change})
        restored = model.follow(x, options, states=None).x0
        assert torch.equal(model.restore(x, **asdict(options)), restored), name
        assert not torch.equal(restored, usual), name


@pytest.mark.parametrize("name", CHANGES)
def test_images_made_with_another_option_are_told_apart(tmp_path, name):
    formulation = SchroedingerBridge(Bridge())
    before, now = (formulation.settle(SamplingOptions(**change)) for change in ({}, CHANGES[name]))
    data = {"run": "a", "iteration": 1, "corrupt": "decolor", "num_images": 1}
    SampleFolder.begin(tmp_path / "images", SampleSettings(**before.record(), **data))
    with pytest.raises(ValueError, match="holds images made with other settings") as error:
        SampleFolder.begin(tmp_path / "images", SampleSettings(**now.record(), **data))
    assert f"{name} {before.record()[name]} there, {now.record()[name]} now" in describe(error.value)
    flags = SampleConfig(ckpt="a", input="b", output="c", **CHANGES[name])
    assert flags.sampling == replace(SamplingOptions(), **CHANGES[name])


def test_names_of_folders_stay():
    formulation = SchroedingerBridge(Bridge())
    for change, name in (
        ({"nfe": 10}, "samples_nfe10"),
        ({}, "samples_nfe999"),
        ({"nfe": 2, "sampler": "posterior", "seed": 3}, "samples_nfe2"),
        ({"nfe": 2, "sampler": "eta"}, "samples_nfe2_eta0"),
        ({"nfe": 2, "sampler": "second_order", "clip_denoise": True}, "samples_nfe2_clip_second_order"),
        (
            {"nfe": 10, "clip_denoise": True, "sampler": "eta", "eta": 0.5, "consistency": "project"},
            "samples_nfe10_clip_eta0.5_project",
        ),
        ({"nfe": 2, "consistency": "gradient"}, "samples_nfe2_gradient1"),
        ({"nfe": 2, "consistency": "gradient", "consistency_weight": 8.0}, "samples_nfe2_gradient8"),
    ):
        assert folder_name(formulation.settle(SamplingOptions(**change)), formulation, "") == name
    options = formulation.settle(SamplingOptions(nfe=2))
    assert folder_name(options, formulation, "elsewhere/best.pt") == "samples_nfe2_best"


@pytest.mark.slow
def test_a_new_option_is_one_line(tmp_path, trained_run, dataset_dir):
    """In a copy of the project, by a line in config.py alone: a flag, in names, settings and manifest, and compared."""
    for name in ("i2sb", "corruption"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "sample.py", tmp_path)
    results = tmp_path / "results"
    (results / "tiny").mkdir(parents=True)
    for name in ("config.yaml", "latest.pt"):
        (results / "tiny" / name).symlink_to(trained_run / name)
    sampling.run(SampleConfig(ckpt="tiny", results_dir=str(results), nfe=1, workers=0, device="cpu"))

    config, line = tmp_path / "i2sb" / "config.py", "    overlap: int = sampling_option("
    new = (
        '    strength: float = sampling_option(1.0, "how strongly", older=1.0, named=lambda options, usual: "" '
        'if options.strength == usual.strength else f"_strength{options.strength:g}")\n'
    )
    text = config.read_text()
    assert text.count(line) == 1
    config.write_text(text.replace(line, new + line))

    def restore(*flags: object, check: bool = True):
        common = ["--ckpt", "tiny", "--results-dir", results, "--nfe", 1, "--workers", 0, "--device", "cpu"]
        return run_python("sample.py", *common, *flags, cwd=tmp_path, check=check)

    assert "0 to restore here" in restore().stdout, "a folder of before is not continued"
    restore("--strength", 2)
    folder = results / "tiny" / "samples_nfe1_strength2"
    assert "strength: 2.0" in (folder / "settings.yaml").read_text()
    manifest = (folder / "manifest.jsonl").read_text().splitlines()
    assert json.loads(manifest[0])["settings"]["strength"] == 2.0
    for name, before in (("samples_nfe1", 1.0), (folder.name, 2.0)):
        refused = restore("--strength", 3, "--sample-dir", name, check=False)
        assert refused.returncode == 2 and f"(strength {before} there, 3.0 now)" in refused.stderr
