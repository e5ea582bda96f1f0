"""Statistics from the convolution's kernel, and batch normalization by them, against PyTorch's."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from support import LAYOUTS, assert_as_accurate, threads
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import resnext
from grouped_conv import (
    GroupedConv2d,
    GroupedConvBN2d,
    conv_batch_norm,
    fuse_grouped_conv_bn_,
    use_backend,
)

STATS = torch.ops.grouped_conv.fprop_stats

# N, C, groups, H, W, stride, kernel: permuted and broadcast channels, Winograd's algorithm, ragged
# vectors of channels, rows of one pixel, plain loops.
SHAPES = [
    (2, 32, 8, 9, 7, 1, 3),
    (3, 64, 8, 8, 17, 2, 3),
    (2, 64, 4, 9, 9, 1, 3),
    (2, 24, 2, 5, 1, 1, 3),
    (1, 10, 5, 6, 40, 1, 5),
    (2, 7, 1, 3, 3, 1, 3),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_statistics_are_those_of_the_rounded_output(dtype: torch.dtype, layout: str):
    """Also where the mean is far larger than the deviation, with the same bits for any threads."""
    for seed, (n, c, groups, h, w, stride, kernel) in enumerate(SHAPES):
        torch.manual_seed(seed)
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        weight = torch.randn(c, c // groups, kernel, kernel).to(dtype)
        bias = (300 * torch.randn(c)).to(dtype)
        args = (x, weight, bias, (stride, stride), (1, 1), (1, 1), groups)
        runs = []
        for count in (1, 2, 5):
            with threads(count):
                runs.append(STATS(*args))
        for other in runs[1:]:
            assert all(map(torch.equal, other, runs[0]))
        y, total, squares = runs[0]
        assert torch.equal(y, torch.ops.grouped_conv.fprop(*args))
        exact = y.double()
        mean = exact.mean((0, 2, 3), keepdim=True)
        expected = (exact - mean).square().sum((0, 2, 3))
        unit = 2.0**-24 if dtype is not torch.float64 else 2.0**-53
        error = (total - exact.sum((0, 2, 3))).abs()
        assert bool((error <= 64 * unit * exact.abs().sum((0, 2, 3))).all())
        # E[y²] - E[y]² in float32 would be wrong by 2**-24 * 300**2, far above this.
        assert bool(((squares - expected).abs() <= 128 * unit * expected).all())


def test_statistics_of_constants_and_of_nothing():
    weight, attributes = torch.zeros(8, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 2)
    bias = torch.randn(8) * 1e4
    y, total, squares = STATS(torch.randn(2, 8, 5, 5), weight, bias, *attributes)
    torch.testing.assert_close(total, bias * 50)
    assert float(squares.abs().max()) == 0
    y, total, squares = STATS(torch.randn(0, 8, 5, 5), weight, bias, *attributes)
    assert y.shape == (0, 8, 5, 5)
    assert float(total.abs().max()) == float(squares.abs().max()) == 0


def test_statistics_tell_of_what_is_not_finite():
    x = torch.randn(2, 8, 5, 5)
    x[1, 3, 2, 2] = torch.inf
    y, total, squares = STATS(x, torch.randn(8, 4, 3, 3), None, (1, 1), (1, 1), (1, 1), 2)
    bad = ~y.isfinite().all(3).all(2).all(0)
    assert torch.equal(~total.isfinite(), bad)
    assert torch.equal(~squares.isfinite(), bad)


@pytest.mark.once
@pytest.mark.parametrize("with_bias", [False, True])
def test_ops_are_what_pytorch_expects(with_bias: bool):
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True) if with_bias else None
    args = (x, weight, bias, (1, 1), (1, 1), (1, 1), 2)
    torch.library.opcheck(STATS.default, args)
    with use_backend("native"):
        inputs = tuple(t for t in (x, weight, bias) if t is not None)
        rest = (None,) * (not with_bias)

        def stats(*tensors: Tensor) -> tuple[Tensor, ...]:
            return STATS(*tensors, *rest, *args[3:])

        assert torch.autograd.gradcheck(stats, inputs)
        assert torch.autograd.gradgradcheck(stats, inputs)
    y, total, squares = (t.detach() for t in STATS(*args))
    gamma = torch.randn(8, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.grouped_conv.normalize.default,
        (y.requires_grad_(), total, squares, gamma.requires_grad_(), None, 1e-5),
    )


def pair(**norm: Any) -> tuple[nn.Sequential, GroupedConvBN2d]:
    """PyTorch's modules and ours with the same values."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"padding": 1, "groups": 4, "bias": False}
    stock = nn.Sequential(nn.Conv2d(16, 16, 3, **options), nn.BatchNorm2d(16, **norm))
    if stock[1].affine:
        nn.init.normal_(stock[1].weight)
        nn.init.normal_(stock[1].bias)
    ours = GroupedConvBN2d(GroupedConv2d(16, 16, 3, **options), nn.BatchNorm2d(16, **norm))
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def is_joint(y: Tensor) -> bool:
    return "normalize" in type(y.grad_fn).__name__


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "norm",
    [
        {},
        {"momentum": None},
        {"affine": False, "eps": 1e-3},
        {"track_running_stats": False, "momentum": 0.3},
    ],
    ids=str,
)
def test_module_is_the_two_modules(norm: dict[str, Any], layout: str):
    """Outputs, first and second gradients, running statistics; training, then evaluation."""
    stock, ours = (m.double() for m in pair(**norm))
    with use_backend("native"):
        for _ in range(3):
            x = torch.randn(3, 16, 7, 6).double().contiguous(memory_format=LAYOUTS[layout])
            found = []
            for model in (stock, ours):
                for p in model.parameters():
                    p.grad = None
                given = x.detach().clone().requires_grad_()
                y = model(given)
                wanted = [given, *model.parameters()]
                first = torch.autograd.grad(y, wanted, y.detach().cos(), create_graph=True)
                sum((g**2).sum() for g in first).backward()
                seconds = [t.grad for t in wanted if t.grad is not None]
                found.append([y, *first, *seconds, *model.buffers()])
                if model is ours:
                    assert is_joint(y)
                    assert y.stride() == x.stride()
            for expected, actual in zip(*found, strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
        stock.eval(), ours.eval()
        torch.testing.assert_close(ours(x), stock(x))


@pytest.mark.parametrize(
    ("dtype", "where"),
    [(torch.float32, "module"), (torch.bfloat16, "module"), (torch.bfloat16, "autocast")],
    ids=str,
)
def test_narrow_types_are_as_right_as_pytorch_s(dtype: torch.dtype, where: str):
    stock, ours = pair()
    exact = copy.deepcopy(stock).double()
    x = torch.randn(4, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    if where == "module":
        stock, ours, x = stock.to(dtype), ours.to(dtype), x.to(dtype)
        exact.load_state_dict(stock.state_dict())
        context: Any = contextlib.nullcontext()
    else:
        context = torch.autocast("cpu", dtype)
    with context:
        expected, actual = stock(x), ours(x)
    assert is_joint(actual)
    assert actual.dtype == expected.dtype
    cotangent = torch.randn(x.shape)
    for y in (actual, expected):
        (y.float() * cotangent).sum().backward()
    right = exact(x.double())
    right = right.detach()
    size = float(right.abs().max())
    assert_as_accurate(actual.detach(), expected.detach(), right, size)
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert p.grad is not None
        assert p.grad.dtype == p.dtype
        scale = float(q.grad.abs().max()) + 1
        error = float((p.grad - q.grad).abs().max())
        assert error <= (1e-5 if dtype is torch.float32 else 6e-2) * scale, name
    torch.testing.assert_close(ours[1].running_mean, stock[1].running_mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours[1].running_var, stock[1].running_var, rtol=2e-2, atol=1e-2)
    with torch.no_grad():
        difference = (ours.eval()(x).float() - stock.eval()(x).float()).abs().max()
    assert difference <= (1e-5 if dtype is torch.float32 else 6e-2)


@pytest.mark.once
def test_mean_much_larger_than_the_deviation():
    ours = GroupedConvBN2d(GroupedConv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16))
    nn.init.constant_(ours[0].bias, 3e3)
    exact = copy.deepcopy(ours).double()
    x = torch.randn(4, 16, 12, 12)
    ours(x)
    y = exact[0](x.double())
    variance = y.var((0, 2, 3))
    # What is left is the rounding of the convolution itself at 3000.
    torch.testing.assert_close(
        ours[1].running_var.double(), 0.9 + 0.1 * variance, rtol=2e-4, atol=0
    )


@pytest.mark.once
def test_compiled_in_one_graph():
    stock, ours = pair(momentum=None)
    compiled = torch.compile(ours, fullgraph=True)
    for training in (True, True, False):
        stock.train(training), ours.train(training)
        x = torch.randn(2, 16, 6, 7).contiguous(memory_format=torch.channels_last)
        expected, actual = stock(x), compiled(x)
        assert actual.stride() == expected.stride()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        grads = [
            torch.autograd.grad(y.square().sum(), m.parameters())
            for y, m in ((expected, stock), (actual, ours))
        ]
        for p, q in zip(*grads, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-3)
        for p, q in zip(stock.buffers(), ours.buffers(), strict=True):
            torch.testing.assert_close(q, p)


@pytest.mark.once
def test_checkpointing():
    _, ours = pair()
    x = torch.randn(2, 16, 6, 7, requires_grad=True)
    expected = torch.autograd.grad(ours(x).sin().sum(), [x, *ours.parameters()])
    out = checkpoint(ours, x, use_reentrant=False)
    actual = torch.autograd.grad(out.sin().sum(), [x, *ours.parameters()])
    assert all(map(torch.equal, actual, expected))


@pytest.mark.once
def test_what_is_left_to_the_modules():
    _, ours = pair()
    x = torch.randn(2, 16, 6, 7)
    assert is_joint(ours(x))
    with use_backend("aten"):
        assert not is_joint(ours(x))
    seen = []
    handle = ours[0].register_forward_hook(lambda *args: seen.append(args))
    assert not is_joint(ours(x))
    assert len(seen) == 1
    handle.remove()
    assert not is_joint(conv_batch_norm(x, nn.Conv2d(16, 16, 3, groups=4), ours[1]))
    assert not is_joint(conv_batch_norm(x, ours[0], nn.GroupNorm(4, 16)))
    ours.eval()
    tangent = torch.func.jvp(ours, (x,), (torch.ones_like(x),))[1]
    assert tangent.shape == x.shape
    torch.testing.assert_close(torch.jit.script(ours)(x), ours(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours.train()(torch.randn(1, 16, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        ours(torch.randn(16, 5, 5))


@pytest.mark.once
def test_refusals():
    with pytest.raises(TypeError, match="BatchNorm2d, but got GroupedConv2d and SyncBatchNorm"):
        GroupedConvBN2d(GroupedConv2d(8, 8, 3, groups=2), nn.SyncBatchNorm(8))
    with pytest.raises(ValueError, match="8 output channels, the normalization 4"):
        GroupedConvBN2d(GroupedConv2d(8, 8, 3, groups=2), nn.BatchNorm2d(4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(pair()[1])
    with pytest.raises(TypeError, match="SyncBatchNorm takes its statistics from several"):
        converted(torch.randn(2, 16, 5, 5))


@pytest.mark.once
def test_fusion_for_inference_sees_through():
    _, ours = pair()
    model = nn.Sequential(ours, nn.ReLU())
    model(torch.randn(2, 16, 6, 7))
    x = torch.randn(2, 16, 6, 7)
    expected = model.eval()(x)
    assert all(entry.replaced for entry in fuse_grouped_conv_bn_(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
def test_resnext_with_fused_norm(checkpointing: bool):
    """The same network: outputs, gradients and running statistics, in training and evaluation."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 5, "stem": "cifar"}
    plain = resnext.ResNeXt((1, 2), 8, 4, **options).double()
    fused = resnext.ResNeXt((1, 2), 8, 4, fused_norm=True, **options).double()
    fused.load_state_dict(plain.state_dict())
    fused.set_grad_checkpointing(checkpointing)
    x = torch.randn(3, 3, 12, 12).double()
    with use_backend("native"):
        results = []
        for model in (plain, fused):
            model(x).sin().sum().backward()
            first = [p.grad for p in model.parameters()]
            results.append([*first, *model.buffers(), model.eval()(x)])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
