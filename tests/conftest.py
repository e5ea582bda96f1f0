"""Fixtures of the whole suite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from support import LAYOUTS, poisoned, threads


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The problems are small: threads would only wait for each other, on a busy machine for long.

    Tests of what threads do to a result ask for them.
    """
    with threads(1):
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or in the suite."""
    torch.manual_seed(0)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """``nchw`` or ``nhwc``."""
    return request.param


@pytest.fixture
def memory_format(layout: str) -> torch.memory_format:
    """The memory format of ``layout``."""
    return LAYOUTS[layout]


@pytest.fixture
def poison() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """``with poison():`` fills all memory that is allocated inside with NaN."""
    return poisoned
