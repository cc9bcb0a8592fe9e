"""The networks by name, known without torch, so that a wrong name is refused at once."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from inspect import signature
from typing import TYPE_CHECKING

from i2sb.errors import UserError, require

if TYPE_CHECKING:
    from torch import nn

NORM_GROUPS = 32  # of ADM's group norms


class Architecture:
    """What the name of a network stands for; `BridgeNetwork` says what `build` must return.

    patch_size: side of the patches of pixels that the network sees as channels.
    """

    patch_size: int = 1

    @property
    def downsampling(self) -> int:
        """Sides of images must be multiples of this, as far as that is known before the network is built."""
        return self.patch_size

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build the network with fresh weights from torch's global random state. Raises UserError if that fails."""
        raise NotImplementedError


@dataclass(frozen=True)
class UNetSize(Architecture):
    """The size of a U-Net, under UNet's names, and the side of the patches of pixels that it sees as channels."""

    model_channels: int
    channel_mult: tuple[float | Fraction, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_head_channels: int
    patch_size: int = 1
    num_heads: int = 0

    @property
    def downsampling(self) -> int:
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        from i2sb.unet import UNet

        size = asdict(self)
        del size["patch_size"]
        return UNet(in_channels=in_channels, out_channels=out_channels, **size)

    def describe(self) -> str:
        """Write the size as a --network of its own."""
        mult = ".".join(str(Fraction(multiple).limit_denominator(NORM_GROUPS)) for multiple in self.channel_mult)
        attention = ".".join(map(str, self.attention_resolutions))
        heads = f"{self.num_heads}x" if self.num_heads else f"{self.num_head_channels}"
        patch = "" if self.patch_size == 1 else f"-patch{self.patch_size}"
        return f"unet-{self.model_channels}x{mult}-blocks{self.num_res_blocks}-attention{attention}-heads{heads}{patch}"


@dataclass(frozen=True)
class OwnNetwork(Architecture):
    """A class of the user's own, named as path/to/file.py:ClassName. Its file is run when it is built, not before."""

    name: str

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        from torch import nn

        from corruption import CorruptionError
        from corruption.user_file import load_from_file

        path, _, class_name = self.name.rpartition(":")
        try:
            kind = load_from_file("network", self.name)
        except CorruptionError as error:
            raise UserError("network", self.name, error.must) from error
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise UserError("network", self.name, f"{path} holds no class {class_name} derived from torch.nn.Module")
        try:
            network = kind(in_channels=in_channels, out_channels=out_channels)
        except Exception as error:  # the user's code: anything can come out of it
            called = f"{class_name}(in_channels={in_channels}, out_channels={out_channels})"
            raise UserError("network", self.name, f"{called} failed: {type(error).__name__}: {error}") from error
        downsampling = getattr(network, "downsampling", 1)
        is_number = type(downsampling) is int and downsampling >= 1
        # Checkpoints keep averages of parameters in their order, and of nothing else.
        names = [name for name, _ in network.named_parameters()]
        alone = (
            "its state must be parameters alone, each once: register buffers with persistent=False, and normalise "
            "without running means (GroupNorm, not BatchNorm)"
        )
        for holds, must in (
            (is_number, f"its downsampling is {downsampling}; it must be a whole number, 1 at least"),
            (bool(names), f"{class_name} has no parameters to train"),
            (list(network.state_dict()) == names, alone),
            (kind.forward is not nn.Module.forward, f"{class_name} lacks its method forward(self, x, timesteps)"),
        ):
            require(holds, "network", self.name, must)
        try:
            signature(network.forward).bind("x", "timesteps")
        except TypeError as error:
            must = f"forward of {class_name} must take images and their times, (self, x, timesteps): {error}"
            raise UserError("network", self.name, must) from None
        return network


# A name and what it builds: the one place that knows them.
NETWORKS: dict[str, Architecture] = {
    # ADM at 256 pixels, the network of all published results: 552.8 M parameters.
    "adm256": UNetSize(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 64),
    # For images or crops of 64 pixels and so.
    "base64": UNetSize(96, (1, 2, 3), 2, (4,), 32),
    "small64": UNetSize(32, (1, 2, 4), 1, (4,), 32),
    # Behind patches of 2x2 pixels: a quarter of the work at the same width, for large photographs.
    "compact": UNetSize(32, (1, 2, 4), 1, (), 32, patch_size=2),
    "compact96": UNetSize(96, (1, 2, 4), 2, (), 32, patch_size=2),
    # For minutes on a CPU, and for tests.
    "mini": UNetSize(32, (1, 2), 1, (), 32),
    "tiny": UNetSize(32, (1, 1), 1, (2,), 32),
}

# What UNetSize.describe writes: heads32 are heads of 32 channels, heads4x four heads of however many; 1/2 is a half.
_NUMBER = r"[1-9]\d{0,3}"
_LIST = rf"{_NUMBER}(?:\.{_NUMBER})*"
_MULTIPLE = rf"{_NUMBER}(?:/{_NUMBER})?"
_DESCRIBED = re.compile(
    rf"unet-({_NUMBER})x({_MULTIPLE}(?:\.{_MULTIPLE})*)-blocks({_NUMBER})-attention((?:{_LIST})?)"
    rf"-heads({_NUMBER})(x?)(?:-patch([248]))?"
)


def is_own(name: str) -> bool:
    """Whether a network's name points into a Python file, which is run when it is built."""
    return re.search(r"\.py(:|$)", name) is not None


def find_network(name: str) -> Architecture:
    """Return what a name stands for: a row of NETWORKS, the U-Net it describes, or a class of the user's own.

    Raises UserError if there is no such network, or the sizes described do not go together.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if is_own(name):
        path, _, class_name = name.rpartition(":")
        named = bool(path) and class_name.isidentifier()
        require(named, "network", name, "name the class too, as path/to/file.py:ClassName")
        return OwnNetwork(name)
    match = _DESCRIBED.fullmatch(name)
    if match is None:
        raise UserError(
            "network",
            name,
            f"unknown; choose one of {', '.join(NETWORKS)}, describe a U-Net as "
            "unet-256x1.1.2.2.4.4-blocks2-attention8.16.32-heads64 does adm256, or name path/to/file.py:ClassName",
        )
    model_channels, heads = int(match[1]), int(match[5])
    size = UNetSize(
        model_channels,
        tuple(map(Fraction, match[2].split("."))),
        int(match[3]),
        tuple(map(int, match[4].split("."))) if match[4] else (),
        num_head_channels=0 if match[6] else heads,
        patch_size=int(match[7] or 1),
        num_heads=heads if match[6] else 0,
    )
    widths = [model_channels * multiple for multiple in size.channel_mult]
    for channels in (model_channels, *widths):
        require(channels % NORM_GROUPS == 0, "network", name, f"{channels} channels are no multiple of {NORM_GROUPS}")
    attending = {level for level in range(len(widths)) if 2**level in size.attention_resolutions}
    for level in sorted(attending | {len(widths) - 1}):  # the middle attends
        kind = f"{heads} heads" if size.num_heads else f"heads of {heads}"
        require(widths[level] % heads == 0, "network", name, f"{widths[level]} channels cannot be split into {kind}")
    return size


def check_image_size(name: str, image_size: int, setting: str = "image_size", multiple: int = 0) -> None:
    """Raise UserError, naming the `setting`, unless the network can take square images of `image_size` pixels a side.

    multiple: of what, if the network is built; its name alone does not tell it for a class of the user's own.
    """
    multiple = multiple or find_network(name).downsampling
    if image_size < multiple or image_size % multiple:
        below = max(image_size // multiple, 1) * multiple
        raise UserError(
            setting,
            image_size,
            f"`network` {name} takes multiples of {multiple}, such as {below} or {below + multiple}",
        )
