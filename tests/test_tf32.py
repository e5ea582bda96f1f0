"""Whether TF32 is allowed: PyTorch's setting, carried by each call of an operator on a GPU.

Without a GPU: fake tensors stand for those of CUDA, and the calls are recorded.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from grouped_conv import _libraries, grouped_conv2d, grouped_conv2d_affine, ops
from grouped_conv.backends import allows_tf32
from grouped_conv.functional import dgrad, use_backend, wgrad

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def as_with_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_libraries, "cuda_absent_reason", lambda: None)
    with use_backend("native"):
        yield


class Recorded(TorchDispatchMode):
    """The calls of our operators and whether TF32 was allowed in each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "grouped_conv" and func._schema.arguments[-1].name == "allow_tf32":
            allowed = args[-1] if len(args) == len(func._schema.arguments) else False
            self.calls.append((func._schema.name.partition("::")[2], allowed))
        return func(*args, **(kwargs or {}))


def recorded(run: Any, device: str = "cuda", dtype: torch.dtype = torch.float32) -> list[Any]:
    with FakeTensorMode():
        x = torch.empty(2, 32, 9, 9, device=device, dtype=dtype)
        w = torch.empty(32, 4, 3, 3, device=device, dtype=dtype)
        with Recorded() as record:
            run(x, w)
    return record.calls


def three_passes(x: Tensor, w: Tensor) -> None:
    # Without the autograd engine, which wants a device for the backward pass.
    y = grouped_conv2d(x, w, None, 1, 1, 1, 8)
    attributes = ((1, 1), (1, 1), (1, 1), 8, False)
    dgrad(y, w, x.shape, *attributes)
    wgrad(y, x, w.shape, *attributes)


@pytest.mark.parametrize("allowed", [False, True])
def test_setting_goes_with_each_call(allowed: bool) -> None:
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert recorded(three_passes) == [
            ("fprop", allowed), ("dgrad", allowed), ("wgrad", allowed)]  # fmt: skip


def test_gradients_follow_the_setting_in_force_when_they_are_computed() -> None:
    y, x, w = torch.empty(2, 32, 9, 9), torch.empty(2, 32, 9, 9), torch.empty(32, 4, 3, 3)
    context = SimpleNamespace(needs_input_grad=(True, True, False, *(False,) * 5))

    def run(*_: Tensor) -> None:
        dy, a, b = (torch.empty(t.shape, device="cuda") for t in (y, x, w))
        arguments = (a, b, None, (1, 1), (1, 1), (1, 1), 8, False)
        context.save_for_backward = lambda *tensors: None
        ops.prepare_fprop(context, arguments)
        gradients = ops.gradients_of_fprop(context, dy, a, b)
        assert len(gradients) == len(arguments)

    with torch.backends.cudnn.flags(allow_tf32=True):
        assert recorded(run) == [("dgrad", True), ("wgrad", True)]


def test_a_known_call_follows_a_change_of_the_setting() -> None:
    def run(x: Tensor, w: Tensor) -> None:
        for allowed in (True, False, True):
            with torch.backends.cudnn.flags(allow_tf32=allowed):
                grouped_conv2d(x, w, None, 1, 1, 1, 8)

    assert recorded(run) == [("fprop", True), ("fprop", False), ("fprop", True)]


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.float16)])
def test_only_float32_on_a_gpu_asks(device: str, dtype: torch.dtype) -> None:
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert not any(allowed for _, allowed in recorded(three_passes, device, dtype))


def test_epilogue() -> None:
    def run(x: Tensor, w: Tensor) -> None:
        grouped_conv2d_affine(x, w, activation="relu", padding=1, groups=8)

    with torch.backends.cudnn.flags(allow_tf32=True):
        assert recorded(run) == [("fprop_affine", True)]


def test_the_compiler_takes_the_setting_as_it_is() -> None:
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter, fullgraph=True)
    def function(x: Tensor) -> Tensor:
        return x + 1 if allows_tf32(torch.float32, "cuda") else x

    for allowed in (True, False):
        torch._dynamo.reset()
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            assert function(torch.zeros(1)).item() == allowed
