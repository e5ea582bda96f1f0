"""What nvcc made of the CUDA kernels, in the interpreter, against the same sources in the emulator:
the same bits."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import emulator
import numpy as np
import pytest
import torch

import ptx
from grouped_conv import _C
from grouped_conv.problem import ConvProblem

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake"),
]


class Case(NamedTuple):
    """A configuration that computes a pass on a GPU of some multiprocessors."""

    pass_name: str
    config: str
    c_per_group: int
    stride: int
    dtype: str
    sm_count: int


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
def compiled(stem: str, architecture: str = "sm_80") -> dict[str, ptx.Kernel]:
    """The kernels of ``csrc/cuda/<stem>.cu`` as PTX, of rowstream those that are interpreted."""
    with tempfile.TemporaryDirectory() as directory:
        source = ROOT / "csrc" / "cuda" / f"{stem}.cu"
        if stem.startswith("rowstream_"):
            source = Path(directory, f"{stem}.cu")
            source.write_text(rowstream_source(stem.removeprefix("rowstream_")))
        # A file: from sm_90 on nvcc reads what it has written.
        target = Path(directory, f"{stem}.ptx")
        command = [NVCC, "-ptx", "-std=c++20", f"-arch={architecture}", "-I", ROOT / "csrc", source]
        done = subprocess.run([*command, "-o", target], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ptx.parse(target.read_text(encoding="utf-8"))


def rowstream_source(dtype: str) -> str:
    """What takes them from where the launcher does; all would compile for minutes."""
    order = [config["name"] for config in _C.cuda_kernels()]  # of fprop and dgrad first
    element = {"float16": "Float16", "bfloat16": "BFloat16"}[dtype]
    wanted = {(c.config, "None") for c in CASES if c.dtype == dtype and c.pass_name != "wgrad"}
    wanted |= set(itertools.product(TAILED[dtype], ("Affine", "Statistics", "Residual")))
    kernels = "".join(
        f"    rowstream_kernel<{order.index(config)}, {element}, Tail::k{tail}>(),\n"
        for config, tail in sorted(wanted)
    )
    return f"""#include "cuda/rowstream_launch.cuh"
namespace grouped_conv::cuda {{
extern const RowstreamKernel kInterpreted[];
const RowstreamKernel kInterpreted[] = {{
{kernels}}};
}}
"""


FAMILIES = {"wgrad": "wgrad", "nchw_wgrad": "nchw_wgrad", "nchw_conv": "nchw"}
"""Files of kernels that are not called rowstream, by the beginning of their names."""


def find_kernel(dtype: str, name: str, config: int, architecture: str = "sm_80") -> ptx.Kernel:
    families = [family for start, family in FAMILIES.items() if name.startswith(start)]
    if name == "wgrad_reduce_kernel":  # one is enough
        architecture = "sm_80"
    kernels = compiled(f"{families[0] if families else 'rowstream'}_{dtype}", architecture)
    wanted = re.compile(rf"\d{name}I" + (rf".*Li{config}E(?!.*4TailE[123])" if config >= 0 else ""))
    (found,) = [k for symbol, k in kernels.items() if wanted.search(symbol)]
    return found


def interpret(
    case: Case,
    p: ConvProblem,
    operands: emulator.Operands,
    channels_last: bool,
    architecture: str = "sm_80",
) -> torch.Tensor:
    """The result of a pass, ``[N, K, P, Q]`` and so on, computed by the interpreter."""
    extents = emulator.extents(p)
    planar = case.config.startswith("nchw")
    written = {"fprop": "y", "dgrad": "x", "wgrad": "w"}[case.pass_name]
    tensors = {"x": operands.x, "w": operands.w, "y": operands.y}
    tensors[written] = torch.full_like(tensors[written], float("nan"))
    memory = ptx.GlobalMemory()
    addresses, arrays = {}, {}
    for name, t in tensors.items():
        by_pixel = channels_last if name == "w" else not planar
        ordered = t.permute(0, 2, 3, 1).contiguous() if by_pixel else t.contiguous()
        arrays[name] = ordered.view(torch.int16).numpy()
        addresses[name] = memory.allocate(arrays[name])
    addresses["bias"] = addresses["workspace"] = 0
    if operands.bias is not None:
        addresses["bias"] = memory.allocate(operands.bias.view(torch.int16).numpy())
    if case.pass_name == "wgrad":
        size = launches().workspace_bytes(case.config, extents, case.sm_count)
        addresses["workspace"] = memory.allocate(np.full(size // 4, np.nan, np.float32))
    for launch in launches().launches(
        case.pass_name,
        case.config,
        extents,
        channels_last=channels_last,
        sm_count=case.sm_count,
        **addresses,
    ):
        ptx.launch(
            find_kernel(case.dtype, launch["kernel"], launch["config"], architecture),
            memory,
            (launch["blocks"],),
            (launch["threads"],),
            [launch["arguments"]],
            launch["shared_bytes"],
        )
    found = memory.read(addresses[written], arrays[written]).copy()
    result = torch.from_numpy(found).view(emulator.DTYPES[case.dtype])
    by_pixel = channels_last if written == "w" else not planar
    return result.permute(0, 3, 1, 2) if by_pixel else result


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bits; every NaN equals every other."""
    both_nan = a.isnan() & b.isnan()
    return bool(((a.view(torch.int16) == b.view(torch.int16)) | both_nan).all())


CASES = [
    Case(pass_name, config["name"], config["c_per_group"], config["stride"], dtype, 3)
    for config in _C.cuda_kernels()
    for pass_name in config["passes"]
    for dtype in ("float16", "bfloat16")
    # The types differ in conversions alone: one configuration of each family shows those.
    if dtype == "float16" or config["c_per_group"] in (4, 16)
]
TAILED = {
    "float16": ("conv_c4_s1", "conv_c16_s1_narrow", "fprop_c8_s2"),
    "bfloat16": ("conv_c4_s1",),
}
"""The configurations that are interpreted with an epilogue or statistics, too."""
# Many partial sums.
CASES += [Case("wgrad", f"wgrad_c{c}_s1", c, 1, "float16", 132) for c in (4, 32)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_emulator_has_the_same_bits(case: Case) -> None:
    """Several images side by side, the last tile partly filled, channels that fill no block."""
    c = max(3 * case.c_per_group, 24) if case.c_per_group < 64 else 128
    batch = 24 if case.sm_count > 3 else 5
    stride = case.stride
    p = ConvProblem(batch, c, 6, 7, c, 3, 3, c // case.c_per_group, 1, 1, stride, stride)
    channels_last = case.c_per_group in (8, 32)
    dtype = emulator.DTYPES[case.dtype]
    operands = emulator.Operands.random(p, dtype, bias=case.pass_name == "fprop")
    if case.c_per_group == 16:  # the way of values that are not finite, too
        operands.x[0, 3, 2, 2] = float("inf")
        operands.w[1, 2, 0, 1] = float("nan")
        operands.y[1, 2, 0, 0] = float("-inf")
    (kernel,) = [
        k
        for k in emulator.kernels(case.pass_name)
        if (k.name, k.dtype) == (case.config, case.dtype)
    ]
    emulated = emulator.run(
        kernel, p, operands, channels_last=channels_last, sm_count=case.sm_count
    )
    assert same_bits(interpret(case, p, operands, channels_last), emulated.output)
