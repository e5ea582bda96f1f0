"""The CUDA kernels on a GPU: results, layouts, streams, graphs, determinism."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import emulator
import pytest
import torch
import torch.nn.functional as F
from support import short
from torch import Tensor

from grouped_conv import (
    GroupedConv2d,
    Workload,
    _libraries,
    autotune,
    configurations,
    explain,
    functional,
    measured,
    use_backend,
)
from grouped_conv.backends import native
from grouped_conv.bench.problems import resolve
from grouped_conv.problem import PASSES, ConvProblem, Pass

WHY_NOT = _libraries.cuda_absent_reason() or (
    None if torch.cuda.is_available() else "there is no GPU"
)
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]

OPS = torch.ops.grouped_conv
DTYPES = (torch.float16, torch.bfloat16)
CHANNELS_LAST = torch.channels_last
LAYOUTS = {"nhwc": CHANNELS_LAST, "nchw": torch.contiguous_format}


def operands(p: ConvProblem, dtype: torch.dtype, bias: bool = False) -> emulator.Operands:
    return emulator.Operands.random(p, dtype, bias)


def compute(
    pass_name: Pass,
    p: ConvProblem,
    o: emulator.Operands,
    *,
    layout: torch.memory_format = CHANNELS_LAST,
    weight_layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """A pass on the GPU, from operands on the CPU."""
    x, y = (t.cuda().contiguous(memory_format=layout) for t in (o.x, o.y))
    w = o.w.cuda().contiguous(memory_format=weight_layout)
    bias = None if o.bias is None else o.bias.cuda()
    nhwc = layout is CHANNELS_LAST
    geometry = (p.stride, p.padding, p.dilation, p.G)
    if pass_name == "fprop":
        return OPS.fprop(x, w, bias, *geometry)
    if pass_name == "dgrad":
        return OPS.dgrad(y, w, p.input_size, *geometry, nhwc)
    return OPS.wgrad(y, x, p.weight_size, *geometry, weight_layout is CHANNELS_LAST)


def assert_close(pass_name: Pass, p: ConvProblem, o: emulator.Operands, found: Tensor) -> None:
    """Within the rounding of the result and of a sum in float32."""
    exact = emulator.exact(pass_name, p, o)
    unit = torch.finfo(found.dtype).eps / 2
    bound = unit * exact.abs() + 2.0**-18 * emulator.magnitude(pass_name, p, o) + 1e-7
    error = (found.cpu().double() - exact).abs()
    assert bool((error <= bound).all()), f"{float((error / bound).max())} times the bound"


def sized(n: int, c_per_group: int, h: int, w: int, stride: int, *pads: int) -> ConvProblem:
    c = max(c_per_group * 3, 24) if c_per_group < 64 else 128
    pad_h, pad_w = pads or (1, 1)
    return ConvProblem(n, c, h, w, c, 3, 3, c // c_per_group, pad_h, pad_w, stride, stride)


SMALL_SHAPES = [(9, 7, 7), (3, 14, 14), (17, 1, 1), (1, 2, 3)]
SHAPES = [*SMALL_SHAPES, (2, 33, 56), (1, 4, 131)]


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_per_group", native._ROWSTREAM_CHANNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_shapes(pass_name: Pass, layout: str, c_per_group: int, stride: int, dtype: torch.dtype):
    for n, h, w in SHAPES:
        p = sized(n, c_per_group, h, w, stride)
        o = operands(p, dtype, bias=pass_name == "fprop")
        assert_close(pass_name, p, o, compute(pass_name, p, o, layout=LAYOUTS[layout]))


@pytest.mark.parametrize("pads", [(0, 0), (2, 2), (0, 2), (2, 0)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_per_group", [4, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_paddings(
    pass_name: Pass, layout: str, c_per_group: int, stride: int, pads: tuple[int, int]
):
    for n, h, w in ((5, 7, 6), (2, 15, 16)):
        p = sized(n, c_per_group, h, w, stride, *pads)
        o = operands(p, torch.float16)
        assert_close(pass_name, p, o, compute(pass_name, p, o, layout=LAYOUTS[layout]))


@pytest.mark.parametrize("layer", resolve("resnext50"), ids=str)
@pytest.mark.parametrize("pass_name", PASSES)
def test_layers_of_resnext(pass_name: Pass, layer):
    """Of full size, against PyTorch in float32: every multiprocessor has work."""
    p = layer.problem(32)
    o = operands(p, torch.float16)
    found = compute(pass_name, p, o).float()
    x, w, y = (t.cuda().float() for t in (o.x, o.w, o.y))
    with torch.backends.cudnn.flags(allow_tf32=False):
        if pass_name == "fprop":
            expected = F.conv2d(x, w, None, p.stride, p.padding, p.dilation, p.G)
        else:
            mask = (pass_name == "dgrad", pass_name == "wgrad", False)
            both = torch.ops.aten.convolution_backward(
                y, x, w, None, p.stride, p.padding, p.dilation, False, (0, 0), p.G, mask
            )
            expected = both[0 if pass_name == "dgrad" else 1]
    scale = float(expected.square().mean().sqrt())
    assert float((found - expected).square().mean().sqrt()) <= 1e-3 * scale
    assert float((found - expected).abs().max()) <= 2e-2 * scale


@pytest.mark.parametrize("pass_name", PASSES)
def test_layouts_of_the_weight_have_the_same_bits(pass_name: Pass):
    for c_per_group in (4, 32):
        p = sized(3, c_per_group, 9, 11, 1)
        o = operands(p, torch.bfloat16)
        plain = compute(pass_name, p, o)
        other = compute(pass_name, p, o, weight_layout=CHANNELS_LAST)
        if pass_name == "wgrad":
            assert plain.is_contiguous()
            assert other.is_contiguous(memory_format=CHANNELS_LAST)
        else:
            assert other.is_contiguous(memory_format=CHANNELS_LAST)
        assert torch.equal(plain, other)


def odd_views(t: Tensor) -> Iterator[Tensor]:
    """The same values, not dense, and dense at an address that is no multiple of 16 bytes."""
    n, c, h, w = t.shape
    wide = t.new_zeros(n, h, 2 * w, c)
    wide[:, :, ::2] = t.permute(0, 2, 3, 1)
    yield wide[:, :, ::2].permute(0, 3, 1, 2)
    shifted = t.new_zeros(t.numel() + 1)[1:].view(n, h, w, c)
    shifted.copy_(t.permute(0, 2, 3, 1))
    yield shifted.permute(0, 3, 1, 2)


def test_views_have_the_same_bits():
    p = sized(3, 8, 9, 11, 2)
    o = operands(p, torch.float16)
    x, w, y = (t.cuda().contiguous(memory_format=CHANNELS_LAST) for t in (o.x, o.w, o.y))
    geometry = (p.stride, p.padding, p.dilation, p.G)
    expected = [compute(name, p, o) for name in PASSES]
    for odd_x, odd_w, odd_y in zip(*map(odd_views, (x, w, y)), strict=True):
        found = [
            OPS.fprop(odd_x, odd_w, None, *geometry),
            OPS.dgrad(odd_y, odd_w, p.input_size, *geometry, True),
            OPS.wgrad(odd_y, odd_x, p.weight_size, *geometry, False),
        ]
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("c_per_group", native._ROWSTREAM_CHANNELS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_every_element_is_written(pass_name: Pass, c_per_group: int):
    p = sized(5, c_per_group, 13, 17, 1)
    o = operands(p, torch.float16)
    first = compute(pass_name, p, o)
    shape, strides = first.shape, first.stride()
    for _ in range(2):  # the allocator hands out what was freed last
        del first
        poison = torch.empty_strided(shape, strides, dtype=torch.float16, device="cuda")
        poison.fill_(float("nan"))
        del poison
        first = compute(pass_name, p, o)
        assert bool(first.isfinite().all())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_per_group", [4, 8, 16, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_that_are_not_finite(layout: str, c_per_group: int, stride: int, value: float):
    """The classes of the sum over the taps that exist, which know no other group."""
    p = sized(3, c_per_group, 7, 6, stride)
    for place in ((0, 0, 0), (1, 3, 3), (2, 6, 5)):
        n, h, w = place
        o = operands(p, torch.float16)
        o.x[n, c_per_group + 1, h, w] = value
        o.y[n, c_per_group - 1, h // stride, w // stride] = value
        o.w[2, 1, h % 3, w % 3] = value
        for pass_name in PASSES:
            found = compute(pass_name, p, o, layout=LAYOUTS[layout]).cpu()
            exact = emulator.exact(pass_name, p, o)
            assert torch.equal(found.isnan(), exact.isnan())
            assert torch.equal(found.isposinf(), exact.isposinf())
            assert torch.equal(found.isneginf(), exact.isneginf())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_results_repeat_bit_by_bit(pass_name: Pass, layout: str):
    p = ConvProblem(32, 128, 28, 28, 128, 3, 3, 32, 1, 1)
    o = operands(p, torch.bfloat16)
    first = compute(pass_name, p, o, layout=LAYOUTS[layout])
    side = torch.cuda.Stream()
    busy = torch.randn(2048, 2048, device="cuda")
    for _ in range(10):
        with torch.cuda.stream(side):
            busy @ busy
        assert torch.equal(compute(pass_name, p, o, layout=LAYOUTS[layout]), first)


def passes_of(p: ConvProblem, x: Tensor, w: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    geometry = (p.stride, p.padding, p.dilation, p.G)
    return lambda: [
        OPS.fprop(x, w, None, *geometry),
        OPS.dgrad(y, w, p.input_size, *geometry, True),
        OPS.wgrad(y, x, p.weight_size, *geometry, False),
    ]


def on_gpu(p: ConvProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    o = operands(p, dtype)
    return tuple(t.cuda().contiguous(memory_format=CHANNELS_LAST) for t in (o.x, o.w, o.y))


def test_work_goes_to_the_current_stream():
    p = sized(8, 8, 28, 28, 1)
    x, w, y = on_gpu(p, torch.float16)
    expected = passes_of(p, x, w, y)()
    late_x, late_w, late_y = (torch.full_like(t, float("nan")) for t in (x, w, y))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for late, now in ((late_x, x), (late_w, w), (late_y, y)):
            late.copy_(now)
        found = passes_of(p, late_x, late_w, late_y)()
        assert not side.query(), "the device was not busy, so the order was not tested"
    side.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_cuda_graphs():
    p = sized(8, 16, 14, 14, 2)
    x, w, y = on_gpu(p, torch.float16)
    run = passes_of(p, x, w, y)
    run()  # modules are loaded before a capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        for t in (x, w, y):
            t.copy_(torch.randn(t.shape, generator=generator, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        for ours, theirs in zip(captured, run(), strict=True):
            assert torch.equal(ours, theirs)


def test_empty_batch():
    p = sized(2, 8, 9, 9, 1)
    x, w, y = on_gpu(p, torch.float16)
    none = ConvProblem(0, p.C, p.H, p.W, p.K, 3, 3, p.G, 1, 1)
    out, dx, dw = passes_of(none, x[:0], w, y[:0])()
    assert out.shape == none.output_size
    assert dx.shape == none.input_size
    assert bool((dw == 0).all())


def test_more_than_two_to_the_31_elements():
    p = ConvProblem(5400, 128, 56, 56, 128, 3, 3, 32, 1, 1)
    need = 5 * 2 * p.N * p.C * p.H * p.W
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"the GPU has less than {need >> 30} GiB to spare")
    x = torch.empty(p.input_size, dtype=torch.float16, device="cuda", memory_format=CHANNELS_LAST)
    x.normal_()
    w = torch.randn(p.weight_size, device="cuda", dtype=torch.float16)
    geometry = (p.stride, p.padding, p.dilation, p.G)
    y = OPS.fprop(x, w, None, *geometry)
    dx = OPS.dgrad(x, w, p.input_size, *geometry, True)
    for first in (0, p.N // 2, p.N - 2):
        part = x[first : first + 2]
        small = (2, *p.input_size[1:])
        assert torch.equal(y[first : first + 2], OPS.fprop(part, w, None, *geometry))
        assert torch.equal(dx[first : first + 2], OPS.dgrad(part, w, small, *geometry, True))
    del y, dx
    dw = OPS.wgrad(x, x, p.weight_size, *geometry, False).double()
    parts = [OPS.wgrad(t, t, p.weight_size, *geometry, False).double() for t in x.split(900)]
    total = torch.stack(parts).sum(0)
    assert float((dw - total).abs().max()) <= 2e-3 * float(total.abs().max())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_tensors_decide_the_device():
    p = sized(3, 8, 9, 9, 1)
    x, w, y = on_gpu(p, torch.float16)
    expected = passes_of(p, x, w, y)()
    found = passes_of(p, x.to("cuda:1"), w.to("cuda:1"), y.to("cuda:1"))()
    assert torch.cuda.current_device() == 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.index == 1
        assert torch.equal(ours.cpu(), theirs.cpu())


def test_explain_names_the_kernel():
    x = torch.empty(2, 128, 9, 9, dtype=torch.float16, device="cuda", memory_format=CHANNELS_LAST)
    w = torch.empty(128, 4, 3, 3, dtype=torch.float16, device="cuda")
    with use_backend("native"):
        decision = explain(x, w, None, 1, 1, 1, 32)
    for name, (backend, kernel, _) in decision.passes.items():
        assert (backend, kernel) == ("native", f"{name}_rowstream_float16_cuda")


@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_per_group", native._ROWSTREAM_CHANNELS)
def test_epilogue(c_per_group: int, stride: int, with_residual: bool):
    """On the float sums: one rounding, of the result."""
    for n, h, w in SMALL_SHAPES:
        p = sized(n, c_per_group, h, w, stride)
        o = operands(p, torch.float16, bias=True)
        x, residual = (t.cuda().contiguous(memory_format=CHANNELS_LAST) for t in (o.x, o.y))
        factors = torch.randn(2, p.K)
        found = OPS.fprop_affine(
            *(x, o.w.cuda(), o.bias.cuda(), *factors.cuda(), residual if with_residual else None),
            *(True, p.stride, p.padding, p.dilation, p.G),
        )
        scale, shift = factors.double()[:, :, None, None]
        added = o.y.double() * with_residual
        exact = (emulator.exact("fprop", p, o) * scale + shift + added).relu()
        size = emulator.magnitude("fprop", p, o) * scale.abs() + shift.abs() + added.abs()
        bound = 2.0**-11 * exact + 2.0**-18 * size + 1e-7
        assert bool(((found.cpu().double() - exact).abs() <= bound).all()), str(p)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c_per_group", native._ROWSTREAM_CHANNELS)
def test_statistics(c_per_group: int, stride: int):
    """Of what was written, with means larger than the deviations."""
    for n, h, w in SMALL_SHAPES:
        p = sized(n, c_per_group, h, w, stride)
        o = operands(p, torch.float16, bias=True)
        x = o.x.cuda().contiguous(memory_format=CHANNELS_LAST)
        call = (x, o.w.cuda(), 40 * o.bias.cuda(), p.stride, p.padding, p.dilation, p.G)
        y, total, squares = OPS.fprop_stats(*call)
        assert torch.equal(y, OPS.fprop(*call))
        wide = y.double()
        deviations = (wide - wide.mean((0, 2, 3), keepdim=True)).square().sum((0, 2, 3))
        size = wide.abs().sum((0, 2, 3))
        assert bool(((total - wide.sum((0, 2, 3))).abs() <= 2.0**-18 * size).all()), str(p)
        assert bool(((squares - deviations).abs() <= 2.0**-16 * deviations + 1e-6).all()), str(p)


def test_autotune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every configuration is measured, and each gives the same bits when it is preferred."""
    monkeypatch.setenv(measured.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setenv(measured.SWITCH_VARIABLE, "1")
    measured.forget()
    p = sized(4, 16, 14, 14, 1)
    x, w, y = on_gpu(p, torch.float16)
    workload = Workload(p, torch.float16, True, x.device)
    for m in autotune([workload], seconds=0.01):
        assert {"native", "aten"} <= set(m.microseconds), str(m)
        both = {"conv_c16_s1", "conv_c16_s1_narrow"} if m.pass_name != "wgrad" else set()
        assert set(m.configurations) == both
    assert "measured" in str(explain(x, w, None, p.stride, p.padding, p.dilation, p.G))
    results = []
    for name in ("", "conv_c16_s1", "conv_c16_s1_narrow"):
        for pass_name in ("fprop", "dgrad"):
            query, *image = workload.key(pass_name)
            configurations.prefer(x.device, query, image, name)
        results.append(passes_of(p, x, w, y)())
    for others in results[1:]:
        for ours, others_result in zip(results[0], others, strict=True):
            assert torch.equal(ours, others_result)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="a CUDA graph is captured"):
        autotune([workload])
    measured.forget()


def test_training_step():
    layer = GroupedConv2d(64, 64, 3, padding=1, groups=8, device="cuda").to(
        memory_format=CHANNELS_LAST
    )
    x = torch.randn(4, 64, 14, 14, device="cuda").to(memory_format=CHANNELS_LAST)

    def step(backend: str) -> list[Tensor]:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        layer.zero_grad(set_to_none=True)
        with use_backend(backend), torch.autocast("cuda", torch.float16):
            y = layer(leaf)
            (y.float().square().mean()).backward()
        return [y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad]

    for ours, theirs in zip(step("native"), step("aten"), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


# The tiled kernels: problems that the row-streaming ones do not take.
TILED = [
    ConvProblem(3, 72, 15, 14, 72, 3, 3, 3, 1, 1),
    ConvProblem(2, 112, 14, 14, 224, 3, 3, 2, 1, 1, 2, 2),
    ConvProblem(2, 20, 9, 11, 15, 5, 3, 5, 2, 0, 2, 1),
    ConvProblem(3, 32, 13, 13, 32, 3, 3, 8, 2, 2, 1, 1, 2, 2),
    ConvProblem(5, 24, 28, 28, 24, 7, 7, 3, 3, 3, 3, 3),
    ConvProblem(2, 264, 8, 8, 264, 1, 1, 1),
]
LAYOUTS = (CHANNELS_LAST, torch.contiguous_format)


def tiled(pass_name: Pass, p: ConvProblem, o: emulator.Operands, tf32: bool, **how) -> Tensor:
    with torch.backends.cudnn.flags(allow_tf32=tf32), use_backend("native"):
        attributes = (p.stride, p.padding, p.dilation, p.G)
        layout = how.pop("layout", CHANNELS_LAST)
        x, y = (t.cuda().contiguous(memory_format=layout) for t in (o.x, o.y))
        w = o.w.cuda()
        if pass_name == "fprop":
            bias = None if o.bias is None else o.bias.cuda()
            return functional.fprop(x, w, bias, *attributes)
        if pass_name == "wgrad":
            return functional.wgrad(y, x, p.weight_size, *attributes, layout is CHANNELS_LAST)
        return functional.dgrad(y, w, p.input_size, *attributes, layout is CHANNELS_LAST)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=short)
@pytest.mark.parametrize("pass_name", PASSES)
def test_tiled_shapes(pass_name: Pass, dtype: torch.dtype, layout: torch.memory_format):
    for p in TILED:
        o = operands(p, dtype, bias=pass_name == "fprop")
        found = tiled(pass_name, p, o, False, layout=layout)
        assert found.is_contiguous(memory_format=layout)
        assert_close(pass_name, p, o, found)
        assert torch.equal(found, tiled(pass_name, p, o, False, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pass_name", PASSES)
def test_tiled_in_tf32_is_as_accurate_as_cudnn(pass_name: Pass, layout: torch.memory_format):
    for p in TILED:
        o = operands(p, torch.float32)
        exact = emulator.exact(pass_name, p, o)
        ours = tiled(pass_name, p, o, True, layout=layout)
        x, w, y = (t.cuda() for t in (o.x, o.w, o.y))
        with torch.backends.cudnn.flags(allow_tf32=True):
            if pass_name == "fprop":
                theirs = F.conv2d(x, w, None, p.stride, p.padding, p.dilation, p.G)
            else:
                theirs = torch.ops.aten.convolution_backward(
                    y, x, w, None, p.stride, p.padding, p.dilation, False, (0, 0), p.G,
                    (pass_name == "dgrad", pass_name == "wgrad", False),
                )[PASSES.index(pass_name) - 1]  # fmt: skip
        errors = [float((t.cpu().double() - exact).square().mean().sqrt()) for t in (ours, theirs)]
        rounding = 2.0**-11 * float(exact.square().mean().sqrt())
        assert errors[0] <= 1.5 * max(errors[1], rounding)


def test_tiled_epilogue():
    p = TILED[0]
    o = operands(p, torch.float32)
    x, w = (t.cuda().contiguous(memory_format=CHANNELS_LAST) for t in (o.x, o.w))
    residual = torch.randn_like(F.conv2d(x, w, None, p.stride, p.padding, p.dilation, p.G))
    scale, shift = torch.randn(2, p.K, device="cuda")
    attributes = (p.stride, p.padding, p.dilation, p.G)
    found = OPS.fprop_affine(x, w, None, scale, shift, residual, True, *attributes)
    expected = emulator.exact("fprop", p, o).cuda() * scale.double()[:, None, None]
    expected = (expected + shift.double()[:, None, None] + residual.double()).relu()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_tiled_values_that_are_not_finite(value: float):
    for p in TILED[:2]:
        for dtype, tf32 in ((torch.float16, False), (torch.float32, True), (torch.float32, False)):
            o = operands(p, dtype)
            o.x[1, p.c_per_group + 1, 0, 3] = o.y[0, 2, 3, 0] = o.w[2, 1, 2, 0] = value
            for pass_name in PASSES:
                found = tiled(pass_name, p, o, tf32).cpu()
                exact = emulator.exact(pass_name, p, o)
                assert torch.equal(found.isfinite(), exact.isfinite())
                assert torch.equal(found.isnan(), exact.isnan())
