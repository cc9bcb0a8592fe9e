"""The network's wrapping: step indices in, condition beside the state, sizes by name."""

from __future__ import annotations

import pytest
import torch

from i2sb.bridge import Bridge
from i2sb.network import build_network
from i2sb.network_sizes import NETWORKS, UNetSize, check_image_size, find_network


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "adm256"])
@pytest.mark.parametrize("cond_x1", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_small_presets_run(name, cond_x1, channels):
    net = build_network(name, Bridge(100).noise_levels, image_channels=channels, cond_x1=cond_x1)
    x = torch.randn(2, channels, 16, 16)
    y = net(x, torch.tensor([0, 99]), cond=x if cond_x1 else None)
    assert y.shape == x.shape


def test_step_index_becomes_the_published_time():
    bridge = Bridge(1000)
    net = build_network("tiny", bridge.noise_levels)
    seen = []
    net.diffusion_model.forward = lambda x, timesteps: seen.append(timesteps) or x
    net(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 500, 999]))
    torch.testing.assert_close(seen[0][[0, 1, 3]], torch.tensor([0.1, 1.1009, 1000.0]), rtol=0, atol=1e-4)


def test_state_dict_has_the_released_prefix_and_no_time():
    names = build_network("tiny", Bridge(10).noise_levels).state_dict()
    assert all(name.startswith("diffusion_model.") for name in names)


def test_condition_changes_the_output_through_its_own_channels():
    net = build_network("tiny", Bridge(10).noise_levels, cond_x1=True)
    assert net.diffusion_model.input_blocks[0][0].in_channels == 6
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, step = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert not torch.allclose(net(x, step, cond=x), net(x, step, cond=-x))


@pytest.mark.parametrize(("name", "size"), [("adm256", 256), ("adm256", 32), ("tiny", 2), ("small64", 64)])
def test_sizes_that_fit(name, size):
    check_image_size(name, size)


def test_wrong_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="image_size 100: `network` adm256 takes multiples of 32, such as 96 or 128"):
        check_image_size("adm256", 100)
    with pytest.raises(ValueError, match="network adm512: unknown; choose one of adm256, "):
        check_image_size("adm512", 100)


@pytest.mark.parametrize("channels", [64, 32])
def test_heads_are_told_by_their_number_or_their_channels(channels):
    """Four heads everywhere are heads of 8 channels where there are 32, of 16 where there are 64."""
    name = f"unet-{channels}x1-blocks1-attention1-heads"
    counted, sized = (build_network(name + heads, Bridge(10).noise_levels) for heads in ("4x", str(channels // 4)))
    for parameter in counted.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sized.load_state_dict(counted.state_dict())
    x, step = torch.randn(1, 3, 8, 8), torch.tensor([3])
    assert torch.equal(counted(x, step), sized(x, step))
    other = build_network(f"{name}4", Bridge(10).noise_levels)  # of four channels each
    other.load_state_dict(counted.state_dict())
    assert not torch.allclose(counted(x, step), other(x, step))
    assert find_network(f"{name}4x").describe() == f"{name}4x"


def test_multiples_may_be_fractions():
    """ADM's network for 512 pixels begins with half its base width."""
    adm512 = find_network("unet-256x1/2.1.1.2.2.4.4-blocks2-attention16.32.64-heads64")
    assert adm512 == UNetSize(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), 64)
    net = build_network("unet-64x1/2.3/2-blocks1-attention-heads4x", Bridge(10).noise_levels)
    assert net.diffusion_model.first_convolution.out_channels == 32
    assert net.diffusion_model.middle_block[0].in_layers[2].in_channels == 96
    assert find_network("unet-64x1/2.3/2-blocks1-attention-heads4x").describe().startswith("unet-64x1/2.3/2-")
    assert net(torch.zeros(1, 3, 8, 8), torch.tensor([0])).shape == (1, 3, 8, 8)


# --- Patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [2, 4])
def test_a_network_behind_patches_is_the_unet_on_rearranged_pixels(patch):
    """Pixel (py, px) of a patch becomes channel c·p² + py·p + px, there and back; those of the condition come last."""
    name = f"unet-32x1.1-blocks1-attention-heads32-patch{patch}"
    net = build_network(name, Bridge(10).noise_levels, cond_x1=True).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    xt, cond, step = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24), torch.tensor([3, 7])

    def rearrange(x):
        parts = [x[:, c, py::patch, px::patch] for c in range(3) for py in range(patch) for px in range(patch)]
        return torch.stack(parts, dim=1)

    with torch.no_grad():
        out = net(xt, step, cond=cond)
        want = net.diffusion_model(torch.cat([rearrange(xt), rearrange(cond)], dim=1), net.noise_levels[step])
    assert out.shape == xt.shape
    torch.testing.assert_close(rearrange(out), want)
    # Only the condition's inputs are more than an unconditioned network has.
    plain = build_network(name, Bridge(10).noise_levels)
    count = lambda network: sum(p.numel() for p in network.parameters())
    assert net.count_condition_parameters() == count(net) - count(plain) > 0


def test_patches_are_described_and_their_sides_refused():
    assert find_network(NETWORKS["compact"].describe()) == NETWORKS["compact"]
    assert NETWORKS["compact"].describe().endswith("-patch2")
    check_image_size("compact", 64)
    with pytest.raises(ValueError, match="`network` compact takes multiples of 8, such as 56 or 64"):
        check_image_size("compact", 60)
    net = build_network("compact", Bridge(10).noise_levels)
    with pytest.raises(ValueError, match="images of 12x16 pixels: this network takes multiples of 8"):
        net(torch.zeros(1, 3, 12, 16), torch.tensor([0]))


def test_the_compact_network_has_three_million_parameters():
    net = build_network("compact", Bridge(10).noise_levels)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 3.0
