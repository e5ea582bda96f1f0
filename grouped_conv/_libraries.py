"""Loads the native libraries, so that their operators are in ``torch.ops``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_PACKAGE = Path(__file__).parent
CUDA_LIBRARY = _PACKAGE / "_cuda.so"
_loaded = False
_cuda_absent_reason: str | None = None


def load() -> None:
    """Load the CPU library, and the CUDA library where torch and the build have CUDA.

    Raises:
        ImportError: the package was not built, or its library does not fit this torch.
    """
    global _loaded, _cuda_absent_reason
    if _loaded:
        return
    library = _PACKAGE / "_cpu.so"
    if not library.exists() or importlib.util.find_spec("grouped_conv._C") is None:
        raise ImportError(
            f"grouped_conv in {_PACKAGE} has no compiled libraries for this Python: "
            "run `pip install -e .` in the source tree, or `pip install .` and import elsewhere"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"{library} does not load into torch {torch.__version__}: {error}; reinstall "
            "grouped_conv, which needs torch 2.11 or newer"
        ) from error
    _cuda_absent_reason = _load_cuda()
    _loaded = True


def cuda_absent_reason() -> str | None:
    """Why there are no CUDA kernels in this process, or None if there are."""
    return _cuda_absent_reason


def _load_cuda() -> str | None:
    from grouped_conv import _C

    if reason := _C.build_info()["cuda_absent_reason"]:
        return f"grouped_conv was built for the CPU only: {reason}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.ops.load_library(CUDA_LIBRARY)
    except OSError as error:
        return f"the CUDA library does not load into torch {torch.__version__}: {error}"
    return None
