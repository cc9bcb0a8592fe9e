"""What numbers the network computes in, and what makes it faster or smaller without changing what it computes."""

from __future__ import annotations

import torch

from i2sb.errors import UserError
from i2sb.network import BridgeNetwork

_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(
    network: BridgeNetwork,
    precision: str,
    *,
    channels_last: bool = False,
    compile: bool = False,
    grad_checkpoint: bool = False,
) -> None:
    """Set a network, on its device already, to compute in `precision`; parameters stay in float32 under their names.

    precision: "fp32" and, on GPUs, "tf32" (10 bits of mantissa in matrix products and convolutions), "bf16" or "fp16"
    (autocast). The first two set torch's switches for the whole process. channels_last: keep images and kernels with
    their channels innermost. compile: compile the U-Net at its first call. grad_checkpoint: keep fewer activations for
    the backward pass. Raises UserError for tf32 without a GPU.
    """
    device = network.noise_levels.device
    if precision == "tf32" and device.type != "cuda":
        raise UserError("precision", precision, f"only GPUs compute so, and this is a {device.type}; use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    network.autocast_dtype = _AUTOCAST[precision]
    unet = network.diffusion_model
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    if grad_checkpoint:
        unet.checkpoint_gradients()
    if compile:
        unet.compile()  # in place: names of parameters stay


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what keeps small gradients from vanishing in fp16; it does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
