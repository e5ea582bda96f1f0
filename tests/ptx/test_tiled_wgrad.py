"""What nvcc made of the tiled weight-gradient kernels: the emulator's bits."""

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
from ptx.test_tiled import MATHS

pytestmark = test_kernels.pytestmark


class Case(NamedTuple):
    math: str
    planar: bool
    config: str
    c: int
    k: int
    sm_count: int


CASES = [
    Case("float16", False, "48x8", 8, 8, 3),
    Case("float16", True, "144x32", 20, 12, 132),
    Case("tf32", False, "144x64", 16, 24, 1),
    Case("tf32", True, "48x8", 4, 4, 3),
    Case("float32", False, "144x32", 12, 8, 3),
]


def find_kernel(math: str, name: str, config: int, vector: bool) -> ptx.Kernel:
    arguments = rf"Li{config}E\w*?TiledMathE\dELb{int(vector)}E" if config >= 0 else ""
    wanted = re.compile(rf"\d{name}I{arguments}")
    (found,) = [k for symbol, k in compiled(f"tiled_wgrad_{math}").items() if wanted.search(symbol)]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_emulator_has_the_same_bits(case: Case) -> None:
    """Several stages, the last one partly filled, as are the tiles; an infinity at the padding."""
    p = ConvProblem(3, 3 * case.c, 6, 7, 3 * case.k, 3, 2, 3, 1, 1, 1, 2)
    dtype = "float32" if case.math == "tf32" else case.math
    suffix = "_tf32" if case.math == "tf32" else ""
    load = "gather" if case.planar else "vector"
    operands = emulator.Operands.random(p, emulator.DTYPES[dtype], bias=False)
    operands.y[1, 2, 0, 0] = float("inf")
    (kernel,) = [
        k
        for k in emulator.tiled_kernels("wgrad", planar=case.planar)
        if (k.name, k.dtype) == (f"tiled_wgrad_{case.config}_{load}{suffix}", dtype)
    ]
    emulated = emulator.run(kernel, p, operands, sm_count=case.sm_count)
    assert not emulated.faults

    memory = ptx.GlobalMemory()
    bits = torch.int16 if operands.x.dtype.itemsize == 2 else torch.int32

    def ordered(t: Tensor) -> np.ndarray:
        t = t if case.planar else t.permute(0, 2, 3, 1)
        return t.contiguous().view(bits).numpy()

    dw = torch.full_like(operands.w, float("nan")).view(bits).numpy()
    addresses = {
        "x": memory.allocate(ordered(operands.x)),
        "y": memory.allocate(ordered(operands.y)),
        "w": memory.allocate(dw),
    }
    shape = (MATHS.index(case.math), f"tiled_wgrad_{case.config}", emulator.extents(p))
    how = {"planar": case.planar, "sm_count": case.sm_count}
    size = launches().tiled_wgrad_workspace(*shape, **how)
    addresses["workspace"] = memory.allocate(np.full(size // 4, np.nan, np.float32))
    for launch in launches().tiled_wgrad_launches(*shape, **how, **addresses):
        assert launch["vector"] != case.planar
        ptx.launch(
            find_kernel(case.math, launch["kernel"], launch["config"], launch["vector"]),
            memory,
            (launch["blocks"],),
            (launch["threads"],),
            [launch["arguments"]],
            launch["shared_bytes"],
        )
    found = torch.from_numpy(memory.read(addresses["w"], dw).copy()).view(operands.w.dtype)
    same = (found == emulated.output) | (found.isnan() & emulated.output.isnan())
    assert bool(same.all())
