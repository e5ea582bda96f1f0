"""A call of a convolution as our operators take it, or the reason why it is ATen's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from grouped_conv.backends import Query
from grouped_conv.ops import autocast_dtype, cast
from grouped_conv.problem import ConvProblem, Pass
from grouped_conv.routing import PassDecision, decide_query, site_of, suggests_channels_last


class Request(NamedTuple):
    """A call that our ops can express: 4-D tensors of one dtype and integer attributes."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    batched: bool
    problem: ConvProblem

    def query(self, pass_name: Pass) -> Query:
        x = self.input
        return Query.of(pass_name, self.problem, x.dtype, x.device, suggests_channels_last(x))

    def decide(self, pass_name: Pass, backend: str | None = None) -> PassDecision:
        """Who computes a pass of it."""
        return decide_query(self.query(pass_name), backend, site_of(self.input))


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _pair(value: Any) -> tuple[int, int] | None:
    """An int, or a sequence of one or two, as ATen expands it; None for anything else."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    if type(value) is int:
        return (value, value)
    values = (value,) if _is_int(value) else value
    if not isinstance(values, (tuple, list)) or len(values) not in (1, 2):
        return None
    if not all(_is_int(v) for v in values):
        return None
    return (values[0], values[-1])


def _resolve_padding(
    padding: Any, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int] | str:
    """Padding as two ints, or the reason why it cannot be expressed so."""
    if padding == "valid":
        return (0, 0)
    if padding == "same" and stride == (1, 1):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            return "padding='same' with an even kernel pads unequally"
        return (total[0] // 2, total[1] // 2)
    pair = None if isinstance(padding, str) else _pair(padding)
    if pair is None:
        return f"padding {padding!r} is not one or two integers"
    return pair


def transform_reason() -> str | None:
    """Why an active transform sends a call to ATen. The compiler traces through these questions."""
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation goes through ATen"
    if torch._C._functorch.get_dynamic_layer_stack_depth() > 0:
        return "torch.func transforms go through ATen"
    return None


def is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _tensor_reason(x: Any, w: Any, b: Any) -> str | None:
    """Why tensors are not what the kernels take, whatever their sizes."""
    if not isinstance(x, Tensor) or not isinstance(w, Tensor):
        return "input and weight must be tensors"
    if b is not None and not isinstance(b, Tensor):
        return "bias must be a tensor or None"
    tensors = (x, w) if b is None else (x, w, b)
    for t in tensors:
        if t.layout != torch.strided or t.is_nested:
            return "the tensors are not dense and strided"
        if t.dtype != x.dtype:
            return "the tensors have different dtypes"
        if t.device != x.device:
            return "the tensors are on different devices"
    if not x.dtype.is_floating_point:
        return f"there are no kernels for {str(x.dtype).removeprefix('torch.')}"
    if x.dim() not in (3, 4) or w.dim() != 4 or (b is not None and b.dim() != 1):
        return "the tensors do not have the dimensions of a 2-D convolution"
    return None


def parse(
    x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Request | str:
    """The call as our ops take it, or the reason why it is ATen's: an unusual call or a wrong one.

    ATen validates what it is given, so a wrong call gets PyTorch's own error.
    """
    if reason := transform_reason():
        return reason
    if is_traced() and torch.onnx.is_in_onnx_export():
        return "ONNX has a convolution of its own"
    if isinstance(x, Tensor) and (dtype := autocast_dtype(x.device.type)) is not None:
        device = x.device.type
        x, w, b = (cast(t, dtype, device) if isinstance(t, Tensor) else t for t in (x, w, b))
    if reason := _tensor_reason(x, w, b):
        return reason
    stride, dilation = _pair(stride), _pair(dilation)
    if stride is None or dilation is None:
        return "stride and dilation must be one or two integers"
    if not _is_int(groups):
        return "groups must be an integer"
    resolved = _resolve_padding(padding, tuple(w.shape[2:]), stride, dilation)
    if isinstance(resolved, str):
        return resolved
    if min(stride) < 1 or min(dilation) < 1 or min(resolved) < 0 or groups < 1:
        return "stride, dilation, padding and groups must be positive"
    batched = x.dim() == 4
    if not batched:
        x = x.unsqueeze(0)
    k, c_per_group, r, s = w.shape
    if x.shape[1] != c_per_group * groups or k % groups or min(k, c_per_group, r, s) < 1:
        return "the channels do not fit the weight and the groups"
    if b is not None and b.shape[0] != k:
        return "the bias does not fit the weight"
    problem = ConvProblem.from_sizes(x.shape, w.shape, stride, resolved, dilation, groups)
    if problem.H < 1 or problem.W < 1 or problem.P < 1 or problem.Q < 1:
        return "the kernel is larger than the padded input"
    if suggests_channels_last(w) and not w.is_contiguous() and not suggests_channels_last(x):
        # PyTorch's convolution answers in channels_last if either tensor is.
        x = x.contiguous(memory_format=torch.channels_last)
        if not suggests_channels_last(x):  # dense, but with odd strides where an extent is 1
            x = x.clone(memory_format=torch.channels_last)
    return Request(x, w, b, stride, resolved, dilation, groups, batched, problem)
