"""A folder of restored images: numbered PNGs in folders of a thousand, the settings they were made with, a manifest.

Several processes may fill one folder, each with images of its own. manifest.jsonl has a line for every image; lines are
added as images are, and put in order at every start and end. Each holds the check sum of the file that the image was
restored from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from corruption import is_custom
from i2sb.config import Precision, SampleConfig, SamplingOptions
from i2sb.errors import FileError, list_differences
from i2sb.files import PARTIAL, append, hash_file, remove_partials, write_atomically, write_text
from i2sb.images import refuse_undecodable, save_png, to_pil
from i2sb.network_sizes import is_own
from i2sb.options import older_values, option
from i2sb.parsing import read_config, to_yaml
from i2sb.storage.run_lock import LOCK, locked

SETTINGS = "settings.yaml"
MANIFEST = "manifest.jsonl"
TRAJECTORIES = "trajectories"


@dataclass(frozen=True)
class SampleSettings(SamplingOptions):
    """All that decides what image i of the folder looks like, and where its data was; the options are settled."""

    run: str = option("", "name of the run")
    iteration: int = option(0, "iteration that the network's weights are of")
    ckpt_file: str = option("", "checkpoint, as the user named it; empty for the newest", later=True)
    network: str = option("", "network, as the user named it; empty for what the run says", later=True, older="")
    code: str = option("", "digest of the user's Python files that took part; empty if none did", later=True, older="")
    use_fp16: bool = option(False, "whether convolutions computed in half precision")
    precision: Precision = option("fp32", "what the network computed in", later=True)
    corrupt: str = option("", "degradation")
    mask_file: str = option("", "npz of the published freeform masks, or empty")
    degradation_noise: float = option(0.0, "standard deviation of the measurement's noise", later=True, older=0.0)
    dataset_dir: str = option("", "folder of the data set")
    subset: str = option("", "file that listed the images; empty for the whole split", later=True)
    image_size: int = option(256, "side of the images, in pixels")
    num_images: int = option(0, "images of the split or subset, restored or not")
    fingerprint: str = option("", "of the names in the data set, so that images of two are not mixed or compared")


def describe_network(config: SampleConfig, iteration: int, corrupt: str) -> dict[str, Any]:
    """Return what settings and manifests tell of the network: whose weights, what it computes in, and the user's code.

    iteration: where the weights stood. corrupt: the degradation, which may be code, too.
    """
    names = ("ckpt_file", "network", "use_fp16", "precision")
    own = [name for name, is_code in ((config.network, is_own), (corrupt, is_custom)) if is_code(name)]
    files = [hash_file(Path(name.rpartition(":")[0])) for name in own]
    code = hashlib.sha256("".join(files).encode()).hexdigest()[:16] if files else ""
    return {"run": config.ckpt, "iteration": iteration, "code": code} | {n: getattr(config, n) for n in names}


# What settings stand for that were written before an option came.
OLDER_SETTINGS = older_values(SampleSettings)


def read_manifest(folder: Path, key: str, *needed: str) -> dict[Any, dict[str, Any]]:
    """Return the last whole line of each image, under its `key`.

    A line that was being written when a process was killed is none, nor is one that lacks something `needed`.
    """
    path, lines = folder / MANIFEST, {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            lines[line[key]] = {name: line[name] for name in needed} or line
        except (ValueError, KeyError, TypeError):
            continue
    return lines


class SampleFolder:
    """Restored images by their index in the split."""

    def __init__(self, path: Path, settings: SampleSettings) -> None:
        self.path, self.settings = path, settings

    @classmethod
    def begin(cls, path: Path, settings: SampleSettings) -> SampleFolder:
        """Start a folder, or go on with one made with the same settings. Raises UserError if they differ."""
        names = {entry.name for entry in path.iterdir() if entry.suffix != PARTIAL} if path.is_dir() else set()
        if SETTINGS not in names and names - {LOCK}:
            raise FileError(path, f"holds files but no {SETTINGS}, so nobody knows how they were made; move it away")
        with locked(path):  # nobody else is writing these files now
            for name in (SETTINGS, MANIFEST):
                remove_partials(path, name)
            if not (path / SETTINGS).exists():
                write_text(path / SETTINGS, to_yaml(settings))
                return cls(path, settings)
            before = cls.open(path).settings
        now = asdict(settings)
        for name in ("dataset_dir", "subset"):  # may have moved: the fingerprint tells data sets apart
            del now[name]
        if settings.mask_file and before.mask_file:
            del now["mask_file"]
        if not before.code:  # made before it was kept
            del now["code"]
        differences = list_differences(asdict(before), now)
        if differences:
            raise FileError(
                path,
                f"holds images made with other settings ({differences}): "
                "ask for the same again, name another folder with `sample_dir`, or move it away",
            )
        return cls(path, before)

    @classmethod
    def open(cls, path: Path) -> SampleFolder:
        """Open a folder that sample.py made. Raises UserError if it is none."""
        if (path / SETTINGS).exists():
            return cls(path, read_config(SampleSettings, path / SETTINGS))
        if not path.parent.is_dir():
            raise FileError(path.parent, "there is no such run")
        names = ", ".join(sorted(settings.parent.name for settings in path.parent.glob(f"*/{SETTINGS}")))
        raise FileError(
            path,
            f"holds no {SETTINGS}, so no images that sample.py restored; "
            f"folders in {path.parent} that do: {names or 'none'}",
        )

    def image_path(self, index: int) -> Path:
        """Return where image number `index` lies: in folders of a thousand."""
        return self.path / f"{index // 1000:03d}" / f"{index:06d}.png"

    def trajectory_stem(self, index: int) -> Path:
        """Return where the pictures of an image's way over the bridge lie, but for their endings."""
        return self.path / TRAJECTORIES / f"{index // 1000:03d}" / f"{index:06d}"

    def save(self, index: int, image: Tensor) -> None:
        """Write image number `index`, uint8 [C, H, W]."""
        save_png(to_pil(image), self.image_path(index))

    def load(self, index: int) -> Tensor:
        """Return image number `index`, uint8 [C, H, W]. Raises UserError naming the file if it cannot be decoded."""
        path = self.image_path(index)
        with refuse_undecodable(path, "image", "delete it and run sample.py again"), Image.open(path) as image:
            return TF.pil_to_tensor(image)

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Return those of `indices` whose images do not exist yet."""
        return [index for index in indices if not self.image_path(index).exists()]

    def remove_partials(self, indices: Collection[int]) -> None:
        """Delete what a killed process left that was writing one of these images, or its trajectory."""
        wanted = set(indices)
        for thousand in sorted({index // 1000 for index in wanted}):
            for folder in (self.path, self.path / TRAJECTORIES):
                for partial in (folder / f"{thousand:03d}").glob(f".*{PARTIAL}"):
                    number = partial.name[1:].partition(".")[0]
                    if number.isdecimal() and int(number) in wanted:
                        partial.unlink(missing_ok=True)

    def check_sources(self, indices: Iterable[int], checksum: Callable[[int], str]) -> None:
        """Raise UserError if one of these images was restored from another file than there is now; `checksum` tells.

        Nobody knows of images that older versions restored.
        """
        lines = read_manifest(self.path, "index")
        known = (index for index in indices if lines.get(index, {}).get("sha256") and self.image_path(index).exists())
        changed = [index for index in known if checksum(index) != lines[index]["sha256"]]
        if changed:
            named = ", ".join(f"{lines[index]['source']} ({self.image_path(index).name})" for index in changed[:5])
            raise FileError(
                self.path,
                f"{len(changed)} images were restored from other files than have their names now: {named}"
                f"{', …' * (len(changed) > 5)}; bring those back, or delete what was restored and run sample.py again",
            )

    def rewrite_manifest(self, line: Callable[[int, str | None], dict[str, Any]]) -> None:
        """Write a line for every image that exists, in order.

        line(index, sha256) says what it tells besides the settings. sha256: as its line told it before; "" if that was
        written by an older version, None if there was no line.
        """
        with locked(self.path):
            before = read_manifest(self.path, "index")
            indices = [index for index in range(self.settings.num_images) if self.image_path(index).exists()]
            known = {index: told.get("sha256", "") for index, told in before.items()}
            lines = (self._manifest_line(line(index, known.get(index))) for index in indices)
            write_atomically(self.path / MANIFEST, lambda file: file.writelines(lines))

    def add_to_manifest(self, line: dict[str, Any]) -> None:
        """Add the line of an image that was saved."""
        append(self.path / MANIFEST, self._manifest_line(line))

    def _manifest_line(self, line: dict[str, Any]) -> bytes:
        text = json.dumps(line | {"settings": asdict(self.settings)}, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")  # what JSON reads back, of names that are no UTF-8
