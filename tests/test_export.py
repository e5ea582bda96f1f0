"""What leaves Python, or this process: transforms in compiled code, AOTInductor, ONNX, TorchScript.

torch.export itself is in test_compile.py.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as F
from support import LAYOUTS
from torch import Tensor, nn
from torch.autograd import forward_ad

from grouped_conv import (
    GroupedConv2d,
    aten_decompositions,
    grouped_conv2d,
    grouped_conv2d_affine,
)

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Network(nn.Module):
    """A grouped convolution, its epilogue, and a strided one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GroupedConv2d(32, 32, 3, padding=1, groups=8)
        self.second = GroupedConv2d(32, 32, 3, stride=2, padding="valid", groups=4, bias=False)
        self.scale = nn.Parameter(torch.rand(32))
        self.shift = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.first.weight, self.first.bias
        y = grouped_conv2d_affine(x, w, b, self.scale, self.shift, x, "relu", 1, 1, 1, 8)
        return self.second(y)


@pytest.fixture
def network() -> Network:
    return Network().eval()


TRANSFORMS = {
    "grad": lambda f, x, w: torch.func.grad(lambda x, w: f(x, w).sum(), argnums=(0, 1))(x, w),
    "vmap": lambda f, x, w: torch.func.vmap(lambda image: f(image[None], w))(x),
    "per-sample gradients": lambda f, x, w: torch.func.vmap(
        torch.func.grad(lambda w, image: f(image[None], w).sum()), (None, 0)
    )(w, x),
    "jvp": lambda f, x, w: torch.func.jvp(f, (x, w), (x.sin(), w.cos())),
    "jacrev": lambda f, x, w: torch.func.jacrev(lambda b: f(x * b, w).sum((2, 3)))(torch.ones(1)),
    "hessian": lambda f, x, w: torch.func.hessian(lambda b: f(x * b, w).square().sum())(
        torch.ones(1)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_in_compiled_code(name: str):
    """The kernels' rules know no transform: a compiled graph must not hide one from the choice."""
    x, w = torch.randn(2, 32, 6, 6), torch.randn(32, 4, 3, 3)
    ours, theirs = (
        lambda x, w, conv=conv: TRANSFORMS[name](
            lambda x, w: conv(x, w, None, 1, 1, 1, 8).tanh(), x, w
        )
        for conv in (grouped_conv2d, F.conv2d)
    )
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w), theirs(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_dual_numbers_in_compiled_code(where: str):
    x, w = torch.randn(2, 32, 6, 6), torch.randn(32, 4, 3, 3)

    def tangent(conv, compile):
        def function(x, w):
            return conv(x, w, None, 1, 1, 1, 8).tanh()

        def derivative(x, w):
            with forward_ad.dual_level():
                return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.sin()), w)))

        if where == "inside":
            return compile(derivative)(x, w)
        function = compile(function)
        function(x, w)  # compiled without duals, called with them
        return derivative(x, w)

    ours = tangent(grouped_conv2d, lambda f: torch.compile(f, backend="aot_eager"))
    torch.testing.assert_close(ours, tangent(F.conv2d, lambda f: f), rtol=1e-4, atol=1e-4)


def test_compiled_code_without_transforms_uses_the_kernels():
    """Else the tests above would pass for a graph that always takes ATen."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    torch.compile(GroupedConv2d(32, 32, 3, groups=8), backend=keep)(torch.randn(2, 32, 6, 6))
    assert ["grouped_conv.fprop" in graph for graph in graphs] == [True]


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
def test_aotinductor_package_in_a_fresh_process(network: Network, tmp_path):
    """The process that loads it has no grouped_conv, only the library with the kernels."""
    import grouped_conv._libraries as libraries

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        network, (torch.randn(2, 32, 8, 8),), dynamic_shapes=({0: batch},)
    )
    package, data = tmp_path / "network.pt2", tmp_path / "data.pt"
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    x = torch.randn(5, 32, 8, 8)
    torch.save({"x": x, "y": network(x).detach()}, data)
    script = textwrap.dedent(f"""
        import sys, torch
        torch.ops.load_library({str(libraries._PACKAGE / "_cpu.so")!r})
        model = torch._inductor.aoti_load_package({str(package)!r})
        data = torch.load({str(data)!r})
        torch.testing.assert_close(model(data["x"]), data["y"], rtol=1e-4, atol=1e-4)
        assert "grouped_conv" not in sys.modules
        print("same")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.stdout.strip() == "same", done.stderr


def onnx_of(exported) -> tuple[list[str], set[int], bytes]:
    """Operator types, groups of the convolutions, and the bytes of an ONNX model."""
    import onnx

    model = onnx.load_from_string(exported) if isinstance(exported, bytes) else exported
    nodes = list(model.graph.node)
    groups = {
        attribute.i
        for node in nodes
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    }
    return [node.op_type for node in nodes], groups, model.SerializeToString()


def assert_runs_alike(model: bytes, network: Network, batches: tuple[int, ...]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    for batch in batches:
        x = torch.randn(batch, 32, 8, 8)
        (y,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("source", ["module", "exported program"])
def test_onnx_has_a_standard_convolution(network: Network, source: str):
    pytest.importorskip("onnxscript", reason="installed by the extra [test]")
    pytest.importorskip("onnxruntime", reason="installed by the extra [test]")
    x = torch.randn(2, 32, 8, 8)
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    if source == "module":
        exported = torch.onnx.export(
            network, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    else:
        program = torch.export.export(network, (x,), dynamic_shapes=shapes)
        program = program.run_decompositions(aten_decompositions())
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    types, groups, model = onnx_of(exported.model_proto)
    assert types.count("Conv") == 2
    assert groups == {8, 4}
    with torch.no_grad():
        assert_runs_alike(model, network, (1, 2, 7))


@pytest.mark.filterwarnings("ignore")
def test_onnx_by_the_torchscript_exporter(network: Network):
    pytest.importorskip("onnxruntime", reason="installed by the extra [test]")
    file = io.BytesIO()
    torch.onnx.export(network, (torch.randn(2, 32, 8, 8),), file, dynamo=False)
    types, groups, model = onnx_of(file.getvalue())
    assert types.count("Conv") == 2
    assert groups == {8, 4}
    with torch.no_grad():
        assert_runs_alike(model, network, (2,))


def test_decomposed_program_needs_pytorch_alone(network: Network):
    x = torch.randn(2, 32, 8, 8)
    program = torch.export.export(network, (x,)).run_decompositions(aten_decompositions())
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("aten.convolution.default") == 2
    assert not any("grouped_conv" in target for target in targets)
    torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": "same", "bias": False}, {"padding": 2, "padding_mode": "reflect"}],
    ids=str,
)
def test_torchscript(options: dict, tmp_path):
    layer = GroupedConv2d(32, 32, 3, groups=8, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(layer).save(tmp_path / "layer.pt")
        scripted = torch.jit.load(tmp_path / "layer.pt")
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(scripted(x), layer(x), rtol=1e-4, atol=1e-4)


def test_fx(network: Network, layout: str):
    traced = torch.fx.symbolic_trace(network)
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    torch.testing.assert_close(traced(x), network(x))
    assert "grouped_conv2d" in traced.code
