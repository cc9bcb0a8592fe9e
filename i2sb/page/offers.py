"""The runs that the page offers, and what can be asked of each: only that is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock

import torch

from corruption import CORRUPTIONS, Corruption, describe_damage, is_custom
from i2sb.config import PAIRED, PageConfig, SamplingOptions
from i2sb.consistency import KINDS, check_consistency
from i2sb.errors import UserError, require
from i2sb.restore import RestorationModel, load_model
from i2sb.storage.exported import ENDING
from i2sb.storage.released import is_released
from i2sb.storage.runs import find_weights

DEPTH = 4  # folders in which a run may lie, NAME being a/b/c/d at most
MOST_STEPS = 100  # that the page offers; a person waits for them
KEPT_MODELS = 2
PICTURE_CHANNELS = (1, 3)


def find_offers(config: PageConfig) -> dict[str, Path]:
    """Return the runs and exported files to offer, by the names that they are shown under.

    Raises UserError if one that is asked for is not there, or if there are none.
    """
    results, exported = Path(config.results_dir), Path(config.exported_dir)
    offers: dict[str, Path] = {}
    if config.ckpt:
        for name in config.ckpt:
            path = find_weights("ckpt", name, results)
            require(path.exists(), "ckpt", name, "there is no such file")
            shown = path.stem if path.suffix == ENDING else name
            require(shown not in offers, "ckpt", name, "another of this name is given, too; rename one")
            offers[shown] = path
        return offers
    for path in _find_runs(results):
        offers[path.relative_to(results).as_posix()] = path
    for path in sorted(exported.glob(f"*{ENDING}")) if exported.is_dir() else []:
        offers[path.name if path.stem in offers else path.stem] = path
    missing = f"there is no run in {results} and no {ENDING} file in {exported}; train one, or name one"
    require(bool(offers), "ckpt", None, missing)
    return offers


def _find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Find the folders that hold a run with a checkpoint; none is looked for inside a run."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        if is_released(path) or (path / "config.yaml").is_file():
            if any(path.glob("*.pt")):
                yield path
        elif depth > 1:
            yield from _find_runs(path, depth - 1)


class Able:
    """What a loaded run can be asked for."""

    def __init__(self, name: str, model: RestorationModel) -> None:
        """Raises UserError if the run's images are no pictures."""
        channels = model.config.image_channels
        must = f"restores images of {channels} channels, which are no pictures; use sample.py --input"
        require(channels in PICTURE_CHANNELS, name, None, must)
        self.name, self.model = name, model

    @property
    def undoes(self) -> str:
        """What is wrong with the pictures that it was trained to restore, in words."""
        corrupt = self.model.config.corrupt
        if corrupt == PAIRED:
            return "the damage of the picture pairs that it was trained on"
        if not self.model.formulation.sees_degradation:
            return "any damage that is chosen below: it was trained on clean pictures alone"
        return describe_damage(corrupt)

    @cached_property
    def fills_holes(self) -> bool:
        """Whether a hole that is painted on a picture is something to restore."""
        trained = self.model.training_corruption
        return not self.model.formulation.sees_degradation or (trained is not None and trained.makes_holes)

    @cached_property
    def needs_hole(self) -> bool:
        """Whether it restores nothing but holes."""
        trained = self.model.training_corruption
        holes_alone = trained is not None and trained.makes_holes and not trained.mixes_holes
        return self.model.formulation.sees_degradation and holes_alone

    @cached_property
    def degradations(self) -> tuple[str, ...]:
        """Names of those that a picture can be degraded by before it is restored, the run's own first."""
        corrupt = self.model.config.corrupt
        own = [] if corrupt == PAIRED else [name for name in corrupt.split(",") if not is_custom(name)]
        return tuple(name for name in dict.fromkeys((*own, *CORRUPTIONS)) if self._makes_sense(name))

    def _makes_sense(self, name: str) -> bool:
        corruption = self._try(name)
        one = corruption is not None and corruption.kinds == 1
        return one and (self.fills_holes or not (corruption is not None and corruption.makes_holes))

    @property
    def samplers(self) -> Mapping[str, SamplingOptions]:
        """The ways to step back, by the names that they are shown under; the first is the usual one."""
        listed = self.model.formulation.list_samplers()
        return {o.sampler if o.eta is None else f"{o.sampler}, noise {o.eta:g}": o for o in listed}

    @property
    def usual_sampler(self) -> str:
        """The name of the one that is taken if nobody says which."""
        usual = self.model.formulation.settle(SamplingOptions())
        return next(name for name, o in self.samplers.items() if (o.sampler, o.eta) == (usual.sampler, usual.eta))

    def list_consistencies(self, corrupt: str) -> list[str]:
        """Return the kinds of consistency that can be had with pictures of this degradation; "": of the run's own."""
        name = corrupt or self.model.config.corrupt
        corruption = self._try(name)

        def fits(kind: str) -> bool:
            try:
                check_consistency(kind, name, corruption)
            except UserError:
                return False
            return True

        return [kind for kind in KINDS if fits(kind)]

    @property
    def most_steps(self) -> int:
        """The largest number of evaluations that can be asked for here."""
        return min(MOST_STEPS, self.model.formulation.default_nfe)

    @property
    def usual_steps(self) -> int:
        """1 where the network sees the degraded picture, and so predicts the clean one at once; else as many as go."""
        return 1 if self.model.formulation.sees_degradation else self.most_steps

    def _try(self, name: str) -> Corruption | None:
        """Build a degradation for small pictures; None where it does not suit the run, or is none that is known."""
        try:
            return self.model.build_corruption(name, 64, 64)
        except UserError:
            return None


class Shelf:
    """The models that are loaded: few at a time, for all visitors."""

    def __init__(self, offers: Mapping[str, Path], device: torch.device) -> None:
        self.offers, self.device = offers, device
        self._loaded: dict[str, Able] = {}
        self._lock = Lock()

    def take(self, name: str) -> Able:
        """Return a run, loaded. Raises UserError if it is not offered or cannot be loaded."""
        with self._lock:
            require(name in self.offers, "", None, "choose one of the networks in the list")
            able = self._loaded.pop(name, None) or Able(name, load_model(self.offers[name], self.device))
            self._loaded[name] = able
            while len(self._loaded) > KEPT_MODELS:
                self._loaded.pop(next(iter(self._loaded)))
            return able
