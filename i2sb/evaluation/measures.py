"""Which metrics there are: what each is computed with, what it is called, and what exactly it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from i2sb.config import EvalConfig
from i2sb.evaluation.restored import RestoredImages
from i2sb.evaluation.scores import COLUMNS, NetworkMeter, PairMeter, Result
from i2sb.metrics.features import (
    EFFICIENTNET_LITE0,
    IMAGENET_CLASSES,
    INCEPTION,
    RESNET50,
    FeatureNetwork,
    OwnFeatures,
    UnavailableError,
    build_efficientnet_lite0,
    build_inception,
    build_lpips,
    build_resnet50,
)
from i2sb.metrics.kid import POOL_SIZE, SUBSETS, choose_pool
from i2sb.metrics.pixels import PSNR_LIMIT, SSIM_WINDOW, mae, psnr, ssim
from i2sb.metrics.reference import MadeFrom, Reference


@dataclass
class Meters:
    """The meters of the metrics that can be computed, and why the others cannot."""

    pairs: dict[str, PairMeter]
    networks: dict[str, NetworkMeter]
    not_computed: dict[str, str]

    def __iter__(self) -> Iterator[PairMeter | NetworkMeter]:
        yield from (*self.pairs.values(), *self.networks.values())


# Which network each of its metrics needs.
_NETWORK_OF = {
    "fid": INCEPTION,
    "kid": INCEPTION,
    "ca": RESNET50,
    "efficientnet-lite0-frechet": EFFICIENTNET_LITE0,
    "efficientnet-lite0-agreement": EFFICIENTNET_LITE0,
    "efficientnet-lite0-accuracy": EFFICIENTNET_LITE0,
    "features-frechet": "own",
}


def build_network(name: str, config: EvalConfig, device: torch.device) -> FeatureNetwork:
    """Build a network by its name. Raises UnavailableError if its weights or package are not here."""
    weights_dir = Path(config.weights_dir)
    if name == INCEPTION:
        network = build_inception(config.mode, weights_dir)
    elif name == EFFICIENTNET_LITE0:
        network = build_efficientnet_lite0()
    elif name == "own":
        network = OwnFeatures(config.features)
    else:
        network = build_resnet50(weights_dir)
    return network.eval().requires_grad_(False).to(device)


def build_meters(
    config: EvalConfig, restored: RestoredImages, reference: Reference | None, device: torch.device
) -> Meters:
    count, meters = len(restored), Meters({}, {}, {})
    for name in config.wanted:
        if name in ("psnr", "mae"):
            meters.pairs[name] = PairMeter({"psnr": psnr, "mae": mae}[name], count)
        elif name == "ssim":
            if restored.image_size < SSIM_WINDOW:
                meters.not_computed[name] = f"not computed: needs images of {SSIM_WINDOW} pixels a side or more"
            else:
                meters.pairs[name] = PairMeter(ssim, count)
        elif name.startswith("lpips-"):
            try:
                network = build_lpips(name.removeprefix("lpips-"), Path(config.weights_dir))
                meters.pairs[name] = PairMeter(network.eval().to(device), count, colour=True)
            except UnavailableError as error:
                meters.not_computed[name] = f"not computed: {error}"
    for network_name in dict.fromkeys(_NETWORK_OF.values()):
        wanted = [name for name in config.wanted if _NETWORK_OF.get(name) == network_name]
        for name in list(wanted):
            if reason := _unsuitable(name, restored):
                meters.not_computed[name] = f"not computed: {reason}"
                wanted.remove(name)
        if not wanted:
            continue
        try:
            network = build_network(network_name, config, device)
        except UnavailableError as error:
            meters.not_computed |= dict.fromkeys(wanted, f"not computed: {error}")
            continue
        gaussian = None
        if reference is not None and reference.network == network.name:
            reference.check(_made_from(config, restored, network))
            if network.dim not in (0, len(reference.gaussian.mean)):
                raise ValueError(
                    f"--reference {reference.path}: holds {len(reference.gaussian.mean)} features, "
                    f"{network.name} has {network.dim}"
                )
            gaussian = reference.gaussian
        meters.networks[network_name] = NetworkMeter(
            network,
            count,
            reference=gaussian,
            pool=choose_pool(count, config.seed) if "kid" in wanted else None,
            compare_with_clean="efficientnet-lite0-agreement" in wanted,
        )
    return meters


def _unsuitable(name: str, restored: RestoredImages) -> str:
    """Say what the images lack for a metric, if anything."""
    if name in ("ca", "efficientnet-lite0-accuracy") and len(restored.images.classes) != IMAGENET_CLASSES:
        found = len(restored.images.classes)
        return f"needs the {IMAGENET_CLASSES} class folders of ImageNet, the data set has {found or 'no classes'}"
    if name in ("kid", "fid", "efficientnet-lite0-frechet", "features-frechet") and len(restored) < 2:
        return "needs at least 2 images"
    return ""


def _made_from(config: EvalConfig, restored: RestoredImages, network: FeatureNetwork) -> MadeFrom:
    """Return what a reference must be made from to be compared with these images."""
    published = restored.corruption.reference_split if restored.corruption else "val"
    return MadeFrom(
        network=network.name,
        mode=network.mode,
        split=config.reference_split or published,
        image_size=restored.image_size,
        crop=restored.run_config.crop,
        weights=network.weights.sha256 if network.weights else "",
    )


def weights_of(meters: Meters) -> dict[str, dict[str, Any] | None]:
    """Return the weights behind each metric that has a network."""
    networks = {name: meter.network for name, meter in meters.networks.items()}
    found = {name: networks[key] for name, key in _NETWORK_OF.items() if key in networks}
    found |= {name: meter.compute for name, meter in meters.pairs.items() if name.startswith("lpips-")}
    return {name: asdict(network.weights) if network.weights else None for name, network in found.items()}


def compute_results(
    config: EvalConfig, restored: RestoredImages, meters: Meters, reference: Reference | None
) -> dict[str, Result]:
    """Return all that was computed, in the order of METRICS."""
    n, results = len(restored), {}
    weighted = weights_of(meters)
    for name in config.wanted:
        if name in meters.not_computed:
            continue
        details = {"weights": weighted[name]} if weighted.get(name) else {}
        if name in meters.pairs:
            values = {column: meters.pairs[name].mean(column) for column in COLUMNS}
            if name == "psnr":
                at_limit = {column: meters.pairs[name].values(column) >= PSNR_LIMIT for column in COLUMNS}
                details["images_at_limit"] = {column: int(which.sum()) for column, which in at_limit.items()}
            results[name] = Result(n=n, details=details, **values, **_PAIRS[name])
            continue
        meter = meters.networks[_NETWORK_OF[name]]
        if name == "kid":
            kernel = {column: meter.kernel(column, config.seed) for column in COLUMNS}
            details |= {
                "spread": {column: distance.spread for column, distance in kernel.items()},
                "subsets": SUBSETS,
                "subset_size": kernel["restored"].subset_size,
                "pool_size": min(n, POOL_SIZE),
                "seed": config.seed,
                "mode": config.mode,
            }
            results[name] = Result(
                "KID",
                **{column: distance.mean for column, distance in kernel.items()},
                n=n,
                definition="Unbiased squared MMD of Inception features, kernel (xᵀy/2048 + 1)³, from the clean images "
                f"scored; mean over {SUBSETS} subsets of {kernel['restored'].subset_size}, out of {min(n, POOL_SIZE)}",
                digits=5,
                higher_is_better=False,
                details=details,
            )
        elif name == "fid" or name.endswith("frechet"):
            results[name] = _frechet(name, meter, n, reference, details)
        elif name.endswith("agreement"):
            values = {column: meter.agreement(column) for column in COLUMNS}
            definition = f"Share of images that {EFFICIENTNET_LITE0} gives the class it gives their clean partner"
            results[name] = Result(
                f"top-1 agreement, {EFFICIENTNET_LITE0}",
                n=n,
                definition=definition,
                unit="%",
                details=details,
                **values,
            )
        else:
            labels = restored.labels()
            values = {column: meter.accuracy(column, labels) for column in COLUMNS}
            title = "CA" if name == "ca" else f"top-1 accuracy, {EFFICIENTNET_LITE0}"
            definition = (
                "Classifier accuracy: top-1 of ResNet-50 (V1), bicubic to 224 without antialias or crop"
                if name == "ca"
                else f"Share of images to which {EFFICIENTNET_LITE0} gives their label"
            )
            results[name] = Result(title, n=n, definition=definition, unit="%", details=details, **values)
    return results


_PAIRS: dict[str, dict[str, Any]] = {
    "psnr": {
        "title": "PSNR",
        "unit": "dB",
        "definition": f"PSNR of 8-bit images, at most {PSNR_LIMIT:.0f} dB an image, which equal images have, so that "
        "errors too small to be seen do not outweigh the others; mean over images",
    },
    "ssim": {
        "title": "SSIM",
        "digits": 4,
        "definition": "SSIM, Gaussian window 11, σ 1.5, within the image, mean over images and channels",
    },
    "mae": {
        "title": "MAE",
        "higher_is_better": False,
        "definition": "Mean absolute error in 8-bit levels, 0 to 255, mean over images",
    },
    "lpips-alex": {
        "title": "LPIPS (AlexNet)",
        "digits": 4,
        "higher_is_better": False,
        "definition": "LPIPS 0.1 with AlexNet, images in [-1, 1] at their own size, mean over images",
    },
    "lpips-vgg": {
        "title": "LPIPS (VGG)",
        "digits": 4,
        "higher_is_better": False,
        "definition": "LPIPS 0.1 with VGG-16, images in [-1, 1] at their own size, mean over images",
    },
}


def _frechet(name: str, meter: NetworkMeter, n: int, reference: Reference | None, details: dict[str, Any]) -> Result:
    values = {column: meter.frechet(column) for column in COLUMNS}
    network, dim = meter.network, meter.dim
    own_reference = meter.reference is None
    source = f"the {n} clean images scored" if own_reference else str(reference.path)
    details = details | {"features": dim, "reference": {"file": "" if own_reference else str(reference.path)}}
    if network.mode:
        details["mode"] = network.mode
    if not own_reference:
        details["reference"]["made_from"] = asdict(reference.made_from) if reference.made_from else "not said"
    definition = f"Fréchet distance of {dim} features of {network.name} from {source}"
    if name == "fid":
        definition = (
            f"Fréchet distance of {dim} features of the Inception network of 2015, {network.mode}, from {source}"
        )
    if n <= dim:
        definition += f"; {n} images are few for {dim} features: compare only with values of as many images"
    title = "FID" if name == "fid" else f"Fréchet distance, {network.name}"
    digits = 4 if name == "features-frechet" else 2
    return Result(title, n=n, definition=definition, digits=digits, higher_is_better=False, details=details, **values)
