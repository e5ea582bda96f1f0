"""torch.compile and torch.export: one graph, forward and backward, static and dynamic."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from support import LAYOUTS, memory_format
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from grouped_conv import GroupedConv2d, grouped_conv2d, use_backend

pytestmark = pytest.mark.once

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def data(batch: int, layout: str, channels: int = 32, extent: int = 9) -> Tensor:
    x = torch.randn(batch, channels, extent, extent)
    return x.contiguous(memory_format=LAYOUTS[layout])


def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return grouped_conv2d(x, w, b, 2, 1, 1, 8).relu()


def results(f, x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """y, dx, dw, db of f, from fresh leaves."""
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_compiler)]


@pytest.mark.parametrize("chosen", ["auto", "native", "aten"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_in_one_graph(backend: str, chosen: str, layout: str):
    w, b = torch.randn(32, 4, 3, 3), torch.randn(32)
    w = w.contiguous(memory_format=LAYOUTS[layout])
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    x = data(2, layout)
    with use_backend(chosen):
        ours = results(compiled, x, w, b)
    assert_same(ours, results(function, x, w, b))
    assert memory_format(ours[0]) == memory_format(function(x, w, b))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_new_batch_sizes_do_not_recompile(backend: str, layout: str):
    w, b = torch.randn(32, 4, 3, 3), torch.randn(32)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for batch in (2, 3, 5, 8, 13):
        x = data(batch, layout)
        assert_same(results(compiled, x, w, b), results(function, x, w, b))
    assert counter.frame_count == 1


def test_automatic_dynamic_shapes_compile_twice_at_most(layout: str):
    w, b = torch.randn(32, 4, 3, 3), torch.randn(32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for batch in (2, 3, 5, 8, 13):
        x = data(batch, layout)
        assert_same(results(compiled, x, w, b), results(function, x, w, b))
    assert counter.frame_count <= 2


def test_dynamic_image_sizes(layout: str):
    w, b = torch.randn(32, 4, 3, 3), torch.randn(32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for extent in (9, 12, 17, 20):
        x = data(2, layout, extent=extent)
        assert_same(results(compiled, x, w, b), results(function, x, w, b))
    assert counter.frame_count == 1


class Network(nn.Module):
    """Two grouped convolutions between dense ones, and batch normalization."""

    def __init__(self, conv_layer=GroupedConv2d) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            conv_layer(32, 32, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            conv_layer(32, 64, 3, stride=2, padding=1, groups=8),
            nn.ReLU(),
            nn.Conv2d(64, 16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def training_losses(step, model: nn.Module, layout: str) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = step(data(4, layout, 3, 10)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_a_compiled_network(backend: str, layout: str):
    stock = Network(nn.Conv2d).to(memory_format=LAYOUTS[layout])
    ours = Network().to(memory_format=LAYOUTS[layout])
    ours.load_state_dict(stock.state_dict())
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(ours, backend=counter, fullgraph=True)
    expected = training_losses(stock, stock, layout)
    assert training_losses(compiled, ours, layout) == pytest.approx(expected, rel=1e-4)
    assert counter.frame_count == 1


def test_module_attributes_are_constants_of_the_graph():
    layer = GroupedConv2d(32, 32, 3, padding="same", groups=8)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = data(2, "nchw")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(compiled(2 * x), layer(2 * x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_inside_a_compiled_function(dtype: torch.dtype):
    w, b = torch.randn(32, 4, 3, 3), torch.randn(32)

    def cast(x, w, b):
        with torch.autocast("cpu", dtype=dtype):
            return function(x, w, b)

    compiled = torch.compile(cast, backend="aot_eager", fullgraph=True)
    x = data(2, "nchw")
    assert compiled(x, w, b).dtype == dtype
    torch.testing.assert_close(compiled(x, w, b), cast(x, w, b))


def test_complex_compiles_through_aten():
    x = torch.randn(2, 8, 6, 6, dtype=torch.complex64)
    w = torch.randn(8, 4, 3, 3, dtype=torch.complex64)
    compiled = torch.compile(
        lambda x, w: grouped_conv2d(x, w, groups=2), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, w), F.conv2d(x, w, groups=2))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_with_a_dynamic_batch(strict: bool, layout: str):
    model = Network().eval().to(memory_format=LAYOUTS[layout])
    program = torch.export.export(
        model,
        (data(2, layout, 3, 10),),
        dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}},
        strict=strict,
    )
    exported = program.module()
    for batch in (1, 2, 7):
        x = data(batch, layout, 3, 10)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)


def test_exported_program_survives_a_file(tmp_path):
    model = Network().eval()
    x = data(2, "nchw", 3, 10)
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(model, (x,)), path)
    loaded = torch.export.load(path).module()
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)


def test_decomposed_export_runs():
    model = Network().eval()
    x = data(2, "nchw", 3, 10)
    program = torch.export.export(model, (x,)).run_decompositions()
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_jit_trace():
    layer = GroupedConv2d(32, 32, 3, padding=1, groups=8).eval()
    x = data(2, "nchw")
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(2 * x), layer(2 * x))
