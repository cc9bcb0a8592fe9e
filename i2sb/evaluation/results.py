"""From the names of metrics to their values: which can be computed, what they are computed with, what came out."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from i2sb.config import EvalConfig
from i2sb.errors import UserError
from i2sb.evaluation.evaluation_set import EvaluationSet
from i2sb.metrics.feature_networks import (
    NETWORKS,
    FeatureNetwork,
    NetworkOptions,
    PerceptualDistance,
    UnavailableError,
    Weights,
)
from i2sb.metrics.meters import ImageMeter, NetworkMeter, choose_pool
from i2sb.metrics.reference import MadeFrom, Reference
from i2sb.metrics.table import COLUMNS, METRICS, Metric, Summary


@dataclass(frozen=True)
class Result:
    """A metric's values over n images by the names of COLUMNS, its details, and its title and definition filled in."""

    metric: Metric
    title: str
    definition: str
    values: Mapping[str, float]
    n: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> float:
        """What restoring changed."""
        return self.values["restored"] - self.values["degraded"]

    def as_json(self) -> dict[str, Any]:
        """Return what metrics.json tells of it."""
        return {
            **{column: value if math.isfinite(value) else None for column, value in self.values.items()},
            "n": self.n,
            "title": self.title,
            "unit": self.metric.unit,
            "definition": self.definition,
            **self.details,
        }


@dataclass(frozen=True)
class Meters:
    """What takes in the images: meters of single images by metric, of networks by network; and the weights behind them.

    not_computed: of the metrics that cannot be computed, why.
    """

    images: dict[str, ImageMeter]
    networks: dict[str, NetworkMeter]
    weights: dict[str, Weights]
    not_computed: dict[str, str]

    def __iter__(self) -> Iterator[ImageMeter | NetworkMeter]:
        yield from self.images.values()
        yield from self.networks.values()


def build_network(name: str, config: EvalConfig, device: torch.device) -> FeatureNetwork | PerceptualDistance:
    """Build one of NETWORKS. Raises UnavailableError if its weights or package are not here."""
    network = NETWORKS[name](NetworkOptions(Path(config.weights_dir), config.mode, config.features))
    return network.eval().requires_grad_(False).to(device)


def warn_of_unpublished(weights: Weights) -> None:
    """Say so if a file of weights is not the published one, as far as its name says what that is."""
    if not weights.published:
        print(f"warning: {weights.file} is not the published file of that name", file=sys.stderr)


def build_meters(
    config: EvalConfig, images: EvaluationSet, reference: Reference | None, device: torch.device
) -> Meters:
    """Build the meters that the wanted metrics need.

    Raises UserError if the reference is not of what these images are to be compared with.
    """
    count, computed, not_computed = len(images), {}, {}
    networks: dict[str, FeatureNetwork | PerceptualDistance] = {}
    for name in config.wanted:
        metric = METRICS[name]
        lack = metric.find_lack(
            images=count,
            side=images.image_size,
            classes=len(images.dataset.classes),
            eight_bit_colour=images.eight_bit_colour,
        )
        if not lack and metric.network and metric.network not in networks:
            try:
                networks[metric.network] = build_network(metric.network, config, device)
            except UnavailableError as error:
                lack = str(error)
        if lack:
            not_computed[name] = f"not computed: {lack}"
        else:
            computed[name] = metric
    meters = Meters({}, {}, {}, not_computed)
    meters.weights.update({name: network.weights for name, network in networks.items() if network.weights})
    for name, metric in computed.items():
        if metric.summarise is None:
            meters.images[name] = ImageMeter(metric.compare or networks[metric.network], count)
    for name, network in networks.items():
        if isinstance(network, FeatureNetwork):
            metrics = [metric for metric in computed.values() if metric.network == name]
            meters.networks[name] = NetworkMeter(
                network,
                count,
                reference=_check_reference(config, images, reference, network),
                uses_clean=any(metric.uses_clean for metric in metrics),
                pool=choose_pool(count, config.seed) if any(metric.uses_pool for metric in metrics) else None,
                seed=config.seed,
                labels=images.dataset.labels(range(count)) if any(metric.classes for metric in metrics) else None,
            )
    return meters


def _check_reference(
    config: EvalConfig, images: EvaluationSet, reference: Reference | None, network: FeatureNetwork
) -> Reference | None:
    """Return the reference if it holds this network's features, else None. Raises UserError if it does not fit."""
    if reference is None or reference.network != network.name:
        return None
    published = images.corruption.reference_split if images.corruption else "val"
    wanted = MadeFrom(
        network=network.name,
        mode=network.mode,
        split=config.reference_split or published,
        image_size=images.image_size,
        crop=images.run_config.crop,
        weights=network.digest,
    )
    reference.check(wanted)
    features = len(reference.gaussian.mean)
    if network.dim not in (0, features):
        raise UserError("reference", reference.path, f"holds {features} features, {network.name} has {network.dim}")
    return reference


def compute_results(config: EvalConfig, meters: Meters, images: EvaluationSet) -> dict[str, Result]:
    """Return what was computed of the images, in the order of METRICS."""
    results = {}
    words = {"images": "8-bit images" if images.eight_bit else "images, their range of values put to 0 to 255"}
    for name in config.wanted:
        if name in meters.not_computed:
            continue
        metric = METRICS[name]
        if metric.summarise is None:
            summary = _summarise_images(metric, meters.images[name], words)
        else:
            summary = metric.summarise(meters.networks[metric.network])
        weights = meters.weights.get(metric.network)
        results[name] = Result(
            metric,
            title=metric.title.format(**summary.words),
            definition=metric.definition.format(**summary.words) + summary.remark,
            values=summary.values,
            n=len(images),
            details={**({"weights": asdict(weights)} if weights else {}), **summary.details},
        )
    return results


def _summarise_images(metric: Metric, meter: ImageMeter, words: Mapping[str, str]) -> Summary:
    details = {}
    if metric.limit is not None:
        at_limit = {column: int((meter.values(column) >= metric.limit).sum()) for column in COLUMNS}
        details["images_at_limit"] = at_limit
    return Summary({column: meter.mean(column) for column in COLUMNS}, details, words)
