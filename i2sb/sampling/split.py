"""Restoring a split: clean images in, degraded and restored, numbered images out, one batch in memory at a time.

Or, with --input, pictures of one's own (i2sb.sampling.own_pictures).
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from torch import Tensor

from i2sb.answers import RunningMoments, measure_diversity
from i2sb.config import SampleConfig, SamplingOptions
from i2sb.consistency import check_consistency
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.distributed import World, join_world, leave_world
from i2sb.errors import require
from i2sb.formulation import Formulation
from i2sb.image_files import Form
from i2sb.images import choose_shown, is_plain, to_stored
from i2sb.network_sizes import check_image_size
from i2sb.options import write_flags
from i2sb.precision import advise_precision, choose_precision, find_capability, prepare
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.restore import RestorationModel, check_restored, load_model
from i2sb.sampling.own_pictures import OwnPictures
from i2sb.storage.answer_files import Spread
from i2sb.storage.recon import recon_path, write_recon
from i2sb.storage.runs import Source, find_source, settings_file
from i2sb.storage.sample_folder import SampleFolder, SampleSettings, describe_masks, describe_network
from i2sb.storage.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.tasks import build_task_corruption, check_depth, choose_degradation, make_task_batch, open_task_split

WRITERS = 4  # threads that encode and write images


def run(config: SampleConfig) -> None:
    """Restore the val split (or the part of it that --partition names), or pictures, with a trained run.

    Images that are in the folder already are not made again, so a stopped run goes on where it was. Raises UserError
    for settings that do not fit, or if the folder holds images made with others.
    """
    world = join_world(config.device)
    config = replace(config, precision=choose_precision(config.precision, find_capability(world.device)))
    try:
        source = find_source(config.ckpt, Path(config.results_dir))
        model = load_model(source.weights, world.device, checkpoint=config.ckpt_file or None, network=config.network)
        options = model.formulation.settle(config.sampling)  # before any image is read
        for network in model.networks:
            if config.use_fp16:
                network.half_convolutions()
            prepare(network, config.precision, channels_last=config.channels_last, compile=config.compile)
        if world.is_main:
            asked = ("fp16", world.device, "use_fp16") if config.use_fp16 else (config.precision, world.device)
            advice = [advise_precision(*asked), model.formulation.advise(options)]
            for line in filter(None, advice):
                print(f"warning: {write_flags(line)}", file=sys.stderr)
        if config.input:
            _restore_pictures(config, source, world, model, options)
        else:
            _restore_split(config, source, world, model, options)
    finally:
        leave_world()


def _restore_split(
    config: SampleConfig, source: Source, world: World, model: RestorationModel, options: SamplingOptions
) -> None:
    image_size = config.image_size or model.config.restored_size
    check_image_size(model.config.network, image_size, multiple=model.multiple)
    saved = settings_file(source.weights)
    task = choose_degradation(model.config, config.corrupt, config.mask_file, saved, config.degradation_noise)
    corruption = build_task_corruption(task, image_size, world.device, setting="image_size")
    check_consistency(options.consistency, task.corrupt, corruption)
    model.formulation.check_degradation(corruption)
    model.check_samples(config.samples, options, holes=corruption is not None and corruption.makes_holes)
    dataset_dir = config.dataset_dir or model.config.dataset_dir
    images = open_task_split(task, dataset_dir, "val", image_size).subset(config.subset)

    check_depth(corruption, task.corrupt, plain=images.plain)
    eight_bit_colour = images.plain and task.image_channels in (1, 3)
    require(eight_bit_colour or not config.save_pt, "save_pt", None, "is for 8-bit images in colour or grey alone")
    channels = choose_shown(config.show_channels or task.show_channels, task.image_channels)

    settings = SampleSettings(
        **options.record(),
        **describe_network(config, source.run, model.iteration, model.digest, task.corrupt),
        corrupt=task.corrupt,
        **describe_masks(task.mask_file),
        degradation_noise=task.degradation_noise,
        dataset_dir=str(Path(dataset_dir)),
        subset=config.subset,
        image_size=image_size,
        samples=config.samples,
        num_images=len(images),
        fingerprint=images.fingerprint,
    )
    path = source.folder / (config.sample_dir or folder_name(options, model.formulation, config.ckpt_file))
    if world.is_main:
        SampleFolder.begin(path, settings)
    world.barrier()
    folder = SampleFolder.begin(path, settings)

    def line(index: int, sha256: str | None = None) -> dict[str, Any]:
        several = folder.answers(index).read_spread() if config.samples > 1 else None
        return {
            "index": index,
            "file": folder.image_path(index).relative_to(folder.path).as_posix(),
            "source": images.keys[index],
            "sha256": images.checksum(index) if sha256 is None else sha256,
            "label": images.label(index),
            "seed": make_seed(options.seed, Purpose.SAMPLE, index),
            **({"diversity": several.diversity} if several else {}),
        }

    part, parts = config.part
    wanted = range(len(images) * part // parts, len(images) * (part + 1) // parts)[: config.limit]
    # Shared out by index, not by what is missing: other processes may be writing already.
    mine = wanted[world.rank :: world.world_size]
    folder.check_sources(mine, images.checksum)
    missing = folder.missing(mine)
    if config.save_trajectory:
        drawings = {index: trajectory_paths(folder.trajectory_stem(index)) for index in mine}
        undrawn = {index for index, paths in drawings.items() if not all(path.exists() for path in paths)}
        missing = sorted({*missing, *undrawn})
    # Whole batches, the same as if no image existed yet: beside other images, an image's last digits might differ.
    needed = set(missing)
    batches = [mine[i : i + config.batch_size] for i in range(0, len(mine), config.batch_size)]
    computed = [index for batch in batches if not needed.isdisjoint(batch) for index in batch]
    folder.remove_partials(mine)
    if world.is_main:
        folder.rewrite_manifest(line)
        several = f", {config.samples} answers to each" if config.samples > 1 else ""
        to_do = f"{len(missing)} to restore here, NFE {options.nfe}{several}"
        print(f"{folder.path}: {len(wanted)} images from number {wanted.start} on, {to_do}")
        if corruption is not None and corruption.note:
            print(f"{task.corrupt}: {corruption.note}")
    begun = time.perf_counter()
    progress = progress_bar(len(missing), "image", quiet=not world.is_main)

    def write(index: int, image: Tensor, form: Form, row: int, recorder: TrajectoryRecorder | None) -> None:
        if recorder is not None:  # before the image, whose presence says that all is done
            recorder.save(row, folder.trajectory_stem(index))
        is_new = not folder.is_there(index)
        if config.samples > 1:
            folder.answers(index).begin(config.samples)
        folder.save(index, image, form)
        if is_new:
            folder.add_to_manifest(line(index))
        if config.samples == 1:
            progress.update()

    def finish(index: int, mean: Tensor, form: Form, std: Tensor, diversity: float) -> None:
        folder.save(index, mean, form, "mean")
        folder.answers(index).save_spread(std, Spread(config.samples, diversity))
        folder.add_to_manifest(line(index))
        progress.update()

    # A batch, or an answer to it, is written while the next one is computed.
    with progress, ThreadPoolExecutor(WRITERS) as writers:
        written: list[Future[None]] = []

        def hand_over(job: Callable[..., None], numbers: Sequence[int], arguments: Iterable[tuple]) -> None:
            """Have a job done for each image that is needed, after what was handed over before."""
            for image in written:
                image.result()
            pairs = zip(numbers, arguments, strict=True)
            written[:] = [writers.submit(job, index, *given) for index, given in pairs if index in needed]

        for loaded in load_in_order(
            images,
            computed,
            batch_size=config.batch_size,
            workers=config.workers,
            pin_memory=world.device.type == "cuda",
        ):
            forms = [form.numbered(task.image_channels) for form in loaded.forms]
            dtypes = [form.dtype for form in forms]
            plain = [is_plain(dtype, task.value_range) for dtype in dtypes]
            moments = RunningMoments()
            for answer in range(config.samples):
                noise = ImageNoise(options.seed, Purpose.SAMPLE, loaded.numbers, answer=answer)
                batch = make_task_batch(model.config, loaded, corruption, noise, world.device, evaluation=True)
                recorder = None
                if config.save_trajectory and answer == 0:
                    recorder = TrajectoryRecorder(batch.shown, options.evaluations, image_size, image_size, channels)
                x0 = model.restore_batch(batch, noise, options, callback=recorder).x0
                if not all(plain):
                    x0 = batch.keep_known(x0, but_of=plain)
                check_restored(x0, [images.keys[index] for index in loaded.numbers])
                results = to_stored(x0, dtypes, task.value_range)
                if answer == 0:
                    rows = range(len(forms))
                    hand_over(write, loaded.numbers, ((results[row], forms[row], row, recorder) for row in rows))
                else:
                    hand_over(folder.save, loaded.numbers, zip(results, forms, repeat(answer)))
                if config.samples > 1:
                    moments.add(x0)
            if config.samples > 1:
                mean, std = to_stored(moments.mean, dtypes, task.value_range), moments.std
                diversity = measure_diversity(std, batch.mask).tolist()
                hand_over(finish, loaded.numbers, zip(mean, forms, std.cpu(), diversity, strict=True))
        for image in written:
            image.result()
    spent = time.perf_counter() - begun

    world.barrier()
    if world.is_main:
        folder.rewrite_manifest(line)
        if config.save_pt:
            _save_pt(config, folder, images, wanted)
        done = len(wanted) - len(folder.missing(wanted))
        print(f"{folder.path}: {_rate(len(missing), 'image', spent)}; {done} of {len(wanted)} are there")


def _save_pt(config: SampleConfig, folder: SampleFolder, images: ImageDataset, wanted: range) -> None:
    path = recon_path(folder.path, config.partition)
    write_recon(path, folder, wanted, images.labels(wanted))
    print(f"{path}: {len(wanted)} images and their labels")


def _restore_pictures(
    config: SampleConfig, source: Source, world: World, model: RestorationModel, options: SamplingOptions
) -> None:
    pictures = OwnPictures(model, config, options, source)
    missing = pictures.missing[world.rank :: world.world_size]
    if world.is_main:
        for advice in pictures.advice():
            print(f"warning: {write_flags(advice)}", file=sys.stderr)
        print(f"{pictures.output}: {len(pictures.jobs)} pictures, {len(missing)} to restore here, NFE {options.nfe}")
    begun = time.perf_counter()
    pictures.restore(missing, quiet=not world.is_main)
    spent = time.perf_counter() - begun
    world.barrier()
    if world.is_main:
        pictures.tidy()
        print(f"{pictures.output}: {_rate(len(missing), 'picture', spent)}; {len(pictures.jobs)} are there")


def _rate(count: int, unit: str, seconds: float) -> str:
    rate = f", {count / seconds:.3g} {unit}s/s" if count and seconds else ""
    return f"restored {count} {unit}s here in {seconds:.1f} s{rate}"


def folder_name(options: SamplingOptions, formulation: Formulation, ckpt_file: str) -> str:
    """Return the name of the folder of restored images inside the run: what was asked for besides the defaults."""
    usual = formulation.settle(SamplingOptions())
    return options.folder_name(usual) + (f"_{Path(ckpt_file).stem}" if ckpt_file else "")
