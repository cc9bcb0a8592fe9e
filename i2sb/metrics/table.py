"""METRICS: what compute_metrices.py can compute, a row a metric, and nowhere else a list of them.

The command line reads names from here, so this file imports no torch: what a row calls imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from i2sb.metrics.neighbours import DENSITY_K, PRECISION_K
from i2sb.metrics.pixels import PSNR_LIMIT, SSIM_WINDOW, mae, psnr, ssim

if TYPE_CHECKING:
    from torch import Tensor

    from i2sb.metrics.meters import NetworkMeter

Compare = Callable[["Tensor", "Tensor"], "Tensor"]

COLUMNS = ("degraded", "restored")  # what is scored, each against the clean images
CLEAN = "clean"

# The networks that metrics look through; i2sb.metrics.feature_networks builds them.
INCEPTION, RESNET50, EFFICIENTNET_LITE0 = "Inception", "ResNet-50", "EfficientNet-Lite0"
LPIPS_ALEX, LPIPS_VGG = "LPIPS (AlexNet)", "LPIPS (VGG)"
OWN_FEATURES = "own"  # a function of the user's

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Summary:
    """A metric's values, by the names of COLUMNS, and what belongs to them.

    details: what metrics.json tells besides (spread, reference, …). words: what fills the places in curly brackets of
    the metric's title and definition. remark: is put after the definition.
    """

    values: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Metric:
    """A row of METRICS.

    title, unit, digits: how a value is written. definition: what exactly it is, for metrics.json and the report. Title
    and definition may have places in curly brackets, for the words of the Summary.

    How it is computed, one of the three:
    compare: a number for each image, float [B], of images and their clean partners, [B, C, H, W] each; the metric is
    the mean over all images. 8-bit images are uint8, all others float64, their range of values put to 0 to 255.
    summarise: of what `network` says of all images.
    Neither: `network` compares the images itself, and the metric is the mean over all images.

    eight_bit_colour: whether it is defined for 8-bit images in colour alone; grey ones are shown to it as such.
    limit: the largest number an image can have; metrics.json tells how many images reach it.
    network: one of the names above; a metric whose network's weights are not here is not computed.
    min_images, min_side, classes: the images it needs at least, the pixels a side of each, the class folders of their
    data set (0: any).
    uses_clean: whether the network is to see the clean images even if there are reference statistics.
    uses_pool: whether the features of a number of images are to be kept. uses_reference: whether it can compare with
    reference statistics. uses_function: whether the user must name a feature function (`features`).
    """

    title: str
    definition: str
    compare: Compare | None = None
    summarise: Callable[[NetworkMeter], Summary] | None = None
    eight_bit_colour: bool = False
    limit: float | None = None
    network: str = ""
    unit: str = ""
    digits: int = 2
    higher_is_better: bool = True
    min_images: int = 1
    min_side: int = 1
    classes: int = 0
    uses_clean: bool = False
    uses_pool: bool = False
    uses_reference: bool = False
    uses_function: bool = False

    def find_lack(self, *, images: int, side: int, classes: int, eight_bit_colour: bool = True) -> str:
        """Say what a set of images lacks for this metric, "" if nothing.

        eight_bit_colour: whether they are of 8 bits, all of which are used, in colour or grey.
        """
        if self.eight_bit_colour and not eight_bit_colour:
            return "is defined for 8-bit RGB images"
        if self.classes and classes != self.classes:
            return f"needs the {self.classes} class folders of ImageNet, the data set has {classes or 'no classes'}"
        if images < self.min_images:
            return f"needs at least {self.min_images} images"
        if side < self.min_side:
            return f"needs images of {self.min_side} pixels a side or more"
        return ""


# --- What a network says of all images -------------------------------------------------------------------------------


def summarise_frechet(meter: NetworkMeter) -> Summary:
    """The Fréchet distance of the features from those of the reference, or of the clean images."""
    reference, mode = meter.reference, meter.network.mode
    details: dict[str, Any] = {"features": meter.dim, "reference": {"file": str(reference.path) if reference else ""}}
    if mode:
        details["mode"] = mode
    if reference:
        details["reference"]["made_from"] = asdict(reference.made_from) if reference.made_from else "not said"
    source = str(reference.path) if reference else f"the {meter.count} clean images scored"
    remark = ""
    if meter.count <= meter.dim:
        remark = f"; {meter.count} images are few for {meter.dim} features: compare only with values of as many images"
    words = {"features": meter.dim, "network": meter.network.name, "mode": mode, "source": source}
    return Summary({column: meter.frechet(column) for column in COLUMNS}, details, words, remark)


def summarise_kid(meter: NetworkMeter) -> Summary:
    """The kernel distance of the features from those of the clean images, with its spread over subsets."""
    distances = {column: meter.kernel(column) for column in COLUMNS}
    details = {
        "spread": {column: distance.spread for column, distance in distances.items()},
        "subsets": distances["restored"].subsets,
        "subset_size": distances["restored"].subset_size,
        "pool_size": meter.pool_size,
        "seed": meter.seed,
        "mode": meter.network.mode,
    }
    return Summary({column: distance.mean for column, distance in distances.items()}, details, words=details)


def summarise_overlap(meter: NetworkMeter, part: str) -> Summary:
    """A part of the overlap of the features with those of the clean images: its precision, recall, …"""
    words = {"features": meter.dim, "network": meter.network.name, "pool_size": meter.pool_size}
    details = {"features": meter.dim, "pool_size": meter.pool_size, "seed": meter.seed, "mode": meter.network.mode}
    return Summary({column: getattr(meter.overlap(column), part) for column in COLUMNS}, details, words)


def summarise_agreement(meter: NetworkMeter) -> Summary:
    """How often an image is given the class of its clean partner, in %."""
    return Summary({column: meter.agreement(column) for column in COLUMNS})


def summarise_accuracy(meter: NetworkMeter) -> Summary:
    """How often an image is given the class that it is labelled with, in %."""
    return Summary({column: meter.accuracy(column) for column in COLUMNS})


# What the Fréchet distances share, and the two of LPIPS.
_frechet = partial(
    Metric,
    summarise=summarise_frechet,
    eight_bit_colour=True,
    higher_is_better=False,
    min_images=2,
    uses_reference=True,
)
_lpips = partial(Metric, eight_bit_colour=True, digits=4, higher_is_better=False)


def _overlap(prefix: str, network: str, *, uses_function: bool = False) -> dict[str, Metric]:
    """Return the rows of how a network's features of the images overlap with those of the clean ones."""
    definitions = {
        "precision": "Share of the images within reach of a clean one, which reaches as far as the "
        f"{PRECISION_K}rd nearest other clean one",
        "recall": "Share of the clean images within reach of an image, which reaches as far as the "
        f"{PRECISION_K}rd nearest other image",
        "density": f"How many clean images an image is within reach of, in {DENSITY_K}ths, mean over images; a clean "
        f"image reaches to the {DENSITY_K}th nearest other clean one",
        "coverage": "Share of the clean images that have an image within their reach, which is to the "
        f"{DENSITY_K}th nearest other clean one",
    }
    return {
        f"{prefix}{part}": Metric(
            f"{part}, {{network}}",
            f"{definition}; by {{features}} features of {{network}}, {{pool_size}} images and their clean partners",
            summarise=partial(summarise_overlap, part=part),
            eight_bit_colour=True,
            network=network,
            digits=4,
            min_images=max(PRECISION_K, DENSITY_K) + 1,
            uses_clean=True,
            uses_pool=True,
            uses_function=uses_function,
        )
        for part, definition in definitions.items()
    }


METRICS: dict[str, Metric] = {
    "psnr": Metric(
        "PSNR",
        f"PSNR of {{images}}, at most {PSNR_LIMIT:.0f} dB an image, which equal images have, so that errors too "
        "small to be seen do not outweigh the others; mean over images",
        compare=psnr,
        limit=PSNR_LIMIT,
        unit="dB",
    ),
    "ssim": Metric(
        "SSIM",
        "SSIM of {images}, Gaussian window 11, σ 1.5, within the image, mean over images and channels",
        compare=ssim,
        digits=4,
        min_side=SSIM_WINDOW,
    ),
    "mae": Metric(
        "MAE",
        "Mean absolute error of {images} in levels, 0 to 255, mean over images",
        compare=mae,
        higher_is_better=False,
    ),
    "lpips-alex": _lpips(
        "LPIPS (AlexNet)",
        "LPIPS 0.1 with AlexNet, images in [-1, 1] at their own size, mean over images",
        network=LPIPS_ALEX,
        min_side=31,  # smaller images vanish in its strides
    ),
    "lpips-vgg": _lpips(
        "LPIPS (VGG)",
        "LPIPS 0.1 with VGG-16, images in [-1, 1] at their own size, mean over images",
        network=LPIPS_VGG,
        min_side=16,
    ),
    "fid": _frechet(
        "FID",
        "Fréchet distance of {features} features of the Inception network of 2015, {mode}, from {source}",
        network=INCEPTION,
    ),
    "kid": Metric(
        "KID",
        "Unbiased squared MMD of Inception features, kernel (xᵀy/2048 + 1)³, from the clean images scored; mean over "
        "{subsets} subsets of {subset_size}, out of {pool_size}",
        summarise=summarise_kid,
        eight_bit_colour=True,
        network=INCEPTION,
        digits=5,
        higher_is_better=False,
        min_images=2,
        uses_clean=True,
        uses_pool=True,
    ),
    **_overlap("", INCEPTION),
    "ca": Metric(
        "CA",
        "Classifier accuracy: top-1 of ResNet-50 (V1), bicubic to 224 without antialias or crop",
        summarise=summarise_accuracy,
        eight_bit_colour=True,
        network=RESNET50,
        unit="%",
        classes=IMAGENET_CLASSES,
    ),
    "efficientnet-lite0-frechet": _frechet(
        "Fréchet distance, EfficientNet-Lite0",
        "Fréchet distance of {features} features of {network} from {source}",
        network=EFFICIENTNET_LITE0,
    ),
    **_overlap("efficientnet-lite0-", EFFICIENTNET_LITE0),
    "efficientnet-lite0-agreement": Metric(
        "top-1 agreement, EfficientNet-Lite0",
        "Share of images that EfficientNet-Lite0 gives the class it gives their clean partner",
        summarise=summarise_agreement,
        eight_bit_colour=True,
        network=EFFICIENTNET_LITE0,
        unit="%",
        uses_clean=True,
    ),
    "efficientnet-lite0-accuracy": Metric(
        "top-1 accuracy, EfficientNet-Lite0",
        "Share of images to which EfficientNet-Lite0 gives their label",
        summarise=summarise_accuracy,
        eight_bit_colour=True,
        network=EFFICIENTNET_LITE0,
        unit="%",
        classes=IMAGENET_CLASSES,
    ),
    "features-frechet": _frechet(
        "Fréchet distance, {network}",
        "Fréchet distance of {features} features of {network} from {source}",
        network=OWN_FEATURES,
        digits=4,
        uses_function=True,
    ),
    **_overlap("features-", OWN_FEATURES, uses_function=True),
}


def choose_comparisons(names: Iterable[str], side: int) -> dict[str, Compare]:
    """Return how these metrics compare images of `side` pixels, without those that need larger ones, or a network."""
    metrics = {name: METRICS[name] for name in names}
    return {name: metric.compare for name, metric in metrics.items() if metric.compare and side >= metric.min_side}
