"""Data sets on disk, their order, and what happens when they are not as they should be."""

from __future__ import annotations

import itertools
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, find_crop, make_image, run_python, write_images
from PIL import Image

from i2sb.data.dataset import NO_CLASS, UnreadableImageError, View, open_split
from i2sb.data.loading import load_in_order, load_training
from i2sb.data.order import TrainingPositions, TrainingStream


def open_tiny(root, split="train", **options):
    return open_split(root, split, image_size=16, **options)


@pytest.fixture(scope="module")
def lmdb_dir(dataset_dir, tmp_path_factory):
    """The shared data set, packed by scripts/make_lmdb.py."""
    out = tmp_path_factory.mktemp("lmdb")
    for split in ("train", "val"):
        run_python(ROOT / "scripts/make_lmdb.py", dataset_dir / split, out, "--split", split, "--workers", "1")
    return out


def test_class_folders_have_classes_in_order(dataset_dir):
    images = open_tiny(dataset_dir)
    assert images.keys == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    assert [images.label(i) for i in range(12)] == [0] * 6 + [1] * 6
    assert not images.paired


def test_flat_folder_has_no_classes(tmp_path):
    write_images(tmp_path / "train", ["b.png", "a.PNG", "c.webp"])
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    images = open_tiny(tmp_path)
    assert images.keys == ["a.PNG", "b.png", "c.webp"]
    assert images.label(0) == NO_CLASS


def test_lmdb_gives_the_same_as_its_folder(dataset_dir, lmdb_dir):
    for split in ("train", "val"):
        folder, packed = open_tiny(dataset_dir, split), open_tiny(lmdb_dir, split)
        assert packed.keys == folder.keys
        for i in range(len(folder)):
            assert packed.label(i) == folder.label(i)
            assert torch.equal(packed.read(i)[0], folder.read(i)[0])


def test_lmdb_is_read_in_worker_processes_while_open_here(lmdb_dir):
    images = open_tiny(lmdb_dir)
    images.read(0)
    (batch,) = load_in_order(images, range(5), batch_size=5, workers=1)
    assert torch.equal(batch.image[3], images.read(3)[0])
    assert torch.equal(pickle.loads(pickle.dumps(images)).read(2)[0], images.read(2)[0])


def test_lmdb_cut_off_is_named(lmdb_dir, tmp_path):
    whole = (lmdb_dir / "train_faster_imagefolder.lmdb").read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 8192, 100, 0):
        (tmp_path / f"{length}").mkdir()
        (tmp_path / f"{length}" / "train_faster_imagefolder.lmdb").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="train_faster_imagefolder.lmdb: (is cut off|cannot be opened|holds no)"):
            open_tiny(tmp_path / f"{length}")


def test_damaged_lmdb_is_named(lmdb_dir, tmp_path):
    """Any of its pages overwritten: it reads as before (the page held an image, or nothing), or says what is wrong."""
    whole = (lmdb_dir / "train_faster_imagefolder.lmdb").read_bytes()
    refused = []
    for page in range(2, len(whole) // 4096):  # the first two say where the others are
        path = tmp_path / str(page) / "train_faster_imagefolder.lmdb"
        path.parent.mkdir()
        path.write_bytes(whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :])
        try:
            images = open_tiny(path.parent)
            for i in range(len(images)):
                images.read(i)
        except UnreadableImageError as error:  # the image is gone, or where it is listed
            assert str(error).startswith(f"{path}:") and "unreadable image" in str(error)
        except ValueError as error:
            assert str(error).startswith(f"{path}: is damaged (") and "copy or make it again" in str(error)
            refused.append(page)
    assert refused


def test_paired_folders_keep_pairs_together(tmp_path):
    write_images(tmp_path / "train" / "clean", ["x/a.png", "b.png"])
    write_images(tmp_path / "train" / "degraded", ["x/a.png", "b.png"], first=7)
    images = open_tiny(tmp_path)
    assert images.paired
    (batch,) = load_in_order(images, [0, 1], batch_size=2)
    assert batch.image.shape == batch.degraded.shape == (2, 3, 16, 16)
    assert not torch.equal(batch.image, batch.degraded)
    clean, degraded = images.read(0)
    mirrored, mirrored_degraded = images.read(0, View(flip=True))
    assert torch.equal(mirrored, clean.flip(-1)) and torch.equal(mirrored_degraded, degraded.flip(-1))


def test_transform_is_resize_of_the_shorter_side_then_centre_crop(tmp_path):
    (tmp_path / "train").mkdir()
    make_image(3, width=48, height=32).save(tmp_path / "train" / "a.png")
    small = make_image(3, width=48, height=32).resize((24, 16), Image.Resampling.BILINEAR)
    want = np.asarray(small)[:, 4:20].transpose(2, 0, 1)
    assert np.array_equal(open_tiny(tmp_path).read(0)[0].numpy(), want)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_kinds_of_pixels(tmp_path, mode):
    (tmp_path / "train").mkdir()
    make_image(0).convert(mode).save(tmp_path / "train" / ("a.jpg" if mode == "CMYK" else "a.png"))
    assert open_tiny(tmp_path).read(0)[0].shape == (3, 16, 16)
    assert open_tiny(tmp_path, image_channels=1).read(0)[0].shape == (1, 16, 16)


def sixteen_bit(path):
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(path)


def cut_off(path):
    make_image(0, 64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_off, "truncated"),
        (lambda path: path.write_bytes(b""), "not an image, or cut off"),
        (lambda path: path.write_text("hello"), "not an image, or cut off"),
        (sixteen_bit, "only 8-bit"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_named_in_one_line(tmp_path, spoil, words, workers):
    write_images(tmp_path / "train", ["a.png", "b.png"])
    spoil(tmp_path / "train" / "b.png")
    with pytest.raises(UnreadableImageError) as error:
        list(load_in_order(open_tiny(tmp_path), [0, 1], batch_size=1, workers=workers))
    assert "train/b.png: unreadable image" in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


def test_pairs_of_other_sizes_are_named(tmp_path):
    write_images(tmp_path / "train" / "clean", ["a.png"])
    (tmp_path / "train" / "degraded").mkdir()
    make_image(0, 10, 20).save(tmp_path / "train" / "degraded" / "a.png")
    with pytest.raises(UnreadableImageError, match=r"degraded/a.png is 10x20 pixels, its clean partner 24x20"):
        open_tiny(tmp_path).read(0)


def test_missing_empty_and_mismatched_sets_say_what_was_found(tmp_path):
    def message(root=tmp_path):
        with pytest.raises(ValueError) as error:
            open_tiny(root)
        return str(error.value)

    assert message(tmp_path / "nowhere").endswith("nowhere: there is no such folder")
    assert message().endswith("needs train_faster_imagefolder.lmdb or a folder train/; found nothing")
    (tmp_path / "training").mkdir()
    assert message().endswith("found training")
    (tmp_path / "train").mkdir()
    assert "train: holds no images" in message()
    write_images(tmp_path / "train", ["loose.png", "cat/a.png"])
    assert "beside and inside folders (loose.png, cat/a.png)" in message()
    shutil.rmtree(tmp_path / "train")
    write_images(tmp_path / "train" / "clean", ["a.png", "b.png", "c.png"])
    write_images(tmp_path / "train" / "degraded", ["c.png"])
    assert "degraded: lacks 2 of the 3 images" in message() and "first a.png" in message()
    (tmp_path / "train_faster_imagefolder.lmdb").write_bytes(b"not a database")
    assert "cannot be opened as LMDB" in message()


# --- order -----------------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_new_order_of_all_images(dataset_dir):
    images = open_tiny(dataset_dir)
    number = {images.read(i, View(flip))[0].numpy().tobytes(): i for i in range(12) for flip in (False, True)}
    stream = TrainingStream(images, seed=0)
    first, second = ([number[stream[p][0].numpy().tobytes()] for p in epoch] for epoch in (range(12), range(12, 24)))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second != list(range(12)) != first


def test_order_depends_on_the_seed_alone(dataset_dir):
    one, same, other = (TrainingStream(open_tiny(dataset_dir), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[p][0], same[p][0]) for p in range(20))
    assert not all(torch.equal(one[p][0], other[p][0]) for p in range(20))


def test_about_half_the_images_are_mirrored(dataset_dir):
    images = open_tiny(dataset_dir)
    stream = TrainingStream(images, seed=3)
    straight = {images.read(i)[0].numpy().tobytes() for i in range(12)}
    count = sum(stream[p][0].numpy().tobytes() in straight for p in range(240))
    assert 90 < count < 150


def take(positions, count):
    return list(itertools.islice(positions, count))


@pytest.mark.parametrize(("world_size", "microbatch"), [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_ranks_share_the_same_global_batches(world_size, microbatch):
    rounds = 8 // world_size // microbatch
    dealt = [
        sum(take(TrainingPositions(24, 8, microbatch, rank, world_size), 2 * rounds), []) for rank in range(world_size)
    ]
    half = 8 // world_size
    first, second = [sum((d[:half] for d in dealt), []), sum((d[half:] for d in dealt), [])]
    assert first == list(range(24, 32)) and second == list(range(32, 40))


def test_loading_from_a_position_continues_what_loading_from_the_start_gave(dataset_dir):
    images = open_tiny(dataset_dir)
    load = lambda first: load_training(images, seed=5, positions=TrainingPositions(first, 4, 2), workers=0)
    whole, late = take(load(0), 10), take(load(8), 6)
    assert [b.numbers for b in late] == [b.numbers for b in whole[4:]]
    assert all(torch.equal(a.image, b.image) for a, b in zip(late, whole[4:], strict=True))


# --- crops at the images' own scale ----------------------------------------------------------------------------------


def open_native(root, split="train", side=16):
    return open_split(root, split, image_size=side, native=True)


def test_native_crops_are_the_files_own_pixels_from_anywhere(photographs):
    stream = TrainingStream(open_native(photographs), seed=0)
    found = [find_crop(stream[position].image) for position in range(1500)]
    assert {number for number, *_ in found[:5]} == set(range(5))  # an epoch is every file once
    tops, lefts = ({spot[i] for spot in found if spot[0] == 0} for i in (1, 2))
    assert tops == set(range(40 - 16 + 1)) and lefts == set(range(60 - 16 + 1))
    assert 0.4 < np.mean([flip for *_, flip in found]) < 0.6


def test_native_crops_of_the_evaluation_are_the_middle(photographs):
    for index in range(5):
        assert find_crop(open_native(photographs, "val").read(index)[0]) == (index, round((24 + index) / 2), 22, False)


def test_files_smaller_than_the_crop_are_enlarged_just_enough_and_counted(photographs, tmp_path):
    images = open_native(photographs, side=42)  # two of five have 40 and 41 rows
    batch = next(load_training(images, seed=0, positions=TrainingPositions(0, 5, 5), workers=0))
    assert batch.image.shape == (5, 3, 42, 42) and batch.enlarged == 2
    want = np.asarray(Image.open(photographs / "train" / "0.png").resize((63, 42), Image.Resampling.BILINEAR))
    assert np.array_equal(images.read(0, View(place=(0.0, 0.5)))[0].numpy(), want[:, 11:53].transpose(2, 0, 1))


@pytest.mark.parametrize(("world_size", "microbatch", "workers"), [(1, 4, 0), (1, 2, 2), (2, 1, 0)])
def test_several_crops_of_a_file_are_the_same_however_they_are_loaded(photographs, world_size, microbatch, workers):
    """Batch, position, and crop depend on neither ranks, microbatches, loader processes, nor where a run goes on."""
    images = open_native(photographs)
    whole = TrainingStream(images, seed=1, batch_size=4, crops_per_image=3)
    want = [find_crop(whole[position].image) for position in range(32)]
    for batch in (0, 3):  # three global batches see the same files, at other places
        files = [[number for number, *_ in want[4 * i : 4 * i + 4]] for i in range(batch, batch + 3)]
        assert files[0] == files[1] == files[2]
        assert len(set(want[4 * batch : 4 * batch + 12])) == 12
    assert [spot[0] for spot in want[:4]] != [spot[0] for spot in want[12:16]]
    for first in (0, 4, 20):
        for rank in range(world_size):
            positions = TrainingPositions(first, 4, microbatch, rank, world_size)
            loaded = load_training(images, seed=1, positions=positions, workers=workers, crops_per_image=3)
            for part in take(loaded, 8 // world_size // microbatch):
                assert [find_crop(image) for image in part.image] == [want[number] for number in part.numbers]


def test_crops_are_cut_ahead_and_no_more_of_them_are_kept_than_are_used(photographs, monkeypatch):
    images = open_native(photographs)
    decoded = []
    decode = type(images)._decode
    monkeypatch.setattr(
        type(images), "_decode", lambda self, store, key: decoded.append(key) or decode(self, store, key)
    )
    stream = TrainingStream(images, seed=1, batch_size=4, crops_per_image=5)
    for position in range(40):
        stream[position]
    assert len(decoded) == 8 and not stream._ready
    for position in range(40, 400, 4):  # a loader process that is asked for the first of each batch alone
        stream[position]
    assert len(stream._ready) < 5


def test_pairs_are_cropped_alike(photographs, tmp_path):
    for kind in ("clean", "degraded"):
        shutil.copytree(photographs / "train", tmp_path / "train" / kind)
    stream = TrainingStream(open_native(tmp_path), seed=0)
    for position in range(20):
        item = stream[position]
        assert torch.equal(item.image, item.degraded)
        find_crop(item.image)


# --- the released LMDB layout, and lists of images -------------------------------------------------------------------


def pack(folder, out, split, keys=None):
    """Write an LMDB of a folder's images in this process, under the `keys` given for their sorted paths."""
    import lmdb

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{split}_faster_imagefolder.lmdb"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = keys or [file.relative_to(folder).as_posix() for file in files]
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for name, file in zip(names, files, strict=True):
            writing.put(name.encode(), file.read_bytes())
    return path


RELEASED_KEYS = ["/data/train/wolf/c.png", "/data/train/ape/d.png", "/data/train/cat/a.png"]


def test_keys_of_a_released_lmdb_are_absolute_and_their_last_folder_is_the_class(tmp_path):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    pack(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    images = open_tiny(tmp_path / "out")
    assert images.keys == [RELEASED_KEYS[1], RELEASED_KEYS[2], RELEASED_KEYS[0]]
    assert [images.label(i) for i in range(3)] == [0, 1, 2]
    assert torch.equal(images.read(2)[0], open_tiny_folder(tmp_path / "in").read(0)[0])


def open_tiny_folder(folder):
    (folder.parent / "as_train").mkdir()
    shutil.copytree(folder, folder.parent / "as_train" / "train")
    return open_tiny(folder.parent / "as_train")


def image_folder(imgs):
    """A real torchvision ImageFolder, as the released program pickled it."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    folder = ImageFolder.__new__(ImageFolder)
    folder.root, folder.loader, folder.extensions = "/data/train", default_loader, (".png",)
    folder.transform = folder.target_transform = folder.transforms = None
    folder.imgs = folder.samples = imgs
    folder.targets = [label for _, label in imgs]
    return folder


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_lmdb_index_gives_order_and_classes(tmp_path, save):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    path = pack(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    save(image_folder([(key, 7 - i) for i, key in enumerate(RELEASED_KEYS)]), path.with_name(f"{path.name}.pt"))
    images = open_tiny(tmp_path / "out")
    assert images.keys == RELEASED_KEYS
    assert [images.label(i) for i in range(3)] == [7, 6, 5]
    (batch,) = load_in_order(images, range(3), batch_size=3)
    assert batch.label.tolist() == [7, 6, 5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([(key, 0) for key in RELEASED_KEYS[:2]], "lists 2 images, its LMDB holds 3, and 0 of the listed"),
        ([("/x.png", 0), ("/y.png", 0), (RELEASED_KEYS[0], 0)], "2 of the listed are not among them, first /x.png"),
        ([(RELEASED_KEYS[0], 0)] * 3, "lists 3 images, its LMDB holds 3"),
        ([(key, "0") for key in RELEASED_KEYS], "holds no ImageFolder whose imgs"),
        (["a", "b", "c"], "holds no ImageFolder whose imgs"),
        (None, "holds no ImageFolder whose imgs"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path, value, words):
    write_images(tmp_path / "in", ["0.png", "1.png", "2.png"])
    path = pack(tmp_path / "in", tmp_path / "out", "train", RELEASED_KEYS)
    folder = image_folder([])
    folder.imgs = folder.samples = value
    torch.save(folder, path.with_name(f"{path.name}.pt"))
    with pytest.raises(ValueError, match="train_faster_imagefolder.lmdb.pt: ") as error:
        open_tiny(tmp_path / "out")
    assert words in str(error.value)


def test_listed_images_come_in_the_order_of_the_list_with_their_classes(dataset_dir, tmp_path):
    write_images(tmp_path / "val", ["cat/x.png", "dog/y.png", "dog/z.png"])
    (tmp_path / "list.txt").write_text("/their/val/z.png\nC:\\val\\x.png\n\n")
    whole = open_tiny(tmp_path, "val")
    images = whole.subset(tmp_path / "list.txt")
    assert images.keys == ["dog/z.png", "cat/x.png"] and len(images) == 2 and len(whole) == 3
    assert [images.label(i) for i in range(2)] == [1, 0]
    assert torch.equal(images.read(0)[0], whole.read(2)[0])
    assert images.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a/x.png\nno.png\nb/y.png\nnor.png", "lists 4 images, 2 of them are in", ),
        ("a/x.png\nno.png\nb/y.png\nnor.png", "2 are missing, first no.png"),
        ("x.png\na/x.png", "lists x.png 2 times"),
        ("twice.png", "has cat/twice.png and dog/twice.png"),
        ("\n", "lists no images"),
        (b"\xff", "cannot be read"),
        (None, "cannot be read"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_say_how(tmp_path, content, words):
    write_images(tmp_path / "val", ["cat/x.png", "dog/y.png", "cat/twice.png", "dog/twice.png"])
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="--subset .*list.txt") as error:
        open_tiny(tmp_path, "val").subset(tmp_path / "list.txt")
    assert words in str(error.value)
