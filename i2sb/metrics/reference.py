"""Reference statistics in npz files: mean and covariance of features, and what they were made from."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from i2sb.files import write_atomically
from i2sb.metrics.frechet import Gaussian

MADE_FROM = "made_from"


@dataclass(frozen=True)
class MadeFrom:
    """What statistics were made from; "" or 0 where a file does not say.

    mode: how images were resized, "" where the network knows one way only. crop: how they became square. weights: the
    beginning of the SHA-256 of the network's file. fingerprint: of the data set's names.
    """

    network: str = ""
    mode: str = ""
    split: str = ""
    image_size: int = 0
    crop: str = ""
    images: int = 0
    data: str = ""
    fingerprint: str = ""
    weights: str = ""


# Published files that do not say it themselves.
PUBLISHED = {
    "VIRTUAL_imagenet256_labeled.npz": MadeFrom(
        network="Inception", split="train", image_size=256, crop="center", data="ImageNet"
    )
}
# What must agree for two sets of features to be comparable, and how a message names it.
_MUST_AGREE = {
    "network": "network",
    "mode": "--mode",
    "split": "split",
    "image_size": "image size",
    "crop": "--crop",
    "weights": "weights",
}


@dataclass(frozen=True)
class Reference:
    """Statistics to compare with; made_from is None if the file says nothing of it."""

    path: Path
    gaussian: Gaussian
    made_from: MadeFrom | None

    @property
    def network(self) -> str:
        """The network whose features these are: Inception's where the file does not say, as the field has it."""
        return (self.made_from.network if self.made_from else "") or "Inception"

    def check(self, wanted: MadeFrom) -> None:
        """Raise ValueError if the file says that it was made otherwise than is wanted."""
        differences = [
            f"{words} {getattr(self.made_from, name)} there, {getattr(wanted, name)} wanted"
            for name, words in _MUST_AGREE.items()
            if self.made_from is not None
            and getattr(self.made_from, name)
            and getattr(wanted, name)
            and getattr(self.made_from, name) != getattr(wanted, name)
        ]
        if differences:
            raise ValueError(f"--reference {self.path}: made from something else ({'; '.join(differences)})")


def write_reference(path: Path, gaussian: Gaussian, made_from: MadeFrom) -> None:
    """Write mu, sigma (float64) and made_from (JSON) as npz, whole or not at all."""
    arrays = {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}
    arrays[MADE_FROM] = np.array(json.dumps(asdict(made_from)))
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read_reference(path: Path) -> Reference:
    """Read mu [D] and sigma [D, D] from npz, as this project, ADM or pytorch-fid writes it.

    Raises ValueError naming the file if it is missing, broken, or holds no statistics. Nothing in it is run.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            missing = [name for name in ("mu", "sigma") if name not in arrays.files]
            if missing:
                raise ValueError(f"it holds {', '.join(arrays.files)}; mu and sigma are wanted")
            mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
            said = str(arrays[MADE_FROM]) if MADE_FROM in arrays.files else None
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise ValueError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)}; [D] and [D, D] are wanted")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("it holds values that are not finite")
        if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * np.abs(covariance).max()):
            raise ValueError("sigma is not symmetric")
        made_from = PUBLISHED.get(path.name) if said is None else _made_from(said)
    except FileNotFoundError:
        raise ValueError(f"--reference {path}: there is no such file") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--reference {path}: cannot be used ({' '.join(str(error).split())[:200]})") from None
    return Reference(path, Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance)), made_from)


def _made_from(text: str) -> MadeFrom:
    made_from = MadeFrom(**json.loads(text))
    for f in fields(MadeFrom):
        if type(getattr(made_from, f.name)).__name__ != f.type:
            raise ValueError(f"{MADE_FROM}: {f.name} {getattr(made_from, f.name)} is no {f.type}")
    return made_from
