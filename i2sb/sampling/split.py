"""Restoring a split: clean images in, degraded and restored, numbered images out, one batch in memory at a time.

Or, with --input, pictures of one's own (i2sb.sampling.own_pictures).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from i2sb.config import SampleConfig
from i2sb.consistency import check_consistency, make_consistency
from i2sb.data.dataset import ImageDataset
from i2sb.data.loading import load_in_order
from i2sb.distributed import World, join_world, leave_world
from i2sb.formulation import Formulation, Sampler, Way
from i2sb.network_sizes import check_image_size
from i2sb.precision import advise_precision, prepare
from i2sb.progress import progress_bar
from i2sb.randomness import ImageNoise, Purpose, make_seed
from i2sb.restore import RestorationModel, load_model
from i2sb.sampling.own_pictures import OwnPictures
from i2sb.sampling.trajectory import TrajectoryRecorder, trajectory_paths
from i2sb.storage.recon import recon_path, write_recon
from i2sb.storage.sample_folder import SampleFolder, SampleSettings
from i2sb.tasks import build_task_corruption, choose_degradation, describe_restoring, make_task_batch, open_task_split

# tqdm's own, but for a rate that stays in images a second when they are slow.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def run(config: SampleConfig) -> None:
    """Restore the val split (or the part of it that --partition names), or pictures, with a trained run.

    Images that are in the folder already are not made again, so a stopped run goes on where it was. Raises ValueError
    for settings that do not fit, or if the folder holds images made with others.
    """
    world = join_world(config.device)
    try:
        model = load_model(config.run_dir, world.device, checkpoint=config.ckpt_file or None)
        nfe = config.nfe if config.nfe is not None else model.formulation.default_nfe
        model.formulation.check_nfe(nfe)  # before any image is read
        sampler = model.formulation.choose_sampler(config.sampler, config.eta)
        if config.use_fp16:
            model.network.diffusion_model.half_convolutions()
        prepare(model.network, config.precision, channels_last=config.channels_last, compile=config.compile)
        if world.is_main:
            asked = ("fp16", world.device, "--use-fp16") if config.use_fp16 else (config.precision, world.device)
            advice = [advise_precision(*asked), model.formulation.advise(sampler, nfe, config.clip_denoise)]
            for line in filter(None, advice):
                print(f"warning: {line}", file=sys.stderr)
        restore = _restore_pictures if config.input else _restore_split
        restore(config, world, model, nfe, sampler)
    finally:
        leave_world()


def _restore_split(config: SampleConfig, world: World, model: RestorationModel, nfe: int, sampler: Sampler) -> None:
    image_size = config.image_size or model.config.restored_size
    check_image_size(model.config.network, image_size)
    task = choose_degradation(model.config, config.corrupt, config.mask_file, config.run_dir / "config.yaml")
    corruption = build_task_corruption(task, image_size, world.device, setting="image_size")
    check_consistency(config.consistency, task.corrupt, corruption)
    model.formulation.check_degradation(corruption)
    dataset_dir = config.dataset_dir or model.config.dataset_dir
    images = open_task_split(task, dataset_dir, "val", image_size)
    if config.subset:
        images = images.subset(config.subset)

    settings = SampleSettings(
        **describe_restoring(config, model.iteration, nfe, sampler),
        corrupt=task.corrupt,
        mask_file=task.mask_file,
        dataset_dir=str(Path(dataset_dir)),
        image_size=image_size,
        num_images=len(images),
        fingerprint=images.fingerprint,
        subset=config.subset,
    )
    place = config.run_dir / (config.sample_dir or folder_name(config, nfe, sampler, model.formulation))
    if world.is_main:
        SampleFolder.begin(place, settings)
    world.barrier()
    folder = SampleFolder.begin(place, settings)

    def line(index: int) -> dict[str, Any]:
        return {
            "index": index,
            "file": folder.image_path(index).relative_to(folder.path).as_posix(),
            "source": images.keys[index],
            "label": images.label(index),
            "seed": make_seed(config.seed, Purpose.SAMPLE, index),
        }

    part, parts = config.part
    mine = range(len(images) * part // parts, len(images) * (part + 1) // parts)[: config.limit]
    # Dealt out by index, not by what is missing: other processes may be writing already.
    own = mine[world.rank :: world.world_size]
    missing = folder.missing(own)
    if config.save_trajectory:
        drawn = (trajectory_paths(folder.trajectory_stem(index)) for index in own)
        undrawn = {index for index, paths in zip(own, drawn, strict=True) if not all(path.exists() for path in paths)}
        missing = sorted({*missing, *undrawn})
    # Whole batches, made up as they would be if nothing were there yet: in another company an image's last digits may
    # be others.
    wanted = set(missing)
    batches = [own[i : i + config.batch_size] for i in range(0, len(own), config.batch_size)]
    computed = [index for batch in batches if not wanted.isdisjoint(batch) for index in batch]
    folder.remove_partials(own)
    if world.is_main:
        folder.rewrite_manifest(line)
        here = f"{len(missing)} to restore here, NFE {nfe}"
        print(f"{folder.path}: {len(mine)} images from number {mine.start} on, {here}")
        if corruption is not None and corruption.note:
            print(f"{task.corrupt}: {corruption.note}")
    begun = time.perf_counter()
    progress = progress_bar(len(missing), "image", quiet=not world.is_main, bar_format=BAR)
    for loaded in load_in_order(
        images,
        computed,
        batch_size=config.batch_size,
        workers=config.workers,
        pin_memory=world.device.type == "cuda",
    ):
        noise = ImageNoise(config.seed, Purpose.SAMPLE, loaded.numbers)
        batch = make_task_batch(task, loaded, corruption, noise, world.device, evaluation=True)
        recorder = TrajectoryRecorder(batch.shown, nfe, image_size, image_size) if config.save_trajectory else None
        way = Way(
            nfe,
            sampler,
            config.clip_denoise,
            corruption,
            refine=make_consistency(
                config.consistency, corruption, batch.shown, batch.mask, weight=config.consistency_weight
            ),
            callback=recorder,
        )
        restored = model.restore_batch(batch, noise, way)
        for place_in_batch, index in enumerate(loaded.numbers):
            if index not in wanted:
                continue
            if recorder is not None:  # before the image, which says that all is there
                recorder.save(place_in_batch, folder.trajectory_stem(index))
            is_new = not folder.image_path(index).exists()
            folder.save(index, restored[place_in_batch])
            if is_new:
                folder.add_to_manifest(line(index))
        progress.update(len(wanted.intersection(loaded.numbers)))
    progress.close()
    spent = time.perf_counter() - begun

    world.barrier()
    if world.is_main:
        folder.rewrite_manifest(line)
        if config.save_pt:
            _save_pt(config, folder, images, mine)
        there = len(mine) - len(folder.missing(mine))
        print(f"{folder.path}: {_rate(len(missing), 'image', spent)}; {there} of {len(mine)} are there")


def _save_pt(config: SampleConfig, folder: SampleFolder, images: ImageDataset, mine: range) -> None:
    path = recon_path(folder.path, config.partition)
    write_recon(path, folder, mine, torch.tensor([images.label(index) for index in mine], dtype=torch.int64))
    print(f"{path}: {len(mine)} images and their labels")


def _restore_pictures(config: SampleConfig, world: World, model: RestorationModel, nfe: int, sampler: Sampler) -> None:
    pictures = OwnPictures(model, config, nfe, sampler)
    missing = pictures.missing[world.rank :: world.world_size]
    if world.is_main:
        for advice in pictures.advice():
            print(f"warning: {advice}", file=sys.stderr)
        print(f"{pictures.output}: {len(pictures.jobs)} pictures, {len(missing)} to restore here, NFE {nfe}")
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


def folder_name(config: SampleConfig, nfe: int, sampler: Sampler, formulation: Formulation) -> str:
    """Return the name of the folder of restored images inside the run: what was asked for besides the defaults."""
    name = f"samples_nfe{nfe}" + ("_clip" if config.clip_denoise else "")
    if sampler != formulation.choose_sampler():
        name += f"_{sampler.name}" + ("" if formulation.samplers[sampler.name] is None else f"{sampler.eta:g}")
    if config.consistency != "none":
        weight = f"{config.consistency_weight:g}" if config.consistency == "gradient" else ""
        name += f"_{config.consistency}{weight}"
    return name + (f"_{Path(config.ckpt_file).stem}" if config.ckpt_file else "")
