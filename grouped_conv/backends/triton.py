"""Triton kernels. None are in this release; the backend says so."""

from __future__ import annotations

from grouped_conv.backends import Query

NAME = "triton"


def unavailable() -> str | None:
    return "this release of grouped_conv has no Triton kernels"


def supports(query: Query) -> str | None:
    return unavailable()


def prefers(query: Query) -> str | None:
    return None


def kernel(query: Query) -> str:
    return ""
