"""Every shipped config and every command of the documents can be parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from corruption import CORRUPTIONS, build_corruption
from helpers.programs import ROOT
from i2sb.config import PAIRED, EvalConfig, SampleConfig, TrainConfig
from i2sb.network_sizes import check_image_size
from i2sb.parsing import read_flags

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"train.py": TrainConfig, "sample.py": SampleConfig, "compute_metrices.py": EvalConfig}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load_and_fit_together(path):
    flags = ["--name", "x", "--dataset-dir", "y"]
    config = read_flags(TrainConfig, [*flags, "--corrupt", "sr4x-pool"] if path.stem == "demo" else flags, path)
    of_photographs = path.stem.startswith("photos-")
    check_image_size(config.network, config.image_size)
    check_image_size(config.network, config.restored_size)
    if config.corrupt != PAIRED:
        build_corruption(config.corrupt, config.image_size)
    if path.stem not in ("demo", "paired"):
        assert (config.cond_x1, config.add_x1_noise) == (path.stem in ("mixture", "decolor"), path.stem == "decolor")
        assert all(name.startswith(path.stem.removeprefix("photos-")) for name in config.corrupt.split(","))
        assert of_photographs or config.corrupt == path.stem
        assert (config.ot_ode, config.beta_max) == (
            (True, 1.0) if path.stem.removeprefix("photos-").startswith(("inpaint", "blur")) else (False, 0.3)
        )


def commands() -> list[tuple[str, list[str]]]:
    """All calls of the three programs in the documents' code blocks: (program, its flags)."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", document.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for program in PROGRAMS:
                    if program in words:
                        found.append((program, words[words.index(program) + 1 :]))
    return found


def test_documents_hold_commands():
    assert {program for program, _ in commands()} == set(PROGRAMS)


@pytest.mark.parametrize(("program", "flags"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_documented_commands_parse(program, flags):
    config_file = None
    if "--config" in flags:
        place = flags.index("--config")
        config_file = ROOT / flags[place + 1]
        flags = flags[:place] + flags[place + 2 :]
    # What a student has of its teacher, which is not there.
    teacher = {"formulation": "student", "corrupt": "sr4x-pool", "dataset_dir": "data"}
    read_flags(PROGRAMS[program], flags, config_file, lambda given: teacher if given.get("distill") else {})


def headings(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as the site and code hosts write them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in headings(file), f"{target}#{anchor}"


def test_the_readme_links_every_page_of_the_site():
    """All but its home and the API, which is made of the docstrings."""
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md", "api.md"}


@pytest.mark.parametrize("document", ["method", "architecture"])
def test_modules_and_functions_that_are_named_exist(document):
    """Written as `module.name`, each must be there."""
    import importlib

    names = re.findall(r"`((?:i2sb|corruption)(?:\.\w+)+)`", (ROOT / "docs" / f"{document}.md").read_text())
    assert len(names) > 15
    for name in names:
        if (ROOT / Path(*name.split(".")).with_suffix(".py")).exists():
            continue
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                owner = importlib.import_module(".".join(parts[:cut]))
            except ImportError:
                continue
            for part in parts[cut:]:
                owner = getattr(owner, part)
            break
        else:
            raise AssertionError(f"{name}: no such module")


def test_the_picture_of_the_layers_is_what_is_checked():
    contract = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL | re.MULTILINE)
    layers = re.findall(r"\w+", contract[1])
    picture = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), flags=re.DOTALL)
    left = " ".join(line[:60] for line in picture[1].splitlines()[1:])
    assert [word for word in re.findall(r"\w+", left) if word != "corruption"] == layers


def test_every_published_task_has_a_config():
    published = {path.stem for path in CONFIGS if not path.stem.startswith("photos-")}
    assert published == {"demo", "paired", "mixture", "decolor", *CORRUPTIONS[:9]}
