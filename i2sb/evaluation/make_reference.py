"""Making reference statistics: the moments of the features of a split's clean images."""

from pathlib import Path

from i2sb.config import EvalConfig
from i2sb.data.dataset import open_split
from i2sb.data.loading import load_in_order
from i2sb.distributed import World
from i2sb.errors import FileError, UserError
from i2sb.evaluation.results import build_network, warn_of_unpublished
from i2sb.metrics.feature_networks import FeatureNetwork, UnavailableError
from i2sb.metrics.frechet import Moments
from i2sb.metrics.reference import MadeFrom, write_reference
from i2sb.metrics.table import INCEPTION, METRICS, OWN_FEATURES
from i2sb.progress import progress_bar


def make_reference(config: EvalConfig, world: World) -> None:
    """Write the statistics that `make_reference` names; the processes share the images.

    They are of the user's own features if there are any, else of the network of the first wanted metric that compares
    with a reference. Raises UserError if the file exists, the images are too few, or the network's weights are missing.
    """
    path = Path(config.make_reference)
    if path.exists():
        raise UserError("make_reference", path, "is there already; delete it first, or name another file")
    split = config.reference_split or "val"
    images = open_split(config.dataset_dir, split, image_size=config.image_size, native=config.crop == "random")
    if len(images) < max(2, world.world_size):
        data_set = images.clean.describe()
        raise FileError(data_set, f"holds {len(images)} images, too few for statistics")
    candidates = [METRICS[name].network for name in config.wanted if METRICS[name].uses_reference]
    name = OWN_FEATURES if config.features else next(iter(candidates), INCEPTION)
    try:
        network = build_network(name, config, world.device)
    except UnavailableError as error:
        raise UserError("make_reference", path, str(error)) from None
    assert isinstance(network, FeatureNetwork)
    if world.is_main and network.weights:
        warn_of_unpublished(network.weights)
    moments = Moments()
    share = range(world.rank, len(images), world.world_size)
    with progress_bar(len(share), "image", quiet=not world.is_main) as progress:
        for part in load_in_order(images, share, batch_size=config.batch_size, workers=config.workers):
            if part.image.is_floating_point():
                raise FileError(images.clean.describe(), "holds images that are not of 8 bits, which the network needs")
            features = network(part.image.to(world.device)).features
            assert features is not None
            moments.add(features)
            progress.update(len(part.numbers))
    gaussian = moments.gaussian(world.sum)
    made_from = MadeFrom(
        network=network.name,
        mode=network.mode,
        split=split,
        image_size=config.image_size,
        crop=config.crop,
        images=len(images),
        data=Path(config.dataset_dir).name,
        fingerprint=images.fingerprint,
        weights=network.digest,
    )
    if world.is_main:
        write_reference(path, gaussian, made_from)
        print(f"{path}: {network.name} statistics of {len(images)} images of {images.clean.describe()}")
    world.barrier()
