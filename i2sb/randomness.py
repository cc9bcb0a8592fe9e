"""Every image's own randomness, made from (run seed, purpose, image number).

So a result does not depend on the batch size, the number of GPUs, or where a run was interrupted, and a run's random
state needs no saving: it is a function of the seed and of how many images were seen.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from corruption.base import send


class Purpose(IntEnum):
    """What a draw is for; each purpose has streams of its own."""

    ORDER = 0
    AUGMENT = 1
    TRAIN = 2
    SAMPLE = 3
    WEIGHTS = 4
    GLOBAL = 5


# Further streams of an image, besides the noise of its answer 0.
_DEGRADATION, _ANSWERS = 1, 2


def make_seed(run_seed: int, purpose: Purpose, number: int, *stream: int) -> int:
    """Return a 64-bit seed for the `number`-th image (or epoch) of a run; `stream` tells apart its further streams."""
    return int(np.random.SeedSequence([run_seed, purpose, number, *stream]).generate_state(1, np.uint64)[0])


class ImageNoise:
    """A stream of noise for each image of a batch.

    numbers: the number of each image, [B]. Draws are made on `device` (CPUs and GPUs draw other numbers from the same
    seed, so sampling draws on the CPU) and handed out on the device of the images. On the CPU torch uses 32 bits of a
    seed: among very many images two may share their noise.
    answer: which of several answers to the images the noise is for. Their degradation is the same for all answers.
    """

    def __init__(
        self,
        run_seed: int,
        purpose: Purpose,
        numbers: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        answer: int = 0,
    ) -> None:
        stream = (_ANSWERS, answer) if answer else ()
        self.generators = [
            torch.Generator(device).manual_seed(make_seed(run_seed, purpose, number, *stream)) for number in numbers
        ]

        self._key = (run_seed, purpose, numbers)

    def degradation_generators(self) -> list[torch.Generator]:
        """Return a generator for each image's degradation, on the CPU: so every device makes the same pairs."""
        run_seed, purpose, numbers = self._key
        return [torch.Generator().manual_seed(make_seed(run_seed, purpose, number, _DEGRADATION)) for number in numbers]

    def randn_like(self, x: Tensor) -> Tensor:
        """Return standard normal noise of the shape, type and device of x [B, …]."""
        draws = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in self.generators]
        return send(torch.stack(draws), x.device).to(x.dtype)

    def randint(self, high: int) -> Tensor:
        """Return an index from {0 … high - 1} for each image, int64 [B]."""
        return torch.cat([torch.randint(high, (1,), generator=g, device=g.device) for g in self.generators])

    def rand(self, *shape: int) -> Tensor:
        """Return uniform draws from [0, 1) for each image, float32 [B, *shape]."""
        draws = [torch.rand(shape, generator=g, device=g.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws)
