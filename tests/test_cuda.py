"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from corruption import CORRUPTIONS, build_corruption
from helpers.tiny_run import TINY, WITHOUT_TEACHER
from i2sb import load_model
from i2sb.randomness import ImageNoise, Purpose
from i2sb.unet import AttentionBlock

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_degradations_agree_with_the_cpu(name):
    clean = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise, corruption = ImageNoise(0, Purpose.SAMPLE, [0, 1]), build_corruption(name, 64)
    want = corruption(clean, noise.degradation_generators()).image
    done = corruption.cuda()(clean.cuda(), noise.degradation_generators()).image.cpu()
    # Strokes are computed on the GPU, which may round a pixel at a hole's edge to the other side.
    assert ((done - want).abs() > 1e-4).float().mean() <= (1e-3 if corruption.draws_masks else 0)


def test_attention_takes_a_fused_kernel():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    block = AttentionBlock(128, 64).cuda().half()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]), torch.no_grad():
        assert block(torch.randn(2, 128, 16, 16, device="cuda").half()).isfinite().all()


def test_train_resume_restore(tmp_path, dataset_dir):
    from i2sb.config import SampleConfig, TrainConfig
    from i2sb.sampling import split as sampling
    from i2sb.training import loop as training

    places = {"results_dir": str(tmp_path), "device": "cuda"}
    for num_itr in (3, 6):
        settings = {**TINY, "dataset_dir": str(dataset_dir), **places, "num_itr": num_itr, "corrupt": "inpaint-center"}
        training.train(TrainConfig(name="gpu", **settings))
    sampling.run(SampleConfig(ckpt="gpu", nfe=2, use_fp16=True, **places))
    assert len(list((tmp_path / "gpu" / "samples_nfe2" / "000").iterdir())) == 5
    on_cpu, on_gpu = load_model(tmp_path / "gpu"), load_model(tmp_path / "gpu", device="cuda")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(on_gpu.restore(x, nfe=3), on_cpu.restore(x, nfe=3), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", WITHOUT_TEACHER)
def test_formulations_agree_with_the_cpu(tmp_path, dataset_dir, name):
    from i2sb.config import TrainConfig
    from i2sb.training import loop as training

    places = {"results_dir": str(tmp_path), "device": "cuda", "dataset_dir": str(dataset_dir)}
    training.train(TrainConfig(name="gpu", **{**TINY, **places, "formulation": name, "eval_every": 0}))
    on_cpu, on_gpu = load_model(tmp_path / "gpu"), load_model(tmp_path / "gpu", device="cuda")
    x = build_corruption("sr4x-pool", 16)(torch.rand(2, 3, 16, 16) * 2 - 1).image
    for sampler in on_cpu.formulation.samplers:
        how = {"sampler": sampler, "nfe": min(3, on_cpu.formulation.default_nfe), "clip_denoise": True}
        torch.testing.assert_close(on_gpu.restore(x, **how), on_cpu.restore(x, **how), rtol=0, atol=1e-2)


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 1e-2), ("bf16", 5e-2), ("fp16", 1e-2)])
def test_precisions_are_close_to_float32(tmp_path, dataset_dir, precision, limit):
    from i2sb.config import TrainConfig
    from i2sb.precision import prepare
    from i2sb.training import loop as training

    places = {"results_dir": str(tmp_path), "device": "cuda", "dataset_dir": str(dataset_dir)}
    savings = {"precision": precision, "grad_checkpoint": True, "channels_last": True}
    training.train(TrainConfig(name="gpu", **{**TINY, **places, **savings}))
    plain, cast = load_model(tmp_path / "gpu", device="cuda"), load_model(tmp_path / "gpu", device="cuda")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    prepare(plain.network, "fp32")
    want = plain.restore(x, nfe=3)
    prepare(cast.network, precision)
    assert (cast.restore(x, nfe=3) - want).norm() < limit * want.norm()
