"""The sizes of U-Nets by name, known without torch, so that a wrong name is refused at once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from i2sb.errors import UserError

NORM_GROUPS = 32  # of ADM's group norms


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

# What Preset.describe writes.
_NUMBER = r"[1-9]\d{0,3}"
_LIST = rf"{_NUMBER}(?:\.{_NUMBER})*"
_DESCRIBED = re.compile(
    rf"unet-({_NUMBER})x({_LIST})-blocks({_NUMBER})-attention((?:{_LIST})?)-heads({_NUMBER})(?:-patch([248]))?"
)


def find_preset(name: str) -> Preset:
    """Return the preset of that name, or the size it describes. Raises UserError if there is none, or it misfits."""
    match = _DESCRIBED.fullmatch(name)
    if match is None:
        if name in PRESETS:
            return PRESETS[name]
        raise UserError(
            "network",
            name,
            f"unknown; choose one of {', '.join(PRESETS)}, "
            f"or describe a U-Net as {PRESETS['adm256'].describe()} does adm256",
        )
    mult, attention = (tuple(map(int, match[i].split("."))) if match[i] else () for i in (2, 4))
    size = Preset(int(match[1]), mult, int(match[3]), attention, int(match[5]), int(match[6] or 1))
    if size.model_channels % NORM_GROUPS:
        raise UserError("network", name, f"{size.model_channels} channels are no multiple of {NORM_GROUPS}")
    attending = {level for level in range(len(mult)) if 2**level in attention} | {len(mult) - 1}  # the middle attends
    for channels in (size.model_channels * mult[level] for level in sorted(attending)):
        if channels % size.num_head_channels:
            heads = size.num_head_channels
            raise UserError("network", name, f"{channels} channels cannot be split into heads of {heads}")
    return size


def check_image_size(name: str, image_size: int, setting: str = "image_size") -> None:
    """Raise UserError, naming the `setting`, unless the preset can take square images of `image_size` pixels a side."""
    multiple = find_preset(name).downsampling
    if image_size < multiple or image_size % multiple:
        below = max(image_size // multiple, 1) * multiple
        raise UserError(
            setting,
            image_size,
            f"`network` {name} takes multiples of {multiple}, such as {below} or {below + multiple}",
        )
