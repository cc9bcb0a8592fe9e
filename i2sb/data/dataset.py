"""The images of one split: decoded, resized or cropped to squares, with their labels and degraded partners."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from i2sb.data.stores import Store, class_of, open_stores
from i2sb.errors import FileError, UserError
from i2sb.files import read_regular
from i2sb.image_files import Form, Planes, UnsuitableError, open_planes
from i2sb.images import UNDECODABLE, ValueRange, is_plain, say_undecodable

NO_CLASS = -1


class UnreadableImageError(FileError):
    """An image file that cannot be decoded, or a pair that does not match."""


class View(NamedTuple):
    """How an image is cut from its file.

    flip: mirrored left to right. crop_at: where the crop begins, down and across, from [0, 1): 0 is the top or left
    edge, 1 would be the last crop that fits; None: it is the middle.
    """

    flip: bool = False
    crop_at: tuple[float, float] | None = None


class Item(NamedTuple):
    """One image on its way into a batch; the fields are those of `i2sb.data.loading.Images`."""

    image: Tensor
    degraded: Tensor | None
    label: int
    number: int
    skipped: tuple[str, ...] = ()
    enlarged: int = 0
    form: Form = Form()


class Unreadable(NamedTuple):
    """Stands for an image that cannot be decoded: a loader process hands it out, where an exception would lose its
    one-line message. file: as its store describes it."""

    file: str
    reason: str

    @property
    def error(self) -> UnreadableImageError:
        return UnreadableImageError(self.file, self.reason)


class ImageDataset(Dataset):
    """Square images of one split: `read(index)` gives the clean image, and its partner if paired.

    native: whether they are crops at the files' own scale; else files are shrunk until their shorter side fits.
    value_range: what values of pixels become -1 and 1 (i2sb.images).
    """

    def __init__(
        self,
        clean: Store,
        degraded: Store | None,
        image_size: int,
        image_channels: int,
        *,
        native: bool = False,
        value_range: ValueRange = None,
    ) -> None:
        self.clean, self.degraded = clean, degraded
        self.keys = clean.keys
        self.image_size, self.native = image_size, native
        self.image_channels, self.value_range = image_channels, value_range
        classes = sorted({name for name in map(class_of, self.keys) if name is not None})
        self.classes = {name: number for number, name in enumerate(classes)}

    @property
    def fingerprint(self) -> str:
        """A digest of the images' names in order, to tell one data set from another."""
        return hashlib.sha256("\n".join(self.keys).encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def paired(self) -> bool:
        """Whether every image has a degraded partner in the data set."""
        return self.degraded is not None

    @cached_property
    def dtype(self) -> str:
        """The type of the pixels of the first image, one of i2sb.images.TYPES; others may have another."""
        first = self[0]
        return Form().dtype if isinstance(first, Unreadable) else first.form.dtype

    @property
    def plain(self) -> bool:
        """Whether the images are plain (i2sb.images), as far as the first of them tells."""
        return is_plain(self.dtype, self.value_range)

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, list_file: str | Path) -> ImageDataset:
        """Return the images that a text file lists, a path a line, in its order; all of them if no file is named ("").

        Only base names count, so that lists made elsewhere fit. Raises UserError counting what is missing, or naming
        base names that occur twice.
        """
        if not list_file:
            return self
        try:
            lines = read_regular(Path(list_file)).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("subset", list_file, f"cannot be read ({say_undecodable(error)})") from None
        wanted = [line.strip().replace("\\", "/").rpartition("/")[2] for line in lines if line.strip()]
        if not wanted:
            raise UserError("subset", list_file, "lists no images; a path a line is wanted")
        for name, count in Counter(wanted).items():
            if count > 1:
                raise UserError("subset", list_file, f"lists {name} {count} times")
        listed, key_of = set(wanted), dict[str, str]()
        for key in self.keys:
            name = key.rpartition("/")[2]
            if name in listed and key_of.setdefault(name, key) != key:
                raise UserError(
                    "subset", list_file, f"lists {name}, but {self.clean.path} has {key_of[name]} and {key}"
                )
        missing = [name for name in wanted if name not in key_of]
        if missing:
            raise UserError(
                "subset",
                list_file,
                f"lists {len(wanted)} images, {len(wanted) - len(missing)} of them are in {self.clean.path}, "
                f"{len(missing)} are missing, first {missing[0]}",
            )
        chosen = copy.copy(self)
        chosen.keys = [key_of[name] for name in wanted]
        return chosen

    def label(self, index: int) -> int:
        """Return the image's class as the store lists it, or the number of its class folder, or NO_CLASS."""
        if self.clean.labels is not None:
            return self.clean.labels[self.keys[index]]
        return self.classes.get(class_of(self.keys[index]) or "", NO_CLASS)

    def checksum(self, index: int) -> str:
        """Return the SHA-256 of an image's encoded file, of a pair's two one after the other."""
        stores, key = [self.clean, *([self.degraded] if self.degraded else [])], self.keys[index]
        try:
            return hashlib.sha256(b"".join(store.read(key) for store in stores)).hexdigest()
        except OSError as error:
            raise UnreadableImageError(self.clean.describe(key), say_undecodable(error)) from None

    def labels(self, indices: Iterable[int]) -> Tensor:
        """Return the labels of images, int64 [N]."""
        return torch.tensor([self.label(index) for index in indices], dtype=torch.int64)

    def read(self, index: int, view: View = View()) -> tuple[Tensor, Tensor | None]:  # noqa: B008 - immutable
        """Decode, resize (shorter side, PIL bilinear) unless `native`, crop, and perhaps mirror: [C, H, W] each.

        Plain images (i2sb.images) are uint8, all others float32 in [-1, 1].

        Raises UnreadableImageError naming the file if it is damaged, of an unsuitable kind, or unlike its partner.
        """
        item = self.items(index, [(index, view)])[0]
        if isinstance(item, Unreadable):
            raise item.error
        return item.image, item.degraded

    def __getitem__(self, index: int) -> Item | Unreadable:
        return self.items(index, [(index, View())])[0]

    def items(self, index: int, wanted: Sequence[tuple[int, View]]) -> list[Item | Unreadable]:
        """Decode a file once, and cut a view of it for each (number, view)."""
        key = self.keys[index]
        image = self._decode(self.clean, key)
        if isinstance(image, Unreadable):
            return [image] * len(wanted)
        enlarged, scaled = int(min(image.size) < self.image_size), image.each(self._scale)
        scaled_partner = None
        if self.degraded is not None:
            partner = self._decode(self.degraded, key)
            if not isinstance(partner, Unreadable) and partner.size != image.size:
                partner = Unreadable(
                    self.degraded.describe(key),
                    f"is {_sides(partner)} pixels, its clean partner {_sides(image)}: pairs must have the same size",
                )
            if isinstance(partner, Unreadable):
                return [partner] * len(wanted)
            scaled_partner = partner.each(self._scale)
        return [
            Item(
                self._cut(scaled, view),
                None if scaled_partner is None else self._cut(scaled_partner, view),
                self.label(index),
                number,
                enlarged=enlarged,
                form=image.form,
            )
            for number, view in wanted
        ]

    def _decode(self, store: Store, key: str) -> Planes | Unreadable:
        try:
            content = store.read(key)
            # The published preprocessing ignores how the camera was held.
            return open_planes(content, self.image_channels, self.value_range, upright=self.native)
        except UnsuitableError as error:
            return Unreadable(store.describe(key), str(error))
        except UNDECODABLE as error:
            reason = say_undecodable(error)
            return Unreadable(store.describe(key), f"unreadable image ({reason}); remove or replace it")

    def _scale(self, image: Image.Image) -> Image.Image:
        """Bring the shorter side to the crop's, or leave an image at its own scale if it is large enough for that."""
        if self.native and min(image.size) >= self.image_size:
            return image
        return TF.resize(image, self.image_size, TF.InterpolationMode.BILINEAR)

    def _cut(self, planes: Planes, view: View) -> Tensor:
        side = self.image_size

        def cut(image: Image.Image) -> Image.Image:
            if view.crop_at is None:
                image = TF.center_crop(image, side)
            else:
                down, across = view.crop_at
                top, left = int(down * (image.height - side + 1)), int(across * (image.width - side + 1))
                image = TF.crop(image, top, left, side, side)
            return TF.hflip(image) if view.flip else image

        return planes.each(cut).tensor()


def _sides(image: Planes) -> str:
    return "{}x{}".format(*image.size)


def open_split(
    dataset_dir: str | Path,
    split: str,
    *,
    image_size: int,
    image_channels: int = 3,
    native: bool = False,
    value_range: ValueRange = None,
) -> ImageDataset:
    """Open a split ("train", "val") of a data set folder, in whichever layout it has (i2sb.data.stores).

    native: take images at their own scale. value_range: of pixels, None for all that a file's type has. Raises
    UserError like `open_stores`.
    """
    clean, degraded = open_stores(dataset_dir, split)
    return ImageDataset(clean, degraded, image_size, image_channels, native=native, value_range=value_range)
