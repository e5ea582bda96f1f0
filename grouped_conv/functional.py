"""Grouped convolution as a function, and the account of who computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from grouped_conv import routing, sharding
from grouped_conv.backends import ORDER, OWN_PASS, allows_tf32
from grouped_conv.ops import autocast_dtype, cast, compose_epilogue, epilogue_refusal
from grouped_conv.problem import PASSES, Pass
from grouped_conv.request import is_traced, parse, transform_reason
from grouped_conv.routing import (
    PassDecision,
    available_backends,
    call,
    call_below_autocast,
    current_backend,
    decide,
    dgrad,
    fprop,
    op_of,
    use_backend,
    wgrad,
)

__all__ = [
    "Decision",
    "PassDecision",
    "available_backends",
    "decide",
    "dgrad",
    "explain",
    "fold_batch_norm",
    "fprop",
    "grouped_conv2d",
    "grouped_conv2d_affine",
    "use_backend",
    "wgrad",
]


@dataclass(frozen=True)
class Decision:
    """Who computes a convolution and its gradients, and who refused."""

    backend: str
    """Backend of the forward pass."""
    kernel: str
    """Kernel of the forward pass."""
    refused: tuple[tuple[str, str], ...]
    """Backends that were asked before for the forward pass, each with its reason."""
    passes: Mapping[Pass, tuple[str, str, str]]
    """For each pass (backend, kernel, why not a backend asked before)."""
    epilogue: str = OWN_PASS
    """Where :func:`grouped_conv2d_affine` applies what follows the convolution."""
    statistics: str = OWN_PASS
    """Where :func:`conv_batch_norm` in training gets the statistics of the output."""

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.kernel}"]
        lines += [f"  {name} refused: {reason}" for name, reason in self.refused]
        for name, (backend, kernel, reason) in self.passes.items():
            lines.append(f"  {name:5}  {backend:6}  {kernel}" + (f"  ({reason})" if reason else ""))
        lines += [f"  epilogue {self.epilogue}", f"  statistics {self.statistics}"]
        return "\n".join(lines)


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Grouped 2-D convolution: :func:`torch.nn.functional.conv2d`, with kernels of its own.

    Whatever ``F.conv2d`` accepts is accepted, with its result, memory format, gradients and errors.
    What the kernels are not tuned for goes to ATen; :func:`explain` tells who takes a call.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, any layout; NCHW and channels_last are native.
        weight: ``[K, C/groups, R, S]``.
        bias: ``[K]`` or None.
        stride: one int or two.
        padding: one int or two, zeros added on both sides, or ``"same"`` or ``"valid"``.
        dilation: one int or two.
        groups: number of groups; divides C and K.
        backend: ``"native"``, ``"triton"``, ``"aten"`` or ``"auto"``; None: the choice of
            :func:`use_backend`.

    Returns:
        ``[N, K, P, Q]`` (or ``[K, P, Q]``), dtype of the input (of autocast, where it is on);
        channels_last if input or weight is. Deterministic: the same bits for any number of
        threads.

    Raises:
        What ``F.conv2d`` raises for the same arguments. RuntimeError: the backend that was named
        cannot compute this call. ValueError: there is no backend of that name.
    """
    if has_torch_function((input, weight, bias)):
        if _is_expanded_weight(weight) or _is_expanded_weight(bias):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        result: Tensor = handle_torch_function(
            grouped_conv2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            backend=backend,
        )
        return result
    key = None
    if type(input) is Tensor and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN):
        key = _key(input, weight, bias, stride, padding, dilation, groups, backend)
        known = None if key is None else _known.get(key)
        if known is not None:
            if known is _ATEN:
                return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
            op, dtype, *attributes = known
            if dtype is None:
                return call(op, input, weight, bias, *attributes)
            device = input.device.type
            tensors = (cast(t, dtype, device) for t in (input, weight, bias))
            return call_below_autocast(op, *tensors, *attributes)
    elif sharding.meets_dtensor(input, weight):
        sharding.register()
    request = parse(input, weight, bias, stride, padding, dilation, groups)
    if isinstance(request, str):
        y = _by_aten(request, backend, (input, weight, bias, stride, padding, dilation, groups))
        _remember(key, _ATEN)
        return y
    decision = request.decide("fprop", backend)
    r = request
    # An empty batch leaves nothing to compute; ATen knows the strides that its result has.
    empty = not torch.compiler.is_compiling() and r.input.shape[0] == 0
    if decision.backend == "aten" or empty:
        _remember(key, _ATEN)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    op = op_of(decision.backend, "fprop")
    how = (r.stride, r.padding, r.dilation, r.groups, r.query("fprop").allow_tf32)
    dtype = autocast_dtype(r.input.device.type)
    if r.batched:
        _remember(key, (op, dtype, *how))
    run = call if dtype is None else call_below_autocast
    y = run(op, r.input, r.weight, r.bias, *how)
    return y if r.batched else y.squeeze(0)


def _is_expanded_weight(t: Any) -> bool:
    """A parameter under ``call_for_per_sample_grads``, which knows PyTorch's functions alone."""
    return type(t).__name__ == "ExpandedWeight"


_PLAIN = (Tensor, torch.nn.Parameter)
# Calls whose attributes are resolved and whose backend is chosen: parsing one again would cost as
# much as dispatching it. By everything that parsing and the choice depend on.
_known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_KNOWN_LIMIT = 4096

_ATEN: tuple[Any, ...] = ()
"""Among the known calls: one that ATen takes, as it was made."""


def _remember(key: tuple[Any, ...] | None, how: tuple[Any, ...]) -> None:
    """Note how a call is made. A full table is emptied: what is still in use returns at once."""
    if key is None:
        return
    if len(_known) >= _KNOWN_LIMIT:
        _known.clear()
    _known[key] = how


def forget() -> None:
    """Parse and decide anew: the table of measurements is another one."""
    _known.clear()
    routing.forget()


def _is_plain(attribute: Any) -> bool:
    """An int, a string or a tuple of ints: what equals it has the same meaning."""
    kind = type(attribute)
    return (
        kind is int
        or kind is str
        or (kind is tuple and all(type(element) is int for element in attribute))
    )


def _key(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    backend: str | None,
) -> tuple[Any, ...] | None:
    """What identifies a plain call; None for one that must be parsed each time."""
    if is_traced() or transform_reason() is not None:
        return None
    if x.layout is not torch.strided or w.layout is not torch.strided or x.is_nested or w.is_nested:
        return None
    if type(groups) is not int:
        return None
    if not (_is_plain(stride) and _is_plain(padding) and _is_plain(dilation)):
        return None
    name = current_backend() if backend is None else backend
    tf32 = allows_tf32(x.dtype, x.device.type)
    autocast = autocast_dtype(x.device.type) if torch._C._is_any_autocast_enabled() else None
    attributes = (stride, padding, dilation, groups, name, tf32, autocast)
    tensors = (x.shape, x.stride(), x.dtype, x.device, w.shape, w.stride(), w.dtype, w.device)
    if b is None:
        return (*tensors, *attributes)
    return (*tensors, b.shape, b.dtype, b.device, b.layout, *attributes)


def _by_aten(reason: str, backend: str | None, args: tuple[Any, ...]) -> Tensor:
    """ATen's result or error; if another backend was named, its refusal, should ATen accept."""
    name = current_backend() if backend is None else backend
    if name not in ("auto", *ORDER):
        raise ValueError(
            f"unknown backend {name!r}: expected auto, {', '.join(ORDER[:-1])} or {ORDER[-1]}"
        )
    y = F.conv2d(*args)
    if name not in ("auto", "aten"):
        raise RuntimeError(f"grouped_conv backend {name} cannot compute fprop: {reason}")
    return y


def grouped_conv2d_affine(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: Literal["relu"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Grouped convolution with what commonly follows it, in one pass over the output.

    ``act(scale[k] * (conv(input, weight)[k] + bias[k]) + shift[k] + residual)``

    The native CPU kernels, the Triton kernels, the tiled CUDA kernels and the row-streaming ones
    for channels_last tensors apply all of it to their float32 sums and round once, when they store
    the output. The row-streaming CUDA kernels for NCHW tensors leave it to a second pass and a
    second rounding. Elsewhere it is
    :func:`grouped_conv2d` followed by one operation for each step. Which backend takes a call is
    decided as for :func:`grouped_conv2d` without the epilogue, so :func:`explain` tells.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, any layout; NCHW and channels_last are native.
        weight: ``[K, C/groups, R, S]``.
        bias: ``[K]`` or None, dtype of the input.
        scale: ``[K]`` or None, dtype of the input or float32. With ``shift`` a folded batch
            normalization: :func:`fold_batch_norm`.
        shift: as ``scale``.
        residual: shape and dtype of the output, any strides, or None.
        activation: ``"relu"``, which as :func:`torch.relu` leaves NaN as it is, or None.
        stride, padding, dilation, groups, backend: as in :func:`grouped_conv2d`.

    Returns:
        ``[N, K, P, Q]`` (or ``[K, P, Q]``) as :func:`grouped_conv2d` returns it: dtype, memory
        format and determinism. Differentiable any number of times with respect to all tensors.
        Under autocast the input, weight, bias and residual are cast to its dtype, scale and shift
        to float32.

    Raises:
        What ``F.conv2d`` raises for the same input, weight and bias. RuntimeError: scale, shift or
        residual do not fit the output, or the backend that was named cannot compute this call.
        TypeError: one of them is not a tensor. ValueError: there is no such activation or backend.
    """
    tensors = (input, weight, bias, scale, shift, residual)
    if has_torch_function(tensors):
        result: Tensor = handle_torch_function(
            grouped_conv2d_affine,
            tensors,
            *tensors,
            activation,
            stride,
            padding,
            dilation,
            groups,
            backend=backend,
        )
        return result
    y: Tensor
    if activation not in (None, "relu"):
        raise ValueError(f"unknown activation {activation!r}: expected None or 'relu'")
    for name, t in (("scale", scale), ("shift", shift), ("residual", residual)):
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor or None, not {type(t).__name__}")
    relu = activation == "relu"
    args: tuple[Any, ...] = (input, weight, bias, stride, padding, dilation, groups)
    if sharding.meets_dtensor(input, weight):
        sharding.register()
    request = parse(*args)
    if isinstance(input, Tensor) and (dtype := autocast_dtype(input.device.type)) is not None:
        device = input.device.type
        scale, shift = (cast(t, torch.float32, device) for t in (scale, shift))
        residual = cast(residual, dtype, device)
    if isinstance(request, str):
        y = _by_aten(request, backend, args)
    else:
        r = request
        decision = r.decide("fprop", backend)
        empty = not torch.compiler.is_compiling() and r.input.shape[0] == 0
        if decision.backend != "aten" and not empty:
            size = r.problem.output_size
            _check_epilogue(r.input, size if r.batched else size[1:], scale, shift, residual)
            if not r.batched and residual is not None:
                residual = residual.unsqueeze(0)
            y = call(
                op_of(decision.backend, "fprop_affine"),
                r.input,
                r.weight,
                r.bias,
                scale,
                shift,
                residual,
                relu,
                r.stride,
                r.padding,
                r.dilation,
                r.groups,
                r.query("fprop").allow_tf32,
            )
            return y if r.batched else y.squeeze(0)
        y = F.conv2d(*args)
    _check_epilogue(y, y.shape, scale, shift, residual)
    return compose_epilogue(y, scale, shift, residual, relu, _may_overwrite(y, *tensors[3:]))


def _check_epilogue(x: Tensor, output_size: Sequence[int], *parts: Tensor | None) -> None:
    if refusal := epilogue_refusal(x, output_size, *parts):
        raise RuntimeError(refusal)


def _may_overwrite(*tensors: Tensor | None) -> bool:
    """Whether nothing that records or transforms operations on these tensors is at work."""
    if torch.compiler.is_compiling() or transform_reason() is not None:
        return False
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in tensors
    )


def fold_batch_norm(
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Scale and shift with which :func:`grouped_conv2d_affine` normalizes as in evaluation.

    ``scale = weight / sqrt(running_var + eps)`` and ``shift = bias - running_mean * scale``, in
    the argument order of :func:`torch.nn.functional.batch_norm`.

    Args:
        running_mean: ``[K]``.
        running_var: ``[K]``.
        weight: ``[K]`` or None, which stands for ones.
        bias: ``[K]`` or None, which stands for zeros.
        eps: added to the variance.

    Returns:
        scale and shift, ``[K]`` each, in float32, or in float64 where a statistic is.
    """
    dtype = torch.promote_types(running_var.dtype, torch.float32)
    scale = torch.rsqrt(running_var.to(dtype) + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    return scale, shift if bias is None else shift + bias


def explain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Decision:
    """Who would compute :func:`grouped_conv2d` with these arguments, and its gradients, and why.

    Computes nothing. Sizes are not validated: what does not fit is ATen's, which raises its error
    when called.

    Returns:
        The backend and kernel of each pass, and each backend asked before with its reason; where
        an epilogue and the statistics of a batch normalization would be computed.

    Raises:
        RuntimeError: the backend that was named cannot compute this call.
    """
    request = parse(input, weight, bias, stride, padding, dilation, groups)
    if isinstance(request, str):
        name = current_backend() if backend is None else backend
        if name not in ("auto", "aten"):
            raise RuntimeError(f"grouped_conv backend {name} cannot compute fprop: {request}")
        refused = () if name == "aten" else tuple((b, request) for b in ORDER if b != "aten")
        first = PassDecision("aten", "aten::convolution", refused)
        after = PassDecision("aten", "aten::convolution_backward", refused)
        decisions = {p: first if p == "fprop" else after for p in PASSES}
    else:
        decisions = {p: request.decide(p, backend) for p in PASSES}
        first = decisions["fprop"]
        if first.backend == "aten":
            # ATen's convolution differentiates itself.
            kernel = "aten::convolution_backward"
            decisions = {
                p: d if p == "fprop" else PassDecision("aten", kernel, first.refused)
                for p, d in decisions.items()
            }
    passes = {p: (d.backend, d.kernel, d.reason) for p, d in decisions.items()}
    decision = Decision(first.backend, first.kernel, first.refused, passes)
    if isinstance(request, str):
        return decision
    epilogue, statistics = routing.tails(first.backend, request.query("fprop"))
    return replace(decision, epilogue=epilogue, statistics=statistics)
