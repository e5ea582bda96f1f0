"""Fixtures of the whole suite."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from choice_tables import forget
from support import LAYOUTS, poisoned, threads

from grouped_conv import measured

# Choices are those of the rules, whatever was measured on this machine.
os.environ["GROUPED_CONV_AUTOTUNE"] = "0"


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


@pytest.fixture
def table_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Measured choices are obeyed, and kept in a directory of the test's own."""
    directory = tmp_path / "tables"
    with monkeypatch.context() as patch:
        patch.setenv(measured.DIRECTORY_VARIABLE, str(directory))
        patch.setenv(measured.SWITCH_VARIABLE, "1")
        forget()
        yield directory
    forget()


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, or a skip that says why there is none.

    Its wheels are built for torch with CUDA. Beside a torch without, its library of operators does
    not load, and its import then fails for want of two names. The models and transforms do not use
    them; declared by name, they let the import through.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed (extra: vision)")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import has left
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")


_declared: list[torch.library.Library] = []
"""Keeps declarations alive: a library takes its operators away when it is collected."""
