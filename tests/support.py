"""What several test files share: seeded problems, poisoned memory, comparison with the oracle."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from grouped_conv import reference
from grouped_conv.problem import ConvProblem

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

ERROR_RATIO = 1.5
"""How much larger than PyTorch's own error ours may be."""


def channels_last_strides(x: Tensor) -> bool:
    """PyTorch's rule for 4-D strides that mean channels_last (c10::is_channels_last_strides_2d)."""
    if x.dim() != 4 or x.stride(1) == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if x.size(d) == 0 or x.stride(d) < least or (d == 0 and least == x.stride(1)):
            return False
        least = x.stride(d) * x.size(d)
    return True


def memory_format(x: Tensor) -> tuple[bool, bool]:
    """Whether x is dense in NCHW order, and whether it is in NHWC order."""
    return x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)


def short(dtype: torch.dtype) -> str:
    """``float32`` instead of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written reads as NaN (or as the largest integer) inside."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def walled(x: Tensor) -> Tensor:
    """Equal to x, same strides, in a buffer with NaN before, behind and between its elements."""
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    wall = 257
    buffer = x.new_full((2 * wall + max(extent, 0),), float("nan"))
    out = buffer.as_strided(x.shape, x.stride(), wall)
    return out.copy_(x) if x.numel() else out


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def assert_as_accurate(
    ours: Tensor, aten: Tensor, exact: Tensor, scale: float, what: str = "result"
) -> None:
    """Largest and rms error against the float64 oracle, no worse than 1.5 times PyTorch's own.

    ``scale`` is the size that a result has without cancellation. A few roundings of that size in
    the type of the accumulation are allowed beside it: over few elements the largest error is a
    matter of luck, and in float64 the oracle has errors of its own.
    """
    assert ours.shape == aten.shape == exact.shape
    assert ours.dtype == aten.dtype
    if exact.numel() == 0:
        return
    wide = ours.dtype == torch.float64
    rounding = scale * (16 * torch.finfo(torch.float64).eps if wide else torch.finfo().eps)
    our_error = (ours.double() - exact).abs()
    aten_error = (aten.double() - exact).abs()
    assert bool(our_error.isfinite().all()), f"{what} is not finite"
    for name, measure, roundings in (
        ("largest", lambda e: float(e.max()), 2.5),
        ("rms", rms, 0.25 + 2.5 / exact.numel() ** 0.5),
    ):
        limit = ERROR_RATIO * measure(aten_error) + roundings * rounding
        assert measure(our_error) <= limit, (
            f"{name} error of {what}: {measure(our_error):.3g}, "
            f"PyTorch's {measure(aten_error):.3g}, limit {limit:.3g}"
        )


@dataclass(frozen=True)
class Exact:
    """Results of the oracle for one set of tensors, and the scale of each."""

    y: Tensor
    dx: Tensor
    dw: Tensor
    db: Tensor
    y_scale: float
    dx_scale: float
    dw_scale: float
    db_scale: float


def exact(x: Tensor, w: Tensor, bias: Tensor | None, dy: Tensor, p: ConvProblem) -> Exact:
    """Everything that the oracle knows about one convolution.

    A scale is the root of the largest sum of squared products: what a sum of these terms with
    random signs comes to.
    """
    x, w, dy = x.detach().double(), w.detach().double(), dy.detach().double()
    bias = None if bias is None else bias.detach().double()
    x2, w2, dy2 = x.square(), w.square(), dy.square()

    def scale(squares: Tensor) -> float:
        return float(squares.max().sqrt()) if squares.numel() else 0.0

    return Exact(
        y=reference.fprop(x, w, bias, p),
        dx=reference.dgrad(dy, w, p),
        dw=reference.wgrad(dy, x, p),
        db=dy.sum((0, 2, 3)),
        y_scale=scale(reference.fprop(x2, w2, None if bias is None else bias.square(), p)),
        dx_scale=scale(reference.dgrad(dy2, w2, p)),
        dw_scale=scale(reference.wgrad(dy2, x2, p)),
        db_scale=scale(dy2.sum((0, 2, 3))),
    )


@dataclass(frozen=True)
class Case:
    """A convolution with everything that decides which kernel takes it, and a seed for its data."""

    problem: ConvProblem
    dtype: torch.dtype
    layout: str
    bias: bool
    input_view: str
    weight_view: str
    grad_view: str
    seed: int

    def __str__(self) -> str:
        text = f"{self.problem} {short(self.dtype)} {self.layout}"
        text += " bias" if self.bias else ""
        for name in ("input_view", "weight_view", "grad_view"):
            view = getattr(self, name)
            text += "" if view == "dense" else f" {name.removesuffix('_view')}:{view}"
        return text

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """input, weight, bias and gradient of the output; no one requires a gradient."""
        p = self.problem
        g = torch.Generator().manual_seed(self.seed)
        x = view(torch.randn(p.input_size, generator=g), self.input_view, self.layout, self.dtype)
        w = view(torch.randn(p.weight_size, generator=g), self.weight_view, self.layout, self.dtype)
        b = torch.randn(p.K, generator=g).to(self.dtype) if self.bias else None
        dy = view(torch.randn(p.output_size, generator=g), self.grad_view, self.layout, self.dtype)
        return x, w, b, dy


def view(x: Tensor, kind: str, layout: str, dtype: torch.dtype) -> Tensor:
    """x in a layout and dtype, and laid out in memory as ``kind`` says. Values may repeat."""
    x = x.to(dtype)
    if kind == "dense":
        return x.contiguous(memory_format=LAYOUTS[layout])
    if kind == "offset":
        x = x.contiguous(memory_format=LAYOUTS[layout])
        return x.new_empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride()).copy_(x)
    if kind == "other":
        return x.contiguous(memory_format=LAYOUTS["nchw" if layout == "nhwc" else "nhwc"])
    if kind == "channels":
        wide = torch.cat((x, x.flip(1)), 1).contiguous(memory_format=LAYOUTS[layout])
        return wide[:, x.size(1) :]
    if kind == "columns":
        wide = x.repeat_interleave(2, 3).contiguous(memory_format=LAYOUTS[layout])
        return wide[..., ::2]
    if kind == "transposed":
        return x.transpose(2, 3).contiguous(memory_format=LAYOUTS[layout]).transpose(2, 3)
    if kind == "batch":
        return x[:1].contiguous(memory_format=LAYOUTS[layout]).expand(x.shape)
    if kind == "scalar":
        return x.reshape(-1)[:1].reshape(()).expand(x.shape) if x.numel() else x
    raise ValueError(kind)


CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 33, 48, 64)


def random_cases(count: int, seed: int) -> list[Case]:
    """Seeded random convolutions; half of them are of the kind that ResNeXt is made of."""
    rng = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        if rng.random() < 0.5:
            per_group = rng.choice((4, 8, 16, 32)), rng.choice((4, 8, 16, 32))
            if rng.random() < 0.7:
                per_group = per_group[0], per_group[0]
            window = {"R": 3, "S": 3, "pad_h": 1, "pad_w": 1}
            window["stride_h"] = window["stride_w"] = rng.choice((1, 1, 2))
        else:
            per_group = rng.choice(CHANNELS), rng.choice(CHANNELS)
            window = {name: rng.choice((3, 3, 3, 1, 2, 4, 5)) for name in "RS"}
            for name, low, high in (("pad", 0, 3), ("stride", 1, 3), ("dilation", 1, 2)):
                window[f"{name}_h"] = window[f"{name}_w"] = rng.randint(low, high)
                if rng.random() < 0.3:
                    window[f"{name}_w"] = rng.randint(low, high)
        groups = rng.choice((1, 2, 3, 4, 5, 8, 16, 32))
        problem = ConvProblem(
            N=rng.choice((0, 1, 1, 2, 2, 2, 3, 3)),
            C=groups * per_group[0],
            H=rng.randint(1, 23),
            W=rng.randint(1, 23),
            K=groups * per_group[1],
            G=groups,
            **window,
        )
        if problem.P < 1 or problem.Q < 1 or problem.flops > 30e6:
            continue
        dense = ("dense",) * 6
        cases.append(
            Case(
                problem,
                dtype=rng.choice((torch.float32,) * 4 + (torch.bfloat16,) * 3 + DTYPES[2:]),
                layout=rng.choice(("nchw", "nhwc")),
                bias=rng.random() < 0.5,
                input_view=rng.choice(
                    (*dense, "offset", "other", "channels", "columns", "transposed", "batch")
                ),
                weight_view=rng.choice((*dense, "offset", "other", "columns")),
                grad_view=rng.choice((*dense, "offset", "other", "columns", "scalar")),
                seed=len(cases),
            )
        )
    return cases


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception:
    """The exception that a call raises; fails if it raises none."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    pytest.fail(f"{getattr(function, '__name__', function)} accepted the arguments")


def assert_same_error(
    theirs: Callable[..., Any], ours: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Both calls fail, with the same type of exception and the same message.

    Of the argument parser's message only the head is compared: the rest of it says which arguments
    were passed by position and which by keyword.
    """
    expected, actual = (error_of(f, *args, **kwargs) for f in (theirs, ours))
    assert type(actual) is type(expected)
    parser = "received an invalid combination of arguments"
    end = None if parser not in str(expected) else str(expected).index(parser) + len(parser)
    assert str(actual)[:end] == str(expected)[:end]
