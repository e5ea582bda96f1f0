"""The memory high-water mark of one call, measured in a process of its own."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from grouped_conv.bench.peers import Case, Contender, Operands, ours, pytorch
from grouped_conv.bench.roofline import DTYPES


@dataclass(frozen=True)
class Memory:
    """Bytes: the result itself, and how far a call raised the process' (or device's) use."""

    result: int
    ours: int
    torch: int


def measure(case: Case, backend: str, threads: int) -> Memory:
    """High-water mark of our call and of PyTorch's.

    On a CPU each is measured in a fresh process, so that scratch memory that a library keeps
    between calls counts; on CUDA the caching allocator knows.
    """
    p = case.problem
    sizes = {"fprop": p.output_size, "dgrad": p.input_size, "wgrad": p.weight_size}
    result = math.prod(sizes[case.decided_as]) * DTYPES[case.dtype].itemsize
    if case.device.type == "cuda":
        return Memory(result, _on_cuda(ours(case, backend)), _on_cuda(pytorch(case)))
    marks = []
    for who in ("ours", "torch"):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            marks.append(pool.submit(_on_cpu, who, case, backend, threads).result())
    return Memory(result, *marks)


def _on_cuda(contender: Contender) -> int:
    operands = Operands.random(contender.case, 0)
    with torch.no_grad():
        contender.run(operands)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.run(operands)
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(who: str, case: Case, backend: str, threads: int) -> int:
    torch.set_num_threads(threads)
    p = case.problem
    small = replace(case, problem=replace(p, N=min(p.N, 1), H=p.R + 1, W=p.S + 1))
    with torch.no_grad():
        # Threads start and code is read from disk on a first, small call of the same kind.
        _contender(who, small, backend).run(Operands.random(small, 0))
        operands = Operands.random(case, 0)
        return high_water(lambda: _contender(who, case, backend).run(operands))


def _contender(who: str, case: Case, backend: str) -> Contender:
    return ours(case, backend) if who == "ours" else pytorch(case)


def high_water(call: Callable[[], Tensor]) -> int:
    """Bytes by which a call raised this process' resident memory at its highest."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # free memory that the call could reuse unseen goes back to the kernel
    before = _reset_peak()
    result = call()
    peak = _peak()
    del result
    return max(0, peak - before)


def _reset_peak() -> int:
    """Reset the kernel's high-water mark where it can be, and return the use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _status("VmRSS") or _peak()


def _peak() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (usage if sys.platform == "darwin" else usage << 10)


def _status(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0
