"""The bridge's network: a U-Net that is told the bridge step and, if conditioned, sees the degraded image again."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2sb.network_sizes import find_preset
from i2sb.unet import UNet


class BridgeNetwork(nn.Module):
    """Wraps a U-Net so that it is called with step indices.

    unet: stored as `diffusion_model`, the prefix of every key in the released checkpoints.
    noise_levels: float32 [N], the U-Net's time input at each step; not part of the state dict.
    patch_size: side p of the patches whose pixels the U-Net sees as channels, C·p² of them, at sides p times smaller.
    autocast_dtype: what the U-Net computes in where autocast lets it, or None for its own; outputs are float32.
    """

    noise_levels: Tensor

    def __init__(self, unet: UNet, noise_levels: Tensor, patch_size: int = 1) -> None:
        super().__init__()
        self.diffusion_model = unet
        self.patch_size = patch_size
        self.register_buffer("noise_levels", noise_levels.clone(), persistent=False)
        self.autocast_dtype: torch.dtype | None = None

    def forward(self, xt: Tensor, step: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map xt [B, C, H, W] at `step` [B], with `cond` [B, C, H, W] where conditioned, to [B, C, H, W].

        Raises ValueError unless H and W are multiples of the patches' side and of the U-Net's downsampling.
        """
        x = xt if cond is None else torch.cat([xt, cond], dim=1)
        times = self.noise_levels[step]
        multiple = self.patch_size * self.diffusion_model.downsampling
        if x.shape[-2] % multiple or x.shape[-1] % multiple:
            raise ValueError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels: this network takes multiples of {multiple}"
            )
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        if self.autocast_dtype is None:
            out = self.diffusion_model(x, times)
        else:
            with torch.autocast(x.device.type, dtype=self.autocast_dtype):
                out = self.diffusion_model(x, times).float()
        return F.pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out

    def count_condition_parameters(self) -> int:
        """Return how many weights of the first layer see the condition: all that conditioned networks have more."""
        first = self.diffusion_model.first_convolution
        return first.weight[:, self.diffusion_model.out_channels :].numel()


def build_network(
    preset: str, noise_levels: Tensor, *, image_channels: int = 3, cond_x1: bool = False
) -> BridgeNetwork:
    """Build the network of a preset with fresh weights from torch's global random state.

    image_channels: 3 for RGB, 1 for grey, any number for multispectral images; doubled at the input with `cond_x1`.
    """
    in_channels = 2 * image_channels if cond_x1 else image_channels
    size = asdict(find_preset(preset))
    patch_size = size.pop("patch_size")
    pixels = patch_size**2
    unet = UNet(in_channels=in_channels * pixels, out_channels=image_channels * pixels, **size)
    return BridgeNetwork(unet, noise_levels, patch_size)
