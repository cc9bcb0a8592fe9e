"""Properties that every degradation has, over the whole table, and each one's own definition."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from corruption import CORRUPTIONS, Corruption, build_corruption, describe_corruptions, find_multiple, is_custom
from corruption.base import Draws
from corruption.blur import GAUSSIAN, UNIFORM
from corruption.jpeg import CHROMINANCE, LUMINANCE, quantisation_table
from corruption.strokes import count_bounds, draw_strokes
from corruption.superresolution import bicubic_matrix
from helpers.degradations import EXAMPLES, LINEAR
from helpers.degradations import SIDE as SIZE
from helpers.golden import golden

FREEFORM = {"inpaint-freeform1020": (10, 20), "inpaint-freeform2030": (20, 30)}
COLOUR_ONLY = {"jpeg", "decolor", "mixture", "blur-uni", "blur-gauss"}
SQUARE_ONLY = {"blur-uni", "blur-gauss", "mixture"}


NOISE = 0.2
CASES = [*((name, 0.0) for name in EXAMPLES), *((name, NOISE) for name in LINEAR)]


@pytest.fixture(scope="module")
def built() -> dict[str, Corruption]:
    return {name: build_corruption(name, SIZE) for name in EXAMPLES}


@pytest.fixture(scope="module")
def noisy() -> dict[str, Corruption]:
    return {name: build_corruption(name, SIZE, degradation_noise=NOISE) for name in LINEAR}


@pytest.fixture(params=CASES, ids=lambda case: case[0] + "-noisy" * (case[1] > 0))
def case(request):
    return request.param


@pytest.fixture
def name(case):
    return case[0]


@pytest.fixture
def corruption(case, built, noisy):
    name, noise = case
    return noisy[name] if noise else built[name]


@pytest.fixture
def clean():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generators(first, last):
    return [torch.Generator().manual_seed(seed) for seed in range(first, last)]


# --- The released program's numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("sr4x-pool", 64, 1e-5),
        ("sr4x-bicubic", 64, 1e-5),
        ("inpaint-center", 64, 0.0),
        ("blur-uni", 64, 5e-5),  # an SVD's last digits are those of the machine's LAPACK
        ("blur-gauss", 64, 5e-5),
        ("blur-uni", 256, 5e-5),
        ("blur-gauss", 256, 5e-5),
        ("jpeg-5", 64, 1e-4),
        ("jpeg-10", 64, 1e-4),
    ],
)
def test_agrees_with_golden(name, size, tolerance):
    arrays = golden("corruption")
    done = build_corruption(name, size)(arrays[f"{size}_clean"])
    image = done.image[..., 112:144, 112:144] if size == 256 else done.image
    wrong = (image - arrays[f"{size}_{name}"]).abs() > tolerance
    # Where a coefficient lies between two whole numbers, its rounding is up to the last bit.
    assert wrong.float().mean() <= (0.01 if "jpeg" in name else 0)
    if f"{size}_{name}_mask" in arrays:
        assert torch.equal(done.mask, arrays[f"{size}_{name}_mask"].expand_as(done.mask))


# --- Every degradation -----------------------------------------------------------------------------------------------


def test_shape_type_range_and_mask(name, corruption, clean):
    done = corruption(clean, torch.Generator().manual_seed(0))
    assert done.image.shape == clean.shape and done.image.dtype == torch.float32 and done.image.is_contiguous()
    # JPEG of noise overshoots widely, the published blur darkens by a third; but no other scale, and no constant.
    # Noise adds five standard deviations or so.
    assert done.image.abs().max() < 3.5 and done.image.std() > 0.03
    assert (done.mask is None) == ("inpaint" not in name)
    if done.mask is None:
        return
    assert done.mask.shape == (3, 1, SIZE, SIZE) and done.mask.dtype == torch.float32
    assert set(done.mask.unique().tolist()) == {0.0, 1.0}
    outside = (done.mask == 0).expand_as(clean)
    assert torch.equal(done.image[outside], clean[outside]) == (not corruption.noise)
    assert (done.image[~outside] == 1).all()


def test_is_the_same_whatever_the_layout_in_memory(corruption, clean):
    interleaved = clean.contiguous(memory_format=torch.channels_last)  # as pictures from Pillow are
    done = [corruption(x, torch.Generator().manual_seed(0)).image for x in (clean, interleaved)]
    assert done[0].shape == done[1].shape
    assert (done[0] - done[1]).abs().max() < 1e-5


def test_does_not_change_its_input(corruption, clean):
    before = clean.clone()
    corruption(clean)
    assert torch.equal(clean, before)


def test_is_the_same_under_autocast_low_matrix_precision_and_for_other_types(corruption, clean):
    want = corruption(clean, generators(0, 3)).image
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(corruption(clean, generators(0, 3)).image, want)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(corruption(clean, generators(0, 3)).image, want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert corruption(clean.double(), generators(0, 3)).image.dtype == torch.float32


def test_is_determined_by_the_seed_and_by_the_image_alone(corruption, clean):
    whole = corruption(clean, generators(0, 3))
    assert torch.equal(corruption(clean, generators(0, 3)).image, whole.image)
    last = corruption(clean[2:], generators(2, 3))
    torch.testing.assert_close(last.image, whole.image[2:], rtol=0, atol=1e-5)
    fixed = corruption(clean, generators(0, 3), [4, 5, 6])
    # In evaluation the number decides, whatever is drawn besides; of noise the seed does.
    last = corruption(clean[2:], generators(2, 3) if corruption.noise else generators(7, 8), [6])
    torch.testing.assert_close(last.image, fixed.image[2:], rtol=0, atol=1e-5)


def test_takes_non_square_images_and_other_channels_where_defined(name, corruption):
    kind = "jpeg" if name.startswith("jpeg") else name
    for shape in ((2, 3, 48, 96), (1, 3, 144, 48)):
        if kind in SQUARE_ONLY:
            with pytest.raises(ValueError, match="published blur is defined for square"):
                corruption(torch.rand(shape))
        else:
            assert corruption(torch.rand(shape)).image.shape == shape
    for channels in (1, 5):
        images = torch.rand(2, channels, SIZE, SIZE)
        if kind in COLOUR_ONLY:
            with pytest.raises(ValueError, match=f"{channels} channels: .*colour images"):
                corruption(images)
        else:
            assert corruption(images).image.shape == images.shape


def test_builds_nothing_at_call_time(corruption, clean, monkeypatch):
    """Tables, decompositions and the like are made once."""
    corruption(clean)

    def forbidden(*arguments, **options):
        raise AssertionError("built again at call time")

    builders = [(torch.linalg, "svd"), (torch.linalg, "eigh"), (torch.linalg, "pinv"), (torch, "kron"), (np, "load")]
    for module, function in builders:
        monkeypatch.setattr(module, function, forbidden)
    corruption(clean)


@pytest.mark.gpu
def test_is_the_same_on_a_gpu(name, corruption, clean):
    want = corruption(clean, generators(0, 3))
    done = build_corruption(name, SIZE, degradation_noise=corruption.noise).cuda()(clean.cuda(), generators(0, 3))
    wrong = (done.image.cpu() - want.image).abs() > 5e-3
    assert wrong.float().mean() < 0.01
    assert want.mask is None or torch.equal(done.mask.cpu(), want.mask)


# --- Operators -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=LINEAR)
def linear(request, built):
    """A linear degradation with a batch of images, their degraded ones and their masks, in float64."""
    corruption = built[request.param]
    x = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return corruption, x, corruption(x, [torch.Generator().manual_seed(seed) for seed in (1, 2)])


def test_the_linear_ones_are_those_that_are():
    assert set(LINEAR) == {name for name in EXAMPLES if not name.startswith(("jpeg", "mixture"))}


def test_degraded_images_show_the_measurement(linear):
    corruption, x, done = linear
    torch.testing.assert_close(
        corruption.measure(done.image, done.mask).double(), corruption.A(x, done.mask), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", LINEAR)
def test_noise_is_in_what_was_measured(name, built, noisy):
    """σ times a standard normal number for each that was measured; the image is what shows the noisy measurement."""
    x = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain, done = (corruption[name](x, generators(0, 16)) for corruption in (built, noisy))
    assert (plain.mask is None and done.mask is None) or torch.equal(plain.mask, done.mask), "other holes"
    y, exact = (built[name].measure(*corrupted).double() for corrupted in (done, plain))
    torch.testing.assert_close(built[name].show(y.float(), done.mask), done.image, rtol=0, atol=1e-5)
    n = (y - exact) / NOISE
    if done.mask is not None:
        known = (done.mask == 0).expand_as(n)
        assert (n[~known] == 0).all()
        n = n[known]
    within = 5 / n.numel() ** 0.5  # standard errors
    assert abs(n.mean()) < within and abs(n.square().mean() - 1) < 2**0.5 * within
    assert abs((n.flatten()[1:] * n.flatten()[:-1]).mean()) < within, "neighbours have the same noise"


def test_noise_in_a_mixture_is_that_of_its_parts(clean):
    names = ["sr3x-pool", "blur-gauss-exact"]
    mixture = build_corruption(",".join(names), SIZE, degradation_noise=NOISE)
    done = mixture(clean, generators(0, 3), [0, 1, 2]).image
    for row in range(3):
        part = build_corruption(names[row % 2], SIZE, degradation_noise=NOISE)
        want = part(clean[row : row + 1], generators(row, row + 1), [row]).image[0]
        torch.testing.assert_close(done[row], want, rtol=0, atol=1e-5)
    assert mixture.noise == NOISE


@pytest.mark.parametrize("name", ["jpeg-5", "mixture", "sr4x-pool,jpeg-5"])
def test_noise_without_a_measurement_is_refused(name):
    with pytest.raises(ValueError, match="degradation_noise 0.1: .* is no linear degradation") as error:
        build_corruption(name, SIZE, degradation_noise=0.1)
    assert error.value.setting == "degradation_noise"


def test_transpose(linear):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""
    corruption, x, done = linear
    Ax = corruption.A(x, done.mask)
    y = torch.rand(Ax.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    Aty = corruption.A_transpose(y, done.mask)
    assert Aty.shape == x.shape
    torch.testing.assert_close((Ax * y).sum(), (x * Aty).sum())


def test_pseudo_inverse(linear):
    """A A⁺ A = A and A⁺ A A⁺ = A⁺ (the exact blurs leave out what A all but kills)."""
    corruption, x, done = linear
    Ax = corruption.A(x, done.mask)
    back = corruption.A_pinv(Ax, done.mask)
    exact_blur = type(corruption).__name__ == "ExactBlur"
    torch.testing.assert_close(corruption.A(back, done.mask), Ax, rtol=0, atol=1e-3 if exact_blur else 1e-5)
    again = corruption.A_pinv(corruption.A(back, done.mask), done.mask)
    torch.testing.assert_close(again, back, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_operators_agree_with_a_dense_matrix(name, built):
    factor = getattr(built[name], "factor", 1)
    side = factor * max(2, -(-8 // factor))
    corruption = build_corruption(name, side)
    mask = corruption(torch.zeros(1, 3, side, side), torch.Generator().manual_seed(0)).mask
    units = torch.eye(3 * side * side, dtype=torch.float64).view(-1, 3, side, side)
    masks = None if mask is None else mask.expand(len(units), -1, -1, -1)
    matrix = corruption.A(units, masks).flatten(1).T  # column j is A of the j-th unit image
    x = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y = corruption.A(x, mask)
    torch.testing.assert_close(y.flatten(), matrix @ x.flatten())
    torch.testing.assert_close(corruption.A_transpose(y, mask).flatten(), matrix.T @ y.flatten())
    inverse = torch.linalg.pinv(matrix, rtol=1e-4)
    torch.testing.assert_close(corruption.A_pinv(y, mask).flatten(), inverse @ y.flatten(), rtol=0, atol=1e-4)
    _, s, Vt = torch.linalg.svd(matrix)
    s = torch.cat([s, s.new_zeros(len(Vt) - len(s))])
    s = torch.where(s < 1e-4, 0.0, s)
    weigh = lambda s: torch.where(s == 0, 3.0, torch.exp(-s))
    want = Vt.T @ (weigh(s) * (Vt @ x.flatten()))
    torch.testing.assert_close(corruption.reweigh(x, weigh, mask).flatten(), want, rtol=0, atol=1e-5)


def test_gradients_pass_through_operators(linear):
    """∇ ½‖A x‖² = Aᵀ A x, which samplers with data consistency use."""
    corruption, x, done = linear
    x = x.clone().requires_grad_()
    Ax = corruption.A(x, done.mask)
    (gradient,) = torch.autograd.grad(Ax.square().sum() / 2, x)
    torch.testing.assert_close(gradient, corruption.A_transpose(Ax.detach(), done.mask))


# --- Super-resolution ------------------------------------------------------------------------------------------------


SHRINKING = [(factor, kernel) for factor in (2, 3, 4, 8) for kernel in ("pool", "bicubic")]


@pytest.mark.parametrize(("factor", "kernel"), SHRINKING)
def test_super_resolution_repeats_small_pixels_and_keeps_constants(factor, kernel, built, clean):
    corruption = built[f"sr{factor}x-{kernel}"]
    image, small = corruption(clean).image, corruption.A(clean)
    assert small.shape == (3, 3, SIZE // factor, SIZE // factor)
    assert torch.equal(image, small.repeat_interleave(factor, -1).repeat_interleave(factor, -2))
    torch.testing.assert_close(corruption(torch.full_like(clean, 0.3)).image, torch.full_like(clean, 0.3))


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_pooling_is_the_mean_of_blocks(factor):
    x = torch.rand(2, 3, 4 * factor, 2 * factor, dtype=torch.float64)
    want = torch.nn.functional.avg_pool2d(x, factor)
    torch.testing.assert_close(build_corruption(f"sr{factor}x-pool", 4 * factor).A(x), want)


def cubic(x, a=-0.5):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_published_bicubic_matrix_is_the_definition_entry_by_entry():
    """Output k, tap i, on input 4k + 2 - 8 + i, mirrored at the border."""
    size, taps = 24, [cubic((i - 8 + 0.5) / 4) for i in range(16)]
    want = torch.zeros(size // 4, size, dtype=torch.float64)
    for k in range(size // 4):
        for i, tap in enumerate(taps):
            j = 4 * k + 2 - 8 + i
            j = -1 - j if j < 0 else 2 * size - 1 - j if j >= size else j
            want[k, j] += tap / sum(taps)
    torch.testing.assert_close(bicubic_matrix(size, 4, like=want), want)


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_bicubic_is_the_kernel_between_pixel_centres(factor):
    """Pixel j covers [j, j + 1); it is weighed by how far its centre lies from the small pixel's, in small pixels."""
    size = 6 * factor
    rows = np.random.default_rng(0).random((2, size))
    padded = np.pad(rows, ((0, 0), (2 * size, 2 * size)), mode="symmetric")
    centre = np.arange(-2 * size, 3 * size) + 0.5
    want = []
    for k in range(size // factor):
        weights = np.array([cubic((c - (k + 0.5) * factor) / factor) for c in centre])
        want.append(padded @ weights / weights.sum())
    matrix = bicubic_matrix(size, factor, like=torch.zeros((), dtype=torch.float64)).numpy()
    np.testing.assert_allclose(rows @ matrix.T, np.stack(want, axis=1), rtol=0, atol=1e-13)


def test_names_of_families():
    listed = describe_corruptions().splitlines()
    assert sum(line.startswith("srNx-") for line in listed) == 2 and not any(line.startswith("sr4x") for line in listed)
    assert build_corruption("sr16x-pool", 32).A(torch.ones(1, 3, 32, 32)).shape == (1, 3, 2, 2)
    multiples = {"sr4x-pool": 16, "sr3x-bicubic": 48, "sr32x-pool": 32, "sr3x-pool,sr5x-pool": 240, "jpeg-5": 16}
    assert {name: find_multiple(name) for name in multiples} == multiples
    for name in ("sr3x-bicubic", "jpeg-20", "sr5x-pool,jpeg-10"):
        side = find_multiple(name) * 2
        assert build_corruption(name, side).multiple == find_multiple(name)


# --- Blur ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kernel"), [("blur-uni-exact", UNIFORM), ("blur-gauss-exact", GAUSSIAN)])
def test_exact_blur_is_a_convolution_with_black_beyond_the_border(name, kernel, clean):
    taps = torch.tensor(kernel, dtype=torch.float64)
    weights = torch.outer(taps, taps).expand(3, 1, -1, -1)
    X = (clean.double() + 1) / 2
    want = 2 * torch.nn.functional.conv2d(X, weights, padding="same", groups=3) - 1
    torch.testing.assert_close(build_corruption(name, SIZE)(clean).image.double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "white"), [("blur-uni", 0.79), ("blur-gauss", 0.64)])
def test_published_blur_darkens_white_as_published(name, white):
    image = build_corruption(name, 256)(torch.ones(1, 3, 256, 256)).image
    assert (image[0, :, 128, 128].mean() + 1) / 2 == pytest.approx(white, abs=0.006)


def test_published_blur_would_be_the_right_one_if_its_components_were_dealt_out_rightly():
    """U (diag s) Vᵀ is the kernel's matrix without its last tap, but for the singular values that are dropped."""
    side = 32  # no multiple of 3, so that every channel has all products
    blur = build_corruption("blur-uni", side)
    products = blur.W.double().flatten(1).sort(descending=True).values
    assert torch.equal(products[0], products[1]) and torch.equal(products[0], products[2])  # only their order differs
    largest = products[0, 0].sqrt()
    U, V = blur.U.double(), blur.V.double()
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for i in range(side):
        matrix[i, max(0, i - 4) : i + 4] = 1 / 9
    assert (U[:, 0] @ matrix @ V[:, 0]).item() == pytest.approx(largest.item(), rel=1e-5)
    s = torch.diagonal(U.T @ matrix @ V)
    torch.testing.assert_close((U * s) @ V.T, matrix, rtol=0, atol=1e-5)
    assert s.clamp(min=0)[s > 0.03].min() > 0.03 and (s < 0.03).any() and (blur.W == 0).any()


# --- JPEG ------------------------------------------------------------------------------------------------------------


def test_quantisation_tables():
    assert quantisation_table(LUMINANCE, 50).tolist() == [list(map(float, row)) for row in LUMINANCE]
    assert (quantisation_table(CHROMINANCE, 100) == 1).all()
    assert quantisation_table(LUMINANCE, 1).max() == 255
    assert quantisation_table(CHROMINANCE, 45)[7, 7] == 110  # 5000 / 45 is not rounded first, as some programs do
    assert quantisation_table(LUMINANCE, 5)[0, 0] == 160 and quantisation_table(LUMINANCE, 90)[0, :3].tolist() == [
        3,
        2,
        2,
    ]


def test_quantisation_tables_are_those_that_pillow_writes():
    import io

    from PIL import Image

    for quality in (5, 10, 49, 50, 75, 95):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
        for number, table in enumerate((LUMINANCE, CHROMINANCE)):
            written = Image.open(file).quantization[number]
            assert quantisation_table(table, quality).flatten().int().tolist() == list(written)


def test_jpeg_coefficients_are_whole_and_come_back(built, clean):
    jpeg = built["jpeg-10"]
    coefficients = jpeg.encode(clean)
    assert coefficients.luma.shape == (3, 1, SIZE // 8, SIZE // 8, 8, 8)
    assert coefficients.chroma.shape == (3, 2, SIZE // 16, SIZE // 16, 8, 8)
    assert all(torch.equal(part, part.round()) for part in coefficients)
    assert torch.equal(jpeg(clean).image, jpeg.decode(coefficients))


def test_jpeg_is_a_projection(built, clean):
    """Decoding and encoding again gives the same coefficients."""
    jpeg = built["jpeg-5"]
    first = jpeg.encode(clean)
    again = jpeg.encode(jpeg.decode(first))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_jpeg_coefficients_are_the_definition(built, clean):
    """One block, by the textbook's double sum."""
    rgb = (clean[0, :, :8, :8].double() + 1) * 127.5
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] - 128
    i = torch.arange(8, dtype=torch.float64)
    for v, u in ((0, 0), (0, 3), (5, 1)):
        waves = torch.cos((2 * i[:, None] + 1) * v * torch.pi / 16) * torch.cos((2 * i + 1) * u * torch.pi / 16)
        scale = 0.25 * (0.5**0.5 if v == 0 else 1) * (0.5**0.5 if u == 0 else 1)
        want = (scale * (luma * waves).sum() / quantisation_table(LUMINANCE, 37)[v, u]).round()
        assert built["jpeg-37"].encode(clean).luma[0, 0, 0, 0, v, u] == want


# --- Inpainting ------------------------------------------------------------------------------------------------------


def test_center_hole_is_the_middle_quarter():
    mask = build_corruption("inpaint-center", 16)(torch.zeros(1, 3, 16, 16)).mask[0, 0]
    assert mask.sum() == 64 and mask[4:12, 4:12].all()


@pytest.mark.parametrize("percents", FREEFORM.values())
@pytest.mark.parametrize(("height", "width"), [(256, 256), (32, 32), (7, 93), (130, 67)])
def test_strokes_cover_their_share_exactly(percents, height, width):
    masks = draw_strokes(Draws(40, torch.Generator().manual_seed(0)), height, width, percents)
    assert masks.shape == (40, 1, height, width) and set(masks.unique().tolist()) == {0.0, 1.0}
    least, beyond = count_bounds(percents, height * width)
    covered = masks.sum((1, 2, 3))
    assert covered.min() >= least and covered.max() < beyond
    assert covered.min() < least + (beyond - least) / 4 and covered.max() > beyond - (beyond - least) / 4
    assert len(masks.flatten(1).unique(dim=0)) == 40


def test_count_bounds_are_the_shares():
    for pixels in (64, 65536, 651):
        for low, high in FREEFORM.values():
            counts = [n for n in range(pixels) if low * pixels <= 100 * n < high * pixels]
            assert count_bounds((low, high), pixels) == (counts[0], counts[-1] + 1)


def test_strokes_of_an_evaluation_are_a_function_of_the_number():
    first = draw_strokes(Draws(3, None, [0, 1, 2]), 64, 64, (10, 20))
    again = draw_strokes(Draws(2, torch.Generator().manual_seed(9), [2, 7]), 64, 64, (10, 20))
    assert torch.equal(again[0], first[2]) and not torch.equal(again[1], first[2])


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory):
    """A file laid out as the published one, with seven masks a key."""
    path = tmp_path_factory.mktemp("masks") / "masks.npz"
    rng = np.random.default_rng(0)
    masks = {
        f"{low}-{high}% freeform": rng.random((7, 256, 256)) < (low + high) / 200 for low, high in FREEFORM.values()
    }
    np.savez(path, **{key: np.packbits(mask) for key, mask in masks.items()})
    return path, masks


# How the released program's own file may hold masks, bool [M, 256, 256].
MASK_LAYOUTS = {
    "bool": lambda masks: masks,
    "float32": lambda masks: masks[:, None].astype(np.float32),
    "big-endian": lambda masks: masks.astype(">f8"),
    "bits": np.packbits,
}


@pytest.mark.parametrize(("name", "percents"), FREEFORM.items())
def test_mask_file(mask_file, name, percents):
    path, masks = mask_file
    want = torch.from_numpy(masks["{}-{}% freeform".format(*percents)]).float()
    corruption = build_corruption(name, 256, mask_file=str(path))
    clean = torch.rand(4, 3, 256, 256)
    assert torch.equal(corruption(clean, None, [0, 6, 7, 3]).mask[:, 0], want[[0, 6, 0, 3]])  # counted round
    drawn = corruption(clean, torch.Generator().manual_seed(0)).mask[:, 0]
    assert all((mask == want).flatten(1).all(1).any() for mask in drawn)
    assert sum(buffer.numel() * buffer.element_size() for buffer in corruption.buffers()) < 7 * 256 * 256 / 8 + 100
    assert str(path) in corruption.note and "7" in corruption.note
    assert "drawn by this program" in build_corruption(name, 64).note


@pytest.mark.parametrize("lay_out", MASK_LAYOUTS)
def test_the_released_programs_own_file_of_masks(mask_file, tmp_path, lay_out, monkeypatch):
    """One kind of masks under the key "mask": they are those of the published file, whatever way they lie there."""
    path = tmp_path / "imagenet_freeform2030_masks.npz"
    masks = mask_file[1]["20-30% freeform"]
    np.savez(path, mask=MASK_LAYOUTS[lay_out](masks))
    monkeypatch.setattr("corruption.mask_file._AT_ONCE", 3)  # of seven
    published, own = (
        build_corruption("inpaint-freeform2030", 256, mask_file=str(file)).masks for file in (mask_file[0], path)
    )
    assert torch.equal(own.packed, published.packed)
    with pytest.raises(ValueError, match=r"the holes of 'mask' cover 2\d\.\d % of the area on average, not 10 to 20 %"):
        build_corruption("inpaint-freeform1020", 256, mask_file=str(path))


def test_random_masks_of_a_file_are_drawn_evenly(mask_file):
    corruption = build_corruption("inpaint-freeform1020", 256, mask_file=str(mask_file[0]))
    draws = Draws(2000, torch.Generator().manual_seed(0))
    number = (draws.rand() * len(corruption.masks)).long()
    assert torch.bincount(number, minlength=7).min() > 200 and number.max() == 6


# --- Mixture ---------------------------------------------------------------------------------------------------------

NINE = CORRUPTIONS[:9]


def test_mixture_of_an_evaluation_counts_round_in_the_published_order(built, clean):
    assert (
        *("jpeg-5", "jpeg-10", "blur-uni", "blur-gauss", "sr4x-pool", "sr4x-bicubic", "inpaint-center"),
        *("inpaint-freeform1020", "inpaint-freeform2030"),
    ) == NINE
    images = clean[:1].expand(20, -1, -1, -1)
    done = built["mixture"](images, None, range(5, 25))
    assert done.mask is None
    for row, number in enumerate(range(5, 25)):
        want = built[NINE[number % 9]](clean[:1], None, [number]).image  # with the image's own mask
        torch.testing.assert_close(done.image[row], want[0], rtol=0, atol=1e-5)


def test_mixture_draws_all_nine_evenly_in_training(built):
    count = 400
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    done = built["mixture"](image.expand(count, -1, -1, -1), generators(0, count)).image
    fixed = [built[name](image).image[0] for name in NINE[:7]]
    seen = [sum(torch.allclose(one, other, atol=1e-4) for one in done) for other in fixed]
    assert min(seen) > 20 and count - sum(seen) > 50  # the rest have freeform holes


def test_mixture_reads_the_mask_file_for_both_of_its_freeform_kinds(mask_file):
    path, masks = mask_file
    corruption = build_corruption("mixture", 256, mask_file=str(path))
    done = corruption(torch.zeros(2, 3, 256, 256), None, [7, 8]).image
    assert torch.equal(done[0, 0] == 1, torch.from_numpy(masks["10-20% freeform"][0]))
    assert torch.equal(done[1, 0] == 1, torch.from_numpy(masks["20-30% freeform"][1]))


def test_own_mixture_goes_round_its_entries_and_draws_them_evenly(built):
    names = ["jpeg-10", "sr4x-bicubic", "blur-gauss-exact"]
    mixture = build_corruption(",".join(names), SIZE)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    want = [build_corruption(name, SIZE)(image).image[0] for name in names]
    done = mixture(image.expand(7, -1, -1, -1), None, range(4, 11))
    assert done.mask is None
    for row, number in enumerate(range(4, 11)):
        torch.testing.assert_close(done.image[row], want[number % 3], rtol=0, atol=1e-5)
    drawn = mixture(image.expand(300, -1, -1, -1), generators(0, 300)).image
    seen = [sum(torch.allclose(one, other, atol=1e-4) for one in drawn) for other in want]
    assert sum(seen) == 300 and min(seen) > 70
    twice = build_corruption("jpeg-10,jpeg-10,sr4x-bicubic", SIZE)(image.expand(300, -1, -1, -1), generators(0, 300))
    assert 170 < sum(torch.allclose(one, want[0], atol=1e-4) for one in twice.image) < 230


@pytest.mark.parametrize("rows", [[0, 1], [1, 3], [0, 2], [3]])
def test_own_mixture_gives_masks_and_says_whose_they_are(clean, rows):
    """Whatever is drawn into a batch: an image's noise must not depend on its neighbours."""
    mixture = build_corruption("inpaint-center,jpeg-10", SIZE)
    assert mixture.makes_holes and not build_corruption("mixture", SIZE).makes_holes
    done = mixture(clean[:1].expand(len(rows), -1, -1, -1), None, rows)
    center = build_corruption("inpaint-center", SIZE)(clean[:1])
    assert mixture.mixes_holes and not build_corruption("inpaint-center,inpaint-freeform1020", SIZE).mixes_holes
    for row, number in enumerate(rows):
        assert torch.equal(done.mask[row], center.mask[0] if number % 2 == 0 else torch.zeros(1, SIZE, SIZE))
        if number % 2 == 0:
            assert torch.equal(done.image[row], center.image[0])


def test_own_mixture_takes_what_its_entries_take(mask_file):
    path, masks = mask_file
    done = build_corruption("sr4x-pool,inpaint-freeform2030", 256, mask_file=str(path))(
        torch.zeros(2, 3, 256, 256), None, [0, 1]
    )
    assert torch.equal(done.mask[1, 0] == 1, torch.from_numpy(masks["20-30% freeform"][1]))
    assert build_corruption("sr4x-pool,sr4x-bicubic").reference_split == "train"
    assert build_corruption("sr4x-pool,jpeg-10").reference_split == "val"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jpeg-10,sr4x-pol", "sr4x-pol: unknown degradation; did you mean sr4x-pool"),
        ("jpeg-10,", "unknown degradation"),
        ("jpeg-10,mixture", "mixture is the published nine"),
        ("jpeg-10,paired", "paired: unknown degradation"),
        ("jpeg-10,jpeg-0", "quality must be between 1 and 100"),
    ],
)
def test_wrong_mixtures_are_named(name, words):
    with pytest.raises(ValueError, match=words):
        build_corruption(name, SIZE)
    with pytest.raises(ValueError, match="jpeg-10,sr4x-pool: takes no `mask_file`"):
        build_corruption("jpeg-10,sr4x-pool", SIZE, mask_file="x.npz")
    assert is_custom("jpeg-10,mine.py:Mine")  # so that nobody runs that file unasked


# --- Decolouring -----------------------------------------------------------------------------------------------------


def test_decolor_keeps_greys_and_weighs_colours_as_pillow_does(built, clean):
    from torchvision.transforms.functional import rgb_to_grayscale

    grey = torch.rand(1, 1, SIZE, SIZE).expand(-1, 3, -1, -1)
    torch.testing.assert_close(built["decolor"](grey).image, grey)
    torch.testing.assert_close(built["decolor"](clean).image[:, :1], rgb_to_grayscale(clean), rtol=0, atol=3e-4)


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_corruption("sr4x-pol"), "corrupt sr4x-pol: unknown degradation; did you mean sr4x-pool?"),
        (lambda: build_corruption("xyz"), "corrupt xyz: unknown degradation; there are jpeg-5, "),
        (lambda: build_corruption("sr4x-pool", mask_file="x"), "corrupt sr4x-pool: takes no `mask_file`"),
        (lambda: build_corruption("sr3x-pol"), "corrupt sr3x-pol: unknown degradation; did you mean srNx-pool?"),
        (lambda: build_corruption("sr1x-pool"), "corrupt sr1x-pool: the factor must be at least 2"),
        (lambda: build_corruption("sr0x-bicubic"), "corrupt sr0x-bicubic: the factor must be at least 2"),
        (lambda: build_corruption("sr-4x-pool"), "unknown degradation; did you mean sr4x-pool?"),
        (lambda: build_corruption("sr3x-pool", 64), "64x64 pixels: sr3x needs multiples of 3 from 6 on"),
        (lambda: build_corruption("sr64x-pool", 64), "sr64x needs multiples of 64 from 128 on"),
        (lambda: build_corruption("sr4x-pool", 30), "30x30 pixels: sr4x needs multiples of 4"),
        (lambda: build_corruption("sr4x-bicubic", 64)(torch.zeros(1, 3, 64, 30)), "64x30 pixels"),
        (lambda: build_corruption("inpaint-center", 2), "at least 4 pixels"),
        (lambda: build_corruption("inpaint-freeform1020", 2), "too small for a hole"),
        (lambda: build_corruption("jpeg-0", 64), "corrupt jpeg-0: the quality must be between 1 and 100"),
        (lambda: build_corruption("jpeg-101", 64), "must be between 1 and 100"),
        (lambda: build_corruption("jpeg-5", 24), "24x24 pixels, 3 channels: jpeg needs colour images whose sides"),
        (lambda: build_corruption("jpeg-5", 32, image_channels=1), "1 channels: jpeg needs colour images"),
        (lambda: build_corruption("blur-uni", 64)(torch.zeros(1, 3, 32, 32)), "was built for 64x64"),
        (lambda: build_corruption("mixture", 40), "40x40 pixels"),
        (lambda: build_corruption("jpeg-5", 16)(torch.zeros(2, 3, 16, 16), generators(0, 3)), "3 generators for 2"),
    ],
)
def test_wrong_names_and_sizes_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


NPY_HEADER = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (8192,), }".ljust(118)


def zip_masks(path, content: bytes, key: str = "10-20% freeform") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", content)


def cut_off_masks() -> bytes:
    """One of two masks, of eight bytes a pixel."""
    file = io.BytesIO()
    np.save(file, np.zeros((2, 256, 256)))
    return file.getvalue()[: -256 * 256 * 8]


def damage(path) -> None:
    a, b, c = np.random.default_rng(0).integers(256, size=(3, 1 << 16), dtype=np.uint8)
    np.savez_compressed(path, **{"10-20% freeform": a & b & c})  # an eighth of the bits
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "there is no such file"),
        (
            lambda path: path.write_bytes(b"no zip"),
            "cannot be read as .npz of '10-20% freeform' or 'mask' (BadZipFile: ",
        ),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "cannot be read as .npz"),
        (lambda path: np.savez(path, a=np.zeros(3)), "of '10-20% freeform' or 'mask' (ValueError: it holds a)"),
        (lambda path: zip_masks(path, b"no array"), "cannot be read"),
        (lambda path: zip_masks(path, NPY_HEADER.replace(b"8192", b"9" * 4)), "cannot be read"),
        (lambda path: zip_masks(path, NPY_HEADER.replace(b"8192", b"9" * 22)), "cannot be read"),
        (lambda path: zip_masks(path, NPY_HEADER + bytes(1 << 30)), "1073741952 bytes are more than 1073741824"),
        (
            lambda path: np.savez(path, **{"10-20% freeform": np.zeros(8192)}),
            "must be masks of 256x256 pixels, [M, 256, 256] or bit-",
        ),
        (lambda path: np.savez(path, **{"10-20% freeform": np.zeros(8191, np.uint8)}), "must be masks of"),
        (lambda path: np.savez(path, **{"10-20% freeform": np.full(8192, 255, np.uint8)}), "cover 100.0 % of the area"),
        (lambda path: np.savez(path, **{"10-20% freeform": np.array([print], dtype=object)}), "allow_pickle=False"),
        (lambda path: damage(path), "cannot be read"),
        (lambda path: np.savez(path, mask=np.full((2, 256, 256), 255, np.uint8)), "its values are not 0 and 1"),
        (lambda path: np.savez(path, mask=np.full((2, 256, 256), np.nan)), "its values are not 0 and 1"),
        (lambda path: np.savez(path, mask=np.full((2, 256, 256), "1")), "its values are of type <U1"),
        (lambda path: np.savez(path, mask=np.full((2, 256, 256), print)), "its values are of type object"),
        (lambda path: np.savez(path, mask=np.zeros((2, 3, 256, 256), bool)), "found bool of 393216"),
        (lambda path: np.savez(path, mask=np.asfortranarray(np.zeros((2, 256, 256)))), "found float64 of 131072"),
        (lambda path: np.savez(path, mask=np.zeros((0, 256, 256), bool)), "found uint8 of 0"),
        (lambda path: np.savez(path, mask=np.ones((2, 256, 256))), "holes of 'mask' cover 100.0 %"),
        (lambda path: zip_masks(path, cut_off_masks(), "mask"), "65536 of 131072 pixels are there"),
        (lambda path: zip_masks(path, cut_off_masks()[:-7], "mask"), "cannot be read"),
    ],
)
def test_broken_mask_files_are_named(tmp_path, make, words):
    path = tmp_path / "masks.npz"
    make(path)
    with pytest.raises(ValueError) as error:
        build_corruption("inpaint-freeform1020", 256, mask_file=str(path))
    assert f"mask_file {path}: " in str(error.value) and words in str(error.value)


def test_mask_file_fits_its_size_only(mask_file):
    with pytest.raises(ValueError, match="its masks are 256x256 pixels, the images 64x64"):
        build_corruption("inpaint-freeform1020", 64, mask_file=str(mask_file[0]))
