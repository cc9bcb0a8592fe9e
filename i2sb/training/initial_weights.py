"""Weights to begin a run with: where they come from, and how they are made to fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from i2sb.errors import FileError, UserError
from i2sb.network import BridgeNetwork
from i2sb.network_sizes import find_network
from i2sb.storage.checkpoint import averaged_weights
from i2sb.storage.runs import find_weights, read_weights
from i2sb.tensor_files import check_shapes, is_named_tensors, read_tensors

# ADM's unconditional ImageNet network, where scripts/download.py adm256 puts it.
ADM_FILE = Path("data/weights/256x256_diffusion_uncond.pt")

_PREFIX = "diffusion_model."
# Parameters that know the number of channels of an image, and along which dimension: 1 the input's, 0 the output's.
_CHANNELS = {f"{_PREFIX}out.2.weight": 0, f"{_PREFIX}out.2.bias": 0}


class InitialWeights(NamedTuple):
    """Weights under the names of a checkpoint's `net`, the file or run they come from, and their network if known."""

    weights: Mapping[str, Tensor]
    source: Path
    network: str = ""


def read_initial_weights(init: str, results_dir: Path) -> InitialWeights:
    """Return the weights that the setting `init` names.

    init: "adm"; a .pt file (ADM's weights, or a checkpoint: its averaged weights); a .safetensors file; a run's folder,
    or its name in `results_dir` (its averaged weights). Raises UserError if there is nothing of that name, or it cannot
    be read.
    """
    if init == "adm":
        if not ADM_FILE.exists():
            raise UserError("init", init, f"{ADM_FILE} is not there; fetch it with python scripts/download.py adm256")
        return InitialWeights(_read_file(ADM_FILE), ADM_FILE)
    path = Path(init)
    if path.suffix in (".pt", ".pth") and not path.is_dir():
        if not path.exists():
            raise UserError("init", init, "there is no such file")
        return InitialWeights(_read_file(path), path)
    path = find_weights("init", init, results_dir, "none, adm, a .pt file, ")
    averaged = read_weights(path)
    return InitialWeights(averaged.weights, path, averaged.config.network)


def _read_file(path: Path) -> dict[str, Tensor]:
    weights = read_tensors(path, mmap=True)
    if isinstance(weights, dict) and is_named_tensors(weights.get("net")) and isinstance(weights.get("ema"), dict):
        return averaged_weights(weights, path)
    if not is_named_tensors(weights):
        raise FileError(path, "holds no weights (names with tensors)")
    return {name if name.startswith(_PREFIX) else _PREFIX + name: tensor for name, tensor in weights.items()}


@torch.no_grad()
def begin_with(network: BridgeNetwork, initial: InitialWeights) -> list[str]:
    """Copy weights into a network that was just built; returns a line on what was kept, and one for each misfit.

    Where the images have other channels than the source's, the first of those are kept: rows of the last convolution
    (ADM has three more, for variances) and inputs of the first one. Further inputs stay as they were drawn from the
    run's seed, further outputs at zero. Raises UserError listing names and shapes if anything else differs.
    """
    drawn, fitted, lines = network.state_dict(), dict(initial.weights), []
    pixels = network.patch_size**2
    if initial.network and find_network(initial.network).patch_size != network.patch_size:
        raise UserError(
            initial.source,
            None,
            f"`network` {initial.network} sees other patches of pixels than this run's, whose side is "
            f"{network.patch_size}; take weights of one that sees the same",
        )
    first = getattr(network.diffusion_model, "first_convolution", None)
    inputs = {name: 1 for name, p in network.named_parameters() if first is not None and p is first.weight}
    for name, dim in {**inputs, **_CHANNELS}.items():
        given, fresh = fitted.get(name), drawn.get(name)
        if given is None or fresh is None or given.ndim != fresh.ndim or given.shape[dim] == fresh.shape[dim]:
            continue
        available, wanted = given.shape[dim], fresh.shape[dim]
        if available % pixels or given.select(dim, 0).shape != fresh.select(dim, 0).shape:
            continue
        kept = min(available, wanted)
        fitted[name] = fresh.clone()
        fitted[name].narrow(dim, 0, kept).copy_(given.narrow(dim, 0, kept))
        what = "input channels" if dim == 1 else "rows"
        more = f", {wanted - kept} fresh" if wanted > kept else ""
        lines.append(f"{name.removeprefix(_PREFIX)}: {kept} of its {available} {what} kept{more}")
    check_shapes(drawn, fitted, initial.source)
    network.load_state_dict(fitted)
    whole = len(drawn) - len(lines)
    return [f"{whole} of {len(drawn)} parameters kept as they are", *lines]
