"""The bridge's network: it is told the bridge step and, if conditioned, sees the degraded image beside the state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2sb.errors import UserError, require
from i2sb.network_sizes import check_image_size, find_network, is_own


class BridgeNetwork(nn.Module):
    """Wraps a network so that it is called with step indices.

    The network inside is any module, of i2sb.network_sizes.NETWORKS or of the user's own, that is called as
    network(x [B, in, H, W], timesteps [B]) -> [B, out, H, W]. It may have, besides:

    - downsampling: sides of images must be multiples of this (1 if it does not say so);
    - checkpoint_gradients(): from then on keep fewer activations for the backward pass (for `grad_checkpoint`);
    - half_convolutions(): from then on compute convolutions in float16 (for `use_fp16`);
    - cast_weights(dtype): turn weights to what autocast would make of them at every evaluation, if nobody trains them;
    - first_convolution: the nn.Conv2d that sees the images, to tell how many weights see the condition.

    network: stored as `diffusion_model`, the prefix of every key in the released checkpoints.
    noise_levels: float32 [N], the network's time input at each step; not part of the state dict.
    patch_size: side p of the patches whose pixels the network sees as channels, C·p² of them, at sides p times smaller.
    condition_channels, noise_channels: how many of the channels the network sees are the condition's, behind those of
    the state, and how many a student's noise, the last ones.
    autocast_dtype: what the network computes in where autocast lets it, or None for its own; outputs are float32.
    """

    noise_levels: Tensor

    def __init__(
        self,
        network: nn.Module,
        noise_levels: Tensor,
        patch_size: int = 1,
        condition_channels: int = 0,
        noise_channels: int = 0,
    ) -> None:
        super().__init__()
        self.diffusion_model = network
        self.patch_size, self.condition_channels, self.noise_channels = patch_size, condition_channels, noise_channels
        self.register_buffer("noise_levels", noise_levels.clone(), persistent=False)
        self.autocast_dtype: torch.dtype | None = None

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this."""
        return self.patch_size * getattr(self.diffusion_model, "downsampling", 1)

    def forward(self, xt: Tensor, step: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map xt [B, C, H, W] at `step` [B] to [B, C, H, W].

        cond: what it sees beside the state: [B, C, H, W], the condition or a student's noise; [B, 2C, H, W] if both.

        Raises ValueError unless H and W are multiples of `multiple`.
        """
        x = xt if cond is None else torch.cat([xt, cond], dim=1)
        times = self.noise_levels[step]
        if x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            raise ValueError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels: this network takes multiples of {self.multiple}"
            )
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        if self.autocast_dtype is None:
            out = self.diffusion_model(x, times)
        else:
            with torch.autocast(x.device.type, dtype=self.autocast_dtype):
                out = self.diffusion_model(x, times).float()
        return F.pixel_shuffle(out, self.patch_size) if self.patch_size > 1 else out

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network inside at its first call, in place: names of parameters stay."""
        self.diffusion_model.compile(*args, **kwargs)

    def checkpoint_gradients(self) -> None:
        """Keep fewer activations for the backward pass. Raises UserError if the network cannot."""
        self._ask("checkpoint_gradients", "grad_checkpoint")

    def half_convolutions(self) -> None:
        """Compute convolutions in float16, as the released half precision does. Raises UserError if it cannot."""
        self._ask("half_convolutions", "use_fp16")

    def cast_weights(self, dtype: torch.dtype) -> None:
        """Turn weights once to what autocast would make of them at every evaluation, if the network can."""
        cast_weights = getattr(self.diffusion_model, "cast_weights", None)
        if cast_weights is not None:
            cast_weights(dtype)

    def _ask(self, method: str, setting: str) -> None:
        inside = self.diffusion_model
        require(hasattr(inside, method), setting, None, f"the network {type(inside).__name__} has no {method}()")
        getattr(inside, method)()

    def count_condition_parameters(self) -> int:
        """Return how many weights of the first layer see the condition: all that conditioned networks have more.

        0 if there is none, and for a network that does not say which its first convolution is.
        """
        first = getattr(self.diffusion_model, "first_convolution", None)
        return 0 if first is None else first.weight[:, : self.condition_channels].numel()

    @torch.no_grad()
    def ignore_noise(self) -> None:
        """Begin with weights of zero where the noise comes in. Raises UserError if the network does not say where."""
        first = getattr(self.diffusion_model, "first_convolution", None)
        name = type(self.diffusion_model).__name__
        must = f"the network {name} has no first_convolution, whose weights of the noise begin at zero"
        require(first is not None, "student_noise", None, must)
        assert first is not None
        first.weight[:, first.weight.shape[1] - self.noise_channels :] = 0


def build_network(
    name: str, noise_levels: Tensor, *, image_channels: int = 3, cond_x1: bool = False, sees_noise: bool = False
) -> BridgeNetwork:
    """Build a network (TrainConfig.network) with fresh weights from torch's global random state.

    image_channels: 3 for RGB, 1 for grey, any number for multispectral images; as many more at the input with
    `cond_x1`, and with `sees_noise`, of a student.
    A file of the user's own is run. Raises UserError for an unknown name, and for whatever is wrong with such a file.
    """
    architecture = find_network(name)
    channels = image_channels * architecture.patch_size**2
    condition, noise = channels * cond_x1, channels * sees_noise
    network = architecture.build(in_channels=channels + condition + noise, out_channels=channels)
    return BridgeNetwork(network, noise_levels, architecture.patch_size, condition, noise)


@torch.no_grad()
def check_network(
    network: BridgeNetwork, name: str, image_channels: int, side: int, setting: str = "image_size"
) -> None:
    """Raise UserError, naming the `setting` that gave `side`, unless the network takes square images of that size.

    One of the user's own is tried on noise, so that mistakes show before any work is lost. What its code raises is
    passed on, traceback and all.
    """
    check_image_size(name, side, setting, network.multiple)
    if not is_own(name):
        return
    device, training = network.noise_levels.device, network.training
    x = torch.randn(2, image_channels, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    steps = torch.tensor([0, len(network.noise_levels) - 1], device=device)
    beside = (network.condition_channels + network.noise_channels) // network.patch_size**2 // image_channels
    out = network.eval()(x, steps, cond=x.repeat(1, beside, 1, 1) if beside else None)
    network.train(training)
    if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        found = f"{list(out.shape)}, {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise UserError("network", name, f"returned {found}; it must be {list(x.shape)}, {x.dtype}")
    require(bool(out.isfinite().all()), "network", name, "returned values that are not finite")
