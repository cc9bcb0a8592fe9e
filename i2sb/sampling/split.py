"""Restoring a split: clean images in, degraded and restored, numbered images out, one batch in memory at a time.

Or, with --input, pictures of one's own (i2sb.sampling.own_pictures).
"""

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from i2sb.config import SampleConfig, SamplingOptions
from i2sb.consistency import check_consistency
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.distributed import World, join_world, leave_world
from i2sb.formulation import Formulation
from i2sb.images import to_uint8
from i2sb.network_sizes import check_image_size
from i2sb.options import write_flags
from i2sb.precision import advise_precision, choose_precision, find_capability, prepare
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.restore import RestorationModel, load_model
from i2sb.sampling.own_pictures import OwnPictures
from i2sb.sampling.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.storage.recon import recon_path, write_recon
from i2sb.storage.sample_folder import SampleFolder, SampleSettings, describe_network
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split

# tqdm's own bar, but slow rates, too, are shown as images a second, not seconds an image.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"

WRITERS = 4  # threads that encode and write images


def run(config: SampleConfig) -> None:
    """Restore the val split (or the part of it that --partition names), or pictures, with a trained run.

    Images that are in the folder already are not made again, so a stopped run goes on where it was. Raises UserError
    for settings that do not fit, or if the folder holds images made with others.
    """
    world = join_world(config.device)
    config = replace(config, precision=choose_precision(config.precision, find_capability(world.device)))
    try:
        model = load_model(config.run_dir, world.device, checkpoint=config.ckpt_file or None, network=config.network)
        options = model.formulation.settle(config.sampling)  # before any image is read
        if config.use_fp16:
            model.network.half_convolutions()
        prepare(model.network, config.precision, channels_last=config.channels_last, compile=config.compile)
        if world.is_main:
            asked = ("fp16", world.device, "use_fp16") if config.use_fp16 else (config.precision, world.device)
            advice = [advise_precision(*asked), model.formulation.advise(options)]
            for line in filter(None, advice):
                print(f"warning: {write_flags(line)}", file=sys.stderr)
        if config.input:
            _restore_pictures(config, world, model, options)
        else:
            _restore_split(config, world, model, options)
    finally:
        leave_world()


def _restore_split(config: SampleConfig, world: World, model: RestorationModel, options: SamplingOptions) -> None:
    image_size = config.image_size or model.config.restored_size
    check_image_size(model.config.network, image_size, multiple=model.network.multiple)
    saved = config.run_dir / "config.yaml"
    task = choose_degradation(model.config, config.corrupt, config.mask_file, saved, config.degradation_noise)
    corruption = build_task_corruption(task, image_size, world.device, setting="image_size")
    check_consistency(options.consistency, task.corrupt, corruption)
    model.formulation.check_degradation(corruption)
    dataset_dir = config.dataset_dir or model.config.dataset_dir
    images = open_task_split(task, dataset_dir, "val", image_size).subset(config.subset)

    settings = SampleSettings(
        **options.record(),
        **describe_network(config, model.iteration, task.corrupt),
        corrupt=task.corrupt,
        mask_file=task.mask_file,
        degradation_noise=task.degradation_noise,
        dataset_dir=str(Path(dataset_dir)),
        subset=config.subset,
        image_size=image_size,
        num_images=len(images),
        fingerprint=images.fingerprint,
    )
    path = config.run_dir / (config.sample_dir or folder_name(options, model.formulation, config.ckpt_file))
    if world.is_main:
        SampleFolder.begin(path, settings)
    world.barrier()
    folder = SampleFolder.begin(path, settings)

    def line(index: int, sha256: str | None = None) -> dict[str, Any]:
        return {
            "index": index,
            "file": folder.image_path(index).relative_to(folder.path).as_posix(),
            "source": images.keys[index],
            "sha256": images.checksum(index) if sha256 is None else sha256,
            "label": images.label(index),
            "seed": make_seed(options.seed, Purpose.SAMPLE, index),
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
        to_do = f"{len(missing)} to restore here, NFE {options.nfe}"
        print(f"{folder.path}: {len(wanted)} images from number {wanted.start} on, {to_do}")
        if corruption is not None and corruption.note:
            print(f"{task.corrupt}: {corruption.note}")
    begun = time.perf_counter()
    progress = progress_bar(len(missing), "image", quiet=not world.is_main, bar_format=BAR)

    def write(index: int, image: Tensor, row: int, recorder: TrajectoryRecorder | None) -> None:
        if recorder is not None:  # before the image, whose presence says that all is done
            recorder.save(row, folder.trajectory_stem(index))
        is_new = not folder.image_path(index).exists()
        folder.save(index, image)
        if is_new:
            folder.add_to_manifest(line(index))
        progress.update()

    # A batch is written while the next one is computed.
    with progress, ThreadPoolExecutor(WRITERS) as writers:
        written: list[Future[None]] = []
        for loaded in load_in_order(
            images,
            computed,
            batch_size=config.batch_size,
            workers=config.workers,
            pin_memory=world.device.type == "cuda",
        ):
            noise = ImageNoise(options.seed, Purpose.SAMPLE, loaded.numbers)
            batch = make_task_batch(model.config, loaded, corruption, noise, world.device, evaluation=True)
            recorder = None
            if config.save_trajectory:
                recorder = TrajectoryRecorder(batch.shown, options.evaluations, image_size, image_size)
            results = to_uint8(model.restore_batch(batch, noise, options, callback=recorder).x0).cpu()
            for image in written:
                image.result()
            written = [
                writers.submit(write, index, results[row], row, recorder)
                for row, index in enumerate(loaded.numbers)
                if index in needed
            ]
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


def _restore_pictures(config: SampleConfig, world: World, model: RestorationModel, options: SamplingOptions) -> None:
    pictures = OwnPictures(model, config, options)
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
