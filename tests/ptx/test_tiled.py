"""What nvcc made of the tiled kernels: the emulator's bits."""

from __future__ import annotations

import re
from typing import NamedTuple

import emulator
import numpy as np
import pytest
import torch
from torch import Tensor

import ptx
from grouped_conv.problem import ConvProblem
from ptx import test_kernels
from ptx.test_kernels import compiled, launches

pytestmark = test_kernels.pytestmark

MATHS = ("float16", "bfloat16", "tf32", "float32")
"""As ``TiledMath`` in tiled_configs.h."""


class Case(NamedTuple):
    pass_name: str
    math: str
    planar: bool
    config: str
    channels: int
    stride: int


CASES = [
    Case("fprop", "float16", False, "tiled_n32", 24, 1),
    Case("dgrad", "float16", True, "tiled_n64", 20, 2),
    Case("dgrad", "tf32", False, "tiled_n8", 8, 2),
    Case("fprop", "float32", False, "tiled_n8", 4, 1),
]


def find_kernel(math: str, name: str, config: int, direct: bool) -> ptx.Kernel:
    arguments = rf"Li{config}E\w*?TiledMathE\dELb{int(direct)}E" if config >= 0 else ""
    wanted = re.compile(rf"\d{name}I{arguments}")
    (found,) = [k for symbol, k in compiled(f"tiled_{math}").items() if wanted.search(symbol)]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_emulator_has_the_same_bits(case: Case) -> None:
    """A last tile partly filled, groups that fill no block, and an infinity on the way."""
    c = 3 * case.channels
    p = ConvProblem(3, c, 6, 7, c, 3, 3, 3, 1, 1, case.stride, case.stride)
    dtype = "float32" if case.math == "tf32" else case.math
    name = case.config + ("_tf32" if case.math == "tf32" else "")
    operands = emulator.Operands.random(p, emulator.DTYPES[dtype], bias=case.pass_name == "fprop")
    operands.x[0, 3, 2, 2] = operands.y[1, 2, 0, 0] = float("inf")
    (kernel,) = [
        k
        for k in emulator.tiled_kernels(case.pass_name, planar=case.planar)
        if (k.name, k.dtype) == (name, dtype)
    ]
    emulated = emulator.run(kernel, p, operands)
    assert not emulated.faults

    memory = ptx.GlobalMemory()
    bits = torch.int16 if operands.x.dtype.itemsize == 2 else torch.int32

    def ordered(t: Tensor) -> np.ndarray:
        t = t if case.planar else t.permute(0, 2, 3, 1)
        return t.contiguous().view(bits).numpy()

    written = "y" if case.pass_name == "fprop" else "x"
    tensors = {"x": operands.x, "y": operands.y}
    tensors[written] = torch.full_like(tensors[written], float("nan"))
    arrays = {name: ordered(t) for name, t in tensors.items()}
    arrays["w"] = operands.w.view(bits).numpy()
    addresses = {name: memory.allocate(array) for name, array in arrays.items()}
    addresses["bias"] = 0
    if operands.bias is not None:
        addresses["bias"] = memory.allocate(operands.bias.view(bits).numpy())
    shape = (case.pass_name, MATHS.index(case.math), case.config, emulator.extents(p))
    size = launches().tiled_workspace(*shape, channels_last=not case.planar)
    addresses["workspace"] = memory.allocate(np.full(size // 4, np.nan, np.float32))
    direct = False
    for launch in launches().tiled_launches(*shape, channels_last=not case.planar, **addresses):
        direct = launch["direct"]
        ptx.launch(
            find_kernel(case.math, launch["kernel"], launch["config"], direct),
            memory,
            (launch["blocks"],),
            (launch["threads"],),
            [launch["arguments"]],
            launch["shared_bytes"],
        )
    assert direct != case.planar
    found = torch.from_numpy(memory.read(addresses[written], arrays[written]).copy())
    found = found.view(operands.x.dtype)
    result = found if case.planar else found.permute(0, 3, 1, 2)
    same = (result == emulated.output) | (result.isnan() & emulated.output.isnan())
    assert bool(same.all())
