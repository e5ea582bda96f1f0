"""The operators in torch.ops.grouped_conv: schemas, fake kernels, layouts, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from support import (
    DTYPES,
    LAYOUTS,
    assert_as_accurate,
    channels_last_strides,
    exact,
    memory_format,
    poisoned,
    short,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import grouped_conv  # noqa: F401  (registers the operators)
from grouped_conv.problem import ConvProblem

OPS = torch.ops.grouped_conv
NAMES = ("fprop", "dgrad", "wgrad")

SCHEMAS = {
    "fprop": "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups, bool allow_tf32=False) -> Tensor",
    "dgrad": "(Tensor grad_output, Tensor weight, SymInt[] input_size, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last, "
    "bool allow_tf32=False) -> Tensor",
    "wgrad": "(Tensor grad_output, Tensor input, SymInt[] weight_size, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last, "
    "bool allow_tf32=False) -> Tensor",
}

PROBLEMS = {
    "four per group": ConvProblem(2, 32, 9, 8, 32, 3, 3, 8, 1, 1),
    "four per group, strided": ConvProblem(2, 32, 9, 8, 32, 3, 3, 8, 1, 1, 2, 2),
    "unequal": ConvProblem(1, 6, 7, 5, 9, 2, 3, 3, 0, 2, 1, 2, 2, 1),
    "depthwise": ConvProblem(2, 8, 5, 5, 8, 3, 3, 8, 1, 1),
    "one group": ConvProblem(2, 8, 5, 5, 4, 1, 1, 1),
    "one channel": ConvProblem(2, 1, 5, 5, 1, 3, 3, 1, 1, 1),
    "one pixel": ConvProblem(2, 16, 1, 1, 16, 3, 3, 4, 1, 1),
    "one row out": ConvProblem(1, 16, 3, 9, 16, 3, 3, 2),
    "no batch": ConvProblem(0, 16, 6, 6, 16, 3, 3, 4, 1, 1),
}


def attributes(p: ConvProblem) -> tuple:
    return (p.stride, p.padding, p.dilation, p.G)


def tensors(p: ConvProblem, layout: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, w, bias, dy."""
    sizes = (p.input_size, p.weight_size, (p.K,), p.output_size)
    return [
        t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t
        for t in (torch.randn(s).to(dtype) for s in sizes)
    ]


def arguments(name: str, p: ConvProblem, x, w, bias, dy, channels_last: bool) -> tuple:
    return {
        "fprop": (x, w, bias, *attributes(p)),
        "dgrad": (dy, w, p.input_size, *attributes(p), channels_last),
        "wgrad": (dy, x, p.weight_size, *attributes(p), channels_last),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_schema(name: str):
    schema = getattr(OPS, name).default._schema
    assert str(schema) == f"grouped_conv::{name}{SCHEMAS[name]}"
    assert not schema.is_mutable


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("problem", ["four per group", "unequal", "one pixel", "no batch"])
def test_opcheck(name: str, problem: str, layout: str):
    p = PROBLEMS[problem]
    x, w, bias, dy = (t.requires_grad_() for t in tensors(p, layout))
    torch.library.opcheck(
        getattr(OPS, name),
        arguments(name, p, x, w, bias, dy, layout == "nhwc"),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=short)
def test_opcheck_of_other_dtypes(name: str, dtype: torch.dtype):
    p = PROBLEMS["four per group, strided"]
    x, w, _, dy = tensors(p, "nhwc", dtype)
    torch.library.opcheck(
        getattr(OPS, name),
        arguments(name, p, x, w, None, dy, True),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_accuracy(problem: str, dtype: torch.dtype, layout: str):
    p = PROBLEMS[problem]
    x, w, bias, dy = tensors(p, layout, dtype)
    e = exact(x, w, bias, dy, p)
    aten = torch.ops.aten
    y = aten.convolution(x, w, bias, *attributes(p)[:3], False, [0, 0], p.G)
    dx, dw, _ = aten.convolution_backward(
        dy, x, w, [p.K], *attributes(p)[:3], False, [0, 0], p.G, [True, True, True]
    )
    for name, theirs, right, scale in (
        ("fprop", y, e.y, e.y_scale),
        ("dgrad", dx, e.dx, e.dx_scale),
        ("wgrad", dw, e.dw, e.dw_scale),
    ):
        for channels_last in (False, True):
            call = arguments(name, p, x, w, bias, dy, channels_last)
            with poisoned():
                ours = getattr(OPS, name)(*call)
            assert_as_accurate(ours, theirs, right, scale, name)
            if name != "fprop":
                assert memory_format(ours)[channels_last]


LAYOUTS_IN_MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "nhwc": lambda t: t.contiguous(memory_format=torch.channels_last),
    "nhwc channels": lambda t: torch.cat((t, t), 1).contiguous(memory_format=torch.channels_last)[
        :, t.size(1) :
    ],
    "nchw channels": lambda t: torch.cat((t, t), 1)[:, : t.size(1)],
    "columns": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "nhwc columns": lambda t: t.repeat_interleave(2, 3).contiguous(
        memory_format=torch.channels_last
    )[..., ::2],
    "wchn": lambda t: t.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
    "hw swapped": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded batch": lambda t: t[:1].expand_as(t),
    "expanded batch, nhwc": lambda t: (
        t[:1].contiguous(memory_format=torch.channels_last).expand_as(t)
    ),
    "expanded channels": lambda t: t[:, :1].expand_as(t),
    "expanded": lambda t: t[:1, :1, :1, :1].expand_as(t),
}


@pytest.mark.parametrize("arrangement", LAYOUTS_IN_MEMORY)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_layout_follows_the_input_in_real_and_fake_kernels(problem: str, arrangement: str):
    p = PROBLEMS[problem]
    arrange = LAYOUTS_IN_MEMORY[arrangement]
    x, w, bias, dy = (arrange(t) if t.dim() == 4 else t for t in tensors(p, "nchw"))
    for name, channels_last in itertools.product(NAMES, (False, True)):
        call = arguments(name, p, x, w, bias, dy, channels_last)
        real = getattr(OPS, name)(*call)
        expected = channels_last_strides(x) if name == "fprop" else channels_last
        assert memory_format(real)[expected]
        with FakeTensorMode() as mode:
            fake = getattr(OPS, name)(*tree_map_only(Tensor, mode.from_tensor, call))
        assert fake.shape == real.shape
        assert fake.stride() == real.stride()
        assert fake.dtype == real.dtype
        assert fake.storage_offset() == real.storage_offset() == 0


@pytest.mark.parametrize("name", NAMES)
def test_results_are_not_views_of_the_arguments(name: str):
    p = PROBLEMS["one group"]
    x, w, bias, dy = tensors(p, "nchw")
    out = getattr(OPS, name)(*arguments(name, p, x, w, bias, dy, False))
    pointers = {t.untyped_storage().data_ptr() for t in (x, w, bias, dy)}
    assert out.untyped_storage().data_ptr() not in pointers


def x(*size: int, **options) -> Tensor:
    return torch.zeros(size or (2, 32, 9, 8), **options)


def w(*size: int, **options) -> Tensor:
    return torch.zeros(size or (32, 4, 3, 3), **options)


ONE, PAD = (1, 1), (1, 1)
VALID = (ONE, PAD, ONE, 8)
HUGE = 2**62

BAD_CALLS = {
    "fprop": {
        "input of rank 3": lambda: (x(32, 9, 8), w(), None, *VALID),
        "input of rank 5": lambda: (x(1, 2, 32, 9, 8), w(), None, *VALID),
        "input of rank 0": lambda: (torch.tensor(1.0), w(), None, *VALID),
        "weight of rank 3": lambda: (x(), w(32, 4, 3), None, *VALID),
        "channels": lambda: (x(2, 31, 9, 8), w(), None, *VALID),
        "no channels": lambda: (x(2, 0, 9, 8), w(32, 0, 3, 3), None, *VALID),
        "no outputs": lambda: (x(), w(0, 4, 3, 3), None, *VALID),
        "empty kernel": lambda: (x(), w(32, 4, 0, 3), None, *VALID),
        "outputs not divisible": lambda: (x(), w(30, 4, 3, 3), None, *VALID),
        "kernel too large": lambda: (x(), w(32, 4, 13, 3), None, *VALID),
        "no groups": lambda: (x(), w(), None, ONE, PAD, ONE, 0),
        "negative groups": lambda: (x(), w(), None, ONE, PAD, ONE, -8),
        "huge groups": lambda: (x(), w(), None, ONE, PAD, ONE, HUGE),
        "stride zero": lambda: (x(), w(), None, (0, 1), PAD, ONE, 8),
        "stride negative": lambda: (x(), w(), None, (1, -1), PAD, ONE, 8),
        "stride of three": lambda: (x(), w(), None, (1, 1, 1), PAD, ONE, 8),
        "stride of none": lambda: (x(), w(), None, (), PAD, ONE, 8),
        "padding negative": lambda: (x(), w(), None, ONE, (0, -1), ONE, 8),
        "padding of three": lambda: (x(), w(), None, ONE, (1, 1, 1), ONE, 8),
        "padding huge": lambda: (x(), w(), None, ONE, (HUGE, HUGE), ONE, 8),
        "padding half as huge": lambda: (x(), w(), None, ONE, (HUGE // 2, 0), ONE, 8),
        "dilation zero": lambda: (x(), w(), None, ONE, PAD, (0, 1), 8),
        "dilation of three": lambda: (x(), w(), None, ONE, PAD, (1, 1, 1), 8),
        "dilation huge": lambda: (x(), w(), None, ONE, PAD, (HUGE, HUGE), 8),
        "bias too long": lambda: (x(), w(), x(33), *VALID),
        "bias too short": lambda: (x(), w(), x(8), *VALID),
        "bias of rank 2": lambda: (x(), w(), x(32, 1), *VALID),
        "bias of another dtype": lambda: (x(), w(), x(32, dtype=torch.float64), *VALID),
        "weight of another dtype": lambda: (x(), w(dtype=torch.bfloat16), None, *VALID),
        "integers": lambda: (x(dtype=torch.int64), w(dtype=torch.int64), None, *VALID),
        "complex": lambda: (x(dtype=torch.complex64), w(dtype=torch.complex64), None, *VALID),
        "booleans": lambda: (x(dtype=torch.bool), w(dtype=torch.bool), None, *VALID),
    },
    "dgrad": {
        "gradient of rank 3": lambda: (x(32, 9, 8), w(), (2, 32, 9, 8), *VALID, True),
        "gradient of other rows": lambda: (x(2, 32, 8, 8), w(), (2, 32, 9, 8), *VALID, True),
        "gradient of other batch": lambda: (x(3, 32, 9, 8), w(), (2, 32, 9, 8), *VALID, True),
        "gradient of other channels": lambda: (x(2, 64, 9, 8), w(), (2, 32, 9, 8), *VALID, True),
        "size of three": lambda: (x(), w(), (32, 9, 8), *VALID, True),
        "size of none": lambda: (x(), w(), (), *VALID, True),
        "size negative": lambda: (x(), w(), (-2, 32, 9, 8), *VALID, True),
        "size of other channels": lambda: (x(), w(), (2, 16, 9, 8), *VALID, True),
        "size huge": lambda: (x(), w(), (2, 32, HUGE, HUGE), *VALID, True),
        "weight of rank 3": lambda: (x(), w(32, 4, 3), (2, 32, 9, 8), *VALID, True),
        "weight of another dtype": lambda: (
            x(),
            w(dtype=torch.float64),
            (2, 32, 9, 8),
            *VALID,
            True,
        ),
        "stride zero": lambda: (x(), w(), (2, 32, 9, 8), (0, 0), PAD, ONE, 8, True),
        "no groups": lambda: (x(), w(), (2, 32, 9, 8), ONE, PAD, ONE, 0, True),
        "integers": lambda: (x().long(), w().long(), (2, 32, 9, 8), *VALID, True),
    },
    "wgrad": {
        "gradient of rank 3": lambda: (x(32, 9, 8), x(), (32, 4, 3, 3), *VALID, True),
        "gradient of other rows": lambda: (x(2, 32, 8, 8), x(), (32, 4, 3, 3), *VALID, True),
        "gradient of other batch": lambda: (x(3, 32, 9, 8), x(), (32, 4, 3, 3), *VALID, True),
        "input of rank 3": lambda: (x(), x(32, 9, 8), (32, 4, 3, 3), *VALID, True),
        "size of three": lambda: (x(), x(), (4, 3, 3), *VALID, True),
        "size of none": lambda: (x(), x(), (), *VALID, True),
        "size negative": lambda: (x(), x(), (-32, 4, 3, 3), *VALID, True),
        "size of other channels": lambda: (x(), x(), (32, 8, 3, 3), *VALID, True),
        "size of other outputs": lambda: (x(), x(), (64, 4, 3, 3), *VALID, True),
        "size of a huge kernel": lambda: (x(), x(), (32, 4, HUGE, HUGE), *VALID, True),
        "input of another dtype": lambda: (
            x(),
            x(dtype=torch.float64),
            (32, 4, 3, 3),
            *VALID,
            True,
        ),
        "dilation zero": lambda: (x(), x(), (32, 4, 3, 3), ONE, PAD, (0, 1), 8, True),
        "no groups": lambda: (x(), x(), (32, 4, 3, 3), ONE, PAD, ONE, 0, True),
        "integers": lambda: (x().long(), x().long(), (32, 4, 3, 3), *VALID, True),
    },
}
BAD = [(name, what) for name, calls in BAD_CALLS.items() for what in calls]
SHAPELESS = ("integers", "complex", "booleans", "huge")


@pytest.mark.parametrize(("name", "what"), BAD)
def test_refuses(name: str, what: str):
    with pytest.raises(RuntimeError):
        getattr(OPS, name)(*BAD_CALLS[name][what]())


@pytest.mark.parametrize(
    ("name", "what"), [bad for bad in BAD if not any(word in bad[1] for word in SHAPELESS)]
)
def test_fake_kernel_refuses_what_the_real_one_does(name: str, what: str):
    call = BAD_CALLS[name][what]()
    with FakeTensorMode() as mode, pytest.raises((RuntimeError, ValueError)):
        getattr(OPS, name)(*tree_map_only(Tensor, mode.from_tensor, call))


def test_the_table_of_refusals_starts_from_valid_calls():
    """Each bad call differs in one thing from these."""
    assert OPS.fprop(x(), w(), None, *VALID).shape == (2, 32, 9, 8)
    assert OPS.dgrad(x(), w(), (2, 32, 9, 8), *VALID, True).shape == (2, 32, 9, 8)
    assert OPS.wgrad(x(), x(), (32, 4, 3, 3), *VALID, True).shape == (32, 4, 3, 3)


def test_empty_batch_gives_zero_weight_gradient():
    p = PROBLEMS["no batch"]
    x, _, _, dy = tensors(p, "nchw")
    with poisoned():
        dw = OPS.wgrad(dy, x, p.weight_size, *attributes(p), False)
    assert torch.equal(dw, torch.zeros(p.weight_size))
