"""What nvcc made of fprop with an epilogue and with statistics: the emulator's bits."""

from __future__ import annotations

import dataclasses
import re

import emulator
import numpy as np
import pytest
import torch
from torch import Tensor

import ptx
from grouped_conv import _C
from grouped_conv.problem import ConvProblem
from ptx import test_kernels
from ptx.test_kernels import compiled, launches, same_bits

pytestmark = test_kernels.pytestmark

TAILS = {"epilogue": 1, "statistics": 2, "residual": 3}
"""As ``Tail`` in configs.h."""
CASES = [
    (tail, config["name"], config["c_per_group"], config["stride"], dtype)
    for tail in TAILS
    for dtype, names in test_kernels.TAILED.items()
    for config in _C.cuda_kernels()
    if config["name"] in names
]


def find_kernel(dtype: str, tail: int, name: str, index: int) -> ptx.Kernel:
    """A kernel by its name and the numbers among its template arguments."""
    if name == "statistics_reduce_kernel":
        (found,) = compiled("statistics").values()
        return found
    wanted = re.compile(rf"\d{name}I.*Li{index}E.*4TailE{tail}E")
    (found,) = [k for symbol, k in compiled(f"rowstream_{dtype}").items() if wanted.search(symbol)]
    return found


@pytest.mark.parametrize(("tail", "config", "c_per_group", "stride", "dtype"), CASES)
def test_the_emulator_has_the_same_bits(
    tail: str, config: str, c_per_group: int, stride: int, dtype: str
) -> None:
    """A last tile partly filled, channels that fill no block, and an infinity on the way."""
    c = max(3 * c_per_group, 24)
    p = ConvProblem(5, c, 6, 7, c, 3, 3, c // c_per_group, 1, 1, stride, stride)
    operands = emulator.Operands.random(p, emulator.DTYPES[dtype], bias=False)
    operands.x[0, 3, 2, 2] = float("inf")
    if tail != "statistics":
        scale, shift = torch.randn(2, c, generator=torch.Generator().manual_seed(1))
        operands = dataclasses.replace(operands, scale=scale, shift=shift, relu=True)
    if tail == "residual":
        operands = dataclasses.replace(operands, residual=operands.y.flip(0))
    (kernel,) = [k for k in emulator.kernels("fprop") if (k.name, k.dtype) == (config, dtype)]
    emulated = emulator.run(kernel, p, operands, sm_count=3, statistics=tail == "statistics")
    assert not emulated.faults

    memory = ptx.GlobalMemory()

    def to_device(t: Tensor) -> tuple[int, np.ndarray]:
        array = t.view(torch.int16 if t.dtype.itemsize == 2 else torch.int32).numpy()
        return memory.allocate(array), array

    y = torch.full((p.N, p.P, p.Q, p.K), float("nan"), dtype=operands.x.dtype)
    tensors = {"x": operands.x.permute(0, 2, 3, 1).contiguous(), "w": operands.w, "y": y}
    absent = ["residual", "sum", "squares", "workspace"]
    if tail != "statistics":
        tensors |= {"scale": operands.scale, "shift": operands.shift}
        if operands.residual is not None:
            absent.remove("residual")
            tensors["residual"] = operands.residual.permute(0, 2, 3, 1).contiguous()
    else:
        size = launches().statistics_workspace(config, emulator.extents(p), 3)
        results = {name: torch.full((c,), float("nan")) for name in ("sum", "squares")}
        tensors |= {**results, "workspace": torch.full((size // 4,), float("nan"))}
        absent = ["residual", "scale", "shift"]
    given = {name: to_device(t) for name, t in tensors.items()}
    addresses = {name: address for name, (address, _) in given.items()} | dict.fromkeys(absent, 0)
    for launch in launches().tail_launches(
        config, emulator.extents(p), sm_count=3, relu=operands.relu, **addresses
    ):
        ptx.launch(
            find_kernel(dtype, TAILS[tail], launch["kernel"], launch["config"]),
            memory,
            (launch["blocks"],),
            (launch["threads"],),
            [launch["arguments"]],
            launch["shared_bytes"],
        )

    def result(name: str) -> Tensor:
        address, array = given[name]
        return torch.from_numpy(memory.read(address, array).copy()).view(tensors[name].dtype)

    assert same_bits(result("y").permute(0, 3, 1, 2), emulated.output)
    for name, expected in zip(("sum", "squares"), emulated.statistics or (), strict=False):
        found = result(name)
        assert bool(((found == expected) | (found.isnan() & expected.isnan())).all())
