"""Restoring a split: clean images in, degraded and restored, numbered images out, one batch in memory at a time."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from i2sb.config import SampleConfig
from i2sb.data import load_in_order
from i2sb.distributed import join_world, leave_world
from i2sb.network import check_image_size
from i2sb.precision import prepare
from i2sb.randomness import ImageNoise, Purpose
from i2sb.restore import load_model
from i2sb.sample_folder import SampleFolder, SampleSettings
from i2sb.sampler import step_grid
from i2sb.tasks import build_task_corruption, choose_degradation, make_task_batch, open_task_split


def run(config: SampleConfig) -> None:
    """Restore the val split (or the part of it that --partition names) with a trained run.

    Images that are in the folder already are not made again, so a stopped run goes on where it was. Raises ValueError
    for settings that do not fit, or if the folder holds images made with others.
    """
    world = join_world(config.device)
    try:
        model = load_model(config.run_dir, world.device)
        nfe = config.nfe if config.nfe is not None else model.config.interval - 1
        step_grid(model.config.interval, nfe)  # refuses an nfe out of range before any image is read
        if config.use_fp16:
            model.network.diffusion_model.half_convolutions()
        prepare(model.network, config.precision, channels_last=config.channels_last, compile=config.compile)
        image_size = config.image_size or model.config.restored_size
        check_image_size(model.config.network, image_size)
        task = choose_degradation(model.config, config.corrupt, config.mask_file, config.run_dir / "config.yaml")
        corruption = build_task_corruption(task, image_size, world.device)
        dataset_dir = config.dataset_dir or model.config.dataset_dir
        images = open_task_split(task, dataset_dir, "val", image_size)
        if config.subset:
            images = images.subset(config.subset)

        settings = SampleSettings(
            run=config.ckpt,
            iteration=model.iteration,
            nfe=nfe,
            corrupt=task.corrupt,
            mask_file=task.mask_file,
            clip_denoise=config.clip_denoise,
            use_fp16=config.use_fp16,
            seed=config.seed,
            dataset_dir=str(Path(dataset_dir)),
            image_size=image_size,
            num_images=len(images),
            fingerprint=images.fingerprint,
            subset=config.subset,
            precision=config.precision,
        )
        name = f"samples_nfe{nfe}" + ("_clip" if config.clip_denoise else "")
        if world.is_main:
            SampleFolder.begin(config.run_dir / name, settings)
        world.barrier()
        folder = SampleFolder.begin(config.run_dir / name, settings)

        part, parts = config.part
        mine = range(len(images) * part // parts, len(images) * (part + 1) // parts)
        # Dealt out by index, not by what is missing: other processes may be writing already.
        missing = folder.missing(mine[world.rank :: world.world_size])
        if world.is_main:
            print(f"{folder.path}: {len(mine)} images from number {mine.start} on, {len(missing)} to restore here")
            if corruption is not None and corruption.note:
                print(f"{task.corrupt}: {corruption.note}")
        progress = tqdm(total=len(missing), unit="image", dynamic_ncols=True, disable=not world.is_main)
        for part_images in load_in_order(
            images,
            missing,
            batch_size=config.batch_size,
            workers=config.workers,
            pin_memory=world.device.type == "cuda",
        ):
            noise = ImageNoise(config.seed, Purpose.SAMPLE, part_images.numbers)
            batch = make_task_batch(task, part_images, corruption, noise, world.device, evaluation=True)
            restored = model.restore_batch(batch, noise, nfe=nfe, clip_denoise=config.clip_denoise)
            for index, image in zip(part_images.numbers, restored, strict=True):
                folder.save(index, image)
            progress.update(len(batch))
        progress.close()
    finally:
        leave_world()
