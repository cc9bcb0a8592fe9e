"""Networks on images of any size: padding, and tiles that nobody sees."""

from __future__ import annotations

import pytest
import torch

from i2sb.tiles import lay_tiles, pad_reflect, tiled


@pytest.mark.parametrize(("side", "tile", "overlap"), [(16, 16, 4), (17, 16, 4), (100, 32, 8), (64, 32, 0), (7, 16, 4)])
def test_tiles_cover_everything_and_their_weights_add_up(side, tile, overlap):
    axis = lay_tiles(side, tile, overlap)
    total = torch.zeros(side)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert len(weight) == min(tile, side) and (weight > 0).all()
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(side))
    assert axis.starts[0] == 0 and axis.starts[-1] + min(tile, side) == side
    assert all(b - a <= tile - overlap for a, b in zip(axis.starts, axis.starts[1:], strict=False))


def test_tiles_of_a_local_network_change_nothing():
    """A network that works pixel by pixel is the same in tiles; one step and the condition reach every tile."""
    net = lambda x, step, cond: 2 * x + cond + step.view(-1, 1, 1, 1)
    x, cond, step = torch.randn(2, 3, 50, 41), torch.randn(2, 3, 50, 41), torch.tensor([3, 7])
    for batch_size in (1, 5, 100):
        done = tiled(net, 16, 6, batch_size)(x, step, cond=cond)
        torch.testing.assert_close(done, net(x, step, cond), rtol=0, atol=1e-5)


def test_seams_are_blended():
    """Tiles that disagree by 1 meet in steps as small as the overlap is long."""
    calls = []

    def net(x, step, cond):
        calls.append(len(x))
        return torch.full_like(x, len(calls) % 2)

    done = tiled(net, 16, 8)(torch.zeros(1, 1, 16, 40), torch.tensor([0]), cond=None)[0, 0, 0]
    assert calls == [1, 1, 1, 1] and done.min() == 0 and done.max() == 1
    assert done.diff().abs().max() < 0.15


@pytest.mark.parametrize(("height", "width"), [(5, 8), (1, 3), (8, 8), (9, 33)])
def test_padding_mirrors_and_keeps_the_picture(height, width):
    x = torch.randn(1, 2, height, width)
    padded = pad_reflect(x, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(padded[..., :height, :width], x)
    if height == 5:
        assert torch.equal(padded[..., 5:8, :], x[..., [3, 2, 1], :])
