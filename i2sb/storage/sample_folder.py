"""A folder of restored images: numbered files in folders of a thousand, the settings they were made with, a manifest.

Of several answers to an image, answer 0 is the numbered file; the others lie in a folder of the image's own.
Several processes may fill one folder, each with images of its own. manifest.jsonl has a line for every image; lines are
added as images are, and put in order at every start and end. Each holds the check sum of the file that the image was
restored from.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from corruption import is_custom
from i2sb.config import Precision, SampleConfig, SamplingOptions
from i2sb.errors import FileError, UserError, list_differences
from i2sb.files import PARTIAL, append, hash_file, remove_partials, write_atomically, write_text
from i2sb.image_files import ARRAY, PNG, SNIFFED, TIFF, Form, encode, is_deep_png, read_whole
from i2sb.images import refuse_undecodable, say_undecodable
from i2sb.network_sizes import is_own
from i2sb.options import older_values, option
from i2sb.parsing import read_config, to_yaml
from i2sb.storage.answer_files import ANSWERS, AnswerFiles, Which
from i2sb.storage.run_lock import LOCK, locked

SETTINGS = "settings.yaml"
MANIFEST = "manifest.jsonl"
TRAJECTORIES = "trajectories"
_ENDINGS = (PNG, TIFF, ARRAY)  # of images, as their form says


@dataclass(frozen=True)
class SampleSettings(SamplingOptions):
    """All that decides what image i of the folder looks like, and where its data was; the options are settled."""

    run: str = option("", "name of the run, or of the exported file")
    iteration: int = option(0, "iteration that the network's weights are of")
    weights: str = option("", "digest of the files that the network's weights are from", later=True, older="")
    ckpt_file: str = option("", "checkpoint, as the user named it; empty for the newest", later=True)
    network: str = option("", "network, as the user named it; empty for what the run says", later=True, older="")
    code: str = option("", "digest of the user's Python files that took part; empty if none did", later=True, older="")
    use_fp16: bool = option(False, "whether convolutions computed in half precision")
    precision: Precision = option("fp32", "what the network computed in", later=True)
    corrupt: str = option("", "degradation")
    mask_file: str = option("", "npz of the published freeform masks, or empty")
    masks: str = option("", "digest of that file; empty without one", later=True, older="")
    degradation_noise: float = option(0.0, "standard deviation of the measurement's noise", later=True, older=0.0)
    dataset_dir: str = option("", "folder of the data set")
    subset: str = option("", "file that listed the images; empty for the whole split", later=True)
    image_size: int = option(256, "side of the images, in pixels")
    samples: int = option(1, "answers to each image; may grow", later=True, older=1)
    num_images: int = option(0, "images of the split or subset, restored or not")
    fingerprint: str = option("", "of the names in the data set, so that images of two are not mixed or compared")


def describe_network(config: SampleConfig, run: str, iteration: int, weights: str, corrupt: str) -> dict[str, Any]:
    """Return what settings and manifests tell of the network: whose weights, what it computes in, and the user's code.

    run: its name. iteration: where the weights stood. weights: a digest of their files: a run may be trained anew under
    its name. corrupt: the degradation, which may be code, too.
    """
    names = ("ckpt_file", "network", "use_fp16", "precision")
    own = [name for name, is_code in ((config.network, is_own), (corrupt, is_custom)) if is_code(name)]
    files = [hash_file(Path(name.rpartition(":")[0])) for name in own]
    code = hashlib.sha256("".join(files).encode()).hexdigest()[:16] if files else ""
    said = {"run": run, "iteration": iteration, "weights": weights, "code": code}
    return said | {name: getattr(config, name) for name in names}


def describe_masks(mask_file: str) -> dict[str, Any]:
    """Return what settings tell of the file of masks, "" for none: where it was, and a digest, as it may move."""
    return {"mask_file": mask_file, "masks": hash_file(Path(mask_file))[:16] if mask_file else ""}


# What settings stand for that were written before an option came.
OLDER_SETTINGS = older_values(SampleSettings)


def compare_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in which settings images that were made `before` differ from those that are made `now`; "" if in none.

    Digests that older versions did not keep are not compared.
    """
    unknown = [name for name in ("weights", "code", "masks") if not before[name]]
    return list_differences(before, {name: value for name, value in now.items() if name not in unknown})


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


def check_fewer(path: Path, there: int, asked: int, advice: str) -> None:
    """Raise UserError naming the path if fewer answers are asked for than are there: answers may be added only."""
    if asked < there:
        raise FileError(path, f"has {there} answers to an image, {asked} now; ask for `samples` {there}, or {advice}")


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
        del now["samples"]  # no answer depends on how many there are
        for name in ("dataset_dir", "subset"):  # may have moved: the fingerprint tells data sets apart
            del now[name]
        if settings.mask_file and before.mask_file:  # its digest tells
            del now["mask_file"]
        differences = compare_settings(asdict(before), now)
        if differences:
            raise FileError(
                path,
                f"holds images made with other settings ({differences}): "
                "ask for the same again, name another folder with `sample_dir`, or move it away",
            )
        check_fewer(path, before.samples, settings.samples, "name another folder with `sample_dir`")
        if before.samples < settings.samples:
            before = replace(before, samples=settings.samples)
            with locked(path):
                write_text(path / SETTINGS, to_yaml(before))
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

    def image_path(self, index: int, which: Which = 0) -> Path:
        """Return where image number `index` lies, in folders of a thousand, a PNG if there is none yet.

        which: another answer to it, or their mean, of the same kind of file.
        """
        if which != 0:
            return self.answers(index).picture(which)
        return self._find(index) or self._stem(index).with_suffix(PNG)

    def _stem(self, index: int) -> Path:
        return self.path / f"{index // 1000:03d}" / f"{index:06d}"

    def _find(self, index: int) -> Path | None:
        paths = [path for ending in _ENDINGS if (path := self._stem(index).with_suffix(ending)).exists()]
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise FileError(paths[0].parent, f"holds {both}; delete the one that {MANIFEST} does not list")
        return paths[0] if paths else None

    def answers(self, index: int) -> AnswerFiles:
        """Return the folder of several answers to image number `index`."""
        folder = self.path / ANSWERS / f"{index // 1000:03d}" / f"{index:06d}"
        return AnswerFiles(folder, self.image_path(index).suffix)

    def trajectory_stem(self, index: int) -> Path:
        """Return where the pictures of an image's way over the bridge lie, but for their endings."""
        return self.path / TRAJECTORIES / f"{index // 1000:03d}" / f"{index:06d}"

    def save(self, index: int, image: Tensor, form: Form = Form(), which: Which = 0) -> None:  # noqa: B008 - immutable
        """Write image number `index`, [C, H, W], of the type and in the kind of file that the form says.

        which: this answer to it, or their mean.
        """
        path = self._stem(index).with_suffix(form.ending) if which == 0 else self.image_path(index, which)
        write_atomically(path, lambda file: file.write(encode(image, form)), sync=False)

    def load(self, index: int, channels: int = 3, which: Which = 0) -> Tensor:
        """Return image number `index`, [C, H, W], of the type that it is stored in.

        channels: how many it has, where its file does not tell. Raises UserError naming the file if it is unreadable.
        """
        path, advice = self.image_path(index, which), "delete it and run sample.py again"
        with refuse_undecodable(path, "image", advice):
            content = path.read_bytes()
            try:
                if path.suffix != PNG or is_deep_png(content[:SNIFFED]):
                    decoded = read_whole(content, channels)
                    if decoded is not None:
                        return torch.from_numpy(decoded.pixels)
            except ValueError as error:
                raise FileError(path, f"unreadable image ({say_undecodable(error)}); {advice}") from None
            with Image.open(io.BytesIO(content)) as image:
                plain = {"1": "L", "P": "RGB"}.get(image.mode)  # as programs leave images that make files smaller
                return TF.pil_to_tensor(image.convert(plain) if plain else image)

    def is_eight_bit(self, indices: Iterable[int]) -> bool:
        """Whether all of these images are PNGs of 8 bits a channel."""
        for path in map(self.image_path, indices):
            if path.suffix != PNG:
                return False
            with path.open("rb") as file:
                if is_deep_png(file.read(SNIFFED)):
                    return False
        return True

    def is_there(self, index: int) -> bool:
        """Whether an image exists; an empty file, which a machine that lost its power may leave, is none."""
        path = self._find(index)
        return path is not None and path.stat().st_size > 0

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Return those of `indices` whose images, or several answers, do not exist yet."""
        return [index for index in indices if not self._is_complete(index)]

    def _is_complete(self, index: int) -> bool:
        samples = self.settings.samples
        return self.is_there(index) and (samples == 1 or self.answers(index).are_complete(samples))

    def remove_partials(self, indices: Collection[int]) -> None:
        """Delete what a killed process left that was writing one of these images, or its trajectory."""
        wanted = set(indices)
        for thousand in sorted({index // 1000 for index in wanted}):
            for folder in (self.path, self.path / TRAJECTORIES):
                for partial in (folder / f"{thousand:03d}").glob(f".*{PARTIAL}"):
                    number = partial.name[1:].partition(".")[0]
                    if number.isdecimal() and int(number) in wanted:
                        partial.unlink(missing_ok=True)

    def check_masks(self, mask_file: str) -> None:
        """Raise UserError unless the images were made with the masks in this file, or with none if it is ""."""
        before, now = self.settings, describe_masks(mask_file)["masks"]
        if bool(mask_file) != bool(before.mask_file) or (before.masks and before.masks != now):
            made_with = f"the masks in {before.mask_file}" if before.mask_file else "no file of masks"
            raise UserError("mask_file", mask_file, f"the images in {self.path} were made with {made_with}")

    def check_sources(self, indices: Iterable[int], checksum: Callable[[int], str]) -> None:
        """Raise UserError if one of these images was restored from another file than there is now; `checksum` tells.

        Nobody knows of images that older versions restored.
        """
        lines = read_manifest(self.path, "index")
        known = (index for index in indices if lines.get(index, {}).get("sha256") and self.is_there(index))
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
            indices = [index for index in range(self.settings.num_images) if self.is_there(index)]
            known = {index: told.get("sha256", "") for index, told in before.items()}
            lines = (self._manifest_line(line(index, known.get(index))) for index in indices)
            write_atomically(self.path / MANIFEST, lambda file: file.writelines(lines))

    def add_to_manifest(self, line: dict[str, Any]) -> None:
        """Add the line of an image that was saved."""
        append(self.path / MANIFEST, self._manifest_line(line))

    def _manifest_line(self, line: dict[str, Any]) -> bytes:
        text = json.dumps(line | {"settings": asdict(self.settings)}, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")  # what JSON reads back, of names that are no UTF-8
