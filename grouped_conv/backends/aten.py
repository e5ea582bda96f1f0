"""PyTorch's own convolution: oneDNN on CPUs, cuDNN on NVIDIA GPUs. Takes all that is left."""

from __future__ import annotations

from grouped_conv.backends import OWN_PASS, Query

NAME = "aten"


def unavailable() -> str | None:
    return None


def supports(query: Query) -> str | None:
    return None


def prefers(query: Query) -> str | None:
    return None


def kernel(query: Query) -> str:
    return "aten::convolution" if query.pass_name == "fprop" else "aten::convolution_backward"


def epilogue(query: Query) -> str:
    return OWN_PASS


def statistics(query: Query) -> str:
    return OWN_PASS
