"""What nvcc made of the CUDA kernels for NCHW tensors: the emulator's bits."""

from __future__ import annotations

import emulator
import pytest

from grouped_conv.problem import ConvProblem
from ptx import test_kernels
from ptx.test_kernels import Case, interpret, same_bits

pytestmark = test_kernels.pytestmark

# One type for each architecture: each file is compiled once.
ARCHITECTURES = {"float16": "sm_80", "bfloat16": "sm_90"}
CASES = [
    Case("fprop", "nchw_conv_c4_s1", 4, 1, "float16", 3),
    Case("dgrad", "nchw_conv_c16_s1", 16, 1, "float16", 3),
    Case("fprop", "nchw_fprop_c8_s2", 8, 2, "float16", 3),
    Case("dgrad", "nchw_dgrad_c4_s2", 4, 2, "float16", 3),
    Case("wgrad", "nchw_wgrad_c4_s1", 4, 1, "float16", 3),
    Case("wgrad", "nchw_wgrad_c16_s2", 16, 2, "float16", 3),
    Case("wgrad", "nchw_wgrad_c32_s1", 32, 1, "float16", 132),
    Case("fprop", "nchw_fprop_c16_s2", 16, 2, "bfloat16", 3),
    Case("dgrad", "nchw_conv_c8_s1", 8, 1, "bfloat16", 3),
    Case("wgrad", "nchw_wgrad_c8_s2", 8, 2, "bfloat16", 3),
    Case("wgrad", "nchw_wgrad_c16_s1", 16, 1, "bfloat16", 3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_emulator_has_the_same_bits(case: Case) -> None:
    """Rows that begin at any byte of a word, in bands and as whole images."""
    c = max(case.c_per_group, 24 - 24 % case.c_per_group)
    height = 20 if case.c_per_group < 16 else 5
    p = ConvProblem(2, c, height, 7, c, 3, 3, c // case.c_per_group, 1, 1, case.stride, case.stride)
    channels_last = case.c_per_group in (8, 32)
    dtype = emulator.DTYPES[case.dtype]
    operands = emulator.Operands.random(p, dtype, bias=case.pass_name == "fprop")
    if case.c_per_group == 16:  # the way of values that are not finite, too
        operands.x[0, 3, 2, 2] = float("inf")
        operands.w[1, 2, 0, 1] = float("nan")
        operands.y[1, 2, 0, 0] = float("-inf")
    (kernel,) = [
        k
        for k in emulator.kernels(case.pass_name, planar=True)
        if (k.name, k.dtype) == (case.config, case.dtype)
    ]
    emulated = emulator.run(
        kernel, p, operands, channels_last=channels_last, sm_count=case.sm_count
    )
    found = interpret(case, p, operands, channels_last, ARCHITECTURES[case.dtype])
    assert same_bits(found, emulated.output)
