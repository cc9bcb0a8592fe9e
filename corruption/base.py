"""What every degradation is: a module that takes clean images and returns degraded ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn

Generators = torch.Generator | Sequence[torch.Generator] | None
Weigh = Callable[[Tensor], Tensor]


class Corrupted(NamedTuple):
    """A degraded image and, for inpainting, where it is missing.

    image: float32 [B, C, H, W], [-1, 1] up to overshoot (not clamped).
    mask: float32 [B, 1, H, W], 1 inside the hole and 0 outside; None where nothing is missing.
    """

    image: Tensor
    mask: Tensor | None = None


class CorruptionError(ValueError):
    """A degradation that cannot be built. setting: the argument, "corrupt", "mask_file" or "degradation_noise"; value:
    what was given; must: what would be right. The attributes are those of i2sb.errors.UserError, which this package
    does not import.
    """

    def __init__(self, setting: str, value: object, must: str) -> None:
        self.setting, self.value, self.must = setting, value, must
        super().__init__(f"{setting} {value}: {must}")


class ShapeError(ValueError):
    """Images are of a shape that a degradation cannot take. It names no setting: the caller knows what gave the shape.

    must: what would be right, as in CorruptionError.
    """

    def __init__(self, must: str) -> None:
        self.setting, self.value, self.must = "", None, must
        super().__init__(must)


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return x on the device; what goes from the CPU to a GPU goes while the host goes on: out of pinned memory."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class Draws:
    """What the degradations of a batch's images are drawn from.

    generator: one for the batch, or one an image (then an image's degradation does not depend on its neighbours), or
    None for torch's own. Draws are made on the generator's device and handed out on the device of the images.
    index: the images' numbers in the split that is evaluated, where an image's mask or kind is fixed by its number;
    None in training.
    """

    def __init__(self, count: int, generator: Generators = None, index: Sequence[int] | None = None) -> None:
        for name, given in (("generators", generator), ("indices", index)):
            if isinstance(given, Sequence) and len(given) != count:
                raise ValueError(f"{len(given)} {name} for {count} images: give one for each")
        self.count, self.generator = count, generator
        self.index = None if index is None else [int(number) for number in index]

    def rand(self, *shape: int) -> Tensor:
        """Return uniform draws from [0, 1), [B, *shape], where the generator is."""
        return self._draw(torch.rand, shape)

    def rand_like(self, x: Tensor) -> Tensor:
        """Return uniform draws from [0, 1) of the shape and device of x [B, …]."""
        return send(self._draw(torch.rand, x.shape[1:]), x.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Return standard normal draws of the shape and device of x [B, …]."""
        return send(self._draw(torch.randn, x.shape[1:]), x.device)

    def select(self, rows: Sequence[int]) -> Draws:
        """Return what the images `rows` of the batch draw from."""
        generator = [self.generator[row] for row in rows] if isinstance(self.generator, Sequence) else self.generator
        return Draws(len(rows), generator, None if self.index is None else [self.index[row] for row in rows])

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        if not isinstance(self.generator, Sequence):
            device = None if self.generator is None else self.generator.device
            return draw((self.count, *shape), generator=self.generator, device=device, dtype=torch.float32)
        draws = [draw(tuple(shape), generator=g, device=g.device, dtype=torch.float32) for g in self.generator]
        return torch.stack(draws)


class Corruption(nn.Module):
    """A degradation. Subclasses say `degrade`; tables they need are buffers, so that `.to(device)` moves them.

    note: what a run should say about it besides its name, such as where masks come from.
    makes_holes: whether its images come with a mask. mixes_holes: whether an empty mask then stands for an image that
    is degraded all over, as in a mixture.
    adds_colour: whether a network that undoes it gives colour to grey images.
    kinds: how many degradations take turns in an evaluation.
    is_8_bit: whether it is made of 8-bit images, as JPEG is, and of no others.
    draws_masks: whether it draws masks of its own where the published evaluation has a file of them.
    reference_split: the split whose images the published evaluation of it takes FID from, train or val.
    multiple: what the sides of a picture of any size are brought to multiples of, mirrored, before it is degraded or
    restored with the operator; the usual 16 are JPEG's. `check_shape` must let such sides through, unless they are few.
    noise: σ, the standard deviation of the noise in what was measured (`LinearCorruption`); build_corruption sets it.
    """

    note: str = ""
    makes_holes: bool = False
    mixes_holes: bool = False
    adds_colour: bool = False
    kinds: int = 1
    is_8_bit: bool = False
    draws_masks: bool = False
    reference_split: str = "val"
    multiple: int = 16
    noise: float = 0.0

    def forward(self, clean: Tensor, generator: Generators = None, index: Sequence[int] | None = None) -> Corrupted:
        """Degrade `clean` [B, C, H, W] in [-1, 1], in float32 under any autocast and any matrix precision.

        generator, index: as in `Draws`. Raises ValueError if the images' shape does not suit the degradation.
        """
        self.check_shape(*clean.shape[1:])
        with full_precision(clean.device):
            return self.observe(clean.float(), Draws(len(clean), generator, index))

    def check_shape(self, channels: int, height: int, width: int) -> None:
        """Raise ValueError if images of this shape cannot be degraded; any can, unless a subclass says so."""

    def degrade(self, clean: Tensor, draws: Draws) -> Corrupted:
        """Degrade a float32 batch of a shape that `check_shape` let through."""
        raise NotImplementedError

    def observe(self, clean: Tensor, draws: Draws) -> Corrupted:
        """Degrade a batch as `degrade` does, and add the noise of the measurement, if there is any."""
        return self.degrade(clean, draws)

    def set_noise(self, std: float) -> None:
        """Say how strong the noise of the measurement is. Raises ValueError if noise has no meaning here."""
        raise ValueError(f"{type(self).__name__} is no linear degradation: it has no measurement that is noisy")


class LinearCorruption(Corruption):
    """A degradation with a known matrix A, on images small as they are measured, before they are shown.

    For every image, A(clean) = measure(degraded), plus noise · n where there is noise, n standard normal and another
    number for each that was measured. `mask` is the hole of an inpainting image as `Corrupted` has it; the others need
    none. All work in the type of what they are given, and gradients pass through them.
    """

    def observe(self, clean: Tensor, draws: Draws) -> Corrupted:
        corrupted = self.degrade(clean, draws)
        if not self.noise:
            return corrupted
        y = self.measure(*corrupted)
        return Corrupted(self.show(y + self.noise * draws.randn_like(y), corrupted.mask), corrupted.mask)

    def set_noise(self, std: float) -> None:
        if type(self).show is LinearCorruption.show:
            raise ValueError(f"{type(self).__name__} lacks its method show(self, y, mask), which noise needs")
        self.noise = std

    @property
    def knows_spectrum(self) -> bool:
        """Whether `reweigh` can be called."""
        return type(self).reweigh is not LinearCorruption.reweigh

    def A(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply A to images x [B, C, H, W]."""
        raise NotImplementedError

    def A_transpose(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the transpose of A to measurements y: back to [B, C, H, W]."""
        raise NotImplementedError

    def A_pinv(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the pseudo-inverse of A to measurements y: the smallest x [B, C, H, W] that explains them best."""
        raise NotImplementedError

    def measure(self, degraded: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the measurement y = A(x) that a degraded image [B, C, H, W] shows."""
        raise NotImplementedError

    def show(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the degraded image [B, C, H, W] that shows the measurement y: `measure` gives y back."""
        raise NotImplementedError

    def reweigh(self, x: Tensor, weigh: Weigh, mask: Tensor | None = None) -> Tensor:
        """Return V diag(weigh(s)) Vᵀ x for images x [B, C, H, W], where A = U diag(s) Vᵀ.

        weigh: from singular values, a tensor of any shape, 0 where A (or A⁺, where it leaves something out) sees
        nothing, to weights of the same shape. Methods that restore from noisy measurements need it.
        """
        raise NotImplementedError


class FlatCorruption(LinearCorruption):
    """A linear degradation whose singular values are all the same, but for those that are 0."""

    def singular_value(self) -> float:
        """Return the one that is not 0."""
        raise NotImplementedError

    def reweigh(self, x: Tensor, weigh: Weigh, mask: Tensor | None = None) -> Tensor:
        seen, unseen = weigh(torch.tensor([self.singular_value(), 0.0], dtype=x.dtype)).tolist()
        return unseen * x + (seen - unseen) * self.A_pinv(self.A(x, mask), mask)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 proper: without autocast, and without TF32 or bfloat16 inside matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def cached_table(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function that builds a float64 table: `table(*key, like=x)` is built once a key, type and device."""

    @lru_cache(maxsize=32)
    def built(dtype: torch.dtype, device: torch.device, *key: Hashable) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # or no gradient could pass through it
            return build(*key).to(device, dtype).contiguous()

    @wraps(build)
    def look_up(*key: Hashable, like: Tensor) -> Tensor:
        return built(like.dtype, like.device, *key)

    return look_up
