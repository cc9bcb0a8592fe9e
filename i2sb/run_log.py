"""What a training run tells: one JSON line per record in log.jsonl, curves in TensorBoard, progress on the terminal."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm


class RunLog:
    """Writes records of a run; on a process that is not the main one it stays silent.

    Resumed runs append: a line {"event": "resumed", "iteration": …} makes void what was logged beyond it before.
    """

    def __init__(
        self, run_dir: Path, *, writer: str, writer_dir: Path, iteration: int, num_itr: int, silent: bool = False
    ) -> None:
        self.silent = silent
        if silent:
            return
        self._file = _open_lines(run_dir / "log.jsonl")
        if iteration > 0:
            self._write_line({"event": "resumed", "iteration": iteration})
        self._writer: Any = None
        if writer == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("warning: --log-writer tensorboard: not installed, only log.jsonl is written", file=sys.stderr)
            else:
                self._writer = SummaryWriter(str(writer_dir), purge_step=iteration + 1)
        self._bar = tqdm(total=num_itr, initial=iteration, unit="it", dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self.silent:
            self._bar.close()
            self._file.close()
            if self._writer is not None:
                self._writer.close()

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if not self.silent:
            self._bar.write(message)

    def advance(self, iteration: int) -> None:
        """Move the progress bar."""
        if not self.silent:
            self._bar.update(iteration - self._bar.n)

    def record(self, event: str, iteration: int, values: dict[str, float]) -> None:
        """Write one record of numbers; `event` names the group ("train", "validation")."""
        if self.silent:
            return
        self._write_line({"event": event, "iteration": iteration, **values})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{event}/{name}", value, iteration)
        if event == "train":
            self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s")

    def picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Hand a picture to the curves' program."""
        if not self.silent and self._writer is not None:
            self._writer.add_image(name, np.asarray(image), iteration, dataformats="HWC")

    def _write_line(self, record: dict[str, Any]) -> None:
        # JSON knows no infinity (the PSNR of equal images, a loss that exploded).
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()


def _open_lines(path: Path) -> Any:
    """Open a file of lines for appending; a last line that a killed run left unfinished gets its end."""
    unfinished = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    file = open(path, "a", encoding="utf-8")
    if unfinished:
        file.write("\n")
    return file
