"""Capture of our operators in CUDA graphs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from grouped_conv import available_backends, grouped_conv2d

pytestmark = pytest.mark.once

CUDA_SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
# What a capture forbids, or what would keep its result from being replayed.
FORBIDDEN = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    r"cudaMalloc\w*",
    r"cudaFree\w*",
    r"cudaMemcpy\b",
    r"cudaMemset\b",
    r"\.item\(",
    r"<<<[^,>]*,[^,>]*>>>",  # a launch on the default stream
)


def test_sources_do_nothing_that_a_capture_forbids():
    """The host code queues kernels on the current stream and takes memory from PyTorch alone."""
    sources = [p for p in CUDA_SOURCES.rglob("*") if p.suffix in (".cpp", ".cu", ".cuh", ".h")]
    assert sources
    for path in sources:
        text = re.sub(r"//[^\n]*", "", path.read_text())
        for pattern in FORBIDDEN:
            assert not re.search(pattern, text), f"{path.name}: {pattern}"
    assert any("get_current_cuda_stream" in path.read_text() for path in sources)


@pytest.mark.parametrize("name", ["fprop", "fprop_affine", "fprop_stats", "dgrad", "wgrad"])
def test_operators_are_open_to_the_compiler_s_graphs(name: str):
    assert torch.Tag.cudagraph_unsafe not in getattr(torch.ops.grouped_conv, name).default.tags


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["native", "auto"])
def test_capture_and_replay(backend: str):
    if backend != "auto" and available_backends()[backend]:
        pytest.skip(str(available_backends()[backend]))
    x = torch.randn(2, 32, 9, 8, device="cuda", requires_grad=True)
    w = torch.randn(32, 4, 3, 3, device="cuda", requires_grad=True)

    def step() -> list[torch.Tensor]:
        y = grouped_conv2d(x, w, None, 1, 1, 1, 8, backend=backend)
        return [y, *torch.autograd.grad(y.square().sum(), (x, w))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
        w.normal_()
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
