"""Images on disk: LMDB, class folders, a flat folder, or paired folders, behind one interface.

A data set folder holds, for each split (train, val), the first of these that is there:

    {split}_faster_imagefolder.lmdb       key = path as in the folder it was made from, value = the encoded file;
                                          with a .lmdb.pt beside it, order and classes are the ones listed there
    {split}/clean/… with {split}/degraded/…   pairs of the same name; the degradation is the data set's own
    {split}/CLASS/…                       classes are the folders' names in order
    {split}/…                             images without classes (label -1)
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import io
import itertools
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.stopping import StopRequest
from i2sb.unpickle import IMAGE_FOLDER, Bare, read_pickle

IMAGE_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
NO_CLASS = -1
_MAX_INDEX_BYTES = 1 << 30  # ImageNet's training set takes 94 MB


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded, or a pair that does not match."""


class Images(NamedTuple):
    """A batch as it leaves the loader: 8-bit, on the CPU.

    image: uint8 [B, C, H, W]; degraded: the same or None; label: int64 [B]; numbers: what each image is counted by (its
    place in the training run, or its index in the split), the source of its randomness; skipped: a message for each
    unreadable image that another one stands for; enlarged: how many come from files smaller than the crop.
    """

    image: Tensor
    degraded: Tensor | None
    label: Tensor
    numbers: list[int]
    skipped: tuple[str, ...] = ()
    enlarged: int = 0


class View(NamedTuple):
    """How a file is seen. flip: mirrored left to right; place: where its crop begins, down and across, as shares of the
    room there is, from [0, 1), or None for the centre.
    """

    flip: bool = False
    place: tuple[float, float] | None = None


class _Item(NamedTuple):
    """One image of an `Images`."""

    image: Tensor
    degraded: Tensor | None
    label: int
    number: int
    skipped: tuple[str, ...] = ()
    enlarged: int = 0


class _Unreadable(NamedTuple):
    """Carries a failure out of a loader process, where an exception would lose its one-line message."""

    message: str


# --- Stores: where encoded files lie ---------------------------------------------------------------------------------


class FolderStore:
    """Image files below a folder; keys are their paths relative to it, in order of class and name."""

    labels: Mapping[str, int] | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = sort_keys(list_images(root))

    def read(self, key: str) -> bytes:
        """Return the encoded file."""
        return (self.root / key).read_bytes()

    def describe(self, key: str = "") -> str:
        """Name the store, or one of its files, in a message."""
        return str(self.root / key)


class LmdbStore:
    """Image files in an LMDB, opened anew in every process that reads it.

    labels: the class of each key if a .lmdb.pt beside it lists them (keys are in its order then), or None.
    """

    # LMDB allows a file to be open once a process: stores of the same file share it.
    _open_files: ClassVar[dict[str, tuple[int, Any]]] = {}

    def __init__(self, path: Path) -> None:
        import lmdb

        self.path = path
        try:
            with self._begin() as transaction:
                keys = [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is damaged ({error}); copy or make it again") from None
        index = path.with_name(f"{path.name}.pt")
        self.labels = _read_index(index, keys) if index.exists() else None
        self.keys = sort_keys(keys) if self.labels is None else list(self.labels)

    def _begin(self) -> Any:
        import lmdb

        name = str(self.path.resolve())
        pid, environment = self._open_files.get(name, (None, None))
        if pid != os.getpid():
            if environment is not None:
                environment.close()  # inherited by fork; its owner keeps its own
            try:
                environment = lmdb.open(
                    name, subdir=self.path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
                )
            except lmdb.Error as error:
                raise ValueError(f"{self.path}: cannot be opened as LMDB ({error})") from None
            file = self.path / "data.mdb" if self.path.is_dir() else self.path
            size, needed = file.stat().st_size, (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if size < needed:  # reading beyond the end would kill the process
                environment.close()
                raise ValueError(f"{self.path}: is cut off ({size} of {needed} bytes); copy it again")
            self._open_files[name] = (os.getpid(), environment)
        return environment.begin()

    def read(self, key: str) -> bytes:
        """Return the encoded file. Raises OSError if the LMDB is damaged there."""
        import lmdb

        try:
            with self._begin() as transaction:
                return transaction.get(key.encode())
        except lmdb.Error as error:
            raise OSError(f"the LMDB is damaged there: {error}") from None

    def describe(self, key: str = "") -> str:
        """Name the store, or one of its files, in a message."""
        return f"{self.path}:{key}" if key else str(self.path)


Store = FolderStore | LmdbStore


def _read_index(path: Path, keys: Sequence[str]) -> dict[str, int]:
    """Read the class of each image from a .lmdb.pt, a pickled torchvision ImageFolder, without running anything.

    Raises ValueError naming the file if it is none, or lists other images than the `keys` of the LMDB.
    """
    folder = read_pickle(path, IMAGE_FOLDER, max_bytes=_MAX_INDEX_BYTES)
    images = folder.attributes.get("imgs") if isinstance(folder, Bare) else None
    if not isinstance(images, list) or not all(
        isinstance(image, tuple) and len(image) == 2 and type(image[0]) is str and type(image[1]) is int
        for image in images
    ):
        raise ValueError(f"{path}: holds no ImageFolder whose imgs are (path, class) pairs; delete it to do without")
    labels = dict(images)
    there = set(keys)
    missing = [key for key in labels if key not in there]
    if missing or len(labels) != len(keys) or len(labels) != len(images):
        first = f", first {missing[0]}" if missing else ""
        raise ValueError(
            f"{path}: lists {len(images)} images, its LMDB holds {len(keys)}, and {len(missing)} of the listed are not "
            f"among them{first}; both must come from the same place"
        )
    return labels


def list_images(root: Path) -> list[str]:
    """Return the paths of all image files below `root`, relative to it, with forward slashes."""
    found = []
    for folder, _, names in os.walk(root, onerror=_raise, followlinks=True):
        found += [
            Path(folder, name).relative_to(root).as_posix()
            for name in names
            if Path(name).suffix.lower() in IMAGE_ENDINGS and not name.startswith(".")
        ]
    return found


def _raise(error: OSError) -> None:
    raise error


def sort_keys(keys: Sequence[str]) -> list[str]:
    """Order keys by class, then by path, as torchvision's ImageFolder does."""
    return sorted(keys, key=lambda key: (_class_of(key) or "", key))


def _class_of(key: str) -> str | None:
    """Return the name of the class folder: the first of a path, the last of an absolute one; None if there is none."""
    folder, slash, _ = key.partition("/")
    if slash and not folder:
        return key.split("/")[-2] or None
    return folder if slash else None


# --- The data set ----------------------------------------------------------------------------------------------------


class ImageDataset(Dataset):
    """Square images of one split: `read(index)` gives the 8-bit clean image, its partner if paired, and its label.

    native: whether they are crops at the files' own scale; else files are shrunk until their shorter side fits.
    """

    def __init__(
        self, clean: Store, degraded: Store | None, image_size: int, image_channels: int, *, native: bool = False
    ) -> None:
        self.clean, self.degraded = clean, degraded
        self.keys = clean.keys
        self.image_size, self.native = image_size, native
        self.mode = {1: "L", 3: "RGB"}[image_channels]
        classes = sorted({name for name in map(_class_of, self.keys) if name is not None})
        self.classes = {name: number for number, name in enumerate(classes)}

    @property
    def fingerprint(self) -> str:
        """A digest of the images' names in order, to tell one data set from another."""
        return hashlib.sha256("\n".join(self.keys).encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def paired(self) -> bool:
        """Whether every image has a degraded partner in the data set."""
        return self.degraded is not None

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, list_file: str | Path) -> ImageDataset:
        """Return the images that a text file lists, a path a line, in its order; only their base names count.

        So lists made elsewhere fit. Raises ValueError counting what is missing, or naming base names that occur twice.
        """
        try:
            lines = Path(list_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--subset {list_file}: cannot be read ({' '.join(str(error).split())})") from None
        wanted = [line.strip().replace("\\", "/").rpartition("/")[2] for line in lines if line.strip()]
        if not wanted:
            raise ValueError(f"--subset {list_file}: lists no images; a path a line is wanted")
        for name, count in Counter(wanted).items():
            if count > 1:
                raise ValueError(f"--subset {list_file}: lists {name} {count} times")
        listed, found = set(wanted), {}
        for key in self.keys:
            name = key.rpartition("/")[2]
            if name in listed and found.setdefault(name, key) != key:
                raise ValueError(
                    f"--subset {list_file}: lists {name}, but {self.clean.describe()} has {found[name]} and {key}"
                )
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(
                f"--subset {list_file}: lists {len(wanted)} images, {len(found)} of them are in "
                f"{self.clean.describe()}, {len(missing)} are missing, first {missing[0]}"
            )
        chosen = copy.copy(self)
        chosen.keys = [found[name] for name in wanted]
        return chosen

    def label(self, index: int) -> int:
        """Return the image's class as the store lists it, or the number of its class folder, or NO_CLASS."""
        if self.clean.labels is not None:
            return self.clean.labels[self.keys[index]]
        return self.classes.get(_class_of(self.keys[index]) or "", NO_CLASS)

    def read(self, index: int, view: View = View()) -> tuple[Tensor, Tensor | None]:  # noqa: B008 - immutable
        """Decode, resize (shorter side, PIL bilinear) unless `native`, crop, and perhaps mirror: uint8 [C, H, W] each.

        Raises UnreadableImageError naming the file if it is damaged, of an unsuitable kind, or unlike its partner.
        """
        item = self.items(index, [(index, view)])[0]
        if isinstance(item, _Unreadable):
            raise UnreadableImageError(item.message)
        return item.image, item.degraded

    def __getitem__(self, index: int) -> _Item | _Unreadable:
        return self.items(index, [(index, View())])[0]

    def items(self, index: int, wanted: Sequence[tuple[int, View]]) -> list[_Item | _Unreadable]:
        """Decode a file once and return a view of it for each (number, view), as what `_collate` makes batches of."""
        key = self.keys[index]
        try:
            image = self._decode(self.clean, key)
            partner = self._decode(self.degraded, key) if self.degraded is not None else None
            if partner is not None and partner.size != image.size:
                raise UnreadableImageError(
                    f"{self.degraded.describe(key)} is {partner.width}x{partner.height} pixels, its clean partner "
                    f"{image.width}x{image.height}: pairs must have the same size"
                )
        except UnreadableImageError as error:
            return [_Unreadable(str(error))] * len(wanted)
        enlarged = int(min(image.size) < self.image_size)
        image, partner = (None if one is None else self._scale(one) for one in (image, partner))
        return [
            _Item(
                self._cut(image, view),
                None if partner is None else self._cut(partner, view),
                self.label(index),
                number,
                enlarged=enlarged,
            )
            for number, view in wanted
        ]

    def _decode(self, store: Store, key: str) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(store.read(key)))
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of kind {image.mode}, only 8-bit images are supported")
            return image.convert(self.mode)
        except UnidentifiedImageError:
            reason = "not an image, or cut off"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
        raise UnreadableImageError(f"{store.describe(key)}: unreadable image ({reason}); remove or replace it")

    def _scale(self, image: Image.Image) -> Image.Image:
        """Bring the shorter side to the crop's, or leave an image at its own scale if it is large enough for that."""
        if self.native and min(image.size) >= self.image_size:
            return image
        return TF.resize(image, self.image_size, TF.InterpolationMode.BILINEAR)

    def _cut(self, image: Image.Image, view: View) -> Tensor:
        side = self.image_size
        if view.place is None:
            image = TF.center_crop(image, side)
        else:
            rooms = (image.height - side + 1, image.width - side + 1)
            top, left = (int(share * room) for share, room in zip(view.place, rooms, strict=True))
            image = TF.crop(image, top, left, side, side)
        return TF.pil_to_tensor(TF.hflip(image) if view.flip else image)


def open_split(
    dataset_dir: str | Path, split: str, *, image_size: int, image_channels: int = 3, native: bool = False
) -> ImageDataset:
    """Open the split ("train", "val") of a data set folder, whichever of the module's layouts it has.

    native: take images at their own scale. Raises ValueError saying what was found if there is no such data, none in
    it, or pairs do not match.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise ValueError(f"--dataset-dir {root}: there is no such folder")
    lmdb_path, folder = root / f"{split}_faster_imagefolder.lmdb", root / split
    degraded: Store | None = None
    if lmdb_path.exists():
        clean: Store = LmdbStore(lmdb_path)
    elif (folder / "clean").is_dir() and (folder / "degraded").is_dir():
        clean, degraded = FolderStore(folder / "clean"), FolderStore(folder / "degraded")
        _check_pairs(clean, degraded)
    elif folder.is_dir():
        clean = FolderStore(folder)
        _check_flat_or_classes(clean)
    else:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise ValueError(f"--dataset-dir {root}: needs {lmdb_path.name} or a folder {split}/; found {found}")
    if not clean.keys:
        raise ValueError(f"{clean.describe()}: holds no images (looked for {', '.join(sorted(IMAGE_ENDINGS))})")
    return ImageDataset(clean, degraded, image_size, image_channels, native=native)


def _check_pairs(clean: FolderStore, degraded: FolderStore) -> None:
    for one, other in ((clean, degraded), (degraded, clean)):
        missing = sorted(set(one.keys) - set(other.keys))
        if missing:
            raise ValueError(
                f"{other.root}: lacks {len(missing)} of the {len(one.keys)} images in {one.root}, first {missing[0]}; "
                "partners need the same name"
            )


def _check_flat_or_classes(store: FolderStore) -> None:
    loose = [key for key in store.keys if _class_of(key) is None]
    if loose and len(loose) != len(store.keys):
        raise ValueError(
            f"{store.root}: holds images both beside and inside folders ({loose[0]}, {store.keys[-1]}); "
            "put them all in class folders, or none"
        )


# --- Order and loading -----------------------------------------------------------------------------------------------


class TrainingStream(Dataset):
    """The endless training set: what stands at a position is a function of the seed, the position and the crops alone.

    Crops of images at their own scale lie anywhere, others in the centre. Of a file that was decoded,
    `crops_per_image` crops are used: the images of a global batch of `batch_size` stay for that many batches.
    Where an image cannot be read, the next in the epoch's order that can stands for it too.
    """

    ATTEMPTS = 20

    def __init__(self, dataset: ImageDataset, seed: int, *, batch_size: int = 1, crops_per_image: int = 1) -> None:
        self.dataset, self.seed = dataset, seed
        self.batch_size, self.crops_per_image = batch_size, crops_per_image
        self._ready: dict[int, _Item | _Unreadable] = {}  # crops cut ahead, by position

    def __getitem__(self, position: int) -> _Item | _Unreadable:
        if position not in self._ready:
            self._cut_ahead(position)
        return self._ready.pop(position)

    def _cut_ahead(self, position: int) -> None:
        """Make ready what stands at a position, and at those after it where the same file does."""
        batch, place = divmod(position, self.batch_size)
        turn = batch // self.crops_per_image
        first = turn * self.crops_per_image
        positions = [(first + i) * self.batch_size + place for i in range(self.crops_per_image)]
        wanted = [(p, self._view(p)) for p in positions if p >= position]
        epoch, place = divmod(turn * self.batch_size + place, len(self.dataset))
        order = _shuffle(len(self.dataset), self.seed, epoch)
        skipped: list[str] = []
        for attempt in range(self.ATTEMPTS):
            items = self.dataset.items(int(order[(place + attempt) % len(order)]), wanted)
            if isinstance(items[0], _Item):
                items = [item._replace(skipped=tuple(skipped)) for item in items]
                break
            skipped.append(items[0].message)
        # Of several loader processes each meets only some of the positions: what was passed by is never asked for.
        self._ready = {p: item for p, item in self._ready.items() if p > position - self.batch_size}
        self._ready.update((p, item) for (p, _), item in zip(wanted, items, strict=True))

    def _view(self, position: int) -> View:
        noise = ImageNoise(self.seed, Purpose.AUGMENT, [position])
        flip = bool(noise.randint(2))
        return View(flip, tuple(noise.rand(2)[0].tolist()) if self.dataset.native else None)


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """Return the epoch's order, a permutation of {0 … count - 1}."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(make_seed(seed, Purpose.ORDER, epoch)))


class TrainingPositions(Sampler[list[int]]):
    """Deals positions to a rank, a microbatch at a time, for ever, from the `first` position on.

    Global batch i is the same images whatever the number of ranks; each rank has a slice of it, in microbatches.
    """

    def __init__(self, first: int, batch_size: int, microbatch: int, rank: int = 0, world_size: int = 1) -> None:
        self.first, self.batch_size, self.microbatch = first, batch_size, microbatch
        self.share = batch_size // world_size
        self.offset = rank * self.share

    def __iter__(self) -> Iterator[list[int]]:
        for batch_start in itertools.count(self.first + self.offset, self.batch_size):
            for start in range(batch_start, batch_start + self.share, self.microbatch):
                yield list(range(start, start + self.microbatch))


def load_training(
    dataset: ImageDataset,
    *,
    seed: int,
    positions: TrainingPositions,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    crops_per_image: int = 1,
) -> Iterator[Images]:
    """Yield microbatches for ever; each of the `workers` prepares `prefetch` of them ahead.

    crops_per_image: as `TrainingStream` has it.
    Raises UnreadableImageError if many files in a row cannot be decoded; a few are replaced (`Images.skipped`).
    """
    stream = TrainingStream(dataset, seed, batch_size=positions.batch_size, crops_per_image=crops_per_image)
    return _load(stream, positions, workers, pin_memory, prefetch)


def load_in_order(
    dataset: ImageDataset, indices: Sequence[int], *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Images]:
    """Yield the images at `indices` in batches. Raises UnreadableImageError at a file that cannot be decoded."""
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return _load(dataset, batches, min(workers, len(batches)), pin_memory)


def _load(dataset: Dataset, batches: Any, workers: int, pin_memory: bool, prefetch: int = 2) -> Iterator[Images]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    if workers:
        _kill_loader_processes_at_exit()
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        # Not the forkserver of newer Pythons, which does not outlive such signals.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for batch in loader:
        if isinstance(batch, _Unreadable):
            raise UnreadableImageError(batch.message)
        yield batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Let a loader process live through what a cluster sends to all: the main process ends it when it is done."""
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_loader_processes_at_exit() -> None:
    """Have those killed that are left when the program ends, for Python would ask them by SIGTERM, and wait."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)


def _collate(items: list[Any]) -> Images | _Unreadable:
    for item in items:
        if isinstance(item, _Unreadable):
            return item
    images, partners, labels, numbers, skipped, enlarged = zip(*items, strict=True)
    degraded = None if partners[0] is None else torch.stack(partners)
    messages = tuple(message for several in skipped for message in several)
    return Images(torch.stack(images), degraded, torch.tensor(labels), list(numbers), messages, sum(enlarged))
