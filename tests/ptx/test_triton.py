"""What Triton made of its kernels, in the interpreter of PTX, against the float64 oracle.

Triton's own interpreter knows neither bfloat16 nor TF32, nor the code that runs on a GPU: here are
the address arithmetic, asynchronous copies, masks and matrix fragments that Triton emitted.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from support import LAYOUTS
from torch import Tensor

import ptx
from grouped_conv import reference
from grouped_conv.backends import triton as backend
from grouped_conv.problem import PASSES, ConvProblem, Pass

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton"),
]


def bits(t: Tensor) -> np.ndarray:
    """The memory of a dense tensor, in the order of its addresses."""
    flat = torch.as_strided(t, (t.numel(),), (1,))
    return (flat.view(torch.int16) if t.element_size() == 2 else flat).numpy()


def interpret(launches: list[backend.Launch], capability: int) -> None:
    """Run launches one after the other; tensors are read and written in place."""
    from triton_aot import compile_launch

    memory = ptx.GlobalMemory()
    addresses: dict[int, int] = {}
    tensors: dict[int, Tensor] = {}
    for launch in launches:
        for value in launch.arguments:
            if isinstance(value, Tensor) and id(value) not in addresses:
                tensors[id(value)] = value
                addresses[id(value)] = memory.allocate(bits(value))
    for launch in launches:
        compiled = compile_launch(launch, capability)
        kernel = ptx.parse(compiled.ptx)[compiled.name]
        values = [launch.arguments[i] for i in compiled.passed]
        arguments = [addresses[id(v)] if isinstance(v, Tensor) else v for v in values]
        # Scratch memory, which these kernels do not use.
        arguments += [0] * (len(kernel.parameters) - len(arguments))
        ptx.launch(
            kernel,
            memory,
            launch.grid(launch.options),
            (compiled.threads,),
            arguments,
            compiled.shared_bytes,
        )
    for key, tensor in tensors.items():
        target = bits(tensor)
        target[:] = memory.read(addresses[key], target)


def operands(p: ConvProblem, dtype: torch.dtype, layout: str) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, w, y, bias = (
        torch.randn(size, generator=g).to(dtype)
        for size in (p.input_size, p.weight_size, p.output_size, (p.K,))
    )
    x, y = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, y))
    return [x, w, y, bias]


def exact(pass_name: Pass, p: ConvProblem, x: Tensor, w: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    if pass_name == "fprop":
        return reference.fprop(x, w, bias, p)
    return reference.dgrad(y, w, p) if pass_name == "dgrad" else reference.wgrad(y, x, p)


def compute(
    pass_name: Pass, p: ConvProblem, plan: backend.Plan, operands: list[Tensor], capability: int
) -> Tensor:
    from triton_aot import launches

    x, w, y, bias = operands
    out = {"fprop": y, "dgrad": x, "wgrad": w}[pass_name]
    out.fill_(float("nan"))
    todo, between = launches(plan, x, w, y, bias)
    interpret(todo, capability)
    if pass_name != "wgrad":
        assert not between.isnan().any()
    return out


# Two slabs of packed groups, one group that fills them, and blocks of channels that end early.
CASES = [
    (dtype, layout, c, k, stride)
    for dtype, layout, c, k, stride in (
        ("bfloat16", "nhwc", 4, 4, 1),
        ("bfloat16", "nchw", 8, 8, 2),
        ("bfloat16", "nhwc", 32, 32, 1),
        ("tf32", "nhwc", 4, 4, 2),
        ("tf32", "nchw", 24, 16, 1),
        ("float16", "nhwc", 16, 16, 2),
        ("ieee", "nhwc", 8, 8, 1),
    )
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("pass_name", PASSES)
def test_result(pass_name: Pass, case: tuple[str, str, int, int, int], capability: int):
    precision, layout, c, k, stride = case
    dtype = getattr(torch, precision, torch.float32)
    groups = 6 if c <= 8 else 1
    p = ConvProblem(2, groups * c, 5, 6, groups * k, 3, 3, groups, 1, 1, stride, stride)
    tensors = operands(p, dtype, layout)
    right = exact(pass_name, p, *tensors)
    size = exact(pass_name, p, *(t.abs() for t in tensors))
    plan = backend.Plan.of(pass_name, p, dtype, layout == "nhwc", precision == "tf32")
    found = compute(pass_name, p, plan, tensors, capability)
    # One rounding of the result, and one of each operand where it is cut to TF32.
    bound = torch.finfo(dtype).eps / 2 * right.abs() + 2.0**-20 * size
    if precision == "tf32":
        bound += 2.0**-9 * size
    assert bool(((found.double() - right).abs() <= bound).all())
