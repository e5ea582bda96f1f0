"""The operators ``grouped_conv::triton_*``: launches of the Triton kernels, tuned or not.

``triton.autotune`` wraps one launch whose arguments exist; here the grid, the packed weight and the
workspace depend on the configuration, and a capture into a CUDA graph must not start measuring. So
configurations are measured here, whole passes with ``triton.testing.do_bench``, and the best one is
kept by problem.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv.backends.triton import AUTOTUNE_VARIABLE, Config, Plan, pruned
from grouped_conv.problem import ConvProblem, Pass

NAMES = ("fprop", "fprop_affine", "dgrad", "wgrad")

_library = torch.library.Library("grouped_conv", "FRAGMENT")
for _name in NAMES:  # the schemas stand in csrc/ops.cpp, and nowhere else
    _schema = str(getattr(torch.ops.grouped_conv, _name).default._schema)
    _library.define(_schema.replace(f"grouped_conv::{_name}(", f"triton_{_name}(", 1))

Fake = Callable[..., Tensor]
_Run = Callable[[Config | None], None]

_tuned: dict[tuple[Any, ...], Config] = {}


def implement(fakes: dict[str, Fake]) -> None:
    """Register the operators: a fake validates and makes the result, a kernel fills it.

    Of the attributes the kernels take the first four. Whether TF32 is allowed they ask PyTorch.
    """

    def fprop(x: Tensor, w: Tensor, bias: Tensor | None, *attributes: Any) -> Tensor:
        y = fakes["fprop"](x, w, bias, *attributes)
        _fprop(y, x, w, (bias, None, None, None), False, *attributes[:4])
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
        _fprop(y, x, w, (bias, scale, shift, residual), relu, *attributes[:4])
        return y

    def dgrad(dy: Tensor, w: Tensor, size: Sequence[int], *attributes: Any) -> Tensor:
        dx = fakes["dgrad"](dy, w, size, *attributes)
        _dgrad(dx, dy, w, *attributes[:4])
        return dx

    def wgrad(dy: Tensor, x: Tensor, size: Sequence[int], *attributes: Any) -> Tensor:
        dw = fakes["wgrad"](dy, x, size, *attributes)
        _wgrad(dw, dy, x, *attributes[:4])
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
    vectors = [None if t is None else t.contiguous() for t in epilogue[:3]]

    def run(config: Config | None) -> None:
        plan = Plan.of("fprop", p, x.dtype, _dense_channels(x), config)
        packed = w.new_empty(plan.packed_size)
        plan.pack(w, packed).run()
        plan.fprop(x, packed, y, (*vectors, epilogue[3]), relu).run()

    _launch("fprop", p, run, y, x, w)


def _dgrad(dx: Tensor, dy: Tensor, w: Tensor, *attributes: Any) -> None:
    p = _problem(dx.shape, w.shape, *attributes)

    def run(config: Config | None) -> None:
        plan = Plan.of("dgrad", p, dy.dtype, _dense_channels(dx), config)
        packed = w.new_empty(plan.packed_size)
        plan.pack(w, packed).run()
        plan.dgrad(dy, packed, dx).run()

    _launch("dgrad", p, run, dx, dy, w)


def _wgrad(dw: Tensor, dy: Tensor, x: Tensor, *attributes: Any) -> None:
    p = _problem(x.shape, dw.shape, *attributes)
    if dy.numel() == 0:
        dw.zero_()
        return

    def run(config: Config | None) -> None:
        plan = Plan.of("wgrad", p, x.dtype, _dense_channels(x), config)
        splits, each = plan.splits(_processors(x.device))
        partial = torch.empty((splits, 9, p.K, p.c_per_group), dtype=torch.float32, device=x.device)
        plan.wgrad(dy, x, partial, each).run()
        plan.reduce(partial, dw).run()

    _launch("wgrad", p, run, dw, dy, x)


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


def _launch(pass_name: Pass, p: ConvProblem, run: _Run, out: Tensor, *read: Tensor) -> None:
    if out.numel() == 0:
        return
    for t in (out, *read):
        span = sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.stride()[1:], strict=True))
        if span >= 2**31:
            raise RuntimeError("grouped_conv: an image has more than 2^31 elements")
    if not out.is_cuda:
        run(None)
        return
    with torch.cuda.device(out.device) if _elsewhere(out) else contextlib.nullcontext():
        run(_config(pass_name, p, run, out, read))


def _config(
    pass_name: Pass, p: ConvProblem, run: _Run, out: Tensor, read: Sequence[Tensor]
) -> Config | None:
    """What tuning found for a problem; None, the default, where there was and is no tuning."""
    if os.environ.get(AUTOTUNE_VARIABLE) != "1":
        return None
    layouts = [_dense_channels(t) for t in (out, *read)]
    plan = Plan.of(pass_name, p, out.dtype, layouts[0])
    key = (pass_name, p, out.dtype, plan.precision, *layouts, out.device)
    if key not in _tuned and not torch.cuda.is_current_stream_capturing():
        do_bench = importlib.import_module("triton.testing").do_bench
        choice = pruned(pass_name, plan.blocking, plan.precision, p.N * p.P * p.Q)
        times = [do_bench(lambda config=config: run(config)) for config in choice]
        _tuned[key] = choice[times.index(min(times))]
    return _tuned.get(key)


def _elsewhere(t: Tensor) -> bool:
    return t.device.index != torch.cuda.current_device()


def _dense_channels(t: Tensor) -> bool:
    return t.stride(1) == 1


def _processors(device: torch.device) -> int:
    """Multiprocessors; of a GPU of some size, where the interpreter runs."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
