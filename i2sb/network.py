"""The bridge's network: a U-Net that is told the bridge step and, if conditioned, sees the degraded image again."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2sb.unet import UNet


@dataclass(frozen=True)
class Preset:
    """The size of a U-Net, under UNet's names, and the side of the patches of pixels that it sees as channels."""

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_head_channels: int
    patch_size: int = 1

    @property
    def downsampling(self) -> int:
        """Sides of images must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    def describe(self) -> str:
        """Write the size as a --network of its own."""
        mult, attention = (".".join(map(str, values)) for values in (self.channel_mult, self.attention_resolutions))
        blocks, heads = self.num_res_blocks, self.num_head_channels
        patch = "" if self.patch_size == 1 else f"-patch{self.patch_size}"
        return f"unet-{self.model_channels}x{mult}-blocks{blocks}-attention{attention}-heads{heads}{patch}"

    def build_unet(self, in_channels: int, out_channels: int) -> UNet:
        """Build the U-Net for images of so many channels."""
        pixels = self.patch_size**2
        size = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "patch_size"}
        return UNet(in_channels=in_channels * pixels, out_channels=out_channels * pixels, **size)


PRESETS = {
    # ADM at 256 pixels, the network of all published results: 552.8 M parameters.
    "adm256": Preset(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 64),
    # For images or crops of 64 pixels and so.
    "base64": Preset(96, (1, 2, 3), 2, (4,), 32),
    "small64": Preset(32, (1, 2, 4), 1, (4,), 32),
    # Behind patches of 2x2 pixels: a quarter of the work at the same width, for large photographs.
    "compact": Preset(32, (1, 2, 4), 1, (), 32, patch_size=2),
    "compact96": Preset(96, (1, 2, 4), 2, (), 32, patch_size=2),
    # For minutes on a CPU, and for tests.
    "mini": Preset(32, (1, 2), 1, (), 32),
    "tiny": Preset(32, (1, 1), 1, (2,), 32),
}


class BridgeNetwork(nn.Module):
    """Wraps a U-Net so that it is called with step indices.

    unet: stored as `diffusion_model`, the prefix of every key in the released checkpoints.
    noise_levels: float32 [N], the U-Net's time input at each step; not part of the state dict.
    patch_size: side p of the patches whose pixels the U-Net sees as channels, C·p² of them, at sides p times smaller.
    autocast_dtype: what the U-Net computes in where autocast lets it, or None for its own; outputs are float32.
    """

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
        state_channels = self.diffusion_model.out[-1].out_channels
        return self.diffusion_model.input_blocks[0][0].weight[:, state_channels:].numel()


# What Preset.describe writes.
_NUMBER = r"[1-9]\d{0,3}"
_LIST = rf"{_NUMBER}(?:\.{_NUMBER})*"
_DESCRIBED = re.compile(
    rf"unet-({_NUMBER})x({_LIST})-blocks({_NUMBER})-attention((?:{_LIST})?)-heads({_NUMBER})(?:-patch([248]))?"
)


def find_preset(name: str) -> Preset:
    """Return the preset of that name, or the size it describes; ValueError lists the names there are."""
    match = _DESCRIBED.fullmatch(name)
    if match:
        mult, attention = (tuple(map(int, match[i].split("."))) if match[i] else () for i in (2, 4))
        return Preset(int(match[1]), mult, int(match[3]), attention, int(match[5]), int(match[6] or 1))
    if name not in PRESETS:
        raise ValueError(
            f"--network {name}: unknown; choose one of {', '.join(PRESETS)}, "
            f"or describe a U-Net as {PRESETS['adm256'].describe()} does adm256"
        )
    return PRESETS[name]


def check_image_size(name: str, image_size: int, flag: str = "--image-size") -> None:
    """Raise ValueError, naming the `flag`, unless the preset can take square images of `image_size` pixels a side."""
    multiple = find_preset(name).downsampling
    if image_size < multiple or image_size % multiple:
        below = max(image_size // multiple, 1) * multiple
        raise ValueError(
            f"{flag} {image_size}: --network {name} takes multiples of {multiple}, "
            f"such as {below} or {below + multiple}"
        )


def build_network(
    preset: str, noise_levels: Tensor, *, image_channels: int = 3, cond_x1: bool = False
) -> BridgeNetwork:
    """Build the network of a preset with fresh weights from torch's global random state.

    image_channels: 3 for RGB, 1 for grey, any number for multispectral images; doubled at the input with `cond_x1`.
    """
    in_channels = 2 * image_channels if cond_x1 else image_channels
    size = find_preset(preset)
    return BridgeNetwork(size.build_unet(in_channels, image_channels), noise_levels, size.patch_size)
