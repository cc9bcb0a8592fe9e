"""The U-Net of ADM (Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021), and nothing else.

Parameter names, their order and the arithmetic are ADM's, so that its published weights load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from i2sb.network_sizes import NORM_GROUPS


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Return sinusoids of `timesteps` [B] at geometrically falling frequencies, [B, dim]: cosines first, then sines.

    They are float64 for float64 timesteps, float32 for all others.
    """
    half = dim // 2
    timesteps = _at_least_float32(timesteps)
    index = torch.arange(half, dtype=timesteps.dtype, device=timesteps.device)
    angles = timesteps[:, None] * torch.exp(-math.log(max_period) * index / half)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Norm(nn.GroupNorm):
    """Group normalisation whose statistics and products are float32 for inputs of lower precision."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:  # torch's kernel does so inside; casts around it move four times the memory
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            batch, channels, pixels = *x.shape[:2], x.shape[2:].numel()
            return torch.native_group_norm(x, weight, bias, batch, channels, pixels, self.num_groups, self.eps)[0]
        # The function behind F.group_norm, which refuses one image of one pixel, but not two.
        out = torch.group_norm(_at_least_float32(x), self.num_groups, self.weight, self.bias, self.eps)
        return out.to(x.dtype)


class ResBlock(nn.Module):
    """Two convolutions with a skip; the time embedding scales and shifts between them (scale-shift norm).

    With `resample` "up" or "down" both branches also change the resolution by two.
    """

    def __init__(
        self, channels: int, emb_channels: int, out_channels: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            Norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)
        self.resample = _RESAMPLE[resample]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self.resample(silu(norm(x))))
        norm, *rest = self.out_layers
        scale, shift = self.emb_layers(emb).to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h


_RESAMPLE = {
    None: lambda x: x,
    "down": lambda x: F.avg_pool2d(x, 2),
    "up": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
}


class AttentionBlock(nn.Module):
    """Self-attention over all pixels; heads are split before q, k and v (ADM's "legacy" order)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"attention over {channels} channels cannot be split into heads of {head_channels}")
        self.heads = channels // head_channels
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1))
        # Contiguous channels: the fused kernels take nothing else.
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(2)
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.proj_out(h.transpose(-1, -2).flatten(1, 2))
        return (flat + h).view_as(x)


class Stage(nn.Sequential):
    """Layers in a row, of which only the residual blocks take the time embedding.

    With `recompute` what happens inside residual and attention blocks is computed again in the backward pass.
    """

    recompute = False

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override] # a Sequential for its names alone
        for layer in self:
            inputs = (x, emb) if isinstance(layer, ResBlock) else (x,)
            if self.recompute and torch.is_grad_enabled() and isinstance(layer, (ResBlock, AttentionBlock)):
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        return x


class UNet(nn.Module):
    """ADM's U-Net with residual up- and down-sampling and scale-shift norm.

    in_channels, out_channels: of the image; conditioned networks take more than they return.
    model_channels: base width; channel_mult: its multiple at each resolution, which may be a fraction. All widths are
    multiples of 32.
    num_res_blocks: residual blocks a resolution.
    attention_resolutions: down-sampling rates (1, 2, 4, …) at which attention stands.
    num_head_channels: channels an attention head; num_heads: unless 0 the number of heads, in its place.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float | Fraction],
        num_head_channels: int = 64,
        dropout: float = 0.0,
        num_heads: int = 0,
    ) -> None:
        super().__init__()
        if model_channels % NORM_GROUPS:
            raise ValueError(f"model_channels {model_channels}: must be a multiple of {NORM_GROUPS}")
        self.model_channels, self.out_channels = model_channels, out_channels
        self.downsampling = 2 ** (len(channel_mult) - 1)
        emb_channels = 4 * model_channels
        last_level = len(channel_mult) - 1

        def res_block(channels: int, out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(channels, emb_channels, out, dropout, resample)

        def attend(channels: int) -> AttentionBlock:
            if num_heads and channels % num_heads:
                raise ValueError(f"attention over {channels} channels cannot be split into {num_heads} heads")
            return AttentionBlock(channels, channels // num_heads if num_heads else num_head_channels)

        def attention(rate: int, channels: int) -> list[AttentionBlock]:
            return [attend(channels)] if rate in attention_resolutions else []

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

        channels = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, channels, 3, padding=1))])
        skip_channels = [channels]
        for level, multiple in enumerate(channel_mult):
            rate = 2**level
            for _ in range(num_res_blocks):
                out = int(multiple * model_channels)
                self.input_blocks.append(Stage(res_block(channels, out), *attention(rate, out)))
                channels = out
                skip_channels.append(channels)
            if level != last_level:
                self.input_blocks.append(Stage(res_block(channels, channels, "down")))
                skip_channels.append(channels)

        self.middle_block = Stage(res_block(channels, channels), attend(channels), res_block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(channel_mult))):
            rate = 2**level
            for i in range(num_res_blocks + 1):
                out = int(multiple * model_channels)
                layers: list[nn.Module] = [res_block(channels + skip_channels.pop(), out), *attention(rate, out)]
                if level > 0 and i == num_res_blocks:
                    layers.append(res_block(out, out, "up"))
                self.output_blocks.append(Stage(*layers))
                channels = out

        self.out = nn.Sequential(Norm(channels), nn.SiLU(), _zero(nn.Conv2d(channels, out_channels, 3, padding=1)))

    def checkpoint_gradients(self) -> None:
        """Keep only the blocks' inputs for the backward pass: less memory, a forward pass more, the same gradients."""
        for stage in (*self.input_blocks, self.middle_block, *self.output_blocks):
            stage.recompute = True

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The layer that sees the images."""
        layer = self.input_blocks[0][0]  # type: ignore[index] # lists of modules do not say of which
        assert isinstance(layer, nn.Conv2d)
        return layer

    def half_convolutions(self) -> UNet:
        """Turn the blocks' convolutions to float16, as the released half precision does; norms stay in float32."""
        return self._cast_blocks(torch.float16, nn.Conv1d, nn.Conv2d)

    def cast_weights(self, dtype: torch.dtype) -> UNet:
        """Turn the blocks' weights to what autocast to `dtype` makes of them; norms take no float16."""
        norms = (Norm,) if dtype == torch.bfloat16 else ()
        return self._cast_blocks(dtype, nn.Conv1d, nn.Conv2d, nn.Linear, *norms)

    def _cast_blocks(self, dtype: torch.dtype, *kinds: type[nn.Module]) -> UNet:
        for blocks in (self.input_blocks, self.middle_block, self.output_blocks):
            for layer in blocks.modules():
                if isinstance(layer, kinds):
                    layer.to(dtype)
        return self

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Map images [B, in_channels, H, W] at `timesteps` [B] to [B, out_channels, H, W].

        Raises ValueError unless H and W are multiples of `downsampling`.
        """
        if x.shape[-2] % self.downsampling or x.shape[-1] % self.downsampling:
            raise ValueError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels: this network takes multiples of {self.downsampling}"
            )
        dtype = self.first_convolution.weight.dtype  # of the blocks, where convolutions are halved
        times = timesteps.to(next(self.time_embed.parameters()).dtype)  # float64 in a network of that precision
        emb = self.time_embed(timestep_embedding(times, self.model_channels))
        h = x.to(dtype)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h.to(x.dtype))


def _zero(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that its branch starts out silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
