"""Records what the kernels of this library compute on a device, bit by bit, or compares with it.

    python scripts/golden_vectors.py FILE.npz               record
    python scripts/golden_vectors.py --compare FILE.npz     compute again from the recorded inputs
    python scripts/golden_vectors.py --layers               one call of each pass of each layer of
                                                            ResNeXt-50, for a profiler

Tensor cores round in a way that is not published, so a recording belongs to one architecture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import grouped_conv  # noqa: F401  (registers the operators)
from grouped_conv.bench.problems import resolve
from grouped_conv.problem import PASSES, ConvProblem, Pass

OPS = torch.ops.grouped_conv
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
CHANNELS = (4, 8, 16, 32, 64)
Bits = npt.NDArray[np.int16]


def problem(c_per_group: int, stride: int) -> ConvProblem:
    """Several images side by side, and channels that fill no block."""
    c = max(24, 3 * c_per_group) if c_per_group < 64 else 128
    return ConvProblem(3, c, 7, 6, c, 3, 3, c // c_per_group, 1, 1, stride, stride)


def bits(t: Tensor) -> Bits:
    return t.cpu().contiguous().view(torch.int16).numpy()


def compute(pass_name: Pass, p: ConvProblem, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    geometry = (p.stride, p.padding, p.dilation, p.G)
    if pass_name == "fprop":
        return OPS.fprop(x, w, None, *geometry)
    if pass_name == "dgrad":
        return OPS.dgrad(y, w, p.input_size, *geometry, True)
    return OPS.wgrad(y, x, p.weight_size, *geometry, False)


def inputs() -> dict[str, Bits]:
    """Values over many binary orders of magnitude: sums that round in every addition."""
    rng = np.random.default_rng(0)
    arrays = {}
    for c_per_group in CHANNELS:
        for stride in (1, 2):
            p = problem(c_per_group, stride)
            sizes = {"x": p.input_size, "w": p.weight_size, "y": p.output_size}
            for name, size in sizes.items():
                values = rng.standard_normal(size) * 2.0 ** rng.integers(-6, 3, size)
                for dtype_name, dtype in DTYPES.items():
                    key = f"{name} c{c_per_group} s{stride} {dtype_name}"
                    arrays[key] = bits(torch.from_numpy(values).to(dtype))
    return arrays


def results(given: dict[str, Bits], device: torch.device) -> Iterator[tuple[str, Bits]]:
    for c_per_group in CHANNELS:
        for stride in (1, 2):
            p = problem(c_per_group, stride)
            for dtype_name, dtype in DTYPES.items():
                case = f"c{c_per_group} s{stride} {dtype_name}"
                x, w, y = (
                    torch.from_numpy(given[f"{name} {case}"])
                    .view(dtype)
                    .to(device)
                    .contiguous(memory_format=torch.channels_last)
                    for name in "xwy"
                )
                for pass_name in PASSES:
                    yield f"{pass_name} {case}", bits(compute(pass_name, p, x, w, y))


def compare(path: Path, device: torch.device) -> int:
    """How many recorded results differ."""
    recorded = dict(np.load(path))
    different = 0
    for key, found in results(recorded, device):
        count = int((found != recorded[key]).sum())
        if count:
            print(f"{key}: {count} of {found.size} elements have other bits")
            different += 1
    return different


def run_layers(batch: int, device: torch.device) -> None:
    for layer in resolve("resnext50"):
        p = layer.problem(batch)
        x, w, y = (
            torch.randn(size, device=device, dtype=torch.float16).contiguous(
                memory_format=torch.channels_last
            )
            for size in (p.input_size, p.weight_size, p.output_size)
        )
        for pass_name in PASSES:
            compute(pass_name, p, x, w, y)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--compare", action="store_true", help="with what the file holds")
    parser.add_argument("--layers", action="store_true", help="run the layers of ResNeXt-50 once")
    parser.add_argument("--batch", type=int, default=256, help="of the layers (default: 256)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    flags = parser.parse_args()
    if flags.layers:
        run_layers(flags.batch, flags.device)
        return 0
    if flags.file is None:
        parser.error("name a file")
    if flags.compare:
        return 1 if compare(flags.file, flags.device) else 0
    given = inputs()
    np.savez_compressed(flags.file, **given, **dict(results(given, flags.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
