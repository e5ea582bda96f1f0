"""grouped_conv2d against the float64 oracle and against F.conv2d, forward and all gradients."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from support import (
    DTYPES,
    LAYOUTS,
    Case,
    Exact,
    assert_as_accurate,
    exact,
    memory_format,
    poisoned,
    random_cases,
    short,
    threads,
    walled,
)
from torch import Tensor

from grouped_conv import functional, grouped_conv2d, routing, use_backend
from grouped_conv.problem import ConvProblem

CASES = random_cases(260, seed=7)
BACKENDS = ("auto", "native")


@functools.lru_cache(maxsize=1)
def oracle(case: Case) -> Exact:
    return exact(*case.tensors(), case.problem)


@functools.lru_cache(maxsize=1)
def pytorch(case: Case) -> list[Tensor]:
    return forward_and_backward(F.conv2d, case, *case.tensors())


def forward_and_backward(conv, case: Case, x, w, b, dy) -> list[Tensor]:
    """y, dx, dw and, with a bias, db."""
    p = case.problem
    leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    bias = leaves[2] if b is not None else None
    y = conv(leaves[0], leaves[1], bias, p.stride, p.padding, p.dilation, p.G)
    y.backward(dy)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def by(backend: str, case: Case, *tensors) -> list[Tensor]:
    """The results of one of our backends, forward and backward."""
    with use_backend(backend):
        return forward_and_backward(grouped_conv2d, case, *tensors)


def assert_accurate(ours: list[Tensor], case: Case) -> None:
    e = oracle(case)
    right = (e.y, e.dx, e.dw, e.db)
    scales = (e.y_scale, e.dx_scale, e.dw_scale, e.db_scale)
    for a, b, c, d, what in zip(
        ours, pytorch(case), right, scales, ("y", "dx", "dw", "db"), strict=False
    ):
        assert_as_accurate(a, b, c, d, what)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_problem(case: Case, backend: str):
    tensors = case.tensors()
    with poisoned(), threads(2 if backend == "native" else 1):
        ours = by(backend, case, *tensors)
    assert_accurate(ours, case)
    for a, b in zip(ours, pytorch(case), strict=True):
        if a.dim() == 4 and a.numel():
            assert memory_format(a) == memory_format(b)


def test_random_problems_cover_what_matters():
    assert {c.dtype for c in CASES} == set(DTYPES)
    assert {c.layout for c in CASES} == set(LAYOUTS)
    for attribute, values in {
        "N": {0, 1, 2, 3},
        "stride_h": {1, 2, 3},
        "pad_h": {0, 1, 2, 3},
        "dilation_h": {1, 2},
        "c_per_group": {1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 33, 48, 64},
        "k_per_group": {1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 33, 48, 64},
    }.items():
        assert {getattr(c.problem, attribute) for c in CASES} >= values
    assert any(c.problem.c_per_group != c.problem.k_per_group for c in CASES)


RESNEXT_LAYERS = [
    Case(
        ConvProblem(2, channels, extent, extent, channels, 3, 3, 32, 1, 1, stride, stride),
        dtype=dtype,
        layout=layout,
        bias=False,
        input_view="dense",
        weight_view="dense",
        grad_view="dense",
        seed=channels,
    )
    for (channels, extent, stride), dtype, layout in itertools.product(
        ((128, 20, 1), (256, 20, 2), (256, 15, 1), (512, 15, 2), (512, 14, 1), (1024, 7, 1)),
        (torch.float32, torch.bfloat16),
        LAYOUTS,
    )
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", RESNEXT_LAYERS, ids=str)
def test_reads_nothing_around_its_tensors(case: Case, backend: str):
    tensors = [t if t is None else walled(t) for t in case.tensors()]
    with poisoned():
        ours = by(backend, case, *tensors)
    assert_accurate(ours, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", RESNEXT_LAYERS[::3], ids=str)
def test_same_bits_for_any_number_of_threads(case: Case, backend: str):
    tensors = case.tensors()
    results = []
    for count in (1, 2, 3, 2):
        with threads(count):
            results.append(by(backend, case, *tensors))
    if backend == "native":
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)
    for result in results:
        assert_accurate(result, case)


SPECIAL_VALUES = (float("inf"), -float("inf"), float("nan"))


@pytest.mark.parametrize("value", SPECIAL_VALUES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_nan_spread_as_in_pytorch(value: float, backend: str, layout: str):
    x = torch.randn(1, 32, 9, 9).contiguous(memory_format=LAYOUTS[layout])
    w = torch.randn(32, 4, 3, 3)
    x[0, 5, 4, 4] = value
    ours = grouped_conv2d(x, w, None, 1, 1, 1, 8, backend=backend)
    theirs = F.conv2d(x, w, None, 1, 1, 1, 8)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, dtype=dtype)


LIKE_PYTORCH = {
    "unbatched": lambda: ((randn(8, 6, 7), randn(12, 4, 3, 3)), {"groups": 2}),
    "unbatched bias": lambda: (
        (randn(64, 9, 9), randn(64, 4, 3, 3), randn(64)),
        {"groups": 16, "padding": 1},
    ),
    "same": lambda: ((randn(2, 32, 9, 8), randn(32, 4, 3, 3)), {"padding": "same", "groups": 8}),
    "same, even kernel": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 4, 2)),
        {"padding": "same", "groups": 8},
    ),
    "same, dilated": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3)),
        {"padding": "same", "dilation": (2, 1), "groups": 8},
    ),
    "same, unbatched": lambda: (
        (randn(32, 9, 8), randn(32, 4, 3, 3)),
        {"padding": "same", "groups": 8},
    ),
    "valid": lambda: ((randn(2, 32, 9, 8), randn(32, 4, 3, 3)), {"padding": "valid", "groups": 8}),
    "valid, strided": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3)),
        {"padding": "valid", "stride": 2, "groups": 8},
    ),
    "one-element lists": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3)),
        {"stride": [2], "padding": (1,), "dilation": [1], "groups": 8},
    ),
    "lists": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3)),
        {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 8},
    ),
    "torch.Size": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3)),
        {"stride": torch.Size([2, 1]), "groups": 8},
    ),
    "positional": lambda: (
        (randn(2, 32, 9, 8), randn(32, 4, 3, 3), randn(32), 2, 1, 1, 8),
        {},
    ),
    "keywords": lambda: (
        (),
        {"input": randn(2, 32, 9, 8), "weight": randn(32, 4, 3, 3), "bias": None, "groups": 8},
    ),
    "complex64": lambda: (
        (randn(2, 8, 6, 7, dtype=torch.complex64), randn(12, 4, 3, 3, dtype=torch.complex64)),
        {"groups": 2, "padding": 1},
    ),
    "complex128": lambda: (
        (
            randn(2, 8, 6, 7, dtype=torch.complex128),
            randn(12, 4, 3, 3, dtype=torch.complex128),
            randn(12, dtype=torch.complex128),
        ),
        {"groups": 2, "stride": 2},
    ),
    "conjugate view": lambda: (
        (
            randn(2, 8, 6, 7, dtype=torch.complex64).conj(),
            randn(12, 4, 3, 3, dtype=torch.complex64),
        ),
        {"groups": 2},
    ),
    "negative view": lambda: (
        (randn(2, 32, 6, 7, dtype=torch.complex64).conj().imag, randn(32, 4, 3, 3)),
        {"groups": 8},
    ),
    "empty batch": lambda: ((randn(0, 32, 9, 9), randn(32, 4, 3, 3)), {"groups": 8, "padding": 1}),
    "batch strides of zero": lambda: (
        (randn(1, 32, 9, 9).expand(3, -1, -1, -1), randn(32, 4, 3, 3)),
        {"groups": 8},
    ),
    "weight expanded": lambda: (
        (randn(2, 32, 9, 9), randn(32, 4, 1, 1).expand(-1, -1, 3, 3)),
        {"groups": 8},
    ),
    "bias expanded": lambda: (
        (randn(2, 32, 9, 9), randn(32, 4, 3, 3), randn(1).expand(32)),
        {"groups": 8},
    ),
    "overlapping input": lambda: (
        (randn(4000).as_strided((2, 32, 5, 5), (7, 3, 2, 1)), randn(32, 4, 3, 3)),
        {"groups": 8},
    ),
    "one row": lambda: ((randn(2, 32, 1, 9), randn(32, 4, 3, 3)), {"groups": 8, "padding": 1}),
    "kernel larger than the input": lambda: (
        (randn(2, 32, 2, 2), randn(32, 4, 5, 5)),
        {"groups": 8, "padding": 2},
    ),
    "stride larger than the input": lambda: (
        (randn(2, 32, 4, 4), randn(32, 4, 3, 3)),
        {"groups": 8, "stride": 9},
    ),
    "padding larger than the input": lambda: (
        (randn(2, 32, 2, 3), randn(32, 4, 3, 3)),
        {"groups": 8, "padding": 7},
    ),
    "depthwise": lambda: ((randn(2, 32, 9, 9), randn(32, 1, 3, 3)), {"groups": 32, "padding": 1}),
    "depthwise, multiplied": lambda: (
        (randn(2, 32, 9, 9), randn(64, 1, 3, 3)),
        {"groups": 32, "padding": 1},
    ),
    "one group": lambda: ((randn(2, 32, 9, 9), randn(16, 32, 3, 3)), {}),
    "parameter": lambda: (
        (randn(2, 32, 9, 9), torch.nn.Parameter(randn(32, 4, 3, 3))),
        {"groups": 8},
    ),
}


@pytest.mark.parametrize("name", LIKE_PYTORCH)
def test_takes_what_pytorch_takes(name: str, layout: str):
    args, kwargs = LIKE_PYTORCH[name]()
    if args and args[0].dim() == 4 and args[0].is_contiguous():
        args = (args[0].contiguous(memory_format=LAYOUTS[layout]), *args[1:])

    def run(conv) -> list[Tensor]:
        """The output, and the gradient of each tensor."""
        values = [v.detach() if isinstance(v, Tensor) else v for v in (*args, *kwargs.values())]
        leaves = [v.requires_grad_() for v in values if isinstance(v, Tensor)]
        y = conv(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))
        y.backward(torch.ones_like(y))
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    theirs = run(F.conv2d)
    ours = run(grouped_conv2d)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        if a.dim() == 4 and a.numel():
            assert memory_format(a) == memory_format(b)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype):
    x = torch.randint(0, 3, (2, 8, 6, 7)).to(dtype)
    w = torch.randint(0, 3, (12, 4, 3, 3)).to(dtype)
    ours = grouped_conv2d(x, w, groups=2, padding=1)
    theirs = F.conv2d(x, w, groups=2, padding=1)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("per_group", [4, 6])
def test_layout_of_the_output(dtype: torch.dtype, layout: str, weight_layout: str, per_group: int):
    channels = 16 * per_group
    x = torch.randn(2, channels, 8, 8).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    w = torch.randn(channels, per_group, 3, 3).to(dtype)
    w = w.contiguous(memory_format=LAYOUTS[weight_layout])
    ours = grouped_conv2d(x, w, groups=16, padding=1)
    theirs = F.conv2d(x, w, groups=16, padding=1)
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(backend: str, layout: str):
    case = dataclasses.replace(RESNEXT_LAYERS[0], layout=layout, bias=True)
    tensors = case.tensors()
    copies = [t.clone() for t in tensors]
    by(backend, case, *tensors)
    for a, b in zip(tensors, copies, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def test_result_does_not_share_memory_between_calls():
    x, w = torch.randn(1, 32, 8, 8), torch.randn(32, 4, 3, 3)
    first = grouped_conv2d(x, w, groups=8)
    kept = first.clone()
    second = grouped_conv2d(2 * x, w, groups=8)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)


def test_inference_mode():
    x, w = torch.randn(1, 32, 8, 8), torch.randn(32, 4, 3, 3)
    with torch.inference_mode():
        y = grouped_conv2d(x, w, groups=8)
    assert y.is_inference()
    torch.testing.assert_close(y, F.conv2d(x, w, groups=8))


def test_meta_tensors_give_a_meta_tensor(memory_format: torch.memory_format):
    x = torch.empty(2, 32, 9, 8, device="meta").contiguous(memory_format=memory_format)
    w = torch.empty(32, 4, 3, 3, device="meta")
    ours = grouped_conv2d(x, w, None, 2, 1, 1, 8)
    theirs = F.conv2d(x, w, None, 2, 1, 1, 8)
    assert ours.device.type == "meta"
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


class Tagged(Tensor):
    """A subclass that takes part in __torch_function__."""


def test_tensor_subclass_survives():
    x, w = torch.randn(1, 32, 8, 8).as_subclass(Tagged), torch.randn(32, 4, 3, 3)
    y = grouped_conv2d(x, w, groups=8)
    assert type(y) is type(F.conv2d(x, w, groups=8))


@pytest.mark.parametrize("attribute", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [1.0, True, (1.0, 1), [1.0, 1]])
def test_a_known_call_does_not_vouch_for_one_that_compares_equal(attribute: str, value):
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    attributes = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    for _ in range(2):
        grouped_conv2d(x, w, None, **attributes, backend="native")
    attributes[attribute] = value

    def outcome(f):
        try:
            return f(x, w, None, **attributes).shape
        except Exception as error:
            return type(error)

    assert outcome(grouped_conv2d) == outcome(F.conv2d)


def test_a_known_call_follows_the_choice_of_backend():
    x, w = torch.randn(1, 8, 5, 5, dtype=torch.float64), torch.randn(8, 4, 3, 3).double()
    y = grouped_conv2d(x, w, None, 1, 1, 1, 2, backend="native")
    assert torch.equal(y, grouped_conv2d(x, w, None, 1, 1, 1, 2, backend="native"))
    with pytest.raises(RuntimeError, match="triton"):
        grouped_conv2d(x, w, None, 1, 1, 1, 2, backend="triton")
    with use_backend("triton"), pytest.raises(RuntimeError, match="triton"):
        grouped_conv2d(x, w, None, 1, 1, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = grouped_conv2d(x.float(), w.float(), None, 1, 1, 1, 2, backend="native")
    assert half.dtype == torch.bfloat16


def test_a_known_call_follows_autocast():
    """Known with and without it, and for each dtype: none answers for another."""
    x, w, b = randn(2, 16, 6, 7), randn(16, 4, 3, 3), randn(16)
    functional._known.clear()
    for _ in range(2):
        for dtype in (None, torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                ours = grouped_conv2d(x, w, b, 1, 1, 1, 4)
                theirs = F.conv2d(x, w, b, 1, 1, 1, 4)
            assert ours.dtype == theirs.dtype == (dtype or torch.float32)
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    assert len(functional._known) == 3


def test_gradients_of_a_known_call_under_autocast():
    for _ in range(2):
        x, w = (randn(*size).requires_grad_() for size in ((2, 16, 6, 7), (16, 4, 3, 3)))
        with torch.autocast("cpu", torch.bfloat16):
            y = grouped_conv2d(x, w, None, 1, 1, 1, 4)
        grads = torch.autograd.grad(y.float().square().sum(), (x, w))
        assert all(g.dtype == torch.float32 for g in grads)
        e = F.conv2d(x, w, None, 1, 1, 1, 4)
        exact = torch.autograd.grad(e.square().sum(), (x, w))
        for ours, right in zip(grads, exact, strict=True):
            assert (ours - right).norm() < 2e-2 * right.norm()


def test_a_call_that_aten_takes_is_known_too():
    """Unusual calls are not parsed each time; a wrong one fails each time."""
    functional._known.clear()
    x, w = torch.randn(1, 8, 5, 5), torch.randn(8, 1, 3, 3)
    for _ in range(2):
        torch.testing.assert_close(grouped_conv2d(x, w, groups=8), F.conv2d(x, w, groups=8))
        with pytest.raises(RuntimeError, match="Given groups=3"):
            grouped_conv2d(x, w, groups=3)
    assert list(functional._known.values()) == [()]
    with pytest.raises(RuntimeError, match="type"):
        grouped_conv2d(x.double(), w, groups=8)


def test_tables_of_known_calls_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functional, "_KNOWN_LIMIT", 4)
    monkeypatch.setattr(routing, "_CACHE_LIMIT", 4)
    for extent in range(5, 15):
        for groups in (2, 4, 8):
            x, w = torch.randn(1, 32, extent, extent), torch.randn(32, 32 // groups, 3, 3)
            for _ in range(2):
                y = grouped_conv2d(x, w, groups=groups)
            torch.testing.assert_close(y, F.conv2d(x, w, groups=groups), rtol=1e-4, atol=1e-4)
            assert len(functional._known) <= 4
            assert len(routing._cache) <= 4


def test_jit_tracing_leaves_nothing_among_the_known_calls():
    """The sizes of a traced tensor are tensors, which equal nothing."""
    functional._known.clear()
    w = torch.randn(32, 4, 3, 3)
    x = torch.randn(1, 32, 5, 5)
    torch.jit.trace(lambda x: grouped_conv2d(x, w, groups=8), x, check_trace=False)
    assert not functional._known
