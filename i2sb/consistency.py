"""Data consistency: predicted clean images are brought into line with the measurement that the degraded image is.

For users who know the degradation A. With y = A(x0): `project` puts the part of x̂0 that A sees to what was measured,
x̂0 ← x̂0 − A⁺(A x̂0 − y) (Wang et al., "Denoising Diffusion Null-Space Model", 2022); `gradient` moves x̂0 downhill,
x̂0 ← x̂0 − α · share · ∇‖A x̂0 − y‖² (Chung et al., "Direct Diffusion Bridge using Data Consistency", 2023).

Where the measurement is noisy, y = A(x0) + σ n, `project` would put the noise into the image, and is refused.
`gradient` stays what it is: log p(y | x0) is −‖A x0 − y‖² / 2σ² and a constant, so that this is its gradient but for
the factor 1/2σ², which α takes in (Chung et al., "Diffusion Posterior Sampling", 2023).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from corruption import Corruption, LinearCorruption
from corruption.base import Weigh, full_precision
from corruption.blur import Blur
from corruption.jpeg import JPEG
from i2sb.errors import UserError
from i2sb.sampler import Refine

KINDS = ("none", "project", "gradient")


def check_consistency(kind: str, name: str, corruption: Corruption | None) -> None:
    """Raise UserError unless `kind` of consistency can be had with the degradation `name`."""
    if kind not in KINDS:
        raise UserError("consistency", kind, f"unknown; choose one of {', '.join(KINDS)}")
    if kind == "project" and corruption is not None and corruption.noise:
        raise UserError("consistency", kind, "would put the noise of `degradation_noise` into the image; use gradient")
    if kind == "none" or isinstance(corruption, LinearCorruption):
        return
    if not isinstance(corruption, JPEG):
        raise UserError("consistency", kind, f"`corrupt` {name} has no operator that is known here; leave it out")
    if kind == "gradient":
        raise UserError("consistency", kind, f"the rounding of `corrupt` {name} has no gradient; use project")


def advise_consistency(kind: str, corruption: Corruption | None) -> str:
    """Return what a user should know who asks for this with pictures of 8 bits; empty if nothing."""
    if kind == "project" and isinstance(corruption, Blur):
        return "undoing a blur makes the rounding of 8-bit pictures strong noise; `consistency` gradient does not"
    return ""


@dataclass(frozen=True)
class Measurement:
    """What degraded images show of the clean ones: y = A(x0), float64, by `corruption`; mask as `Corrupted` has it.

    Where `corruption` has noise, y has it, too.
    A⁺A projects onto what is known of an image, and A⁺y is that part of x0 itself. All is computed in float64: the
    published blur's inverse, which enlarges up to a thousandfold, leaves nothing else of float32.
    """

    corruption: LinearCorruption
    y: Tensor
    mask: Tensor | None = None

    @property
    def noise(self) -> float:
        """σ_y, the standard deviation of the noise in y."""
        return self.corruption.noise

    def excess(self, x: Tensor) -> Tensor:
        """Return A x − y for images x [B, C, H, W]."""
        return self.corruption.A(x.double(), self.mask) - self.y

    def find_known(self, dtype: torch.dtype) -> Tensor:
        """Return A⁺y, the known part of the clean images, [B, C, H, W]."""
        return self.corruption.A_pinv(self.y, self.mask).to(dtype)

    def keep_known(self, x: Tensor) -> Tensor:
        """Return A⁺A x, the part of images x that A lets one know."""
        return self.corruption.A_pinv(self.corruption.A(x.double(), self.mask), self.mask).to(x.dtype)

    def reweigh(self, x: Tensor, weigh: Weigh) -> Tensor:
        """Return V diag(weigh(s)) Vᵀ x for images x [B, C, H, W], where A = U diag(s) Vᵀ."""
        return self.corruption.reweigh(x.double(), weigh, self.mask).to(x.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest images to x that A maps to y: x − A⁺(A x − y)."""
        return (x - self.corruption.A_pinv(self.excess(x), self.mask)).to(x.dtype)

    def descend(self, x: Tensor, length: float) -> Tensor:
        """Return x − length · ∇‖A x − y‖²."""
        return (x - 2 * length * self.corruption.A_transpose(self.excess(x), self.mask)).to(x.dtype)


def measure(corruption: LinearCorruption, degraded: Tensor, mask: Tensor | None = None) -> Measurement:
    """Take the measurement that degraded images [B, C, H, W] show, not clamped or rounded after `corruption`."""
    return Measurement(corruption, corruption.measure(degraded.double(), mask), mask)


def make_consistency(
    kind: str, corruption: Corruption | None, degraded: Tensor, mask: Tensor | None = None, *, weight: float = 1.0
) -> Refine | None:
    """Return what refines x̂0 [B, C, H, W] for these degraded images; None for the kind "none".

    degraded: as `corruption` made them, [B, C, H, W], not clamped or rounded. mask: as `Corrupted` has it.
    weight: α of `gradient`. The kind must suit the degradation (`check_consistency`).
    """
    if kind == "none":
        return None
    if isinstance(corruption, JPEG):
        return _keep_coefficients(corruption, degraded)
    assert isinstance(corruption, LinearCorruption)  # or `check_consistency` has refused it
    measurement = measure(corruption, degraded, mask)
    if kind == "project":
        return lambda x0, share: measurement.project(x0)
    return lambda x0, share: measurement.descend(x0, weight * share)


def _keep_coefficients(jpeg: JPEG, degraded: Tensor) -> Refine:
    """Return what replaces the quantised coefficients of x̂0 by the measured ones, and keeps what rounding took away."""
    measured = degraded.float()

    def project(x0: Tensor, share: float) -> Tensor:
        with full_precision(x0.device):
            shown = jpeg.decode(jpeg.encode(x0.float()))
            return (x0 - shown + jpeg.decode(jpeg.encode(measured))).to(x0.dtype)

    return project
