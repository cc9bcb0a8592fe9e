"""The host must not wait for the GPU: counted without one, over all that can be trained and sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from corruption import CORRUPTIONS, LinearCorruption, build_corruption
from helpers.fake_cuda import DEVICE, FakeCuda
from helpers.tiny_run import NEEDED, TINY, WITHOUT_TEACHER
from i2sb.bridge import Bridge
from i2sb.config import SamplingOptions, TrainConfig
from i2sb.consistency import KINDS
from i2sb.data.loading import Images
from i2sb.distributed import World
from i2sb.formulation_table import FORMULATIONS
from i2sb.network import BridgeNetwork, build_network
from i2sb.precision import prepare
from i2sb.restore import RestorationModel
from i2sb.tasks import build_formulation
from i2sb.training.trainer import Trainer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU and its likeness do not go together")

PRECISIONS = [name for name in get_args(get_type_hints(TrainConfig)["precision"]) if name != "auto"]
SIZE = 16


class OneLayer(nn.Conv2d):
    """All of a U-Net that a search for waits outside of it needs."""

    downsampling = 1

    def forward(self, x, times):
        return super().forward(x)


def network_on_gpu(gpu, formulation, precision):
    unet = OneLayer(3 * (1 + formulation.cond_x1 + formulation.sees_noise), 3, 3, padding=1)
    network = gpu.move(BridgeNetwork(unet, formulation.noise_levels))
    prepare(network, precision)
    return network


@pytest.mark.parametrize("formulation", WITHOUT_TEACHER)
def test_no_training_iteration_waits(formulation, dataset_dir):
    """Up to the backward pass, of which there is none without a driver."""
    changed = {"eval_every": 0, "formulation": formulation, "dataset_dir": str(dataset_dir)}
    trainer = Trainer(TrainConfig(name="run", **{**TINY, **changed}), World(0, 1, torch.device("cpu")))
    gpu = FakeCuda()
    gpu.move(trainer.formulation)
    trainer.world = World(0, 1, DEVICE)
    images = torch.randint(256, (9, 3, SIZE, SIZE), dtype=torch.uint8)
    batch = Images(gpu.pin(images), None, gpu.pin(torch.zeros(9, dtype=torch.long)), list(range(9)))
    found = {}
    for precision in (PRECISIONS[0], *PRECISIONS):  # the first round fills tables
        trainer.network = trainer.learner.net = network_on_gpu(gpu, trainer.formulation, precision)
        noisy = "sr2x-bicubic,inpaint-center,blur-uni-exact,decolor"
        for name in (*CORRUPTIONS, "sr4x-pool,inpaint-center", noisy):
            corruption = build_corruption(name, SIZE, degradation_noise=0.1 if name == noisy else 0.0)
            trainer.train_corruption = gpu.move(corruption)
            gpu.forget()
            with gpu, pytest.raises(RuntimeError, match="hasPrimaryContext"):
                trainer.iterate(iter([batch]))
            assert gpu.kernels["mse_loss"] == 1
            found[name, precision] = gpu.waits
    for case, waits in found.items():
        print(f"{len(waits)} waits", *case)
    assert not {case: waits for case, waits in found.items() if waits}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_network_waits(precision):
    gpu = FakeCuda()
    network = gpu.move(build_network("tiny", Bridge(10).noise_levels))
    prepare(network, precision)
    with gpu:
        network(torch.zeros(2, 3, 16, 16, device=DEVICE), torch.zeros(2, dtype=torch.long, device=DEVICE))
    assert not gpu.waits and gpu.kernels["native_group_norm"] == 25


def count_waits(formulation, precision, corrupt, chosen, noise=0.0):
    """Return where the host waited until the last of three steps was taken, for each of these ways to restore."""
    gpu = FakeCuda()
    config = TrainConfig(
        name="run",
        network="tiny",
        image_size=SIZE,
        formulation=formulation,
        corrupt=corrupt,
        dataset_dir="none",
        **NEEDED.get(formulation, {}),
    )
    built = gpu.move(build_formulation(config))
    model = RestorationModel(network_on_gpu(gpu, built, precision), built, config, 0)
    corruption = build_corruption(corrupt, SIZE, degradation_noise=noise)
    image, mask = (None if x is None else gpu.put(x) for x in corruption(torch.rand(2, 3, SIZE, SIZE)))
    gpu.move(corruption)
    found, at = {}, []

    def follow(options):
        with gpu:
            model.follow(
                image,
                options,
                mask=mask,
                corruption=corruption,
                callback=lambda taken: at.append(list(gpu.waits)),
                states=None,
            )

    for options in chosen(built):
        options = replace(options, nfe=min(3, built.default_nfe))
        follow(options)  # fills tables
        gpu.forget()
        follow(options)
        found[options] = at[-1]
    return found


def check(found):
    for options, waits in found.items():
        print(f"{len(waits)} waits", options)
    assert not {options: waits for options, waits in found.items() if len(waits) > (options.consistency != "none")}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_no_step_of_a_sampler_waits(formulation, precision):
    check(count_waits(formulation, precision, "inpaint-center", lambda built: built.list_samplers()))


@pytest.mark.parametrize("corrupt", ["inpaint-center", "sr2x-bicubic", "blur-uni", "blur-uni-exact"])
def test_no_step_in_the_noise_of_a_measurement_waits(corrupt):
    chosen = lambda built: [SamplingOptions(sampler=name, eta=0.85) for name in built.samplers]
    check(count_waits("diffusion", "fp32", corrupt, chosen, noise=0.1))


@pytest.mark.parametrize("corrupt", [name for name in CORRUPTIONS if name != "mixture"])
def test_no_step_of_a_sampler_waits_for_consistency_or_tiles(corrupt):
    """But once a pass for the schedule, by which consistency weighs the steps."""

    def chosen(built):
        able = isinstance(build_corruption(corrupt, SIZE), LinearCorruption)
        kinds = KINDS if able else ("none", "project")
        return [SamplingOptions(consistency=kind, tile=tile, overlap=2) for kind in kinds for tile in (None, 8)]

    check(count_waits("bridge", "fp32", corrupt, chosen))
