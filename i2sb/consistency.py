"""Data consistency: predicted clean images are brought into line with the measurement that the degraded image is.

For users who know the degradation A. With y = A(x0): `project` puts the part of x̂0 that A sees to what was measured,
x̂0 ← x̂0 − A⁺(A x̂0 − y) (Wang et al., "Denoising Diffusion Null-Space Model", 2022); `gradient` moves x̂0 downhill,
x̂0 ← x̂0 − α · share · ∇‖A x̂0 − y‖² (Chung et al., "Direct Diffusion Bridge using Data Consistency", 2023).
"""

from __future__ import annotations

from torch import Tensor

from corruption import Corruption, LinearCorruption
from corruption.base import full_precision
from corruption.blur import Blur
from corruption.jpeg import JPEG
from i2sb.sampler import Refine

KINDS = ("none", "project", "gradient")


def check_consistency(kind: str, name: str, corruption: Corruption | None) -> None:
    """Raise ValueError unless `kind` of consistency can be had with the degradation `name`."""
    if kind not in KINDS:
        raise ValueError(f"--consistency {kind}: unknown; choose one of {', '.join(KINDS)}")
    if kind == "none" or isinstance(corruption, LinearCorruption):
        return
    if not isinstance(corruption, JPEG):
        raise ValueError(f"--consistency {kind}: --corrupt {name} has no operator that is known here; leave it away")
    if kind == "gradient":
        raise ValueError(f"--consistency gradient: the rounding of --corrupt {name} has no gradient; use project")


def advise_consistency(kind: str, corruption: Corruption | None) -> str:
    """Return what a user should know who asks for this with pictures of 8 bits; empty if nothing."""
    if kind == "project" and isinstance(corruption, Blur):
        return "--consistency project: undoing a blur makes the rounding of 8-bit pictures strong noise; try gradient"
    return ""


def make_consistency(
    kind: str, corruption: Corruption | None, degraded: Tensor, mask: Tensor | None = None, *, weight: float = 1.0
) -> Refine | None:
    """Return what refines x̂0 [B, C, H, W] for these degraded images; None for the kind "none".

    degraded: as `corruption` made them, [B, C, H, W], not clamped or rounded. mask: as `Corrupted` has it.
    weight: α of `gradient`. Linear operators compute in float64: the published blur's inverse, which enlarges up to a
    thousandfold, leaves nothing else of float32. The kind must suit the degradation (`check_consistency`).
    """
    if kind == "none":
        return None
    if isinstance(corruption, JPEG):
        return _keep_coefficients(corruption, degraded)
    y = corruption.measure(degraded.double(), mask)

    def project(x0: Tensor, share: float) -> Tensor:
        excess = corruption.A(x0.double(), mask) - y
        return (x0 - corruption.A_pinv(excess, mask)).to(x0.dtype)

    def descend(x0: Tensor, share: float) -> Tensor:
        excess = corruption.A(x0.double(), mask) - y
        return (x0 - 2 * weight * share * corruption.A_transpose(excess, mask)).to(x0.dtype)

    return project if kind == "project" else descend


def _keep_coefficients(jpeg: JPEG, degraded: Tensor) -> Refine:
    """Return what replaces the quantised coefficients of x̂0 by the measured ones, and keeps what rounding took away."""
    measured = degraded.float()

    def project(x0: Tensor, share: float) -> Tensor:
        with full_precision(x0.device):
            shown = jpeg.decode(jpeg.encode(x0.float()))
            return (x0 - shown + jpeg.decode(jpeg.encode(measured))).to(x0.dtype)

    return project
