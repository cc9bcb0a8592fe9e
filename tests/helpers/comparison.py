"""Whether two things are equal, to the last bit or but for rounding."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def assert_equal_states(one, other, where=""):
    """Compare nested dicts and lists of tensors and numbers, to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_states(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(a, b, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_equal_but_for_rounding(one: bytes, other: bytes) -> None:
    """Compare two files of pictures that were computed in other batches: rounding may carry a value over one level."""
    pixels, want = (np.asarray(Image.open(io.BytesIO(content)), dtype=np.int16) for content in (one, other))
    assert pixels.shape == want.shape and abs(pixels - want).max() <= 1
