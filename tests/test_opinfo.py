"""PyTorch's own test inputs for conv2d and Conv2d, run on our function and module."""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch
from support import LAYOUTS, short
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_map_only

from grouped_conv import GroupedConv2d, grouped_conv2d

# PyTorch's test modules forbid the process to set flags of torch.backends; other tests set them.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

OPINFO = next(op for op in op_db if op.name == "nn.functional.conv2d")
MODULEINFO = next(info for info in module_db if info.module_cls is nn.Conv2d)
DTYPES = sorted(OPINFO.supported_dtypes("cpu"), key=str)
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.complex64: 1e-5}


def differentiable(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def close(ours, theirs) -> None:
    first = theirs if isinstance(theirs, Tensor) else theirs[0]
    tolerance = TOLERANCE.get(first.dtype, 1e-10)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def samples(dtype: torch.dtype, *, requires_grad: bool = False):
    yield from OPINFO.sample_inputs("cpu", dtype, requires_grad=requires_grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_samples(dtype: torch.dtype, layout: str):
    count = 0
    for sample in samples(dtype):
        x = sample.input
        if x.dim() == 4:
            x = x.contiguous(memory_format=LAYOUTS[layout])
        ours = grouped_conv2d(x, *sample.args, **sample.kwargs)
        theirs = OPINFO.op(x, *sample.args, **sample.kwargs)
        close(ours, theirs)
        assert ours.is_contiguous() == theirs.is_contiguous()
        count += 1
    assert count > 10


def gradients(op, sample, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradients of a sample's tensors, computed in a dtype."""
    tensors = [t for t in (sample.input, *sample.args) if isinstance(t, Tensor)]
    rest = sample.args[len(tensors) - 1 :]
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = op(*leaves, *rest, **sample.kwargs)
    direction = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(sample.input.dtype)
    return torch.autograd.grad(y, leaves, direction.to(dtype))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if differentiable(d)], ids=short)
def test_gradients_of_samples(dtype: torch.dtype):
    """PyTorch's, or as close to those in float64: in 16 bits PyTorch's own sums are coarse."""
    for sample in samples(dtype):
        ours, theirs = (gradients(op, sample, dtype) for op in (grouped_conv2d, OPINFO.op))
        if dtype.itemsize > 2:
            close(ours, theirs)
            continue
        exact = gradients(OPINFO.op, sample, torch.float64)
        for a, b, right in zip(ours, theirs, exact, strict=True):
            limit = (b - right).abs().max() + TOLERANCE[dtype]
            assert a.dtype == b.dtype
            assert (a - right).abs().max() <= limit


def checked_samples(dtype: torch.dtype):
    """Each sample as a function of the tensors that require gradients."""
    for sample in samples(dtype, requires_grad=True):
        tensors = (sample.input, *(a for a in sample.args if isinstance(a, Tensor)))
        rest = tuple(a for a in sample.args if not isinstance(a, Tensor))
        sizes = [tuple(t.shape) for t in tensors]
        name = f"{sizes} {rest} {sample.kwargs}"

        def function(*inputs, rest=rest, kwargs=sample.kwargs):
            return grouped_conv2d(*inputs, *rest, **kwargs)

        yield pytest.param(function, tensors, id=re.sub(r"\s+", " ", name))


@pytest.mark.parametrize(("function", "tensors"), list(checked_samples(torch.float64)))
def test_gradcheck(function, tensors):
    check = functools.partial(torch.autograd.gradcheck, function, tensors, fast_mode=True)
    assert check(check_batched_grad=OPINFO.check_batched_grad)
    assert check(
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=OPINFO.check_batched_forward_grad,
    )
    assert torch.autograd.gradgradcheck(
        function,
        tensors,
        fast_mode=True,
        check_batched_grad=OPINFO.check_batched_gradgrad,
        check_fwd_over_rev=OPINFO.supports_fwgrad_bwgrad,
    )


@pytest.mark.once
@pytest.mark.parametrize(("function", "tensors"), list(checked_samples(torch.complex128)))
def test_gradcheck_of_complex_numbers(function, tensors):
    check = functools.partial(torch.autograd.gradcheck, function, tensors, fast_mode=True)
    assert check(check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=short)
def test_forward_mode_of_samples(dtype: torch.dtype):
    for sample in samples(dtype):
        results = []
        for op in (grouped_conv2d, OPINFO.op):
            with forward_ad.dual_level():
                x = forward_ad.make_dual(sample.input, sample.input.cos())
                y = op(x, *sample.args, **sample.kwargs)
                results.append(forward_ad.unpack_dual(y))
        close(results[0].primal, results[1].primal)
        close(results[0].tangent, results[1].tangent)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_samples_that_are_not_contiguous(dtype: torch.dtype):
    """OpInfo's own way of spreading a tensor in memory."""
    for sample in samples(dtype):
        spread = sample.noncontiguous()
        ours = grouped_conv2d(spread.input, *spread.args, **spread.kwargs)
        close(ours, OPINFO.op(sample.input, *sample.args, **sample.kwargs))


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_lazily_cloned_inputs_are_not_copied(backend: str):
    """What the kernels only read, they must not ask for writing."""
    assert OPINFO.supports_cow_input_no_materialize_forward
    for sample in samples(torch.float32):
        if sample.kwargs.get("padding") == "same" or sample.input.dim() == 3:
            continue  # these are padded or viewed first
        tensors = [t for t in (sample.input, *sample.args) if isinstance(t, Tensor)]
        clones = [torch._lazy_clone(t.detach()) for t in tensors]
        rest = sample.args[len(tensors) - 1 :]
        grouped_conv2d(*clones, *rest, **sample.kwargs, backend=backend)
        assert all(map(torch._C._is_cow_tensor, clones))


@pytest.mark.parametrize("number", range(len(list(OPINFO.error_inputs("cpu")))))
def test_error_inputs(number: int):
    case = list(OPINFO.error_inputs("cpu"))[number]
    sample = case.sample_input
    with pytest.raises(case.error_type, match=case.error_regex) as raised:
        grouped_conv2d(sample.input, *sample.args, **sample.kwargs)
    with pytest.raises(case.error_type) as expected:
        OPINFO.op(sample.input, *sample.args, **sample.kwargs)
    assert str(raised.value) == str(expected.value)


def module_inputs(dtype: torch.dtype, training: bool):
    return MODULEINFO.module_inputs_func(
        MODULEINFO, device="cpu", dtype=dtype, requires_grad=True, training=training
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [d for d in MODULEINFO.dtypes if d.is_floating_point], ids=short)
def test_module(dtype: torch.dtype, training: bool, layout: str):
    count = 0
    for item in module_inputs(dtype, training):
        args, kwargs = item.constructor_input.args, item.constructor_input.kwargs
        theirs = nn.Conv2d(*args, **kwargs, device="cpu", dtype=dtype).train(training)
        ours = GroupedConv2d(*args, **kwargs, device="cpu", dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (ours, theirs):
            inputs = tree_map_only(
                Tensor, lambda t: t.detach().requires_grad_(), item.forward_input.args
            )
            module.to(memory_format=LAYOUTS[layout])
            y = module(*inputs, **item.forward_input.kwargs)
            y.sum().backward()
            results.append([y, inputs[0].grad, *(p.grad for p in module.parameters())])
            if item.reference_fn is not None:
                reference = item.reference_fn(module, *inputs)
                close(y, reference)
        for a, b in zip(*results, strict=True):
            close(a, b)
        assert repr(copy.deepcopy(ours)) == repr(theirs).replace("Conv2d", "GroupedConv2d", 1)
        count += 1
    assert count > 3


@pytest.mark.once
def test_gradcheck_of_modules():
    for item in module_inputs(torch.float64, training=True):
        args, kwargs = item.constructor_input.args, item.constructor_input.kwargs
        module = GroupedConv2d(*args, **kwargs, device="cpu", dtype=torch.float64)
        names = [name for name, _ in module.named_parameters()]

        def function(x, *parameters, module=module, names=names):
            return torch.func.functional_call(
                module, dict(zip(names, parameters, strict=True)), (x,)
            )

        tensors = (*item.forward_input.args, *module.parameters())
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)
