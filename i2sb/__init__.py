"""Image-to-Image Schrödinger Bridges: train and run diffusion bridges between clean and degraded images.

>>> import torch
>>> from i2sb import load_model
>>> model = load_model("results/NAME")
>>> degraded = torch.rand(2, 3, 16, 16) * 2 - 1  # [B, C, H, W] in [-1, 1]
>>> restored = model.restore(degraded, nfe=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i2sb.bridge import Bridge
    from i2sb.restore import load_model

__version__ = "0.1.0"
__all__ = ["Bridge", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the programs can answer --help without loading torch.
    if name == "Bridge":
        from i2sb.bridge import Bridge

        return Bridge
    if name == "load_model":
        from i2sb.restore import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
