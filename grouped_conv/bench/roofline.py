"""The machine's two ceilings, measured, and the floor that they put under a problem's time."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from grouped_conv.problem import ConvProblem

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Ceiling:
    """A measured rate per second and the operation that reached it."""

    rate: float
    method: str


@dataclass(frozen=True)
class Roofline:
    """Peak arithmetic per dtype in FLOP/s, and copy bandwidth in bytes/s, read plus write."""

    peak: dict[str, Ceiling]
    bandwidth: Ceiling

    def floor(self, problem: ConvProblem, dtype: str, more_bytes: int = 0) -> tuple[float, str]:
        """Seconds that no kernel can beat, and which ceiling sets them.

        ``more_bytes`` are moved beside x, w and y.
        """
        arithmetic = problem.flops / self.peak[dtype].rate
        traffic = (problem.min_bytes(DTYPES[dtype]) + more_bytes) / self.bandwidth.rate
        return (arithmetic, "compute") if arithmetic > traffic else (traffic, "memory")

    def lines(self) -> list[str]:
        """The header's lines."""
        peaks = [
            f"{dtype} {ceiling.rate / 1e9:.0f} GFLOP/s ({ceiling.method})"
            for dtype, ceiling in self.peak.items()
        ]
        bandwidth = f"{self.bandwidth.rate / 1e9:.1f} GB/s ({self.bandwidth.method})"
        return [f"measured peak {', '.join(peaks)}; copy {bandwidth}"]


def measure(device: torch.device, dtypes: list[str], cache: int) -> Roofline:
    """Measure both ceilings; takes about a second on a CPU."""
    with torch.no_grad():
        peak = {name: _peak(device, name) for name in dtypes}
        return Roofline(peak, _bandwidth(device, cache))


def _best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The fastest of ``repeats`` calls: interference can only slow a call down."""
    best = float("inf")
    run()
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            best = min(best, start.elapsed_time(end) * 1e-3)
        else:
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
    return best


def _fastest(rates: dict[str, float]) -> Ceiling:
    method = max(rates, key=lambda name: rates[name])
    return Ceiling(rates[method], method)


def _peak(device: torch.device, name: str) -> Ceiling:
    """Best of matrix products and a dense 3x3 convolution: what the vendor's libraries reach."""
    dtype = DTYPES[name]
    if device.type == "cpu" and dtype is torch.float16:
        # Few CPUs multiply fp16; on the others it is widened to fp32, whose peak is the limit.
        ceiling = _peak(device, "float32")
        return Ceiling(ceiling.rate, f"{ceiling.method}, as float32")
    rates = {}
    for n in (512, 1024) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        with _tf32_as_in_convolutions():
            seconds = _best_seconds(lambda: torch.mm(a, b, out=out), device, 20)  # noqa: B023
        rates[f"{n}-wide matrix product"] = 2 * n**3 / seconds
    if device.type == "cpu":
        x = torch.randn(16, 256, 14, 14, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        seconds = _best_seconds(lambda: F.conv2d(x, w, padding=1), device, 20)
        dense = ConvProblem(16, 256, 14, 14, 256, pad_h=1, pad_w=1)
        rates["dense 3x3 convolution"] = dense.flops / seconds
    return _fastest(rates)


class _tf32_as_in_convolutions:
    """Let fp32 matrix products use TF32 where convolutions may, as PyTorch does by default."""

    def __enter__(self) -> None:
        self.saved = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.saved


def _bandwidth(device: torch.device, cache: int) -> Ceiling:
    """Best of PyTorch's copy and, on a CPU, the C library's, which streams past the cache."""
    size = max(256 << 20, 4 * cache) if device.type == "cpu" else max(1 << 30, 8 * cache)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device, 15)
    rates = {"torch copy_": 2 * size / seconds}
    if device.type == "cpu":
        threads = torch.get_num_threads()
        share = size // threads

        def copy_share(index: int) -> None:
            start = index * share
            ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, share)

        with ThreadPoolExecutor(threads) as pool:
            seconds = _best_seconds(lambda: list(pool.map(copy_share, range(threads))), device, 15)
        rates[f"memmove in {threads} threads"] = 2 * share * threads / seconds
    return _fastest(rates)
