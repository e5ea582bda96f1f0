"""Who is measured: the library as a user calls it, and PyTorch and others beside it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv import available_backends, functional
from grouped_conv.bench.roofline import DTYPES
from grouped_conv.problem import PASSES, ConvProblem, Pass

LAYOUTS: dict[str, torch.memory_format] = {
    "nhwc": torch.channels_last,
    "nchw": torch.contiguous_format,
}
OURS = ("native", "triton")
"""Backends of this library that can be peers of another."""
PEERS = ("torch", "inductor", "spio", *OURS)

Work = Literal["fprop", "dgrad", "wgrad", "fprop_affine"]
"""What can be measured: the passes, and fprop with scale, shift, residual and relu."""
WORKS: tuple[Work, ...] = (*PASSES, "fprop_affine")


@dataclass(frozen=True)
class Case:
    """One thing to measure: a problem, the pass, and how its tensors are stored."""

    problem: ConvProblem
    pass_name: Work
    dtype: str
    layout: str
    device: torch.device

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]

    @property
    def decided_as(self) -> Pass:
        """The pass whose choice of backend is that of this work."""
        return "fprop" if self.pass_name == "fprop_affine" else self.pass_name

    @property
    def residual_bytes(self) -> int:
        """Bytes that are read beside x, w and y."""
        if self.pass_name != "fprop_affine":
            return 0
        return math.prod(self.problem.output_size) * DTYPES[self.dtype].itemsize

    def in_layout(self, layout: str) -> Case:
        """The same case with tensors in another layout."""
        return replace(self, layout=layout)


@dataclass(frozen=True)
class Operands:
    """Input, weight and output gradient; a pass reads two of them.

    fprop_affine reads all three, dy as its residual, and scale and shift. ``folded`` is the weight
    times scale: who folds a batch normalization into the weights does so once.
    """

    x: Tensor
    w: Tensor
    dy: Tensor
    scale: Tensor
    shift: Tensor
    folded: Tensor

    @classmethod
    def random(cls, case: Case, seed: int) -> Operands:
        """Standard normal x and dy, w such that y has about unit variance; NaN in what the pass
        must not read."""
        p = case.problem
        generator = torch.Generator(case.device).manual_seed(seed)

        def filled(size: tuple[int, ...], scale: float, unread_by: Work) -> Tensor:
            values = torch.empty(size, dtype=DTYPES[case.dtype], device=case.device)
            values = values.contiguous(memory_format=case.memory_format)
            if case.pass_name == unread_by:
                return values.fill_(float("nan"))
            normal = torch.randn(size, generator=generator, device=case.device)
            return values.copy_(normal.mul_(scale))

        fan_in = p.c_per_group * p.R * p.S
        x = filled(p.input_size, 1.0, "dgrad")
        w = filled(p.weight_size, fan_in**-0.5, "wgrad")
        dy = filled(p.output_size, 1.0, "fprop")
        factors = torch.rand(2, p.K, generator=generator, device=case.device)
        scale, shift = (factors + 0.5).to(w.dtype)
        return cls(x, w, dy, scale, shift, w * scale[:, None, None, None])

    def read_by(self, pass_name: Work) -> tuple[Tensor, ...]:
        """The large tensors that a pass, or who is measured beside it, reads."""
        reads: dict[Work, tuple[Tensor, ...]] = {
            "fprop": (self.x, self.w),
            "dgrad": (self.dy, self.w),
            "wgrad": (self.dy, self.x),
            "fprop_affine": (self.x, self.w, self.dy, self.folded),
        }
        return reads[pass_name]

    def copy(self, case: Case) -> Operands:
        """The same values in memory of their own, in the case's layout; unread ones shared."""
        read = {id(tensor) for tensor in self.read_by(case.pass_name)}

        def fresh(tensor: Tensor) -> Tensor:
            if id(tensor) not in read:
                return tensor
            return tensor.clone(memory_format=case.memory_format)

        x, w, dy, folded = map(fresh, (self.x, self.w, self.dy, self.folded))
        return Operands(x, w, dy, self.scale, self.shift, folded)


Run = Callable[[Operands], Tensor]


@dataclass(frozen=True)
class Contender:
    """A name, the case it runs (its layout may be its own) and the call that is timed."""

    name: str
    case: Case
    run: Run


def ours(case: Case, backend: str = "auto") -> Contender:
    """The library's routed pass, without autograd: what a user's call arrives at."""
    p = case.problem
    geometry = (p.stride, p.padding, p.dilation, p.G)
    channels_last = case.layout == "nhwc"

    def fprop(t: Operands) -> Tensor:
        return functional.fprop(t.x, t.w, None, *geometry, backend=backend)

    def dgrad(t: Operands) -> Tensor:
        return functional.dgrad(t.dy, t.w, p.input_size, *geometry, channels_last, backend=backend)

    def wgrad(t: Operands) -> Tensor:
        return functional.wgrad(t.dy, t.x, p.weight_size, *geometry, channels_last, backend=backend)

    def fprop_affine(t: Operands) -> Tensor:
        return functional.grouped_conv2d_affine(
            t.x, t.w, None, t.scale, t.shift, t.dy, "relu", *geometry, backend=backend
        )

    runs: dict[Work, Run] = {
        "fprop": fprop,
        "dgrad": dgrad,
        "wgrad": wgrad,
        "fprop_affine": fprop_affine,
    }
    return Contender("ours", case, runs[case.pass_name])


def _aten(case: Case) -> Run:
    """PyTorch's own convolution and its two gradients, one at a time."""
    p = case.problem
    geometry = (p.stride, p.padding, p.dilation)

    def fprop(t: Operands) -> Tensor:
        return F.conv2d(t.x, t.w, None, *geometry, p.G)

    def backward(t: Operands, mask: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            t.dy, t.x, t.w, None, *geometry, False, (0, 0), p.G, mask
        )
        return outputs

    def dgrad(t: Operands) -> Tensor:
        return backward(t, (True, False, False))[0]

    def wgrad(t: Operands) -> Tensor:
        return backward(t, (False, True, False))[1]

    def fprop_affine(t: Operands) -> Tensor:
        y = fprop(t)
        y.mul_(t.scale[:, None, None]).add_(t.shift[:, None, None])
        return y.add_(t.dy).relu_()

    runs: dict[Work, Run] = {
        "fprop": fprop,
        "dgrad": dgrad,
        "wgrad": wgrad,
        "fprop_affine": fprop_affine,
    }
    return runs[case.pass_name]


def _folded(case: Case) -> Contender:
    """PyTorch with scale in the weight and shift as the bias."""
    p = case.problem

    def run(t: Operands) -> Tensor:
        y = F.conv2d(t.x, t.folded, t.shift, p.stride, p.padding, p.dilation, p.G)
        return y.add_(t.dy).relu_()

    return Contender("PyTorch folded", case, run)


def pytorch(case: Case) -> Contender:
    """PyTorch in the case's own layout, and the yardstick of accuracy."""
    name = f"cuDNN {case.layout}" if case.device.type == "cuda" else "PyTorch"
    return Contender(name, case, _aten(case))


def _inductor(case: Case) -> Contender:
    """PyTorch's compiler with all its autotuning; it compiles the convolution alone."""
    torch._dynamo.reset()  # else the shapes of earlier rows count against the recompile limit
    run = torch.compile(
        _aten(case), mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True
    )
    return Contender("Inductor", case, run)


def _spio(case: Case) -> Contender:
    """Spio's CUDA kernels: fp16 NHWC, 8 channels per group, stride 1, 3x3."""
    import spio.functional  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

    p = case.problem
    pad_h, pad_w = p.padding
    ops = torch.ops.spio

    def fprop(t: Operands) -> Tensor:
        output: Tensor = ops.conv2d_gw8(t.x, t.w, None, 1, pad_h, pad_w, 1, p.G)
        return output

    def backward(t: Operands, needs_x: bool, needs_w: bool) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = ops.conv2d_gw8_backward(
            t.x, t.w, None, t.dy, pad_h, pad_w, needs_x, needs_w, False
        )
        return outputs

    runs: dict[Work, Run] = {
        "fprop": fprop,
        "dgrad": lambda t: backward(t, True, False)[0],
        "wgrad": lambda t: backward(t, False, True)[1],
    }
    return Contender("spio", case, runs[case.pass_name])


def _spio_refusal(case: Case) -> str | None:
    p = case.problem
    if case.pass_name == "fprop_affine":
        return "spio has no epilogue"
    if case.device.type != "cuda":
        return "spio needs a CUDA device"
    if case.dtype != "float16":
        return "spio has float16 only"
    if (p.c_per_group, p.k_per_group, p.stride, p.dilation) != (8, 8, (1, 1), (1, 1)):
        return "spio has 8 channels per group at stride 1 only"
    if (p.R, p.S) != (3, 3):
        return "spio has 3x3 only"
    return None


def missing(name: str, device: torch.device) -> str | None:
    """Why a peer cannot run in this process at all, or None."""
    if name in ("spio", "triton") and device.type != "cuda":
        return f"{name} needs a CUDA device"
    if name == "spio" and importlib.util.find_spec("spio") is None:
        return "spio is not installed"
    return available_backends()[name] if name in OURS else None


def _computes(name: str, case: Case) -> bool:
    """Whether a backend of this library takes a case."""
    channels_last = case.layout == "nhwc"
    dtype = DTYPES[case.dtype]
    try:
        functional.decide(
            case.problem, dtype, case.device, channels_last, case.decided_as, backend=name
        )
    except RuntimeError:
        return False
    return True


def _named(name: str, case: Case) -> Contender:
    return replace(ours(case, name), name=name)


def peers(case: Case, names: tuple[str, ...]) -> list[Callable[[], Contender]]:
    """Makers of the peers that can run a case; the first is PyTorch in the same layout.

    On CUDA that is cuDNN in both layouts, as the opponent is the better of the two.
    """
    makers: list[Callable[[], Contender]] = [lambda: pytorch(case)]
    if case.device.type == "cuda":
        other = "nchw" if case.layout == "nhwc" else "nhwc"
        makers.append(lambda: pytorch(case.in_layout(other)))
    if case.pass_name == "fprop_affine":
        makers.append(lambda: _folded(case))
    if "inductor" in names:
        makers.append(lambda: _inductor(case))
    if "spio" in names and _spio_refusal(case) is None:
        makers.append(lambda: _spio(case.in_layout("nhwc")))
    makers += [
        partial(_named, name, case) for name in OURS if name in names and _computes(name, case)
    ]
    return makers
