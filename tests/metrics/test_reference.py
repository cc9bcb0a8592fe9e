"""Reference statistics: broken files are named."""

from __future__ import annotations

import numpy as np
import pytest

from i2sb.errors import UserError
from i2sb.metrics.reference import read_reference


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "there is no such file"),
        (b"PK\x03\x04 cut off", "cannot be used"),
        ({"mean": np.zeros(2)}, "it holds mean; mu and sigma are wanted"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"mu \[2\] and sigma \[3, 3\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 2], [3, 4]])}, "sigma is not symmetric"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "cannot be used"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "made_from": "{}["}, "cannot be used"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "made_from": '{"split": 3}'}, "split 3 is no str"),
    ],
)
def test_broken_references_are_named(tmp_path, arrays, words):
    path = tmp_path / "a.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"^reference .*a.npz: .*{words}"):
        read_reference(path)
