"""An image's way over the bridge to look at: a strip of its states and predictions, and an animation."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from i2sb.files import write_atomically
from i2sb.images import draw_strip, save_png, show, to_pil, to_uint8
from i2sb.sampler import StepTaken, logged_steps

STATES = 10  # states drawn at most, as many as the released program logs
LONGEST_SIDE = 256  # larger images are drawn smaller
FRAME_MS, LAST_FRAME_MS = 250, 1500


class TrajectoryRecorder:
    """A callback of the reverse pass that keeps small 8-bit copies of some states, so that it needs little memory."""

    def __init__(self, degraded: Tensor, nfe: int, height: int, width: int, channels: Sequence[int]) -> None:
        """Begin with the degraded images [B, C, H, W]; what lies beyond `height` and `width` is not drawn.

        channels: those that are drawn, one or three, counted from 0.
        """
        self.height, self.width, self.channels = height, width, list(channels)
        self.wanted = set(logged_steps(nfe, STATES))
        self.degraded = self._reduce(degraded)
        self.states: list[Tensor] = []
        self.pred_x0s: list[Tensor] = []

    def __call__(self, step: StepTaken) -> None:
        if step.number in self.wanted:
            self.states.append(self._reduce(step.state))
            self.pred_x0s.append(self._reduce(step.pred_x0))

    def _reduce(self, x: Tensor) -> Tensor:
        x = x[..., : self.height, : self.width]
        scale = LONGEST_SIDE / max(self.height, self.width)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in (self.height, self.width)]
            x = F.interpolate(x.float(), size=size, mode="area")
        return show(to_uint8(x), self.channels).cpu()

    def save(self, image: int, stem: Path) -> None:
        """Draw image number `image` of the batch: `stem`.png, the strip, and `stem`.webp, the states one by one."""
        states = torch.stack([state[image] for state in self.states[::-1]])
        pred_x0s = torch.stack([pred_x0[image] for pred_x0 in self.pred_x0s[::-1]])
        strip_path, animation_path = trajectory_paths(stem)
        save_png(draw_strip(states, pred_x0s, self.degraded[image], title="degraded"), strip_path)
        frames = [to_pil(frame).convert("RGB") for frame in (self.degraded[image], *states.flip(0))]
        times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
        write_webp = partial(
            frames[0].save, format="WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=90
        )
        write_atomically(animation_path, write_webp, sync=False)


def trajectory_paths(stem: Path) -> tuple[Path, Path]:
    """Return where the strip and the animation of `stem` lie; a dot in its name is part of the name."""
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".webp")
