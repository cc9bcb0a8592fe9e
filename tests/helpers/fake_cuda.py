"""A GPU that is not there: tensors on it have a shape, a type and a device, and the places where the host waits count.

Tensors on the CPU are real, so that programs take their usual way; on "cuda:0" they are torch's fake tensors, which
refuse to mix devices as real ones do. There is no backward pass: autograd asks a driver for it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda:0")
aten = torch.ops.aten


# What the host must wait for: operations whose result's value or size it asks for, with what it is told here.
ASKING = {
    aten._local_scalar_dense.default: 1,
    aten.is_nonzero.default: True,
    aten.equal.default: True,
    aten.nonzero.default: torch.zeros(1, 1, dtype=torch.long),
}
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


# One for all: tables that programs keep for a device serve the next test, too.
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class FakeGenerator(torch.Generator):
    """A generator on the GPU: it only says so."""

    @property
    def device(self) -> torch.device:
        return DEVICE


def _make_generator(device: Any = "cpu", real: type = torch.Generator) -> torch.Generator:
    return FakeGenerator() if torch.device(device).type == "cuda" else real(device)


class FakeCuda(TorchDispatchMode):
    """A context in which "cuda:0" can be used, and which counts since the last `forget`.

    waits: where the host waited for the device, and for what. kernels: how often each operation ran there, views left
    out. casts, cast_bytes: those that change a type alone, and what they write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []
        self.forget()

    def forget(self) -> None:
        """Count from nought again."""
        self.waits: list[str] = []
        self.kernels: Counter[str] = Counter()
        self.casts = self.cast_bytes = 0

    def __enter__(self) -> FakeCuda:
        self.entered = ExitStack()
        for name, said in (("amp.common.amp_definitely_not_available", False), ("is_bf16_supported", True)):
            self.entered.enter_context(patch(f"torch.cuda.{name}", lambda said=said: said))
        self.entered.enter_context(patch("torch.Generator", _make_generator))
        self.entered.enter_context(FAKE)  # below this mode: with it, torch asks for no driver
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.entered.close()

    def move(self, module: nn.Module) -> nn.Module:
        """Put a module's parameters and buffers there, in place: `Module.to` cannot."""
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = self.put(tensor)
        return module

    def put(self, tensor: Tensor) -> Tensor:
        """Return a tensor's likeness there."""
        with FAKE:
            likeness = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
        return nn.Parameter(likeness, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else likeness

    def pin(self, tensor: Tensor) -> Tensor:
        """Count a tensor among those in pinned memory."""
        self.pinned.append(tensor)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if x.device.type == "cuda"]
        target = kwargs.get("device")
        goes_there = target is not None and torch.device(target).type == "cuda"
        if func is aten.is_pinned.default:
            return any(args[0] is tensor for tensor in self.pinned)
        if func is aten._pin_memory.default:
            return self.pin(args[0].clone())
        if func in ASKING and there:
            self._wait(func)
            return ASKING[func]
        if not there and not goes_there:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in COPIES:
            source = args[-1]
            if source.device.type == "cpu" and source.numel() and not self._is_sent(source, func, args, kwargs):
                self._wait(func)
            if there and target is not None and torch.device(target).type == "cpu":
                self._wait(func)
                with unset_fake_temporarily():
                    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if func in INDEXING and any(x.dtype == torch.bool or x.device.type == "cpu" for x in tensors[1:]):
            self._wait(func)
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None
        out = func(*args, **kwargs)
        self._count(func, args, out)
        return out

    def _is_sent(self, source: Tensor, func: Any, args: Any, kwargs: Any) -> bool:
        """Say whether a copy from the CPU goes on beside the host: without blocking, and out of pinned memory."""
        waits_not = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
        return bool(waits_not) and any(source is tensor for tensor in self.pinned)

    def _count(self, func: Any, args: Any, out: Any) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        out = out[0] if isinstance(out, tuple) else out
        if func.is_view or not isinstance(out, Tensor):
            return
        self.kernels[func.overloadpacket.__name__] += 1
        if func is aten._to_copy.default and first is not None and first.dtype != out.dtype:
            self.casts += 1
            self.cast_bytes += out.numel() * out.element_size()

    def _wait(self, func: Any) -> None:
        ours = [f for f in traceback.extract_stack() if f.filename.startswith((f"{ROOT}/i2sb", f"{ROOT}/corruption"))]
        where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "elsewhere"
        self.waits.append(f"{where} {func}")
