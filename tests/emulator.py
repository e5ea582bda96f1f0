"""The CUDA kernels in the SIMT emulator (tests/simt), on tensors."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_conv.problem import ConvProblem

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@functools.cache
def _tree() -> Path:
    """The configured build directory."""
    tree = ROOT / "build" / "simt"
    _call(
        *("-S", ROOT, "-B", tree, "-DGROUPED_CONV_BUILD_TESTS=ON"),
        f"-DGROUPED_CONV_TORCH_DIR={Path(torch.__file__).parent}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    return tree


def _call(*arguments: str | Path) -> None:
    cmake = shutil.which("cmake")
    assert cmake is not None, "the emulator is built by CMake: pip install cmake"
    done = subprocess.run([cmake, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@functools.cache
def _built(target: str) -> Path:
    """Build a target of CMakeLists.txt; only what has changed is compiled."""
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    _call("--build", _tree(), "--target", target, "--parallel", jobs)
    (path,) = [p for p in _tree().glob(f"{target}*") if p.is_file()]
    return path


def self_test(name: str) -> Path:
    """The program of ``tests/simt/test_<name>.cpp``."""
    return _built(f"simt_test_{name}")


@functools.cache
def module() -> Any:
    """The extension module ``_simt``."""
    spec = importlib.util.spec_from_file_location("_simt", _built("_simt"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def kernels(pass_name: str | None = None, *, planar: bool = False) -> list[Any]:
    """The row-streaming kernels of a pass, or of all passes, for NHWC or, if ``planar``, for NCHW.

    Each has name, pass_name, dtype, planar, refusal, run.
    """
    return [
        k
        for k in module().kernels()
        if pass_name in (None, k.pass_name)
        and k.planar == planar
        and not k.name.startswith("tiled_")
    ]


def tiled_kernels(pass_name: str, *, planar: bool) -> list[Any]:
    """The tiled kernels of a pass; those that may cut to TF32 are named so."""
    return [
        k
        for k in module().kernels()
        if k.pass_name == pass_name and k.planar == planar and k.name.startswith("tiled_")
    ]


def extents(p: ConvProblem) -> list[int]:
    """In the order of ``ConvProblem::make``."""
    sizes = [p.N, p.C, p.H, p.W, p.K, p.R, p.S, p.G]
    return [*sizes, *p.padding, *p.stride, *p.dilation]


def _bits(t: Tensor, channels_last: bool) -> np.ndarray:
    """The bytes of a tensor in the order of its memory."""
    if t.dim() == 4 and channels_last:
        t = t.permute(0, 2, 3, 1)
    return t.reshape(-1).view(torch.uint8).numpy()


@dataclass(frozen=True)
class Operands:
    """``x``, ``w``, ``y`` and ``bias`` in any memory format; those a pass writes are not read."""

    x: Tensor
    w: Tensor
    y: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    """Of fprop with its epilogue, float32; with a shift."""
    shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False

    @staticmethod
    def random(p: ConvProblem, dtype: torch.dtype, bias: bool, seed: int = 0) -> Operands:
        """Normal values; y is dy where it is read."""
        rng = torch.Generator().manual_seed(seed)
        x, w, y, b = (
            torch.randn(size, generator=rng).to(dtype)
            for size in (p.input_size, p.weight_size, p.output_size, (p.K,))
        )
        return Operands(x, w, y, b if bias else None)


@dataclass(frozen=True)
class Outcome:
    """What a kernel wrote, ``[N, K, P, Q]`` and so on, and what the emulator said of it."""

    output: Tensor
    complete: bool
    launches: list[Any]
    statistics: tuple[Tensor, Tensor] | None = None
    """Sum and squared deviations of each channel, where they were asked for."""

    @property
    def faults(self) -> str:
        """Everything that was wrong, in words; empty if nothing was."""
        text = "".join(launch.text for launch in self.launches)
        return text if self.complete else text + "some of the output was never written\n"

    @property
    def effects(self) -> int:
        """How often a planted fault made a difference."""
        return sum(launch.effects for launch in self.launches)


def run(
    kernel: Any,
    p: ConvProblem,
    operands: Operands,
    *,
    channels_last: bool = False,
    sm_count: int = 132,
    statistics: bool = False,
    **options: Any,
) -> Outcome:
    """Run a kernel; w, or the dw that it writes, is KRSC if ``channels_last``, else KCRS.

    The options are those of ``simt::Options``; ``sm_count`` decides how the problem is cut up.
    """
    session = kernel.session(
        extents(p),
        bias=operands.bias is not None,
        channels_last=channels_last,
        sm_count=sm_count,
    )
    written = {"fprop": "y", "dgrad": "x", "wgrad": "w"}[kernel.pass_name]
    for name in ("x", "w", "y", "bias", "residual"):
        t = getattr(operands, name)
        if name != written and t is not None:
            by_pixel = channels_last if name == "w" else not kernel.planar
            getattr(session, name)[:] = _bits(t, by_pixel)
    session.statistics, session.relu = statistics, operands.relu
    session.adds_residual = operands.residual is not None
    if operands.scale is not None:
        session.affine = True
        session.scale[:], session.shift[:] = operands.scale.numpy(), operands.shift.numpy()
    launches = session.run(**options)
    found = (torch.from_numpy(session.sum), torch.from_numpy(session.squares))
    output = torch.from_numpy(getattr(session, written)).view(DTYPES[kernel.dtype])
    n, c, h, w = {"y": p.output_size, "x": p.input_size, "w": p.weight_size}[written]
    if channels_last if written == "w" else not kernel.planar:
        output = output.reshape(n, h, w, c).permute(0, 3, 1, 2)
    output = output.reshape(n, c, h, w)
    return Outcome(output, session.complete, launches, found if statistics else None)


def exact(pass_name: str, p: ConvProblem, operands: Operands) -> Tensor:
    """The result in float64, summed over the taps that exist: nothing is multiplied by padding."""
    x, w, y = (t.double() for t in (operands.x, operands.w, operands.y))
    x = x.reshape(p.N, p.G, p.c_per_group, p.H, p.W)
    w = w.reshape(p.G, p.k_per_group, p.c_per_group, p.R, p.S)
    y = y.reshape(p.N, p.G, p.k_per_group, p.P, p.Q)
    out = torch.zeros_like({"fprop": y, "dgrad": x, "wgrad": w}[pass_name])

    def rows(tap: int, pad: int, stride: int, size: int, out_size: int) -> tuple[slice, slice]:
        """The positions of the output whose tap lies inside of the input, and of the tap."""
        met = [o for o in range(out_size) if 0 <= o * stride - pad + tap < size]
        if not met:
            return slice(0, 0), slice(0, 0)
        first = met[0] * stride - pad + tap
        last = met[-1] * stride - pad + tap
        return slice(met[0], met[-1] + 1), slice(first, last + 1, stride)

    for r in range(p.R):
        for s in range(p.S):
            out_h, in_h = rows(r * p.dilation_h, p.pad_h, p.stride_h, p.H, p.P)
            out_w, in_w = rows(s * p.dilation_w, p.pad_w, p.stride_w, p.W, p.Q)
            x_met, y_met = x[..., in_h, in_w], y[..., out_h, out_w]
            if pass_name == "fprop":
                out[..., out_h, out_w] += torch.einsum("ngchw,gkc->ngkhw", x_met, w[..., r, s])
            elif pass_name == "dgrad":
                out[..., in_h, in_w] += torch.einsum("ngkhw,gkc->ngchw", y_met, w[..., r, s])
            else:
                out[..., r, s] = torch.einsum("ngkhw,ngchw->gkc", y_met, x_met)
    out = out.reshape(
        {"fprop": p.output_size, "dgrad": p.input_size, "wgrad": p.weight_size}[pass_name]
    )
    if pass_name == "fprop" and operands.bias is not None:
        out = out + operands.bias.double()[:, None, None]
    return out


def magnitude(pass_name: str, p: ConvProblem, operands: Operands) -> Tensor:
    """The sum of the absolute values of the terms."""
    x, w, y = operands.x.abs(), operands.w.abs(), operands.y.abs()
    bias = None if operands.bias is None else operands.bias.abs()
    return exact(pass_name, p, Operands(x, w, y, bias))
