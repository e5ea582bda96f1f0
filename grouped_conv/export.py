"""Our operators in terms of ATen's, for graphs that go where grouped_conv is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload

from grouped_conv.ops import compose_epilogue


def _fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    y: Tensor = torch.ops.aten.convolution(
        x, w, bias, stride, padding, dilation, False, [0, 0], groups
    )
    return y


def _fprop_affine(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    y = _fprop(x, w, bias, stride, padding, dilation, groups)
    return compose_epilogue(y, scale, shift, residual, relu, in_place=False)


def aten_decompositions() -> dict[OpOverload, Callable[..., Tensor]]:
    """What the operators of an exported forward pass are in ATen's terms.

    ``program.run_decompositions(aten_decompositions())`` makes an exported program that needs
    PyTorch alone, and that ``torch.onnx.export`` takes: an ONNX ``Conv`` with ``group``. A module
    needs no such step: ``torch.onnx.export(model, ...)`` finds PyTorch's own convolution there.
    """
    ops = torch.ops.grouped_conv
    return {
        ops.fprop.default: _fprop,
        ops.fprop_affine.default: _fprop_affine,
        ops.triton_fprop.default: _fprop,
        ops.triton_fprop_affine.default: _fprop_affine,
    }
