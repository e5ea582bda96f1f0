"""Triton kernels compiled ahead of time, for GPUs that are not there.

``python tests/triton_aot.py`` compiles the whole space, for which two cores need the better part of
an hour, and prints what its kernels take; ``test_triton.py`` compiles what is taken without tuning.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from sass.listing import find_cuobjdump
from torch import Tensor

from grouped_conv.backends import triton as backend
from grouped_conv.problem import ConvProblem, Pass

CAPABILITIES = (80, 90)

# The least of all GPUs of capability 8.0 and later: registers and bytes of shared memory of a
# multiprocessor, and bytes for one program.
_REGISTERS = 64 * 1024
_SHARED_MEMORY = 100 * 1024
_SHARED_MEMORY_OF_A_PROGRAM = 99 * 1024
_LEAST_WARPS = 4
"""Warps that must find room in a multiprocessor, whatever a program takes."""

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


class Compiled(NamedTuple):
    """A compiled launch: its kernel, and which arguments it takes at run time."""

    ptx: str
    name: str
    threads: int
    shared_bytes: int
    registers: int
    """Of one thread."""
    spills: int
    """Instructions that reach for registers in memory."""
    passed: tuple[int, ...]
    """Positions, among the arguments of the launch, of those that are not constants."""

    @property
    def warps(self) -> int:
        """Warps that run on a multiprocessor, as far as registers and shared memory go."""
        registers = self.threads * (-(-self.registers // 8) * 8)
        # CUDA keeps 1 KiB for itself.
        programs = min(_REGISTERS // registers, _SHARED_MEMORY // (self.shared_bytes + 1024))
        return programs * self.threads // 32

    def complaint(self) -> str | None:
        """What is wrong with the machine code, if anything is."""
        if self.spills:
            return f"{self.spills} instructions spill registers"
        if self.shared_bytes > _SHARED_MEMORY_OF_A_PROGRAM:
            return f"{self.shared_bytes} bytes of shared memory are more than every GPU has"
        if self.warps < _LEAST_WARPS:
            return f"{self.registers} registers leave room for {self.warps} warps"
        return None


def compile_launch(
    launch: backend.Launch, capability: int, options: dict[str, int] | None = None
) -> Compiled:
    """A launch as Triton's runtime would compile it for its arguments.

    As there, an argument of 1 becomes a constant, and multiples of 16 and tensors are known as
    such: their addresses are multiples of 16. ``options``: another configuration than the default.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = backend.kernel_function(launch.kernel)
    options = launch.options if options is None else options
    fixed = {**launch.constants, **options}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    passed = []
    for i, name in enumerate(function.arg_names):
        constant = name in fixed
        value = fixed[name] if constant else launch.arguments[i]
        if constant or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[(i,)] = value
            continue
        passed.append(i)
        signature[name] = _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, aligned)
    stated = {name: value for name, value in options.items() if name not in function.arg_names}
    done = compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={**stated, **backend.COMPILED},
    )
    return Compiled(
        done.asm["ptx"],
        done.metadata.name,
        32 * done.metadata.num_warps,
        done.metadata.shared,
        *_registers_and_spills(done.asm["cubin"]),
        tuple(passed),
    )


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    tool = find_cuobjdump()
    assert tool is not None, "the triton package has cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command = [tool, option, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage = dump("--dump-resource-usage")
        used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert used is not None, usage
        if used[2] == used[3] == "0":
            return int(used[1]), 0
        # ptxas sometimes reserves a stack that nothing uses.
        return int(used[1]), len(re.findall(r"\b(?:LDL|STL)\b", dump("-sass")))


def launches(
    plan: backend.Plan, x: Tensor, w: Tensor, y: Tensor, bias: Tensor | None, relu: bool = False
) -> tuple[list[backend.Launch], Tensor]:
    """What a pass launches, and the tensor that lies between the two launches.

    The pass writes one of x, w and y, as ``plan`` says, and reads the others.
    """
    if plan.pass_name == "wgrad":
        p = plan.problem
        partial = torch.full((plan.splits(8), 9, p.K, p.c_per_group), float("nan"))
        return [plan.wgrad(y, x, partial), plan.reduce(partial, w)], partial
    packed = torch.full((plan.packed_size,), float("nan"), dtype=w.dtype)
    if plan.pass_name == "fprop":
        main = plan.fprop(x, packed, y, (bias, None, None, None), relu)
    else:
        main = plan.dgrad(y, packed, x)
    return [plan.pack(w, packed), main], packed


class Case(NamedTuple):
    """A pass of a problem to compile."""

    pass_name: Pass
    precision: str
    dtype: torch.dtype
    capability: int
    config: backend.Config
    channels_last: bool
    stride: int
    width: tuple[int, int]
    """Channels per group, in and out."""
    size: int
    """Of the image."""


# Groups packed, one group, one group in blocks; blocks that are full and such that are not; as many
# channels in as out, fewer and more.
WIDTHS = (*((c, c) for c in (4, 16, 32, 64, 128, 5, 24)), (16, 64), (64, 16))
RESNEXT = WIDTHS[:4]


def kinds(
    pass_name: Pass, precision: str, widths: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Of widths the first of each kind: the others' kernels differ in nothing but numbers."""
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    for width in widths:
        blocking = backend.Blocking.of(pass_name, *width, precision)
        groups = blocking.groups_per_slab
        read, written = (groups * n for n in (width[::-1] if pass_name == "dgrad" else width))
        blocks = ((blocking.block_c, read), (blocking.block_k, written))
        parts = [(block, n > block, n % block == 0) for block, n in blocks]
        found.setdefault((groups > 1, *parts), width)
    return list(found.values())


def cases(pass_name: Pass, precision: str, capability: int, whole: bool) -> Iterator[Case]:
    """What triton.py can choose: without tuning for the widths of ResNeXt, or the whole space.

    Of the 16-bit types the whole space has both, what is chosen without tuning one for each GPU.

    Sizes that are multiples of 16 and such that are not, for which Triton compiles strides
    differently, take turns.
    """
    dtypes = (torch.float16, torch.bfloat16) if precision == "16-bit" else (torch.float32,)
    if not whole and len(dtypes) == 2:  # which differ in conversions alone: one for each GPU
        dtypes = dtypes[:1] if capability == 80 else dtypes[1:]
    space = backend.SPACE[pass_name, precision]
    for dtype, config, (turn, width), channels_last, stride in itertools.product(
        dtypes,
        space if whole else space[:1],
        enumerate(kinds(pass_name, precision, WIDTHS if whole else RESNEXT)),
        (True, False),
        (1, 2),
    ):
        blocking = backend.Blocking.of(pass_name, *width, precision)
        if config in backend.pruned(pass_name, blocking, precision, 10**6):
            size = 7 if (turn + stride) % 3 == 0 else 28
            yield Case(
                pass_name, precision, dtype, capability, config, channels_last, stride, width, size
            )


def compile_case(case: Case) -> tuple[Case, Compiled]:
    """The kernel that does the work of a case, with the whole epilogue."""
    c, k = case.width
    groups = max(1, 64 // max(c, k))
    p = ConvProblem(
        8, groups * c, case.size, case.size, groups * k, 3, 3, groups, 1, 1,
        case.stride, case.stride,
    )  # fmt: skip
    fmt = torch.channels_last if case.channels_last else torch.contiguous_format
    x, y = (
        torch.empty(size, dtype=case.dtype).contiguous(memory_format=fmt)
        for size in (p.input_size, p.output_size)
    )
    w, vector = torch.empty(p.weight_size, dtype=case.dtype), torch.empty(p.K)
    plan = backend.Plan.of(
        case.pass_name, p, case.dtype, case.channels_last, case.precision == "tf32"
    )
    if case.pass_name == "fprop":
        packed = torch.empty(plan.packed_size, dtype=case.dtype)
        launch = plan.fprop(x, packed, y, (vector, vector, vector, y), True)
    else:
        launch = next(one for one in launches(plan, x, w, y, None)[0] if one.choice)
    return case, compile_launch(launch, case.capability, case.config.options)


def compile_all(todo: list[Case], pool: ProcessPoolExecutor) -> Iterator[tuple[Case, Compiled]]:
    return pool.map(compile_case, todo, chunksize=4)


def processes(jobs: int) -> ProcessPoolExecutor:
    """Fresh processes: Triton and PyTorch start threads, which do not survive a fork."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for GPUs.")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    jobs = parser.parse_args().jobs
    failed = 0
    start = time.monotonic()
    with processes(jobs) as pool:
        for capability, key in itertools.product(CAPABILITIES, backend.SPACE):
            used = defaultdict(list)
            for case, compiled in compile_all(list(cases(*key, capability, whole=True)), pool):
                used[case.config].append(compiled)
                if complaint := compiled.complaint():
                    failed += 1
                    print(f"{case}: {complaint}", flush=True)
            for config, kernels in used.items():
                print(f"sm_{capability}", *key, *config, summary(kernels), flush=True)
    print(f"{failed} complaints, {time.monotonic() - start:.0f} s")
    return failed > 0


def summary(kernels: list[Compiled]) -> str:
    registers = max(k.registers for k in kernels)
    shared = max(k.shared_bytes for k in kernels)
    warps = min(k.warps for k in kernels)
    wgmma = sum("wgmma" in k.ptx for k in kernels)
    return (
        f"{len(kernels)} kernels, {wgmma} with wgmma: registers {registers}, shared {shared}, "
        f"warps {warps}"
    )


if __name__ == "__main__":
    sys.exit(main())
