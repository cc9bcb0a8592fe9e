"""Reference statistics in npz files: mean and covariance of features, and what they were made from."""

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch

from i2sb.errors import UserError, list_differences
from i2sb.files import check_regular, write_atomically
from i2sb.metrics.frechet import Gaussian
from i2sb.metrics.table import INCEPTION

MADE_FROM = "made_from"


@dataclass(frozen=True)
class MadeFrom:
    """What statistics were made from; "" or 0 where a file does not say.

    mode: how images were resized, "" where the network knows one way only. crop: how they became square. images: their
    number. data: the name of the data set's folder. fingerprint: of the names of its images. weights: the first digits
    of the SHA-256 of the network's file, be it of weights or the user's code.
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


# Published files that hold no `made_from`.
PUBLISHED = {
    "VIRTUAL_imagenet256_labeled.npz": MadeFrom(
        network=INCEPTION, split="train", image_size=256, crop="center", data="ImageNet"
    )
}
# What must agree for two sets of features to be comparable, and what a message calls it.
_MUST_AGREE = {
    "network": "network",
    "mode": "`mode`",
    "split": "split",
    "image_size": "image size",
    "crop": "`crop`",
    "weights": "digest of the network's file",
}


@dataclass(frozen=True)
class Reference:
    """Statistics to compare with; made_from is None if the file does not say what they were made from."""

    path: Path
    gaussian: Gaussian
    made_from: MadeFrom | None

    @property
    def network(self) -> str:
        """The network whose features these are: Inception where the file does not say, as is the custom."""
        return (self.made_from.network if self.made_from else "") or INCEPTION

    def check(self, wanted: MadeFrom) -> None:
        """Raise UserError if the file says that it was made from something else than is wanted."""
        if self.made_from is None:
            return
        before, now = vars(self.made_from), vars(wanted)
        names = {name: words for name, words in _MUST_AGREE.items() if before[name] and now[name]}
        differences = list_differences(
            {words: before[name] for name, words in names.items()},
            {words: now[name] for name, words in names.items()},
            now_is="wanted",
        )
        if differences:
            raise UserError("reference", self.path, f"made from something else ({differences})")


def write_reference(path: Path, gaussian: Gaussian, made_from: MadeFrom) -> None:
    """Write mu, sigma (float64) and made_from (JSON) as npz, whole or not at all."""
    text = np.array(json.dumps(asdict(made_from)))
    mu, sigma = gaussian.mean.numpy(), gaussian.covariance.numpy()
    write_atomically(path, lambda file: np.savez(file, mu=mu, sigma=sigma, made_from=text))


def read_reference(path: Path) -> Reference:
    """Read mu [D] and sigma [D, D] from npz, as this project, ADM or pytorch-fid writes it.

    Raises UserError naming the file if it is missing, broken, or holds no statistics. Nothing in it is run.
    """
    try:
        mean, covariance, text = _read_arrays(path)
        made_from = PUBLISHED.get(path.name) if text is None else _parse_made_from(text)
    except FileNotFoundError:
        raise UserError("reference", path, "there is no such file") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError("reference", path, f"cannot be used ({reason})") from None
    return Reference(path, Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance)), made_from)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return mu, sigma and the text of made_from, None if there is none. Raises ValueError if they cannot be right."""
    check_regular(path)
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    with loaded as arrays:
        missing = [name for name in ("mu", "sigma") if name not in arrays.files]
        if missing:
            raise ValueError(f"it holds {', '.join(arrays.files)}; mu and sigma are wanted")
        mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        text = str(arrays[MADE_FROM]) if MADE_FROM in arrays.files else None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)}; [D] and [D, D] are wanted")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("it holds values that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * np.abs(covariance).max()):
        raise ValueError("sigma is not symmetric")
    return mean, covariance, text


def _parse_made_from(text: str) -> MadeFrom:
    """Read the JSON. Raises ValueError or TypeError if it does not say what it should."""
    made_from = MadeFrom(**json.loads(text))
    for name, kind in get_type_hints(MadeFrom).items():
        value = getattr(made_from, name)
        if type(value) is not kind:
            raise ValueError(f"{MADE_FROM}: {name} {value} is no {kind.__name__}")
    return made_from
