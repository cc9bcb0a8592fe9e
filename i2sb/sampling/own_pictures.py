"""Restoring people's own pictures: of any size, one at a time, each as if it were the only one.

manifest.jsonl in the folder of the restored pictures says what each was made from and how. So the same command goes on
where it was stopped, and no file is replaced unless this program made it from the same picture in the same way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corruption import Corruption, is_custom
from i2sb.answers import RunningMoments, measure_diversity
from i2sb.config import SampleConfig, SamplingOptions, TrainConfig
from i2sb.consistency import advise_consistency, check_consistency
from i2sb.data.picture_files import (
    advise_endings,
    check_picture,
    find_pictures,
    read_mask,
    read_picture,
    write_picture,
)
from i2sb.errors import FileError, UserError, require
from i2sb.files import append, hash_file, remove_partials, write_text
from i2sb.images import as_signal, choose_shown, to_pixels
from i2sb.progress import Progress, progress_bar, say
from i2sb.restore import RestorationModel, check_restored
from i2sb.sampler import StepTaken
from i2sb.storage.answer_files import ANSWERS, AnswerFiles, Spread
from i2sb.storage.runs import Source, settings_file
from i2sb.storage.sample_folder import (
    MANIFEST,
    OLDER_SETTINGS,
    TRAJECTORIES,
    check_fewer,
    compare_settings,
    describe_network,
    read_manifest,
)
from i2sb.storage.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.tasks import build_task_corruption, check_depth, choose_degradation, task_multiple
from i2sb.tiles import choose_tile

SHOWN_BAD = 20  # pictures that cannot be restored, named in one message
_LINE = ("file", "source", "sha256", "mask_sha256", "height", "width", "settings")


@dataclass(frozen=True)
class Job:
    """A picture to restore: its name, the files of it and its mask, its sides, and the file to write."""

    name: str
    source: Path
    mask: Path | None
    height: int
    width: int
    out: Path


class OwnPictures:
    """The pictures that --input names, and the folder --output that they are restored into."""

    def __init__(self, model: RestorationModel, config: SampleConfig, options: SamplingOptions, origin: Source) -> None:
        """Look at every picture, without decoding it. options: as the formulation settled them. origin: of the model.

        Raises UserError naming the pictures that cannot be restored, unless they are to be skipped and there are
        others, and the first whose output is taken.
        """
        self.model, self.config, self.options, self.origin = model, config, options, origin
        self.needs_operator = model.formulation.needs_operator(options.consistency)
        self.output = Path(config.output)
        wanted = config.show_channels or model.config.show_channels
        self.shown_channels = choose_shown(wanted, model.config.image_channels)
        self._check_folders()
        noise, used = config.degradation_noise, bool(config.corrupt) or self.needs_operator
        require(noise is None or used, "degradation_noise", noise, "nothing here uses it; it belongs to `corrupt`")
        sources = dict(list(find_pictures(Path(config.input)).items())[: config.limit])
        taken = config.samples > 1 and any(Path(name).parts[0] == ANSWERS for name in sources)
        require(not taken, "input", config.input, f"holds a folder {ANSWERS}, as `output` will; rename it")
        masks = self._find_masks(list(sources))
        self.jobs: list[Job] = []
        self.bad: list[UserError] = []
        for name, source in sources.items():
            try:
                height, width = check_picture(source, model.config.image_channels, model.config.value_range)
                job = Job(name, source, masks.get(name), height, width, self.output / name)
                corruption = self._build_corruption(job) if config.corrupt or self.needs_operator else None
                made = bool(config.corrupt) and corruption is not None and corruption.makes_holes
                holes = made or job.mask is not None
                model.check_samples(config.samples, options, holes=holes)
                self.jobs.append(job)
            except UserError as error:
                if error.setting != source:
                    raise
                self.bad.append(error)
        self._refuse_bad(len(sources))
        self.missing = self._find_missing()

    def advice(self) -> list[str]:
        """Return what the user should know before it begins."""
        lines = [advise_endings(Path(self.config.input)), *(f"{error}; skipped" for error in self.bad)]
        trained, corrupt = self.model.training_corruption, self.model.config.corrupt
        may_fill_holes = is_custom(corrupt) if trained is None else trained.makes_holes
        if self.config.mask and not may_fill_holes and self.model.formulation.sees_degradation:
            lines.append(f"`mask`: this run was trained on {corrupt}, not to fill holes")
        if self.options.consistency != "none" and not self.config.corrupt:
            lines.append(advise_consistency(self.options.consistency, self._build_corruption(self.jobs[0])))
        return [line for line in lines if line]

    def restore(self, jobs: Sequence[Job], *, quiet: bool = False) -> None:
        """Restore these pictures and write each when it is done."""
        with progress_bar(len(jobs), "picture", quiet=quiet) as progress:
            for job in jobs:
                try:
                    self._restore_one(job, progress)
                except UserError as error:  # met when it is decoded
                    if error.setting != job.source or not self.config.skip_bad:
                        raise
                    say(f"warning: {error}; skipped", error=True)
                progress.update()

    def tidy(self) -> None:
        """Put the manifest in order once nobody adds to it any more."""
        lines = read_manifest(self.output, "file", *_LINE)
        there = [name for name in sorted(lines) if (self.output / name).exists()]
        spreads = {name: answers_to(self.output, name).read_spread() for name in there}
        more = {name: {"diversity": spread.diversity} for name, spread in spreads.items() if spread}
        text = "".join(_as_line(lines[name] | more.get(name, {})) for name in there)
        remove_partials(self.output, MANIFEST)
        write_text(self.output / MANIFEST, text)

    def settle(self, job: Job) -> SamplingOptions:
        """Return the options for a picture: large ones are cut into tiles unless --tile says otherwise."""
        if self.options.tile is not None:
            return self.options
        return replace(self.options, tile=choose_tile(job.height, job.width, self.model.config.restored_size))

    def _restore_one(self, job: Job, progress: Progress) -> None:
        config, model, options = self.config, self.model, self.settle(job)
        picture = read_picture(job.source, model.config.image_channels, model.config.value_range)
        degraded = as_signal(picture.image)[None]
        mask = None if job.mask is None else read_mask(job.mask, job.height, job.width)[None]
        corruption = self._build_corruption(job) if config.corrupt or self.needs_operator else None
        if config.corrupt and corruption is not None:
            try:
                check_depth(corruption, config.corrupt, plain=not picture.image.is_floating_point())
            except UserError as error:
                raise error.inside(job.source) from None
            degraded, mask = model.degrade(degraded, corruption, seed=options.seed)
        recorder = None
        if config.save_trajectory:
            recorder = TrajectoryRecorder(degraded, options.evaluations, job.height, job.width, self.shown_channels)

        def report(answer: int, step: StepTaken) -> None:
            which = f"answer {answer}, " if config.samples > 1 else ""
            progress.set_postfix_str(f"{job.name} {which}{step.number}/{step.count}")
            if recorder is not None and answer == 0:
                recorder(step)

        trained = model.training_corruption
        colours = trained is None or trained.adds_colour
        region = model.find_region(mask, corruption)
        region = None if region is None else region[..., : job.height, : job.width]
        shown = degraded[..., : job.height, : job.width]
        # What is known comes back whole; in published images the noise of the last state stays on it.
        unknown = region if picture.image.is_floating_point() else None
        noisy = bool(config.corrupt) and corruption is not None and corruption.noise > 0

        def write(path: Path, x0: Tensor) -> None:
            image = to_pixels(x0[0], picture.dtype, model.config.value_range)
            if unknown is not None and not noisy:  # to the last bit, of which float64 has more than the network sees
                hole = unknown[0].cpu().numpy() > 0
                image = torch.from_numpy(np.where(hole, image.numpy(), picture.stored.numpy()))
            write_picture(path, image, picture, colours=colours)

        files, moments = self._answers(job), RunningMoments()
        for answer in range(config.samples):
            trajectory = model.follow(
                degraded,
                options,
                mask=mask,
                corruption=corruption,
                tiles_at_once=config.batch_size if model.device.type == "cuda" else 1,  # a CPU is no faster with more
                callback=partial(report, answer),
                states=None,
                answer=answer,
            )
            x0 = trajectory.x0[..., : job.height, : job.width]
            check_restored(x0, [job.name])
            if unknown is not None:
                x0 = torch.where(unknown > 0, x0, shown)
            if answer == 0:
                for path in (job.out, *trajectory_paths(self._trajectory_stem(job))):
                    remove_partials(path.parent, path.name)
                if recorder is not None:
                    recorder.save(0, self._trajectory_stem(job))
                # Nothing of an older restoration stays that the line would be taken to speak of.
                job.out.unlink(missing_ok=True)
                files.begin(config.samples)
                self._add_to_manifest(self._line(job))  # before the picture: we replace only what is listed
                write(job.out, x0)
            else:
                write(files.picture(answer), x0)
            if config.samples > 1:
                moments.add(x0)
        if config.samples > 1:
            write(files.picture("mean"), moments.mean)
            diversity = measure_diversity(moments.std, region).item()
            files.save_spread(moments.std[0], Spread(config.samples, diversity))

    # --- Checks ------------------------------------------------------------------------------------------------------

    def _refuse_bad(self, count: int) -> None:
        if not self.bad or (self.config.skip_bad and self.jobs):
            return
        if count == 1:
            raise self.bad[0]
        listed = "; ".join(map(str, self.bad[:SHOWN_BAD])) + ("; …" if len(self.bad) > SHOWN_BAD else "")
        raise UserError(
            "input",
            self.config.input,
            f"{len(self.bad)} of its {count} pictures cannot be restored: {listed}"
            + ("; go on without them with `skip_bad`" if self.jobs else ""),
        )

    def _check_folders(self) -> None:
        config, source, out = self.config, Path(self.config.input), self.output
        require(not out.exists() or out.is_dir(), "output", out, "is a file; name a folder")
        is_picture = out.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
        require(out.exists() or not is_picture, "output", out, "name a folder; pictures keep their names in it")
        inside = source.is_dir() and out.resolve().is_relative_to(source.resolve())
        require(not inside, "output", out, f"lies in `input` {source}; name a folder outside of it")
        trained = self.model.training_corruption
        needs_mask = trained is not None and trained.makes_holes and not trained.mixes_holes
        require(
            not needs_mask or bool(config.mask or config.corrupt),
            "mask",
            None,
            f"is missing: {config.ckpt} fills holes ({self.model.config.corrupt}); give a picture that is white where "
            "yours is missing, or degrade it with `corrupt`",
        )

    def _find_masks(self, names: Sequence[str]) -> dict[str, Path]:
        if not self.config.mask:
            return {}
        path = Path(self.config.mask)
        pictures = find_pictures(path, "mask")
        if not path.is_dir():
            return dict.fromkeys(names, path)
        by_stem: dict[Path, list[str]] = {}
        for name in pictures:
            by_stem.setdefault(Path(name).with_suffix(""), []).append(name)
        found = {name: [name] if name in pictures else by_stem.get(Path(name).with_suffix(""), []) for name in names}
        lacking = [name for name in names if not found[name]]
        if lacking:
            raise UserError("mask", path, f"lacks {len(lacking)} of {len(names)} masks, first that of {lacking[0]}")
        unclear = [name for name in names if len(found[name]) > 1]
        if unclear:
            masks = " and ".join(found[unclear[0]])
            raise UserError("mask", path, f"holds {masks} for {unclear[0]}; keep one, or give it the picture's name")
        return {name: pictures[masks[0]] for name, masks in found.items()}

    def _build_corruption(self, job: Job) -> Corruption | None:
        """Build the degradation that is applied to a picture, or undone with its operator, for its sides."""
        task = self._choose_degradation(job)
        corrupt = task.corrupt
        if is_custom(corrupt) and not self.config.corrupt:
            raise UserError(
                "input",
                None,
                f"the run's degradation must be known, and {corrupt} is code, which is not run unasked",
            )
        blocks = task_multiple(corrupt)
        if blocks > Corruption.multiple * min(job.height, job.width):  # nearly all of it would be mirror images
            sides = f"is {job.width}x{job.height} pixels"
            raise FileError(job.source, f"{sides}, too small for `corrupt` {corrupt}, which takes blocks of {blocks}")
        height, width = self.model.padded_sides(job.height, job.width, corrupt)
        try:
            corruption = build_task_corruption(task, height, self.model.device)
        except UserError as error:
            raise error.inside(job.source) from None
        if corruption is not None:
            try:
                corruption.check_shape(task.image_channels, height, width)
            except ValueError as error:
                raise FileError(job.source, str(error)) from None
        check_consistency(self.options.consistency, corrupt, corruption)
        self.model.formulation.check_degradation(corruption)
        return corruption

    def _choose_degradation(self, job: Job) -> TrainConfig:
        """Return the run's settings with the degradation of a picture, its noise, and masks that the program draws."""
        corrupt, saved = self.config.corrupt or self.model.config.corrupt, settings_file(self.origin.weights)
        if job.mask and not self.model.formulation.sees_degradation:
            corrupt = "inpaint-center"  # any inpainting does: its operator takes the mask that it is given
        task = choose_degradation(self.model.config, corrupt, "", saved, self.config.degradation_noise)
        return replace(task, mask_file="")

    # --- What was restored before ------------------------------------------------------------------------------------

    def _find_missing(self) -> list[Job]:
        lines, missing = read_manifest(self.output, "file", *_LINE), []
        for job in self.jobs:
            wanted = [job.out, *(trajectory_paths(self._trajectory_stem(job)) if self.config.save_trajectory else ())]
            files, samples = self._answers(job), self.config.samples
            if job.out.exists() and job.out.samefile(job.source):
                raise FileError(job.out, "is the picture itself; name another `output`")
            for path in (job.out, files.folder):
                if path.exists() and not self.config.overwrite:
                    self._check_same(job, path, lines.get(job.name))
            done = all(path.exists() for path in wanted) and (samples == 1 or files.are_complete(samples))
            if self.config.overwrite or not done:
                missing.append(job)
        return missing

    def _check_same(self, job: Job, path: Path, before: dict[str, Any] | None) -> None:
        """Raise UserError unless what lies at `path`, the picture or its answers, was made so from the same picture."""
        advice = "name another `output`, or allow it with `overwrite`"
        if before is None:
            raise FileError(path, f"exists already and is not listed in {MANIFEST} there; {advice}")
        now, settings = self._line(job), OLDER_SETTINGS | before["settings"]
        check_fewer(path, settings.pop("samples"), now["settings"].pop("samples"), advice)
        differences = compare_settings(settings, now["settings"])
        if differences:
            raise FileError(job.out, f"was made with other settings ({differences}); {advice}")
        if (before["sha256"], before["mask_sha256"]) != (now["sha256"], now["mask_sha256"]):
            raise FileError(job.out, f"was restored from another {job.name}, or with another mask; {advice}")

    def _line(self, job: Job) -> dict[str, Any]:
        known = self.config.corrupt or self.needs_operator
        settings = {
            **describe_network(
                self.config, self.origin.run, self.model.iteration, self.model.digest, self.config.corrupt
            ),
            **self.settle(job).record(),
            "corrupt": self.config.corrupt,
            "samples": self.config.samples,
            "degradation_noise": self._choose_degradation(job).degradation_noise if known else 0.0,
        }
        return {
            "file": job.name,
            "source": str(job.source),
            "sha256": hash_file(job.source),
            "mask_sha256": hash_file(job.mask) if job.mask else "",
            "height": job.height,
            "width": job.width,
            "settings": settings,
        }

    def _add_to_manifest(self, line: dict[str, Any]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        append(
            self.output / MANIFEST, ("\n" + _as_line(line)).encode(errors="backslashreplace")
        )  # the newline ends a line that was cut off

    def _answers(self, job: Job) -> AnswerFiles:
        return answers_to(self.output, job.name)

    def _trajectory_stem(self, job: Job) -> Path:
        return self.output / TRAJECTORIES / job.name


def answers_to(output: Path, name: str) -> AnswerFiles:
    """Return the folder of several answers to the picture of this name, which are pictures of its kind."""
    return AnswerFiles(output / ANSWERS / name, Path(name).suffix)


def _as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
