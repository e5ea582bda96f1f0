"""What nvcc made of the CUDA kernels, in the interpreter, against the same sources in the emulator:
the same bits."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
import torch

import ptx
from grouped_conv import _C
from grouped_conv.problem import ConvProblem

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHITECTURE = "sm_80"
SM_COUNT = 3

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc"),
]


@functools.cache
def launches() -> Any:
    """The module ``_launches``, built beside the emulator."""
    emulator.module()
    tree = ROOT / "build" / "simt"
    command = ["cmake", "--build", tree, "--target", "_launches"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tree.glob("_launches*.so")
    spec = importlib.util.spec_from_file_location("_launches", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def compiled(stem: str) -> dict[str, ptx.Kernel]:
    """The kernels of ``csrc/cuda/<stem>.cu`` as PTX."""
    source = ROOT / "csrc" / "cuda" / f"{stem}.cu"
    command = [NVCC, "-ptx", "-std=c++20", f"-arch={ARCHITECTURE}", "-I", ROOT / "csrc", source]
    done = subprocess.run([*command, "-o", "/dev/stdout"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ptx.parse(done.stdout)


def find_kernel(dtype: str, name: str, config: int) -> ptx.Kernel:
    family = "wgrad" if name.startswith("wgrad") else "rowstream"
    wanted = re.compile(rf"\d{name}I" + (rf".*Li{config}E" if config >= 0 else ""))
    (found,) = [k for symbol, k in compiled(f"{family}_{dtype}").items() if wanted.search(symbol)]
    return found


def interpret(
    pass_name: str, p: ConvProblem, dtype: str, operands: emulator.Operands, channels_last: bool
) -> torch.Tensor:
    """The result of a pass, ``[N, K, P, Q]`` and so on, computed by the interpreter."""
    type_ = emulator.DTYPES[dtype]
    written = {"fprop": "y", "dgrad": "x", "wgrad": "w"}[pass_name]
    tensors = {"x": operands.x, "w": operands.w, "y": operands.y}
    tensors[written] = torch.full_like(tensors[written], float("nan"))
    memory = ptx.GlobalMemory()
    addresses, arrays = {}, {}
    for name, t in tensors.items():
        by_pixel = name != "w" or channels_last
        ordered = t.permute(0, 2, 3, 1).contiguous() if by_pixel else t.contiguous()
        arrays[name] = ordered.view(torch.int16).numpy()
        addresses[name] = memory.allocate(arrays[name])
    bias = 0
    if operands.bias is not None:
        bias = memory.allocate(operands.bias.view(torch.int16).numpy())
    plan = _C.plan_fast(pass_name, emulator.extents(p), SM_COUNT)
    workspace = memory.allocate(np.full(plan["workspace_bytes"] // 4, np.nan, np.float32))
    for launch in launches().launches(
        pass_name,
        emulator.extents(p),
        channels_last=channels_last,
        sm_count=SM_COUNT,
        bias=bias,
        workspace=workspace,
        **addresses,
    ):
        ptx.launch(
            find_kernel(dtype, launch["kernel"], launch["config"]),
            memory,
            (launch["blocks"],),
            (launch["threads"],),
            [launch["arguments"]],
            launch["shared_bytes"],
        )
    result = torch.from_numpy(memory.read(addresses[written], arrays[written]).copy()).view(type_)
    return result.permute(0, 3, 1, 2) if written != "w" or channels_last else result


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bits; every NaN equals every other."""
    both_nan = a.isnan() & b.isnan()
    return bool(((a.view(torch.int16) == b.view(torch.int16)) | both_nan).all())


def problem_for(c_per_group: int, stride: int) -> ConvProblem:
    """Several images side by side, the last tile partly filled, channels that fill no block."""
    c = max(3 * c_per_group, 24) if c_per_group < 64 else 128
    return ConvProblem(5, c, 6, 7, c, 3, 3, c // c_per_group, 1, 1, stride, stride)


CASES = [
    (pass_name, config["name"], config["c_per_group"], config["stride"], dtype)
    for config in _C.cuda_kernels()
    for pass_name in config["passes"]
    for dtype in emulator.DTYPES
    # The types differ in conversions alone: one configuration of each family shows those.
    if dtype == "float16" or config["c_per_group"] in (4, 16)
]


@pytest.mark.parametrize(("pass_name", "name", "c_per_group", "stride", "dtype"), CASES)
def test_the_emulator_has_the_same_bits(
    pass_name: str, name: str, c_per_group: int, stride: int, dtype: str
) -> None:
    p = problem_for(c_per_group, stride)
    assert _C.plan_fast(pass_name, emulator.extents(p), SM_COUNT)["name"] == name
    channels_last = c_per_group in (8, 32)
    operands = emulator.Operands.random(p, emulator.DTYPES[dtype], bias=pass_name == "fprop")
    if c_per_group == 16:  # the way of values that are not finite, too
        operands.x[0, 3, 2, 2] = float("inf")
        operands.w[1, 2, 0, 1] = float("nan")
        operands.y[1, 2, 1, 1] = float("-inf")
    (kernel,) = [k for k in emulator.kernels(pass_name) if (k.name, k.dtype) == (name, dtype)]
    emulated = emulator.run(kernel, p, operands, channels_last=channels_last, sm_count=SM_COUNT)
    interpreted = interpret(pass_name, p, dtype, operands, channels_last)
    assert same_bits(interpreted, emulated.output)
