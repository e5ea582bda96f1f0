"""The operators ``grouped_conv::triton_*``: launches of the Triton kernels, tuned or not.

``triton.autotune`` measures a problem when it first meets it, wherever that is. So the kernels are
not decorated with it: a tuner stands between a launch and its kernel only where tuning was asked
for, and never measures during the capture of a CUDA graph.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv.backends.triton import AUTOTUNE_VARIABLE, Config, Launch, Plan, kernel_function
from grouped_conv.problem import ConvProblem

NAMES = ("fprop", "fprop_affine", "dgrad", "wgrad")

_library = torch.library.Library("grouped_conv", "FRAGMENT")
for _name in NAMES:  # the schemas stand in csrc/ops.cpp, and nowhere else
    _schema = str(getattr(torch.ops.grouped_conv, _name).default._schema)
    _library.define(_schema.replace(f"grouped_conv::{_name}(", f"triton_{_name}(", 1))

Fake = Callable[..., Tensor]

_measured: set[Hashable] = set()
"""Problems that a tuner knows."""

_one_at_a_time = threading.Lock()
"""Tuners keep the arguments of a call in themselves."""


def implement(fakes: dict[str, Fake]) -> None:
    """Register the operators: a fake validates and makes the result, a kernel fills it."""

    def fprop(x: Tensor, w: Tensor, bias: Tensor | None, *attributes: Any) -> Tensor:
        y = fakes["fprop"](x, w, bias, *attributes)
        _fprop(y, x, w, (bias, None, None, None), False, *attributes)
        return y

    def fprop_affine(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        *attributes: Any,
    ) -> Tensor:
        y = fakes["fprop_affine"](x, w, bias, scale, shift, residual, relu, *attributes)
        if residual is not None and residual.stride() != y.stride():
            residual = torch.empty_like(y).copy_(residual)
        _fprop(y, x, w, (bias, scale, shift, residual), relu, *attributes)
        return y

    def dgrad(dy: Tensor, w: Tensor, size: Sequence[int], *attributes: Any) -> Tensor:
        dx = fakes["dgrad"](dy, w, size, *attributes)
        _dgrad(dx, dy, w, *attributes[:-1])
        return dx

    def wgrad(dy: Tensor, x: Tensor, size: Sequence[int], *attributes: Any) -> Tensor:
        dw = fakes["wgrad"](dy, x, size, *attributes)
        _wgrad(dw, dy, x, *attributes[:-1])
        return dw

    for function in (fprop, fprop_affine, dgrad, wgrad):
        for device in ("CPU", "CUDA"):  # tensors of the CPU are for Triton's interpreter
            _library.impl(f"triton_{function.__name__}", function, device)


def _fprop(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    epilogue: Sequence[Tensor | None],
    relu: bool,
    *attributes: Any,
) -> None:
    p = _problem(x.shape, w.shape, *attributes)
    if _nothing_to_do(y, x, w):
        return
    vectors = [None if t is None else t.contiguous() for t in epilogue[:3]]
    plan = Plan.of("fprop", p, x.dtype, _dense_channels(x))
    packed = w.new_empty(plan.packed_size)
    _launch(plan.pack(w, packed), plan.fprop(x, packed, y, (*vectors, epilogue[3]), relu))


def _dgrad(dx: Tensor, dy: Tensor, w: Tensor, *attributes: Any) -> None:
    p = _problem(dx.shape, w.shape, *attributes)
    if _nothing_to_do(dx, dy, w):
        return
    plan = Plan.of("dgrad", p, dy.dtype, _dense_channels(dx))
    packed = w.new_empty(plan.packed_size)
    _launch(plan.pack(w, packed), plan.dgrad(dy, packed, dx))


def _wgrad(dw: Tensor, dy: Tensor, x: Tensor, *attributes: Any) -> None:
    p = _problem(x.shape, dw.shape, *attributes)
    if dy.numel() == 0:
        dw.zero_()
        return
    if _nothing_to_do(dw, dy, x):
        return
    plan = Plan.of("wgrad", p, x.dtype, _dense_channels(x))
    shape = (plan.splits(_processors(x.device)), 9, p.K, p.c_per_group)
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    _launch(plan.wgrad(dy, x, partial), plan.reduce(partial, dw))


def _problem(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> ConvProblem:
    """The problem of sizes that are known to fit, if the kernels take it."""
    p = ConvProblem.checked(input_size, weight_size, stride, padding, dilation, groups)
    if (p.R, p.S) != (3, 3) or p.dilation != (1, 1) or p.stride not in ((1, 1), (2, 2)):
        raise RuntimeError(
            "grouped_conv: the Triton kernels are for 3x3 filters, dilation 1 and strides 1 and 2, "
            f"not for {p}"
        )
    return p


def _nothing_to_do(out: Tensor, *read: Tensor) -> bool:
    """Whether the result has no elements; tensors that the kernels cannot address are an error."""
    if out.numel() == 0:
        return True
    for t in (out, *read):
        span = sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.stride()[1:], strict=True))
        if span >= 2**31:
            raise RuntimeError("grouped_conv: an image has more than 2^31 elements")
    return False


def _launch(*launches: Launch) -> None:
    device = launches[0].arguments[0].device
    with torch.cuda.device(device) if _elsewhere(device) else contextlib.nullcontext():
        for launch in launches:
            if len(launch.choice) > 1 and _tuning(device):
                _launch_tuned(launch, device)
            else:
                launch.run()


def _tuning(device: torch.device) -> bool:
    return device.type == "cuda" and os.environ.get(AUTOTUNE_VARIABLE) == "1"


def _launch_tuned(launch: Launch, device: torch.device) -> None:
    """With the best configuration; with the default where a capture meets an unknown problem."""
    arguments = (a.dtype if isinstance(a, Tensor) else a for a in launch.arguments)
    problem = (launch.kernel, launch.choice, device, *arguments, *launch.constants.values())
    if problem not in _measured and torch.cuda.is_current_stream_capturing():
        launch.run()
        return
    with _one_at_a_time:
        launch.run(_tuner(launch.kernel, launch.choice, device))
    _measured.add(problem)


@functools.cache
def _tuner(kernel: str, choice: tuple[Config, ...], device: torch.device) -> Any:
    """``triton.autotune`` of a kernel; it does not tell devices apart, so each has its own."""
    triton = importlib.import_module("triton")
    function = kernel_function(kernel)
    configs = [
        triton.Config({"BLOCK_M": c.block_m}, num_warps=c.num_warps, num_stages=c.num_stages)
        for c in choice
    ]
    # Every size, stride and constant; of pointers it adds the types.
    key = [n for n in function.arg_names if n != "BLOCK_M" and not n.endswith("_ptr")]
    return triton.autotune(configs=configs, key=key)(function)


def _elsewhere(device: torch.device) -> bool:
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def _dense_channels(t: Tensor) -> bool:
    return t.stride(1) == 1


def _processors(device: torch.device) -> int:
    """Multiprocessors; of a GPU of some size, where the interpreter runs."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
