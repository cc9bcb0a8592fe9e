"""Weights exported to one file: written, read, and loaded like the run they come from."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.programs import ROOT, run_python
from i2sb import load_model
from i2sb.errors import UserError
from i2sb.storage.checkpoint import find_checkpoint, read_checkpoint
from i2sb.storage.exported import Exported, read_export, write_export


def test_exported_weights_load_alike(tmp_path, trained_run, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from export import export

    for raw in (False, True):
        out = tmp_path / f"{raw}.safetensors"
        export(trained_run, out, raw=raw, overwrite=False)
        want, model = load_model(trained_run, ema=not raw), load_model(out)
        assert (model.config, model.iteration, read_export(out).averaged) == (want.config, 6, not raw)
        for name, p in want.network.state_dict().items():
            assert torch.equal(p, model.network.state_dict()[name])
        # Where memory begins at odd places some processors add up in another order.
        assert all(p.data_ptr() % 64 == 0 for net in (want.network, model.network) for p in net.parameters())
    x = torch.rand(1, 3, 16, 16)
    # Rounding, 6e-8 an operation, through twenty layers and ten evaluations; a step of 8 bits is 8e-3.
    torch.testing.assert_close(model.restore(x), want.restore(x), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="True.safetensors: exists already; .* `overwrite`"):
        export(trained_run, out, raw=False, overwrite=False)
    export(trained_run, out, raw=False, overwrite=True)
    with pytest.raises(UserError, match="holds averaged weights; the raw ones"):
        load_model(out, ema=False)
    assert not list(tmp_path.glob(".*"))


def test_export_as_a_process(tmp_path, trained_run):
    command = [ROOT / "scripts/export.py", trained_run.name, tmp_path / "a.safetensors", "--results-dir"]
    done = run_python(*command, trained_run.parent)
    assert f"averaged weights of {trained_run} after 6 iterations" in done.stdout
    done = run_python(*command, tmp_path / "none", check=False)
    assert done.returncode == 2 and "there is no such run" in done.stderr and "Traceback" not in done.stderr


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, trained_run, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from export import export

    for half in (False, True):
        export(trained_run, tmp_path / f"{half}.safetensors", raw=False, overwrite=False, half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    whole, halved = (load_model(tmp_path / f"{half}.safetensors").network.state_dict() for half in (False, True))
    for name, p in whole.items():
        assert halved[name].dtype == torch.float32
        torch.testing.assert_close(halved[name], p, rtol=2**-11, atol=2**-25)  # float16's roundings
    state = read_checkpoint(find_checkpoint(trained_run)[0])
    state["ema"]["shadow_params"][0].fill_(1e6)
    shutil.copytree(trained_run, tmp_path / "run")
    for path in (*(tmp_path / "run").glob("*.pt"), tmp_path / "run" / "checkpoints.json"):
        path.unlink()
    torch.save(state, tmp_path / "run" / "checkpoint_00000006.pt")
    with pytest.raises(UserError, match="half: diffusion_model.* is beyond what float16 can hold"):
        export(tmp_path / "run", tmp_path / "b.safetensors", raw=False, overwrite=False, half=True)


def test_broken_exports_are_named(tmp_path, trained_run):
    model = load_model(trained_run)
    out = tmp_path / "a.safetensors"
    write_export(out, Exported(model.network.state_dict(), model.config, 6, averaged=True))
    whole = out.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        out.write_bytes(whole[:length])
        with pytest.raises(UserError, match="a.safetensors: broken file of weights"):
            load_model(out)
    tensors = load_file_of(whole, out)
    save_file(tensors, out)
    with pytest.raises(UserError, match="a.safetensors: lacks the settings"):
        load_model(out)
    save_file(tensors, out, metadata={"config": "[]", "iteration": "1", "weights": "raw"})
    with pytest.raises(UserError, match="a.safetensors: must hold lines of the form"):
        load_model(out)
    with pytest.raises(UserError, match="a.pt: the name must end in .safetensors"):
        write_export(tmp_path / "a.pt", Exported(tensors, model.config, 6, averaged=True))


def load_file_of(content: bytes, path) -> dict[str, torch.Tensor]:
    path.write_bytes(content)
    return load_file(path)
