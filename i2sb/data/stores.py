"""Where encoded images lie: in an LMDB, or in folders; and how a data set folder is laid out.

A data set folder holds, for each split (train, val), the first of these that is there:

    {split}_faster_imagefolder.lmdb       key = path as in the folder it was made from, value = the encoded file;
                                          with a .lmdb.pt beside it, order and classes are the ones listed there
    {split}/clean/… with {split}/degraded/…   pairs of the same name; the degradation is the data set's own
    {split}/CLASS/…                       classes are the folders' names in order
    {split}/…                             images without classes (label -1)
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from i2sb.errors import FileError, UserError
from i2sb.files import read_regular, write_atomically
from i2sb.unpickle import IMAGE_FOLDER, Bare, read_pickle

IMAGE_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".npy", ".npz"))
_MAX_INDEX_BYTES = 1 << 30  # ImageNet's training set takes 94 MB


class FolderStore:
    """Image files below a folder; keys are their paths relative to it, in order of class and name."""

    labels: Mapping[str, int] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = sort_keys(list_images(path))

    def read(self, key: str) -> bytes:
        """Return the encoded file."""
        return read_regular(self.path / key)

    def size(self, key: str) -> int:
        """Return the size of the encoded file in bytes."""
        return (self.path / key).stat().st_size

    def describe(self, key: str = "") -> str:
        """Name the store, or one of its files, in a message."""
        return str(self.path / key)


class LmdbStore:
    """Image files in an LMDB, opened anew in every process that reads it.

    labels: the class of each key if a .lmdb.pt beside it lists them (keys are in its order then), or None.
    """

    # A process may open an LMDB file only once: stores of the same file share it.
    _open_files: ClassVar[dict[str, tuple[int, Any]]] = {}

    def __init__(self, path: Path) -> None:
        import lmdb

        self.path = path
        try:
            with self._begin() as transaction:
                keys = [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise FileError(path, f"is damaged ({error}); copy or make it again") from None
        index = index_of(path)
        self.labels = _read_index(index, keys) if index.exists() else None
        self.keys = sort_keys(keys) if self.labels is None else list(self.labels)

    def _begin(self) -> Any:
        import lmdb

        name = str(self.path.resolve())
        pid, environment = self._open_files.get(name, (0, None))
        if environment is None or pid != os.getpid():
            if environment is not None:
                environment.close()  # inherited from the parent process, whose own stays open
            try:
                environment = lmdb.open(
                    name, subdir=self.path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
                )
            except lmdb.Error as error:
                raise FileError(self.path, f"cannot be opened as LMDB ({error})") from None
            file = self.path / "data.mdb" if self.path.is_dir() else self.path
            size, needed = file.stat().st_size, (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if size < needed:  # reading beyond the end would kill the process
                environment.close()
                raise FileError(self.path, f"is cut off ({size} of {needed} bytes); copy it again")
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

    def size(self, key: str) -> int:
        """Return the size of the encoded file in bytes."""
        return len(self.read(key))

    def describe(self, key: str = "") -> str:
        return f"{self.path}:{key}" if key else str(self.path)


Store = FolderStore | LmdbStore


def _read_index(path: Path, keys: Sequence[str]) -> dict[str, int]:
    """Read the class of each image from a .lmdb.pt, a pickled torchvision ImageFolder, without running anything.

    Raises UserError naming the file if it is none, or lists other images than the `keys` of the LMDB.
    """
    folder = read_pickle(path, IMAGE_FOLDER, max_bytes=_MAX_INDEX_BYTES)
    images = folder.attributes.get("imgs") if isinstance(folder, Bare) else None
    if not isinstance(images, list) or not all(
        isinstance(image, tuple) and len(image) == 2 and type(image[0]) is str and type(image[1]) is int
        for image in images
    ):
        raise FileError(path, "holds no ImageFolder whose imgs are (path, class) pairs; delete it to do without")
    labels = dict(images)
    stored = set(keys)
    missing = [key for key in labels if key not in stored]
    if missing or len(labels) != len(keys) or len(labels) != len(images):
        first = f", first {missing[0]}" if missing else ""
        raise FileError(
            path,
            f"lists {len(images)} images, its LMDB holds {len(keys)}, and {len(missing)} of the listed are not among "
            f"them{first}; both must come from the same place",
        )
    return labels


def write_index(lmdb_path: Path, root: Path, keys: Sequence[str]) -> None:
    """Write the .lmdb.pt that the released program needs beside an LMDB: a torchvision ImageFolder as torch.save does.

    root: the folder that the images came from. keys: of all images in the LMDB, ASCII, in order; their classes are
    numbered as `sort_keys` orders them, -1 where there are none. Raises UserError naming a key that is not ASCII.
    """
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader

    check_ascii(keys)
    classes = sorted({name for name in map(class_of, keys) if name is not None})
    numbers = {name: number for number, name in enumerate(classes)}
    images = [(key, numbers.get(class_of(key) or "", -1)) for key in keys]
    folder = ImageFolder.__new__(ImageFolder)  # made without it, it would look for the images in their folder
    # What one has that was made in the usual way.
    vars(folder).update(
        root=str(root),
        loader=default_loader,
        extensions=tuple(sorted(IMAGE_ENDINGS)),
        transform=None,
        target_transform=None,
        transforms=None,
        classes=classes,
        class_to_idx=numbers,
        samples=images,
        imgs=images,
        targets=[number for _, number in images],
    )
    write_atomically(index_of(lmdb_path), lambda file: torch.save(folder, file))


def check_ascii(keys: Sequence[str]) -> None:
    """Raise UserError for an image's path that the released program could not look up."""
    for key in keys:
        if not key.isascii():
            raise UserError("", None, f"{key}: its name is not ASCII, so that the released program cannot read it")


def index_of(lmdb_path: Path) -> Path:
    """Return the path of the .lmdb.pt that belongs to an LMDB."""
    return lmdb_path.with_name(f"{lmdb_path.name}.pt")


def list_images(root: Path) -> list[str]:
    """Return the paths of all image files below `root`, relative to it, with forward slashes."""
    return [path for path in list_files(root) if Path(path).suffix.lower() in IMAGE_ENDINGS]


def list_files(root: Path) -> list[str]:
    """Return the paths of all files below `root` that are not hidden, relative to it, with forward slashes.

    Links to folders are followed, but for one that leads back into a folder that it was come from.
    """
    files: list[str] = []
    come_from: dict[str, tuple[str, ...]] = {os.fspath(root): (os.path.realpath(root),)}
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        above = come_from.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in above]
        come_from |= {os.path.join(folder, name): (*above, real[name]) for name in folders}
        files += [Path(folder, name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    return files


def _raise(error: OSError) -> None:
    raise error


def sort_keys(keys: Sequence[str]) -> list[str]:
    """Order keys by class, then by path, as torchvision's ImageFolder does."""
    return sorted(keys, key=lambda key: (class_of(key) or "", key))


def class_of(key: str) -> str | None:
    """Return the name of the class folder: the first of a path, the last of an absolute one; None if there is none."""
    folder, slash, _ = key.partition("/")
    if slash and not folder:
        return key.split("/")[-2] or None
    return folder if slash else None


def open_stores(dataset_dir: str | Path, split: str) -> tuple[Store, Store | None]:
    """Return where the images of a split ("train", "val") lie, and where their degraded partners do, if it is paired.

    Raises UserError if there are no images there, saying what there is instead, or if pairs do not match.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise UserError("dataset_dir", root, "there is no such folder")
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
        content = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError("dataset_dir", root, f"needs {lmdb_path.name} or a folder {split}/; found {content}")
    if not clean.keys:
        raise FileError(clean.path, f"holds no images (looked for {', '.join(sorted(IMAGE_ENDINGS))})")
    return clean, degraded


def _check_pairs(clean: FolderStore, degraded: FolderStore) -> None:
    for one, other in ((clean, degraded), (degraded, clean)):
        missing = sorted(set(one.keys) - set(other.keys))
        if missing:
            raise FileError(
                other.path,
                f"lacks {len(missing)} of the {len(one.keys)} images in {one.path}, first {missing[0]}; partners need "
                "the same name",
            )


def _check_flat_or_classes(store: FolderStore) -> None:
    loose = [key for key in store.keys if class_of(key) is None]
    if loose and len(loose) != len(store.keys):
        raise FileError(
            store.path,
            f"holds images both beside and inside folders ({loose[0]}, {store.keys[-1]}); put them all in class "
            "folders, or none",
        )
