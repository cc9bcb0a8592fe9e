"""The log of a training run: JSON lines in log.jsonl, curves in TensorBoard or W&B, progress on the terminal.

A log that cannot be written, to a full disk for instance, does not stop a run: there is one warning.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from i2sb.errors import UserError
from i2sb.images import save_png
from i2sb.options import write_flags
from i2sb.progress import progress_bar, say


class Curves(Protocol):
    """Where numbers and pictures go besides log.jsonl."""

    def numbers(self, values: dict[str, float], iteration: int) -> None: ...

    def picture(self, name: str, image: Image.Image, iteration: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardCurves:
    """Curves in a folder that the tensorboard program shows."""

    def __init__(self, folder: Path, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=iteration + 1)

    def numbers(self, values: dict[str, float], iteration: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def picture(self, name: str, image: Image.Image, iteration: int) -> None:
        self._writer.add_image(name, np.asarray(image), iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbCurves:
    """Curves on Weights & Biases, kept in `folder`/wandb too.

    Its key comes from WANDB_API_KEY or `wandb login`; nothing here sees it.
    """

    def __init__(self, folder: Path, name: str, project: str, user: str, settings: dict[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        # The same id for the same run: a resumed one goes on with its curves.
        try:
            self._run = wandb.init(
                project=project,
                entity=user or None,
                name=name,
                id=name.replace("/", "-"),
                dir=str(folder),
                config=settings,
                resume="allow",
            )
        except wandb.Error as error:  # no key, a wrong one, no network
            raise UserError("log_writer", "wandb", f"W&B refused: {' '.join(str(error).split())}") from None

    def numbers(self, values: dict[str, float], iteration: int) -> None:
        self._run.log(values, step=iteration)

    def picture(self, name: str, image: Image.Image, iteration: int) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=iteration)

    def close(self) -> None:
        self._run.finish()


def choose_curves(
    writer: str, folder: Path, *, name: str, project: str, user: str, settings: dict[str, Any]
) -> Callable[[int], Curves] | None:
    """Return a function that opens the curves that `log_writer` asks for, given the iteration that the run begins at.

    None if it asks for none. Raises UserError if W&B is asked for and not installed; without TensorBoard, the default,
    there is a warning.
    """
    if writer == "wandb":
        if find_spec("wandb") is None:
            raise UserError("log_writer", writer, "is not installed: pip install wandb")
        return lambda iteration: WandbCurves(folder, name, project, user, settings)
    if writer == "tensorboard" and find_spec("tensorboard") is None:
        print("warning: tensorboard is not installed, so only log.jsonl is written", file=sys.stderr)
        return None
    return (lambda iteration: TensorBoardCurves(folder, iteration)) if writer == "tensorboard" else None


class RunLog:
    """Writes the records of a run; does nothing on a process that is not the main one.

    Resumed runs append: a line {"event": "resumed", "iteration": …} makes void what was logged of later iterations.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        curves: Callable[[int], Curves] | None,
        iteration: int,
        num_itr: int,
        silent: bool = False,
    ) -> None:
        """Open log.jsonl in `run_dir` and the curves, unless silent. iteration: where the run begins."""
        self.silent = silent
        self._curves: Curves | None = None
        self._refused: set[str] = set()
        if silent:
            return
        self._file = _open_lines(run_dir / "log.jsonl")
        if iteration > 0:
            self._write_line({"event": "resumed", "iteration": iteration})
        self._curves = None if curves is None else curves(iteration)
        self._iteration = iteration
        self._bar = progress_bar(num_itr, "it", initial=iteration)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self.silent:
            self._bar.close()
            self._guard("log.jsonl", self._file.close)
        if self._curves is not None:
            self._guard("curves", self._curves.close)

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if not self.silent:
            say(message)

    def advance(self, iteration: int) -> None:
        """Move the progress bar."""
        if not self.silent:
            self._bar.update(iteration - self._iteration)
            self._iteration = iteration

    def warn(self, message: str) -> None:
        """Print a line on standard error, whichever process this is; settings in backticks become flags."""
        say(f"warning: {write_flags(message)}", error=True)

    def record(self, event: str, iteration: int, values: dict[str, float]) -> None:
        """Write one record of numbers; `event` names the group ("train", "validation")."""
        if self.silent:
            return
        self._write_line({"event": event, "iteration": iteration, **values})
        if (curves := self._curves) is not None:
            named = {f"{event}/{name}": value for name, value in values.items()}
            self._guard("curves", lambda: curves.numbers(named, iteration))
        if event == "train":
            self._bar.set_postfix_str(
                f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s", refresh=False
            )

    def picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Show a picture beside the curves."""
        if (curves := self._curves) is not None:
            self._guard("curves", lambda: curves.picture(name, image, iteration))

    def save_picture(self, image: Image.Image, path: Path) -> None:
        """Write a PNG."""
        self._guard("pictures", lambda: save_png(image, path))

    def _write_line(self, record: dict[str, Any]) -> None:
        # JSON knows no infinity (a loss that exploded).
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._guard("log.jsonl", lambda: (self._file.write(json.dumps(plain) + "\n"), self._file.flush()))

    def _guard(self, what: str, write: Callable[[], object]) -> None:
        """Call `write`; the first time that the disk or the network refuses, warn."""
        try:
            write()
        except OSError as error:
            if what not in self._refused:
                self._refused.add(what)
                self.warn(f"{what}: not written ({error.strerror or error}); the run goes on")


def _open_lines(path: Path) -> Any:
    """Open a file of lines for appending; if a killed run left its last line unfinished, end that line."""
    unfinished = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    file = open(path, "a", encoding="utf-8")
    if unfinished:
        file.write("\n")
    return file
