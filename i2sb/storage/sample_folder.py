"""A folder of restored images: numbered PNGs in folders of a thousand, the settings they were made with, a manifest.

Several processes may fill one folder, each with images of its own. manifest.jsonl has a line for every image that is
there; lines are added as images are, and put in order at every start and end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from i2sb.files import PARTIAL, write_atomically, write_text
from i2sb.images import save_png, to_pil, to_uint8
from i2sb.storage.run_lock import LOCK, locked

SETTINGS = "settings.yaml"
MANIFEST = "manifest.jsonl"
TRAJECTORIES = "trajectories"


@dataclass(frozen=True)
class SampleSettings:
    """All that decides what image i of the folder looks like, and where its data was.

    fingerprint: of the data set's names, so that images of two data sets are not mixed or compared; subset: the file
    that listed them, or empty; precision: what the network computed in (folders of older versions do not say: fp32);
    ckpt_file: the checkpoint as the user named it, or empty for the newest; eta: 1 for samplers that have none. Lines
    with a default came later: folders that lack one were made by it.
    """

    run: str
    iteration: int
    nfe: int
    corrupt: str
    mask_file: str
    clip_denoise: bool
    use_fp16: bool
    seed: int
    dataset_dir: str
    image_size: int
    num_images: int
    fingerprint: str
    subset: str = ""
    precision: str = "fp32"
    ckpt_file: str = ""
    sampler: str = "posterior"
    eta: float = 1.0
    consistency: str = "none"
    consistency_weight: float = 1.0


class SampleFolder:
    """Restored images by their index in the split."""

    def __init__(self, path: Path, settings: SampleSettings) -> None:
        self.path, self.settings = path, settings

    @classmethod
    def begin(cls, path: Path, settings: SampleSettings) -> SampleFolder:
        """Start a folder, or go on with one made with the same settings. Raises ValueError if they differ."""
        there = [entry.name for entry in path.iterdir() if entry.suffix != PARTIAL] if path.is_dir() else []
        if SETTINGS not in there and set(there) - {LOCK}:
            raise ValueError(f"{path} holds files but no {SETTINGS}: who knows how they were made; move it away")
        with locked(path):  # so nobody else is writing these now
            for name in (SETTINGS, MANIFEST):
                for left in path.glob(f".{name}.*{PARTIAL}"):
                    left.unlink()
            return cls._begin(path, settings)

    @classmethod
    def _begin(cls, path: Path, settings: SampleSettings) -> SampleFolder:
        if (path / SETTINGS).exists():
            there = cls.open(path).settings
            differences = [
                f"{f.name} {getattr(there, f.name)} there, {getattr(settings, f.name)} now"
                for f in fields(SampleSettings)
                if _identity(f.name, there) != _identity(f.name, settings)
            ]
            if differences:
                raise ValueError(
                    f"{path} holds images made with other settings ({'; '.join(differences)}): "
                    "ask for the same again, name another folder with --sample-dir, or move it away"
                )
            return cls(path, there)
        write_text(path / SETTINGS, yaml.safe_dump(asdict(settings), sort_keys=False))
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> SampleFolder:
        """Open a folder that sample.py made. Raises ValueError if it is none."""
        try:
            settings = SampleSettings(**yaml.safe_load((path / SETTINGS).read_text()))
            for f in fields(SampleSettings):
                if type(getattr(settings, f.name)).__name__ != f.type:
                    raise TypeError(f"{f.name}: {getattr(settings, f.name)} is no {f.type}")
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise ValueError(f"{path.parent}: there is no such run") from None
            there = ", ".join(sorted(found.parent.name for found in path.parent.glob(f"*/{SETTINGS}")))
            raise ValueError(
                f"{path}: holds no {SETTINGS}, so no images that sample.py restored; "
                f"folders in {path.parent} that do: {there or 'none'}"
            ) from None
        except (TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path / SETTINGS}: cannot be read ({' '.join(str(error).split())})") from None
        return cls(path, settings)

    def image_path(self, index: int) -> Path:
        """Return where image number `index` lies: in folders of a thousand."""
        return self.path / f"{index // 1000:03d}" / f"{index:06d}.png"

    def trajectory_stem(self, index: int) -> Path:
        """Return where the pictures of an image's way over the bridge lie, but for their endings."""
        return self.path / TRAJECTORIES / f"{index // 1000:03d}" / f"{index:06d}"

    def save(self, index: int, image: Tensor) -> None:
        """Write image [C, H, W] in [-1, 1] as number `index`."""
        save_png(to_pil(to_uint8(image)), self.image_path(index))

    def load(self, index: int) -> Tensor:
        """Return image number `index`, uint8 [C, H, W]. Raises ValueError naming the file if it cannot be decoded."""
        path = self.image_path(index)
        try:
            with Image.open(path) as image:
                return TF.pil_to_tensor(image)
        except (OSError, SyntaxError) as error:
            reason = "not an image, or cut off" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(f"{path}: unreadable image ({reason}); delete it and run sample.py again") from None

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Return those of `indices` whose images are not there."""
        return [index for index in indices if not self.image_path(index).exists()]

    def remove_partials(self, indices: Collection[int]) -> None:
        """Delete what a killed process left that was writing one of these images, or its trajectory."""
        own = set(indices)
        for thousand in sorted({index // 1000 for index in own}):
            for folder in (self.path, self.path / TRAJECTORIES):
                for left in (folder / f"{thousand:03d}").glob(f".*{PARTIAL}"):
                    number = left.name[1:].partition(".")[0]
                    if number.isdecimal() and int(number) in own:
                        left.unlink(missing_ok=True)

    def rewrite_manifest(self, line: Callable[[int], dict[str, Any]]) -> None:
        """Write a line for every image that is there, in order; line(index) says what it tells besides the settings."""
        with locked(self.path):
            there = [index for index in range(self.settings.num_images) if self.image_path(index).exists()]
            lines = (self._manifest_line(line(index)) for index in there)
            write_atomically(self.path / MANIFEST, lambda file: file.writelines(lines))

    def add_to_manifest(self, line: dict[str, Any]) -> None:
        """Add the line of an image that was saved."""
        file = os.open(self.path / MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, self._manifest_line(line))  # at once, so that processes' lines do not mingle
        finally:
            os.close(file)

    def _manifest_line(self, line: dict[str, Any]) -> bytes:
        return (json.dumps(line | {"settings": asdict(self.settings)}, ensure_ascii=False) + "\n").encode()


def _identity(name: str, settings: SampleSettings) -> object:
    """Return what two folders' settings must agree in: a file or folder may have moved."""
    value = getattr(settings, name)
    return {"dataset_dir": None, "subset": None, "mask_file": bool(value)}.get(name, value)
