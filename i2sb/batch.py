"""Where clean and degraded images meet: what a step of training, validation or sampling works on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corruption import Corrupted, Corruption
from i2sb.config import HoleFill
from i2sb.images import as_signal
from i2sb.randomness import ImageNoise


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] in [-1, 1] (noise and overshoot apart) and what belongs to them.

    x0: clean, or None where only a degraded image is known. x1: where the bridge begins. mask: [B, 1, H, W], 1 where
    there is something to restore: inside the hole, or, where a mixture also degrades otherwise, all over such images;
    None: everywhere. cond: what a conditioned network sees beside x_t, or None. shown: the degraded image as people
    look at it (an inpainting hole is white there, noise in x1). label: class indices [B], or None. corruption: what
    degraded the images, where it is known. hole: [B, 1, H, W], 1 where the degraded image is missing, or None.
    """

    x0: Tensor | None
    x1: Tensor
    mask: Tensor | None
    cond: Tensor | None
    shown: Tensor
    label: Tensor | None = None
    corruption: Corruption | None = None
    hole: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x1)

    def keep_known(self, restored: Tensor, *, but_of: Sequence[bool]) -> Tensor:
        """Return restored images with what is known of them as it was given, `but_of` those for which that is true.

        The published way back leaves the noise of its last state there.
        """
        if self.mask is None:
            return restored
        as_they_are = torch.tensor(but_of, device=restored.device)[:, None, None, None]
        return torch.where(as_they_are | (self.mask > 0), restored, self.shown)

    @property
    def clean(self) -> Tensor:
        """x0, in training."""
        assert self.x0 is not None, "only pairs of images can be trained on"
        return self.x0


def begin_bridge(
    corrupted: Corrupted,
    noise: ImageNoise,
    *,
    cond_x1: bool = False,
    add_x1_noise: bool = False,
    hole_fill: HoleFill = "noise",
) -> tuple[Tensor, Tensor | None]:
    """Return x1 and the condition for degraded images.

    A hole is filled with noise, once: x1 = (1 - m) · image + m · ε, or with grey, the middle of [-1, 1]. The condition
    is x1 as it then stands; `add_x1_noise` adds unit noise to x1 after the condition was taken.
    """
    x1 = corrupted.image
    if corrupted.mask is not None:
        x1 = (1.0 - corrupted.mask) * x1
        if hole_fill == "noise":
            x1 = x1 + corrupted.mask * noise.randn_like(x1)
    cond = x1 if cond_x1 else None
    if add_x1_noise:
        x1 = x1 + noise.randn_like(x1)
    return x1, cond


def find_region(mask: Tensor | None, corruption: Corruption | None, *, denoises: bool) -> Tensor | None:
    """Return where there is something to restore in images with these holes, as `Batch.mask` has it.

    Where a mixture makes holes in some images and degrades others all over, an empty mask says that it did the latter.
    A run that `denoises` was trained on noisy images: what is around their holes is not known exactly, so restored too.
    """
    if denoises:
        return None
    if mask is None or corruption is None or not corruption.mixes_holes:
        return mask
    return torch.where(mask.amax((1, 2, 3), keepdim=True) > 0, mask, 1.0)


def make_batch(
    images: Tensor,
    degraded: Tensor | None,
    label: Tensor,
    corruption: Corruption | None,
    noise: ImageNoise,
    *,
    index: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    cond_x1: bool = False,
    add_x1_noise: bool = False,
    hole_fill: HoleFill = "noise",
    denoises: bool = False,
) -> Batch:
    """Make a batch on `device` of clean images [B, C, H, W] and their degraded partners, as the data set gives them.

    Images are uint8, or float32 in [-1, 1]. Either the data set brings the partners (`degraded`, of the same shape) or
    `corruption`, on `device`, makes them.
    index: the images' numbers in the split when it is evaluated, which fix masks and the like; None in training.
    cond_x1, add_x1_noise: as in `begin_bridge`. denoises: as in `find_region`.
    """
    x0 = as_signal(images.to(device, non_blocking=True))
    if corruption is not None:
        corrupted = corruption(x0, noise.degradation_generators(), index)
    else:
        assert degraded is not None
        corrupted = Corrupted(as_signal(degraded.to(device, non_blocking=True)))
    x1, cond = begin_bridge(corrupted, noise, cond_x1=cond_x1, add_x1_noise=add_x1_noise, hole_fill=hole_fill)
    label = label.to(device, non_blocking=True)
    return Batch(
        x0=x0,
        x1=x1,
        mask=find_region(corrupted.mask, corruption, denoises=denoises),
        cond=cond,
        shown=corrupted.image,
        label=label,
        corruption=corruption,
        hole=corrupted.mask,
    )
