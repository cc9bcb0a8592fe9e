"""The network's wrapping: step indices in, condition beside the state, sizes by name."""

from __future__ import annotations

import pytest
import torch

from i2sb.bridge import Bridge
from i2sb.network import PRESETS, build_network, check_image_size


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "adm256"])
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
    with pytest.raises(ValueError, match="--image-size 100: --network adm256 takes multiples of 32, such as 96 or 128"):
        check_image_size("adm256", 100)
    with pytest.raises(ValueError, match="--network adm512: unknown; choose one of adm256, "):
        check_image_size("adm512", 100)
