"""The mixture: every image has one of the nine published degradations, so that one network learns them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corruption.base import Corrupted, Corruption, Draws


class Mixture(Corruption):
    """`mixture`: one of `parts`, at random in training; in evaluation image i has number i mod 9.

    Holes stay white and no mask comes back: neither the loss nor the sampler knows which degradation it is.
    """

    def __init__(self, parts: Sequence[Corruption]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.note = "; ".join(dict.fromkeys(part.note for part in parts if part.note))

    def check_shape(self, channels: int, height: int, width: int) -> None:
        for part in self.parts:
            part.check_shape(channels, height, width)

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        if draws.index is None:
            kinds = (draws.rand() * len(self.parts)).long().tolist()
        else:
            kinds = [number % len(self.parts) for number in draws.index]
        image = torch.empty_like(clean)
        for kind in set(kinds):  # the images of a kind go through it together
            rows = [row for row, other in enumerate(kinds) if other == kind]
            image[rows] = self.parts[kind].degrade(clean[rows], draws.select(rows)).image
        return Corrupted(image)
