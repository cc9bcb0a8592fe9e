"""What every degradation is: a module that takes clean images and returns degraded ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Generators = torch.Generator | Sequence[torch.Generator] | None


class Corrupted(NamedTuple):
    """A degraded image and, for inpainting, where it is missing.

    image: float32 [B, C, H, W], [-1, 1] up to overshoot (not clamped).
    mask: float32 [B, 1, H, W], 1 inside the hole and 0 outside; None where nothing is missing.
    """

    image: Tensor
    mask: Tensor | None = None


class Corruption(nn.Module):
    """A degradation. Subclasses say `degrade`; tables they need are buffers, so that `.to(device)` moves them.

    Calling it computes in float32 under any autocast. `generator` gives random degradations their draws: one for the
    batch, or one an image (then an image's degradation does not depend on its neighbours). Generators may stand on
    another device than the images (sampling draws on the CPU): draw where the generator is, then move.
    """

    def forward(self, clean: Tensor, generator: Generators = None) -> Corrupted:
        """Degrade `clean` [B, C, H, W] in [-1, 1]. Raises ValueError if its size does not suit the degradation."""
        self.check_size(*clean.shape[-2:])
        with torch.autocast(clean.device.type, enabled=False):
            return self.degrade(clean.float(), generator)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be degraded; any can, unless a subclass says so."""

    def degrade(self, clean: Tensor, generator: Generators) -> Corrupted:
        """Degrade a float32 batch of a size that `check_size` let through."""
        raise NotImplementedError
