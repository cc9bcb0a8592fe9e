"""Restoring pictures of one's own: any size, one at a time, each as if it were the only one.

manifest.jsonl in the folder of the restored pictures says what each was made from and how. So the same command goes on
where it was stopped, and nothing is replaced that this program did not make from the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from corruption import Corruption, is_custom
from i2sb.config import PAIRED, SampleConfig
from i2sb.consistency import advise_consistency, check_consistency
from i2sb.files import PARTIAL, write_atomically
from i2sb.formulation import Sampler
from i2sb.images import from_uint8, to_uint8
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import RestorationModel
from i2sb.sampler import StepTaken
from i2sb.sampling.picture_files import check_picture, find_pictures, read_mask, read_picture, write_picture
from i2sb.sampling.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.tasks import build_task_corruption, describe_restoring
from i2sb.tiles import pad_reflect

MANIFEST = "manifest.jsonl"
TRAJECTORIES = "trajectories"
LARGE_PIXELS = 1024 * 1024  # pictures with more are tiled unless --tile says otherwise
DEFAULT_TILE = 256
_LINE = ("file", "source", "sha256", "mask_sha256", "height", "width", "settings")


@dataclass(frozen=True)
class Job:
    """A picture to restore: its name, where it and its mask lie, its sides, and where it goes."""

    name: str
    source: Path
    mask: Path | None
    height: int
    width: int
    out: Path


class OwnPictures:
    """The pictures that --input names, and the folder --output that they are restored into."""

    def __init__(self, model: RestorationModel, config: SampleConfig, nfe: int, sampler: Sampler) -> None:
        """Look at every picture, without decoding it.

        Raises ValueError naming the first that cannot be restored, or whose place is taken.
        """
        self.model, self.config, self.nfe, self.sampler = model, config, nfe, sampler
        self.needs_operator = model.formulation.needs_operator(config.consistency)
        self.output = Path(config.output)
        self._check_folders()
        found = dict(list(find_pictures(Path(config.input)).items())[: config.limit])
        masks = self._find_masks(list(found))
        self.jobs = []
        for name, source in found.items():
            height, width = check_picture(source, model.config.image_channels)
            self.jobs.append(Job(name, source, masks.get(name), height, width, self.output / name))
            if config.corrupt or self.needs_operator:
                self._build_corruption(self.jobs[-1])
        self.missing = self._find_missing()

    def advice(self) -> list[str]:
        """Return what the user should know before it begins."""
        found = []
        if self.config.mask and not self._restores_holes() and self.model.formulation.sees_degradation:
            found.append(f"--mask: this run was trained on {self.model.config.corrupt}, not to fill holes")
        if self.config.consistency != "none" and not self.config.corrupt:
            found.append(advise_consistency(self.config.consistency, self._build_corruption(self.jobs[0])))
        return [line for line in found if line]

    def restore(self, jobs: Sequence[Job], *, quiet: bool = False) -> None:
        """Restore these pictures and write each when it is done."""
        with progress_bar(len(jobs), "picture", quiet=quiet) as progress:
            for job in jobs:
                self._restore(job, progress)
                progress.update()

    def tidy(self) -> None:
        """Put the manifest in order once nobody adds to it any more."""
        lines = self._read_manifest()
        text = "".join(_as_line(lines[name]) for name in sorted(lines) if (self.output / name).exists())
        for left in self.output.glob(f".{MANIFEST}.*{PARTIAL}"):
            left.unlink(missing_ok=True)
        write_atomically(self.output / MANIFEST, lambda file: file.write(text.encode()))

    def _restore(self, job: Job, progress: tqdm) -> None:
        config, model = self.config, self.model
        picture = read_picture(job.source, model.config.image_channels)
        degraded = from_uint8(picture.image)[None]
        mask = None if job.mask is None else read_mask(job.mask, job.height, job.width)[None]
        corruption = None
        if config.corrupt or self.needs_operator:
            corruption = self._build_corruption(job)
        if config.corrupt:
            noise = ImageNoise(config.seed, Purpose.SAMPLE, [0])
            clean = pad_reflect(degraded, model.multiple(degradable=True)).to(model.device)
            degraded, mask = corruption(clean, noise.degradation_generators(), [0])
        recorder = TrajectoryRecorder(degraded, self.nfe, job.height, job.width) if config.save_trajectory else None

        def report(step: StepTaken) -> None:
            progress.set_postfix_str(f"{job.name} {step.number}/{step.count}", refresh=sys.stderr.isatty())
            if recorder is not None:
                recorder(step)

        restored = model.restore(
            degraded,
            mask=mask,
            nfe=self.nfe,
            seed=config.seed,
            clip_denoise=config.clip_denoise,
            sampler=config.sampler,
            eta=config.eta,
            consistency=config.consistency,
            consistency_weight=config.consistency_weight,
            corruption=corruption,
            tile=self.tile(job),
            overlap=config.overlap,
            tiles_at_once=config.batch_size if model.device.type == "cuda" else 1,  # more are no faster on a CPU
            callback=report,
        )[..., : job.height, : job.width]
        self._remove_partials(job)
        if recorder is not None:
            recorder.save(0, self._trajectory_stem(job))
        self._add_to_manifest(self._line(job))  # before the picture: one that is not listed is not ours
        colours = model.config.corrupt in ("decolor", PAIRED) or is_custom(model.config.corrupt)
        write_picture(job.out, to_uint8(restored)[0], picture, colours=colours)

    def tile(self, job: Job) -> int:
        """Return the side of the tiles for a picture, 0 for the whole of it."""
        if self.config.tile is not None:
            return self.config.tile
        large = job.height * job.width > LARGE_PIXELS
        return max(DEFAULT_TILE, self.model.config.restored_size) if large else 0

    # --- Checks ------------------------------------------------------------------------------------------------------

    def _check_folders(self) -> None:
        config, source, out = self.config, Path(self.config.input), self.output
        if out.exists() and not out.is_dir():
            raise ValueError(f"--output {out}: is a file; name a folder")
        if out.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and not out.exists():
            raise ValueError(f"--output {out}: name a folder; pictures keep their names in it")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"--output {out}: lies in --input {source}; name a folder outside of it")
        if self._restores_holes() and not config.mask and not config.corrupt:
            raise ValueError(
                f"--mask is missing: {config.ckpt} fills holes ({self.model.config.corrupt}); give a picture that is "
                "white where yours is missing, or degrade it with --corrupt"
            )

    def _restores_holes(self) -> bool:
        return self.model.config.corrupt.startswith("inpaint-")

    def _find_masks(self, names: Sequence[str]) -> dict[str, Path]:
        if not self.config.mask:
            return {}
        place = Path(self.config.mask)
        found = find_pictures(place, "--mask")
        if not place.is_dir():
            return dict.fromkeys(names, place)
        by_stem = {Path(name).with_suffix("").as_posix(): path for name, path in found.items()}
        masks = {name: by_stem.get(Path(name).with_suffix("").as_posix()) for name in names}
        lacking = [name for name, path in masks.items() if path is None]
        if lacking:
            raise ValueError(f"--mask {place}: lacks {len(lacking)} of {len(names)} masks, first that of {lacking[0]}")
        return masks

    def _build_corruption(self, job: Job) -> Corruption | None:
        """Build the degradation that is applied to a picture, or undone with its operator, for its sides."""
        own = self.model.config.corrupt
        if job.mask and not self.model.formulation.sees_degradation:
            own = "inpaint-center"  # any would do: the operator takes the mask that it is given
        task = replace(self.model.config, corrupt=self.config.corrupt or own, mask_file="")
        if is_custom(task.corrupt) and not self.config.corrupt:
            raise ValueError(
                f"--input: the run's degradation must be known, and {task.corrupt} is code, which is not run unasked"
            )
        height, width = self.model.padded_sides(job.height, job.width, degradable=True)
        try:
            corruption = build_task_corruption(task, height, self.model.device)
            if corruption is not None:
                corruption.check_shape(task.image_channels, height, width)
        except ValueError as error:
            raise ValueError(f"{job.source}: {error}") from None
        check_consistency(self.config.consistency, task.corrupt, corruption)
        self.model.formulation.check_degradation(corruption)
        return corruption

    # --- What is there already ---------------------------------------------------------------------------------------

    def _find_missing(self) -> list[Job]:
        lines, missing = self._read_manifest(), []
        for job in self.jobs:
            wanted = [job.out, *(trajectory_paths(self._trajectory_stem(job)) if self.config.save_trajectory else ())]
            if job.out.exists() and job.out.samefile(job.source):
                raise ValueError(f"{job.out}: is the picture itself; name another --output")
            if job.out.exists() and not self.config.overwrite:
                self._check_same(job, lines.get(job.name))
            if self.config.overwrite or not all(path.exists() for path in wanted):
                missing.append(job)
        return missing

    def _check_same(self, job: Job, there: dict[str, Any] | None) -> None:
        advice = "name another --output, or allow it with --overwrite"
        if there is None:
            raise ValueError(f"{job.out}: exists already and is not listed in {MANIFEST} there; {advice}")
        now = self._line(job)
        if there["settings"] != now["settings"]:
            differences = "; ".join(
                f"{name} {there['settings'].get(name)} there, {value} now"
                for name, value in now["settings"].items()
                if there["settings"].get(name) != value
            )
            raise ValueError(f"{job.out}: was made with other settings ({differences}); {advice}")
        if (there["sha256"], there["mask_sha256"]) != (now["sha256"], now["mask_sha256"]):
            raise ValueError(f"{job.out}: was restored from another {job.name}, or with another mask; {advice}")

    def _line(self, job: Job) -> dict[str, Any]:
        settings = {
            **describe_restoring(self.config, self.model.iteration, self.nfe, self.sampler),
            "corrupt": self.config.corrupt,
            "tile": self.tile(job),
            "overlap": self.config.overlap,
        }
        return {
            "file": job.name,
            "source": str(job.source),
            "sha256": hashlib.sha256(job.source.read_bytes()).hexdigest(),
            "mask_sha256": hashlib.sha256(job.mask.read_bytes()).hexdigest() if job.mask else "",
            "height": job.height,
            "width": job.width,
            "settings": settings,
        }

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        """Return the last whole line of each picture; one that was being written when a process was killed is none."""
        lines = {}
        path = self.output / MANIFEST
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
                lines[line["file"]] = {name: line[name] for name in _LINE}
            except (ValueError, KeyError, TypeError):
                continue
        return lines

    def _add_to_manifest(self, line: dict[str, Any]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        file = os.open(self.output / MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, ("\n" + _as_line(line)).encode())  # after one that was cut off, too
        finally:
            os.close(file)

    def _trajectory_stem(self, job: Job) -> Path:
        return self.output / TRAJECTORIES / job.name

    def _remove_partials(self, job: Job) -> None:
        """Delete what a killed process left that was writing this picture."""
        for path in (job.out, *trajectory_paths(self._trajectory_stem(job))):
            for left in path.parent.glob(f".*{PARTIAL}"):
                if left.name.startswith(f".{path.name}."):
                    left.unlink(missing_ok=True)


def _as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
