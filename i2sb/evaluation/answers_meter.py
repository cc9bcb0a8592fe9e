"""What several answers to each image come to: how good their mean is, and how far they lie apart."""

from typing import NamedTuple

import torch

from i2sb.evaluation.evaluation_set import EvaluationSet
from i2sb.metrics.meters import EvaluationBatch, Reduce
from i2sb.metrics.pixels import psnr
from i2sb.storage.sample_folder import SampleFolder


class Number(NamedTuple):
    """A number that is not compared with one of the degraded images; fields as those of i2sb.metrics.table.Metric."""

    title: str
    value: float
    unit: str
    digits: int
    definition: str


class AnswersMeter:
    """PSNR of the mean of the answers to each image, in dB, and their diversity, in units of [-1, 1]."""

    def __init__(self, images: EvaluationSet, folder: SampleFolder) -> None:
        """Begin for images with several answers to each, which lie in the folder; over all processes."""
        self.images, self.folder = images, folder
        self.psnr, self.diversity = torch.zeros(2, len(images), dtype=torch.float64)

    def add(self, batch: EvaluationBatch) -> None:
        """Take in a batch; its means are read here."""
        plain = not batch.clean.is_floating_point()
        means = torch.stack([self.images.load_mean(number, plain=plain) for number in batch.numbers])
        self.psnr[batch.numbers] = psnr(means.to(batch.clean.device), batch.clean).cpu()
        for number in batch.numbers:
            spread = self.folder.answers(number).read_spread()
            assert spread is not None, "only folders in which nothing is missing are scored"
            self.diversity[number] = spread.diversity

    def reduce(self, reduce: Reduce) -> None:
        """Bring in what the other processes saw."""
        self.psnr, self.diversity = reduce(torch.stack([self.psnr, self.diversity]))

    def summarise(self) -> dict[str, Number]:
        """Return what came out, by the names that metrics.json has for it."""
        samples = self.folder.settings.samples
        return {
            "psnr_of_mean": Number(
                "PSNR of the mean",
                self.psnr.mean().item(),
                "dB",
                2,
                f"PSNR of the mean of {samples} answers to an image, as of the restored one; mean over images",
            ),
            "diversity": Number(
                "diversity",
                self.diversity.mean().item(),
                "",
                4,
                f"Standard deviation of {samples} answers to an image, in units of [-1, 1], mean over channels and "
                "pixels (of the hole, if there is one), then over images",
            ),
        }
