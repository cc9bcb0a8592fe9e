"""Mixtures: every image has one of several degradations, so that one network learns them all."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

from corruption.base import Corrupted, Corruption, Draws, send


class Mixture(Corruption):
    """One of `parts`, at random in training; in evaluation image i has number i mod n of the n parts.

    Where a part makes holes, masks come back with the images, empty for those of the other parts. The published
    `mixture` is `blind`: its holes stay white and no mask comes back, so neither the loss nor the sampler knows which
    degradation an image has.
    """

    def __init__(self, parts: Sequence[Corruption], *, blind: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.kinds = len(parts)
        self.makes_holes = not blind and any(part.makes_holes for part in parts)
        self.mixes_holes = self.makes_holes and not all(part.makes_holes for part in parts)
        self.adds_colour = any(part.adds_colour for part in parts)
        self.is_8_bit = any(part.is_8_bit for part in parts)
        self.draws_masks = any(part.draws_masks for part in parts)
        splits = {part.reference_split for part in parts}
        self.reference_split = splits.pop() if len(splits) == 1 else "val"
        self.multiple = math.lcm(*(part.multiple for part in parts))
        self.noise = max(part.noise for part in parts)
        self.note = "; ".join(dict.fromkeys(part.note for part in parts if part.note))

    def check_shape(self, channels: int, height: int, width: int) -> None:
        for part in self.parts:
            cast(Corruption, part).check_shape(channels, height, width)

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        if draws.index is None:
            kinds = (draws.rand() * len(self.parts)).long().tolist()
        else:
            kinds = [number % len(self.parts) for number in draws.index]
        # The images of a kind go through it together: they are put in order of their kinds once, and back once.
        rows = sorted(range(len(kinds)), key=kinds.__getitem__)
        order = torch.tensor(rows)
        ordered = clean[send(order, clean.device)]
        image, mask, begin = [], [], 0
        for kind, group in groupby(rows, key=kinds.__getitem__):
            own = list(group)
            part = ordered[begin : begin + len(own)]
            done = cast(Corruption, self.parts[kind]).observe(part, draws.select(own))
            image.append(done.image)
            mask.append(torch.zeros_like(part[:, :1]) if done.mask is None else done.mask)
            begin += len(own)
        back = send(order.argsort(), clean.device)
        return Corrupted(torch.cat(image)[back], torch.cat(mask)[back] if self.makes_holes else None)
