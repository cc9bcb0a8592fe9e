"""The images of one split: decoded, resized or cropped to squares, with their labels and degraded partners."""

from __future__ import annotations

import copy
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from i2sb.data.stores import Store, class_of, open_stores

NO_CLASS = -1


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded, or a pair that does not match."""


class View(NamedTuple):
    """How a file is seen. flip: mirrored left to right; place: where its crop begins, down and across, as shares of the
    room there is, from [0, 1), or None for the centre.
    """

    flip: bool = False
    place: tuple[float, float] | None = None


class Item(NamedTuple):
    """One image of an `Images`."""

    image: Tensor
    degraded: Tensor | None
    label: int
    number: int
    skipped: tuple[str, ...] = ()
    enlarged: int = 0


class Unreadable(NamedTuple):
    """Carries a failure out of a loader process, where an exception would lose its one-line message."""

    message: str


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
        return self.classes.get(class_of(self.keys[index]) or "", NO_CLASS)

    def read(self, index: int, view: View = View()) -> tuple[Tensor, Tensor | None]:  # noqa: B008 - immutable
        """Decode, resize (shorter side, PIL bilinear) unless `native`, crop, and perhaps mirror: uint8 [C, H, W] each.

        Raises UnreadableImageError naming the file if it is damaged, of an unsuitable kind, or unlike its partner.
        """
        item = self.items(index, [(index, view)])[0]
        if isinstance(item, Unreadable):
            raise UnreadableImageError(item.message)
        return item.image, item.degraded

    def __getitem__(self, index: int) -> Item | Unreadable:
        return self.items(index, [(index, View())])[0]

    def items(self, index: int, wanted: Sequence[tuple[int, View]]) -> list[Item | Unreadable]:
        """Decode a file once and return a view of it for each (number, view), as what `loading` makes batches of."""
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
            return [Unreadable(str(error))] * len(wanted)
        enlarged = int(min(image.size) < self.image_size)
        image, partner = (None if one is None else self._scale(one) for one in (image, partner))
        return [
            Item(
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
    """Open a split ("train", "val") of a data set folder, in whichever layout it has (i2sb.data.stores).

    native: take images at their own scale. Raises ValueError like `open_stores`.
    """
    return ImageDataset(*open_stores(dataset_dir, split), image_size, image_channels, native=native)
