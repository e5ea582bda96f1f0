"""Triton kernels compiled ahead of time, for GPUs that are not there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sass.listing import find_cuobjdump, read
from torch import Tensor

from grouped_conv.backends import triton as backend

CAPABILITIES = (80, 90)

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


class Resources(NamedTuple):
    """What ptxas gave to a kernel."""

    registers: int
    stack: int
    """Bytes of spilled registers and local arrays, for one thread."""
    spills_in_loops: int
    """Instructions that reach for those, in the loops that multiply."""


class Compiled(NamedTuple):
    """A compiled launch: its kernel, and which arguments it takes at run time."""

    ptx: str
    name: str
    threads: int
    shared_bytes: int
    resources: Resources
    passed: tuple[int, ...]
    """Positions, among the arguments of the launch, of those that are not constants."""


def compile_launch(launch: backend.Launch, capability: int) -> Compiled:
    """A launch as Triton's runtime would compile it for its arguments.

    As there, an argument of 1 becomes a constant, and multiples of 16 and tensors are known as
    such: their addresses are multiples of 16.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = getattr(backend.kernels(), launch.kernel)
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    passed = []
    for i, name in enumerate(function.arg_names):
        constant = name in launch.constants
        value = launch.constants[name] if constant else launch.arguments[i]
        if constant or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(i,)] = value
            continue
        passed.append(i)
        signature[name] = _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, aligned)
    options = {**launch.options, "enable_fp_fusion": True}
    done = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(
        done.asm["ptx"],
        done.metadata.name,
        32 * done.metadata.num_warps,
        done.metadata.shared,
        _resources(done.asm["cubin"]),
        tuple(passed),
    )


def _resources(cubin: bytes) -> Resources:
    tool = find_cuobjdump()
    assert tool is not None, "the triton package has cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (kernel,) = read(Path(file.name), tool)
    loops = [*kernel.inner_loops("HMMA"), *kernel.inner_loops("FFMA")]
    spills = max((loop.count("LDL") + loop.count("STL") for loop in loops), default=0)
    return Resources(kernel.registers, kernel.stack, spills)


def launches(
    plan: backend.Plan, x: Tensor, w: Tensor, y: Tensor, bias: Tensor | None, relu: bool = False
) -> tuple[list[backend.Launch], Tensor]:
    """What a pass launches, and the tensor that lies between the two launches.

    The pass writes one of x, w and y, as ``plan`` says, and reads the others.
    """
    if plan.pass_name == "wgrad":
        splits, each = plan.splits(8)
        p = plan.problem
        partial = torch.full((splits, 9, p.K, p.c_per_group), float("nan"))
        return [plan.wgrad(y, x, partial, each), plan.reduce(partial, w)], partial
    packed = torch.full((plan.packed_size,), float("nan"), dtype=w.dtype)
    if plan.pass_name == "fprop":
        main = plan.fprop(x, packed, y, (bias, None, None, None), relu)
    else:
        main = plan.dgrad(y, packed, x)
    return [plan.pack(w, packed), main], packed
