"""A folder of several answers to one image, beside answer 0, which lies where the only answer would.

It holds 1.png, 2.png, …; mean.png; std.npy, float32 [C, H, W] in units of [-1, 1]; std.png, which draws its mean over
the channels; and answers.json, written last: where it is, all are there.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from i2sb.files import remove_partials, write_atomically, write_text
from i2sb.images import draw_heat, save_png

ANSWERS = "answers"  # the folder of these folders
_HEAT_TITLE = "standard deviation, values in [-1, 1]"

# Answer 1, 2, …, or the mean of all.
Which = int | Literal["mean"]


class Spread(NamedTuple):
    """What answers.json tells: of how many answers mean and deviation are, and their diversity in units of [-1, 1]."""

    samples: int
    diversity: float


@dataclass(frozen=True)
class AnswerFiles:
    """The files in `folder`; the pictures among them have the `ending`."""

    folder: Path
    ending: str = ".png"

    def picture(self, which: Which) -> Path:
        """Return where an answer from number 1 on lies, or the mean."""
        return self.folder / f"{which}{self.ending}"

    @property
    def std(self) -> Path:
        return self.folder / "std.npy"

    @property
    def heat(self) -> Path:
        return self.folder / "std.png"

    @property
    def record(self) -> Path:
        return self.folder / "answers.json"

    def read_spread(self) -> Spread | None:
        """Return what the record tells, None where there is none that is whole."""
        try:
            return Spread(**json.loads(self.record.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def are_complete(self, samples: int) -> bool:
        """Say whether all is there of so many answers."""
        spread = self.read_spread()
        if spread is None or spread.samples != samples:
            return False
        pictures = [self.picture(which) for which in (*range(1, samples), "mean")]
        return all(path.exists() for path in (*pictures, self.std, self.heat))

    def begin(self, samples: int) -> None:
        """Make ready for so many answers: nothing tells any more that all is there, and no others stay.

        For a single answer no folder stays either.
        """
        if not self.folder.is_dir():
            return
        self.record.unlink(missing_ok=True)
        remove_partials(self.folder)
        if samples == 1:
            for path in (self.picture("mean"), self.std, self.heat):
                path.unlink(missing_ok=True)
        for path in self.folder.glob("[0-9]*"):
            if path.stem.isdecimal() and int(path.stem) >= samples:
                path.unlink(missing_ok=True)
        if samples == 1:
            self.folder.rmdir()

    def save_spread(self, std: Tensor, spread: Spread) -> None:
        """Write the deviation, float [C, H, W], its drawing and the record, once the pictures are there."""
        std = std.float().cpu()
        write_atomically(self.std, partial(np.save, arr=std.numpy()), sync=False)
        save_png(draw_heat(std.mean(0), _HEAT_TITLE), self.heat)
        write_text(self.record, json.dumps(spread._asdict()) + "\n")
