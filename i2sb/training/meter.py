"""What a run's log says about its iterations: how fast they are, and which images they were given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from i2sb.data.loading import Images

if TYPE_CHECKING:
    from i2sb.training.run_log import RunLog
    from i2sb.training.trainer import IterationResult, Trainer


class Meter:
    """Watches the images that come and the time that passes since the log was last written.

    unreadable: the messages about images that could not be read, since the program began.
    """

    def __init__(self, trainer: Trainer, log: RunLog) -> None:
        self.trainer, self.log = trainer, log
        self.unreadable: set[str] = set()
        self._warned_of_enlarged = False
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something that is not training."""
        self._begun, self._images = time.perf_counter(), self.trainer.progress.num_images_seen
        self._seconds_for_data, self._enlarged = 0.0, 0

    def watch(self, stream: Iterator[Images]) -> Iterator[Images]:
        """Hand on a stream of images, and warn of what is wrong with them."""
        while True:
            begun = time.perf_counter()
            images = next(stream)
            self._seconds_for_data += time.perf_counter() - begun
            self._enlarged += images.enlarged
            if images.enlarged and self.trainer.train_images.native and not self._warned_of_enlarged:
                self._warned_of_enlarged = True
                self.log.warn(
                    f"some training images are smaller than the crop of {self.trainer.config.image_size} pixels and "
                    "are enlarged; log.jsonl counts such crops as enlarged_crops"
                )
            for message in images.skipped:
                if message not in self.unreadable:
                    self.unreadable.add(message)
                    self.log.warn(f"{message}; skipped")
            yield images

    def read(self, result: IterationResult) -> dict[str, float]:
        """Return the numbers of a record, and begin anew. Waits for the GPU."""
        trainer, world, device = self.trainer, self.trainer.world, self.trainer.world.device
        update, inner = result
        losses = torch.stack([update.loss, *([] if inner is None else [inner.loss])]).double()
        counts = update.loss.new_tensor([len(self.unreadable), self._enlarged], dtype=torch.float64)
        *sums, unreadable, enlarged = world.sum(torch.cat([losses, counts])).tolist()
        images = trainer.progress.num_images_seen - self._images
        values = {
            **{name: loss / world.world_size for name, loss in zip(("loss", "inner_loss"), sums, strict=False)},
            "lr": update.lr,
            "grad_norm": update.grad_norm.item(),
            "images_per_second": images / (time.perf_counter() - self._begun),
            "seconds_for_data": self._seconds_for_data,
            "bad_steps": int(trainer.bad_iterations),
            "unreadable_images": round(unreadable),
            "enlarged_crops": round(enlarged),
        }
        if device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self.restart()
        return values
