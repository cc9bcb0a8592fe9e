"""The demo's photographs."""

from __future__ import annotations

from helpers.programs import ROOT


def test_demo_never_trains_on_a_validation_photograph(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from demo_photos import PHOTOS

    train, val = PHOTOS["train"], PHOTOS["val"]
    assert not train.keys() & val.keys() and not set(train.values()) & set(val.values())
    # A stereo pair is one scene: both sides of it stay on one side of the split.
    scenes = [{name.split("_")[0] for name in photos} for photos in (train, val)]
    assert not scenes[0] & scenes[1]
