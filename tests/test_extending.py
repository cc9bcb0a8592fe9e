"""docs/extending.md as it stands: its blocks are put into a copy of the project, where what is added is used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

import pytest

from helpers.programs import ROOT, run_python

MOST_LINES = 16  # of code that one block adds


class Block(NamedTuple):
    """A block of a section. file, where: what its first line says; of a block that is to be run, "" and "use"."""

    file: str
    where: str
    code: str


def read_sections() -> dict[str, list[Block]]:
    sections = {}
    for section in (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]:
        blocks = re.findall(r"```python\n# (?:(\S+): )?([^\n]*)\n(.*?)```", section, flags=re.DOTALL)
        sections[section.splitlines()[0]] = [Block(*block) for block in blocks]
    return sections


SECTIONS = read_sections()


def put_in(project: Path, block: Block) -> None:
    """Do what a reader does whom the block's first line tells where it belongs."""
    path, code = project / block.file, block.code
    if block.where == "a new file":
        assert not path.exists()
        path.write_text(code)
        return
    text = path.read_text()
    if block.where == "with the imports":
        changed = re.sub(r"^(?=from (?:i2sb|corruption)\b)", lambda _: code, text, count=1, flags=re.MULTILINE)
    else:
        where, table = re.fullmatch(r"(above|a row of) (\w+)", block.where).groups()
        begin = re.search(rf"^{table}\b.* = \{{$", text, flags=re.MULTILINE).start()
        place = begin if where == "above" else text.index("\n}", begin) + 1
        added = f"{code}\n\n" if where == "above" else indent(code, "    ")
        changed = text[:place] + added + text[place:]
    assert changed != text, block
    path.write_text(changed)


def test_every_kind_of_part_has_a_section():
    assert list(SECTIONS) == ["A degradation", "A reverse step", "A network", "A formulation", "A metric"]
    for title, blocks in SECTIONS.items():
        assert blocks[-1].where == "use", title
        rows = [block for block in blocks if block.where.startswith("a row of")]
        assert len(rows) == 1, title
        for block in blocks:
            assert len(block.code.splitlines()) <= MOST_LINES + 4 * (block.where == "a new file"), block


@pytest.mark.parametrize("title", SECTIONS)
def test_what_is_added_can_be_used(tmp_path, title):
    for package in ("i2sb", "corruption"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    *added, use = SECTIONS[title]
    for block in added:
        put_in(tmp_path, block)
    of_the_copy = f"import i2sb\nassert i2sb.__file__ == {str(tmp_path / 'i2sb' / '__init__.py')!r}\n"
    run_python("-c", of_the_copy + use.code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
