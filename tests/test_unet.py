"""The U-Net: ADM's names, order and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.formula_network import formula_network
from helpers.golden import golden, golden_json
from i2sb.bridge import Bridge
from i2sb.network import BridgeNetwork
from i2sb.unet import UNet, timestep_embedding


# The largest network's golden output lies 1.0e-4 from a float64 evaluation of the same arithmetic (ours: 1.4e-5), so
# two correct float32 programs may differ by that much.
@pytest.mark.parametrize(
    ("case", "tolerance"), [("tiny", 1e-5), ("mid_cond", 1e-4), pytest.param("adm256", 2e-4, marks=pytest.mark.slow)]
)
def test_output_equals_golden(case, tolerance):
    want = golden("unet_formula")
    net, x = formula_network(case)
    if case == "adm256":
        expected = golden_json("adm256_state_dict")["uncond"]
        assert sum(p.numel() for p in net.parameters()) == expected["parameters"] == 552_807_171
        assert [[name, list(p.shape)] for name, p in net.state_dict().items()] == expected["state_dict"]
    with torch.no_grad():
        y = net(x, want[f"{case}_t"])
    error = (y - want[f"{case}_y"]).norm() / want[f"{case}_y"].norm()
    assert error < tolerance, error


def test_conditioned_adm_has_six_inputs_and_the_published_size():
    expected = golden_json("adm256_state_dict")["cond"]
    settings = golden_json("unet_formula_adm256")
    settings.pop("hw")
    with torch.device("meta"):
        net = UNet(out_channels=3, **{**settings, "in_channels": 6})
    assert [[name, list(p.shape)] for name, p in net.state_dict().items()] == expected["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == expected["parameters"] == 552_814_083


def test_time_embedding_equals_golden():
    want = golden("time_embedding")
    torch.testing.assert_close(timestep_embedding(want["t"], 256), want["embedding_256"], rtol=0, atol=1e-4)


def test_time_embedding_is_as_precise_as_its_timesteps():
    t = torch.tensor([0.1, 3.0, 999.7], dtype=torch.float64)
    angles = t.numpy()[:, None] * 10000.0 ** (-np.arange(16) / 16)
    want = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_embedding(t, 32).numpy(), want, rtol=0, atol=1e-12)
    for dtype in (torch.float16, torch.float32, torch.int64):
        assert timestep_embedding(t.to(dtype), 32).dtype == torch.float32


def small(in_channels: int = 3, out_channels: int = 3) -> UNet:
    torch.manual_seed(0)
    net = UNet(in_channels, 32, out_channels, 1, (2,), (1, 2, 2), num_head_channels=16)
    for parameter in net.parameters():  # nothing silent: every path shows in the output
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_fresh_network_is_silent():
    assert UNet(3, 32, 3, 1, (2,), (1, 2))(torch.randn(1, 3, 8, 8), torch.tensor([5.0])).abs().max() == 0


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("size", [(4, 4), (8, 20), (32, 12)])
def test_any_multiple_of_the_rate_and_any_channels(channels, size):
    net = small(channels, channels)
    assert net.downsampling == 4
    y = net(torch.randn(2, channels, *size), torch.tensor([0.1, 700.0]))
    assert y.shape == (2, channels, *size)
    assert y.isfinite().all()


@pytest.mark.parametrize("size", [(6, 8), (8, 9), (2, 4)])
def test_other_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels: this network takes multiples of 4"):
        small()(torch.randn(1, 3, *size), torch.tensor([1.0]))


def test_images_do_not_see_each_other():
    net, x, t = small(), torch.randn(3, 3, 8, 8), torch.tensor([1.0, 50.0, 999.0])
    together = net(x, t)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_half_convolutions_keep_float32_around_them():
    net, x, t = small(), torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])
    with torch.no_grad():
        full = net(x, t)
        half = net.half_convolutions()(x, t)
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() / full.norm() < 5e-3
    dtypes = {name: p.dtype for name, p in net.named_parameters()}
    halved = {name for name, dtype in dtypes.items() if dtype == torch.float16}
    assert "input_blocks.0.0.weight" in halved and "middle_block.1.qkv.bias" in halved
    assert not any(
        part in name for name in halved for part in ("emb_layers", "time_embed", "norm", "layers.0", "out.2")
    )


def test_double_network_computes_in_float64_from_input_to_output():
    net, x, t = small(), torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    want = net(x, t)
    net, x = net.double(), x.double()
    y = net(x, t)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), want, rtol=1e-4, atol=1e-5)
    assert torch.equal(y, net(x, t.double()))
    change = 1e-7 * torch.randn_like(x)  # what float32 anywhere on the way would round away or to something else
    near, far = net(x + change, t) - y, net(x + 2 * change, t) - y
    torch.testing.assert_close(far, 2 * near, rtol=0, atol=1e-4 * near.abs().max().item())

    levels = Bridge(100).noise_levels
    bridge_net = BridgeNetwork(small(6, 3), levels).double()
    y = bridge_net(x, torch.tensor([0, 99]), x)
    assert torch.equal(y, bridge_net.diffusion_model(torch.cat([x, x], dim=1), levels[[0, 99]].double()))
    assert y.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((3, 48, 3, 1, (), (1,)), "model_channels 48.*multiple of 32"), ((3, 32, 3, 1, (1,), (1,)), "heads of 64")],
)
def test_impossible_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        UNet(*arguments)
