"""The photographs: Qt resource files, how a photograph is shrunk and cropped, the table, and the script."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.programs import ROOT

SCRIPT = ROOT / "scripts" / "fetch_photos.sh"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


# --- Qt resource files -----------------------------------------------------------------------------------------------


def make_rcc(files: dict[str, bytes], *, compressed: bool = False, version: int = 3) -> bytes:
    """Write what Qt's rcc writes for files in one folder, pictures/."""
    names, nodes, contents = b"", [], b""

    def add_name(name: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return offset

    nodes.append(struct.pack(">IHII", 0, 2, 1, 1))
    nodes.append(struct.pack(">IHII", add_name("pictures"), 2, len(files), 2))
    for name, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        nodes.append(struct.pack(">IHHHI", add_name(name), int(compressed), 0, 1, len(contents)))
        contents += struct.pack(">I", len(stored)) + stored
    tree = b"".join(node + (bytes(8) if version >= 2 else b"") for node in nodes)
    header = 20 + (4 if version >= 3 else 0)
    offsets = header, header + len(tree), header + len(tree) + len(contents)
    flags = bytes(4) if version >= 3 else b""
    return struct.pack(">4sIIII", b"qres", version, *offsets) + flags + tree + contents + names


FILES = {"a.webp": b"first", "größer.webp": bytes(1000)}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_resources_are_read_raw_and_compressed(compressed, version):
    from qt_resource import QtResources

    resources = QtResources(make_rcc(FILES, compressed=compressed, version=version), "x.rcc")
    assert {name: resources.read(f"pictures/{name}") for name in FILES} == FILES
    assert "pictures/b.webp" not in resources


def test_a_damaged_resource_file_is_one_message():
    """Cut off anywhere, or with any byte changed: a ValueError, or content as long as it should be."""
    from qt_resource import QtResources

    whole = make_rcc(FILES, compressed=True)

    def read(data):
        resources = QtResources(data, "x.rcc")
        return [resources.read(f"pictures/{name}") for name in FILES if f"pictures/{name}" in resources]

    for length in range(len(whole)):
        with pytest.raises(ValueError, match="^x.rcc: is (cut off|not a Qt resource file)$"):
            read(whole[:length])
    for place in range(len(whole)):
        try:
            read(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        except ValueError as error:
            assert str(error).startswith("x.rcc: ")


# --- From a package to pictures --------------------------------------------------------------------------------------


def make_photo(width: int, height: int, ending: str = "JPEG") -> bytes:
    """Noise in the lower right quarter, grey elsewhere."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[height // 2 :, width // 2 :] = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ending, quality=95)
    return file.getvalue()


def test_a_photograph_is_shrunk_as_told_and_further_if_it_is_large():
    from fetch_photos import MAX_PIXELS, shrink

    small, factor = shrink(Image.new("RGB", (640, 480)), 2)
    assert small.size == (320, 240) and factor == 2
    assert shrink(Image.new("RGB", (33, 20)), 1)[0].size == (33, 20)
    large, factor = shrink(Image.new("RGB", (6000, 4000)), 2)
    assert factor == 3 and large.width * large.height <= MAX_PIXELS


def test_the_crop_is_where_the_texture_is():
    from fetch_photos import CROP, find_textured_crop

    image = Image.open(io.BytesIO(make_photo(1024, 768))).convert("RGB")
    x, y, texture = find_textured_crop(image)
    assert x >= 512 and y >= 384 and x + CROP <= 1024 and y + CROP <= 768 and texture > 20
    assert find_textured_crop(Image.new("RGB", (256, 256)))[2] == 0


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder with one real package: a photograph as a file, and one in a resource file."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not there")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: some-photos\nVersion: 1:2-3\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: test\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/garden.jpg").write_bytes(make_photo(1024, 768))
    (tree / "usr/all.rcc").write_bytes(make_rcc({"cat.webp": make_photo(640, 480, "WEBP")}))
    folder = tmp_path / "packages"
    folder.mkdir()
    deb = folder / "some-photos_1%3a2-3_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    return folder


@pytest.fixture
def table(monkeypatch):
    import fetch_photos

    def photo(split, name, path, shrink=2):
        return fetch_photos.Photo(split, name, "some-photos", path, shrink, "CC0-1.0", "A", "https://example.org/a")

    lines = [
        photo("train", "cat", "usr/all.rcc:pictures/cat.webp"),
        photo("val", "garden", "usr/garden.jpg"),
        photo("train", "lost", "usr/lost.jpg"),
        photo("train", "lost_too", "usr/all.rcc:pictures/lost.webp"),
    ]
    monkeypatch.setattr(fetch_photos, "read_table", lambda: lines)
    monkeypatch.setattr(fetch_photos, "MIN_PHOTOS", {"train": 1, "val": 1})
    return lines


def test_photographs_come_out_of_a_package(packages, table, tmp_path, capsys):
    from fetch_photos import make_data

    make_data(packages, tmp_path / "out")
    with Image.open(tmp_path / "out/train/cat.png") as cat, Image.open(tmp_path / "out/val/garden.png") as garden:
        assert (cat.size, cat.mode, garden.size) == ((320, 240), "RGB", (512, 384))
    licences = (tmp_path / "out/licences.tsv").read_text().splitlines()
    assert licences[0].startswith("file\tpackage\tversion\tpath")
    line = "train/cat.png\tsome-photos\t1:2-3\tusr/all.rcc:pictures/cat.webp\t2x\tCC0-1.0\tA\thttps://example.org/a"
    assert licences[1] == line and len(licences) == 3
    assert "some-photos: 2 photographs, 2 are not in this version of it" in capsys.readouterr().out


def test_test_photographs_are_cropped_and_flat_ones_left_out(packages, table, tmp_path, monkeypatch):
    import fetch_photos

    table[:] = [table[0], table[1]._replace(split="test", shrink=1)]
    monkeypatch.setattr(fetch_photos, "MIN_PHOTOS", {"test": 1})
    fetch_photos.make_data(packages, tmp_path / "out")
    (crop,) = (tmp_path / "out/test/val").iterdir()
    assert Image.open(crop).size == (256, 256) and crop.name.startswith("garden_y")
    monkeypatch.setattr(fetch_photos, "MIN_TEXTURE", 1000)
    with pytest.raises(ValueError, match="found 0 photographs for test, at least 1 are needed"):
        fetch_photos.make_data(packages, tmp_path / "flat")
    assert not (tmp_path / "flat/licences.tsv").exists()


def test_a_package_that_is_cut_off_is_one_message(packages, table, tmp_path):
    from fetch_photos import make_data

    (deb,) = packages.iterdir()
    deb.write_bytes(deb.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is damaged; delete it and start again"):
        make_data(packages, tmp_path / "out")


# --- The table -------------------------------------------------------------------------------------------------------


def test_the_table_is_whole_and_its_splits_share_nothing():
    from fetch_photos import MIN_PHOTOS, read_table

    table = read_table()
    packages = defaultdict(set)
    for photo in table:
        packages[photo.split].add(photo.package)
        assert photo.shrink >= 2, f"{photo.name} is lossy"
        assert photo.licence and photo.author
    assert all(sum(photo.split == split for photo in table) >= least for split, least in MIN_PHOTOS.items())
    assert len({photo.name for photo in table}) == len({(photo.package, photo.path) for photo in table}) == len(table)
    assert not packages["test"] & (packages["train"] | packages["val"])
    assert {photo.licence for photo in table} == {
        *("public domain", "CC0-1.0", "GPL-2+", "LGPL-3"),
        *("CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
    }


# --- The script ------------------------------------------------------------------------------------------------------


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash"), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_the_script_reuses_what_is_there_and_overwrites_nothing(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/licences.tsv").touch()
    done = run_script(tmp_path / "photos")
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/photos: photographs are there, reused\n"
    (tmp_path / "own").mkdir()
    (tmp_path / "own/picture.png").touch()
    done = run_script(tmp_path / "own")
    assert done.returncode == 2 and "holds something else" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["licences.tsv", "picture.png"]
    assert run_script().returncode == run_script("--help").returncode == 2


def test_the_script_says_which_program_is_missing(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dirname").symlink_to(shutil.which("dirname"))
    done = run_script(tmp_path / "photos", PATH=str(tmp_path / "bin"))
    assert done.returncode == 2 and "needs apt-get" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "photos").exists()
