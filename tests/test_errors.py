"""Wrong arguments: the same exception and message as PyTorch's own function and module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import assert_same_error, error_of
from torch import nn

from grouped_conv import GroupedConv2d, available_backends, grouped_conv2d


def x(*size: int, **options) -> torch.Tensor:
    return torch.randn(size or (2, 32, 9, 8), **options)


def w(*size: int, **options) -> torch.Tensor:
    return torch.randn(size or (32, 4, 3, 3), **options)


# name: (positional arguments, keyword arguments); groups=8 is what x() and w() fit.
FUNCTION_CALLS = {
    "no groups": lambda: ((x(), w()), {"groups": 0}),
    "negative groups": lambda: ((x(), w()), {"groups": -8}),
    "too few groups": lambda: ((x(), w()), {"groups": 4}),
    "too many groups": lambda: ((x(), w()), {"groups": 16}),
    "one group": lambda: ((x(), w()), {}),
    "groups do not divide the outputs": lambda: ((x(), w(30, 4, 3, 3)), {"groups": 8}),
    "fewer outputs than groups": lambda: ((x(), w(4, 4, 3, 3)), {"groups": 8}),
    "fractional groups": lambda: ((x(), w()), {"groups": 8.0}),
    "missing channels": lambda: ((x(2, 31, 9, 8), w()), {"groups": 8}),
    "no channels": lambda: ((x(2, 0, 9, 8), w()), {"groups": 8}),
    "unbatched, missing channels": lambda: ((x(31, 9, 8), w()), {"groups": 8}),
    "no rows": lambda: ((x(2, 32, 0, 8), w()), {"groups": 8, "padding": 2}),
    "unbatched, no rows": lambda: ((x(32, 0, 8), w()), {"groups": 8, "padding": 2}),
    "input of rank 2": lambda: ((x(9, 8), w()), {"groups": 8}),
    "input of rank 1": lambda: ((x(9), w()), {"groups": 8}),
    "input of rank 5": lambda: ((x(1, 2, 32, 9, 8), w()), {"groups": 8}),
    "scalar input": lambda: ((torch.tensor(1.0), w()), {"groups": 8}),
    "weight of rank 3": lambda: ((x(), w(32, 4, 3)), {"groups": 8}),
    "weight of rank 5": lambda: ((x(), w(32, 4, 3, 3, 3)), {"groups": 8}),
    "scalar weight": lambda: ((x(), torch.tensor(1.0)), {"groups": 8}),
    "empty kernel": lambda: ((x(), w(32, 4, 0, 3)), {"groups": 8}),
    "kernel too large": lambda: ((x(), w(32, 4, 11, 3)), {"groups": 8}),
    "kernel too large, batch empty": lambda: ((x(0, 32, 9, 8), w(32, 4, 11, 3)), {"groups": 8}),
    "dilated kernel too large": lambda: ((x(), w()), {"groups": 8, "dilation": 5}),
    "padding negative": lambda: ((x(), w()), {"groups": 8, "padding": -1}),
    "padding negative in one dimension": lambda: ((x(), w()), {"groups": 8, "padding": (1, -1)}),
    "padding of three": lambda: ((x(), w()), {"groups": 8, "padding": (1, 1, 1)}),
    "padding of none": lambda: ((x(), w()), {"groups": 8, "padding": ()}),
    "padding fractional": lambda: ((x(), w()), {"groups": 8, "padding": 1.5}),
    "padding None": lambda: ((x(), w()), {"groups": 8, "padding": None}),
    "padding unknown": lambda: ((x(), w()), {"groups": 8, "padding": "full"}),
    "padding same, strided": lambda: ((x(), w()), {"groups": 8, "padding": "same", "stride": 2}),
    "padding same, weight of rank 3": lambda: (
        (x(), w(32, 4, 3)),
        {"groups": 8, "padding": "same"},
    ),
    "stride zero": lambda: ((x(), w()), {"groups": 8, "stride": 0}),
    "stride negative": lambda: ((x(), w()), {"groups": 8, "stride": (1, -1)}),
    "stride of three": lambda: ((x(), w()), {"groups": 8, "stride": (1, 1, 1)}),
    "stride fractional": lambda: ((x(), w()), {"groups": 8, "stride": 1.0}),
    "stride a string": lambda: ((x(), w()), {"groups": 8, "stride": "2"}),
    "dilation zero": lambda: ((x(), w()), {"groups": 8, "dilation": 0}),
    "dilation negative": lambda: ((x(), w()), {"groups": 8, "dilation": -1}),
    "dilation of three": lambda: ((x(), w()), {"groups": 8, "dilation": (1, 1, 1)}),
    "bias too long": lambda: ((x(), w(), w(33)), {"groups": 8}),
    "bias of rank 2": lambda: ((x(), w(), w(32, 1)), {"groups": 8}),
    "bias scalar": lambda: ((x(), w(), torch.tensor(1.0)), {"groups": 8}),
    "bias a number": lambda: ((x(), w(), 1.0), {"groups": 8}),
    "bias of another dtype": lambda: ((x(), w(), w(32, dtype=torch.float64)), {"groups": 8}),
    "weight of another dtype": lambda: ((x(), w(dtype=torch.float64)), {"groups": 8}),
    "weight of lower precision": lambda: ((x(), w(dtype=torch.bfloat16)), {"groups": 8}),
    "input of lower precision": lambda: ((x(dtype=torch.bfloat16), w()), {"groups": 8}),
    "input of integers": lambda: ((x().long(), w()), {"groups": 8}),
    "booleans": lambda: ((x().bool(), w().bool()), {"groups": 8}),
    "complex weight": lambda: ((x(), w(dtype=torch.complex64)), {"groups": 8}),
    "input None": lambda: ((None, w()), {"groups": 8}),
    "input a list": lambda: (([1.0], w()), {"groups": 8}),
    "weight None": lambda: ((x(), None), {"groups": 8}),
    "weight an array": lambda: ((x(), w().numpy()), {"groups": 8}),
    "sparse input": lambda: ((x().to_sparse(), w()), {"groups": 8}),
}


@pytest.mark.parametrize("name", FUNCTION_CALLS)
def test_function(name: str):
    args, kwargs = FUNCTION_CALLS[name]()
    assert_same_error(F.conv2d, grouped_conv2d, *args, **kwargs)


def has_channels_last_form(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4 and not value.is_sparse


@pytest.mark.parametrize(
    "name", [n for n, call in FUNCTION_CALLS.items() if has_channels_last_form(call()[0][0])]
)
def test_function_channels_last(name: str):
    args, kwargs = FUNCTION_CALLS[name]()
    args = (args[0].contiguous(memory_format=torch.channels_last), *args[1:])
    assert_same_error(F.conv2d, grouped_conv2d, *args, **kwargs)


@pytest.mark.parametrize("name", FUNCTION_CALLS)
def test_function_that_requires_gradients(name: str):
    args, kwargs = FUNCTION_CALLS[name]()
    args = [
        a.requires_grad_() if isinstance(a, torch.Tensor) and a.dtype.is_floating_point else a
        for a in args
    ]
    assert_same_error(F.conv2d, grouped_conv2d, *args, **kwargs)


def test_operation_leaves_no_graph_behind_a_failure():
    weight = w().requires_grad_()
    with pytest.raises(RuntimeError):
        grouped_conv2d(x(), weight, groups=4)
    grouped_conv2d(x(), weight, groups=8).sum().backward()
    assert weight.grad is not None


MODULE_ARGUMENTS = {
    "no groups": ((32, 32, 3), {"groups": 0}),
    "negative groups": ((32, 32, 3), {"groups": -1}),
    "groups do not divide the inputs": ((30, 32, 3), {"groups": 4}),
    "groups do not divide the outputs": ((32, 30, 3), {"groups": 4}),
    "padding unknown": ((32, 32, 3), {"padding": "full"}),
    "padding same, strided": ((32, 32, 3), {"padding": "same", "stride": 2}),
    "padding mode unknown": ((32, 32, 3), {"padding_mode": "mirror"}),
    "too few arguments": ((32, 32), {}),
    "unknown argument": ((32, 32, 3), {"group": 4}),
    "kernel a string": ((32, 32, "3"), {}),
    "channels fractional": ((32.0, 32, 3), {}),
    "dtype of integers": ((32, 32, 3), {"dtype": torch.int64}),
    "device unknown": ((32, 32, 3), {"device": "abacus"}),
}


@pytest.mark.parametrize("name", MODULE_ARGUMENTS)
def test_module_construction(name: str):
    args, kwargs = MODULE_ARGUMENTS[name]
    expected, actual = (error_of(cls, *args, **kwargs) for cls in (nn.Conv2d, GroupedConv2d))
    assert type(actual) is type(expected)
    assert str(actual).replace("GroupedConv2d", "Conv2d") == str(expected)


FORWARD_INPUTS = {
    "rank 2": lambda: x(32, 9),
    "rank 5": lambda: x(1, 2, 32, 9, 8),
    "channels": lambda: x(2, 31, 9, 8),
    "too small": lambda: x(2, 32, 2, 2),
    "dtype": lambda: x(dtype=torch.float64),
    "None": lambda: None,
}


@pytest.mark.parametrize("name", FORWARD_INPUTS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_module_forward(name: str, padding_mode: str):
    options = {"groups": 8, "padding_mode": padding_mode, "padding": int(padding_mode != "zeros")}
    theirs = nn.Conv2d(32, 32, 4, **options)
    ours = GroupedConv2d(32, 32, 4, **options)
    ours.load_state_dict(theirs.state_dict())
    value = FORWARD_INPUTS[name]()
    if name == "too small" and padding_mode != "zeros":
        value = x(2, 32, 1, 1)
    assert_same_error(theirs, ours, value)


def test_unknown_backend():
    error = error_of(grouped_conv2d, x(), w(), groups=8, backend="cudnn")
    assert isinstance(error, ValueError)
    assert "cudnn" in str(error)
    for name in available_backends():
        assert name in str(error)


def test_native_says_why_it_cannot():
    integers = x().long(), w().long()
    error = error_of(grouped_conv2d, *integers, groups=8, backend="native")
    assert isinstance(error, RuntimeError)
    assert "native" in str(error)
    assert "int64" in str(error)


def test_unavailable_backend_says_why():
    unavailable = {name: why for name, why in available_backends().items() if why is not None}
    for name, why in unavailable.items():
        error = error_of(grouped_conv2d, x(), w(), groups=8, backend=name)
        assert isinstance(error, RuntimeError)
        assert name in str(error)
        assert why in str(error)


@pytest.mark.parametrize("backend", ["native", "aten"])
def test_wrong_shapes_with_a_chosen_backend(backend: str):
    theirs = error_of(F.conv2d, x(), w(), groups=4)
    ours = error_of(grouped_conv2d, x(), w(), groups=4, backend=backend)
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))
