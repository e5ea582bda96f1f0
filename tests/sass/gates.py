"""Checks the machine code of a built CUDA library; no GPU is needed.

    python tests/sass/gates.py grouped_conv/_cuda.so [--record]

Of every kernel: no register spilled, no stack. Of every row-streaming kernel: registers, and on
sm_90 and sm_100 shared memory, leave room for the blocks that its configuration promises; 16-byte
asynchronous copies; in the innermost loops around tensor-core instructions, no access to
global memory narrower than 16 bytes (but stores of NCHW, at the ends of runs of pixels); and no
more instructions per tensor-core instruction, in the best loop that also copies, than
``recorded.json`` says, which ``--record`` rewrites. Of every tiled kernel the same, around
multiply-adds where it has no tensor-core instructions; those that gather elements load them
narrowly.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from grouped_conv import _C
from sass.listing import Loop, MachineKernel, find_cuobjdump, read

RECORD = Path(__file__).with_name("recorded.json")
REGISTERS_OF_SM = 65536
SHARED_OF_SM = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
"""KiB of shared memory of a multiprocessor; a block takes 1 KiB more than it asks for."""
TENSOR = "HMMA"
TAILS = ("", " epilogue", " statistics", " residual")
"""What an fprop kernel does beside the convolution, in the order of ``Tail`` in configs.h."""
_TAIL = re.compile(r"4TailE(\d)E")
_TILED = re.compile(r"tiled_(conv|wgrad)_kernelILi(\d+)E\w*?TiledMathE(\d)ELb([01])E")
_MATHS = ("Float16", "BFloat16", "Tf32", "Fma")
"""How a tiled kernel computes, in the order of ``TiledMath`` in tiled_configs.h."""
_STREAMING = re.compile(r"\d((?:fprop|dgrad|wgrad)_rowstream|nchw_(?:conv|wgrad))_kernelI")


def multiplication(kernel: MachineKernel) -> str:
    """The instruction that a kernel is made around."""
    tiled = _TILED.search(kernel.symbol)
    return "FFMA" if tiled and _MATHS[int(tiled[3])] == "Fma" else TENSOR


class Configuration(NamedTuple):
    """What the gates ask of a table entry."""

    name: str
    threads: int
    shared_bytes: int
    blocks_per_sm: int


def configuration(kernel: MachineKernel) -> Configuration | None:
    """The table entry of a kernel, by the index among its template arguments."""
    if (tiled := _TILED.search(kernel.symbol)) and tiled[1] == "wgrad":
        of_wgrad = _C.tiled_wgrad_kernels()[int(tiled[2])]
        named = f"{of_wgrad['name']}_{'vector' if tiled[4] == '1' else 'gather'}"
        return Configuration(
            named, of_wgrad["threads"], of_wgrad["shared_bytes"], of_wgrad["blocks_per_sm"]
        )
    if tiled:
        entry = _C.tiled_kernels()[int(tiled[2])]
        blocks = "blocks_of_fma" if multiplication(kernel) == "FFMA" else "blocks_per_sm"
        named = f"{entry['name']}_{'direct' if tiled[4] == '1' else 'gather'}"
        return Configuration(named, entry["threads"], entry["shared_bytes"], entry[blocks])
    config = streaming_configuration(kernel)
    if config is None:
        return None
    return Configuration(
        config["name"], config["threads"], config["shared_bytes"], config["blocks_per_sm"]
    )


def streaming_configuration(kernel: MachineKernel) -> _C.CudaKernel | None:
    """That of a row-streaming kernel."""
    family = _STREAMING.search(kernel.symbol)
    index = re.search(r"Li(\d+)E", kernel.symbol)
    if family is None or index is None:
        return None
    of_wgrad = "wgrad" in family[1]
    kernels = _C.nchw_kernels() if "nchw" in family[1] else _C.cuda_kernels()
    table = [c for c in kernels if (c["passes"] == ["wgrad"]) == of_wgrad]
    return table[int(index[1])]


def name(kernel: MachineKernel) -> str:
    """Such as ``conv_c4_s1 Float16 sm_90``."""
    config, element = configuration(kernel), re.search(r"B?Float16", kernel.symbol)
    named = f"{config.name} {element[0]}" if config and element else kernel.symbol
    if config and (tiled := _TILED.search(kernel.symbol)):
        named = f"{config.name} {_MATHS[int(tiled[3])]}"
    tail = _TAIL.search(kernel.symbol)
    behind = TAILS[int(tail[1])] if tail else ""
    return f"{named}{behind} sm_{kernel.architecture}"


def copying(kernel: MachineKernel) -> str | None:
    """The instruction that brings what a kernel multiplies.

    The tiled weight gradient gathers through registers, and by FMA units its innermost loop is a
    pixel, with the copies around it.
    """
    tiled = _TILED.search(kernel.symbol)
    if tiled and tiled[1] == "wgrad":
        if multiplication(kernel) == "FFMA":
            return None
        return "LDGSTS" if tiled[4] == "1" else "LDG"
    return "LDGSTS"


def main_loops(kernel: MachineKernel) -> list[Loop]:
    """The innermost loops that multiply; multiply-adds of an epilogue are none of them."""
    loops = kernel.inner_loops(multiplication(kernel))
    if multiplication(kernel) == TENSOR or copying(kernel) is None:
        return loops
    return [loop for loop in loops if loop.count("LDGSTS")]


def streaming_loops(kernel: MachineKernel) -> list[Loop]:
    """The main loops that copy as well.

    The weight gradient of NCHW copies outside of them, where a band of rows begins.
    """
    copy = None if "nchw_wgrad" in kernel.symbol else copying(kernel)
    return [loop for loop in main_loops(kernel) if copy is None or loop.count(copy)]


def instructions_per_mma(kernel: MachineKernel) -> float:
    """The best of the innermost loops that stream.

    Where values are not finite the weight gradient takes a second walk, slow and seldom.
    """
    name = multiplication(kernel)
    return min(
        (len(loop.instructions) / loop.count(name) for loop in streaming_loops(kernel)),
        default=0.0,
    )


def faults(kernel: MachineKernel) -> list[str]:
    """What is wrong with a kernel, apart from the recorded figure."""
    wrong = []
    spills = sum(i.name in ("LDL", "STL") for i in kernel.instructions)
    if spills or kernel.stack:
        wrong.append(f"{spills} accesses to local memory, {kernel.stack} bytes of stack")
    config = configuration(kernel)
    if config is None:
        return wrong
    blocks, threads = config.blocks_per_sm, config.threads
    in_use = -(-kernel.registers // 8) * 8 * threads * blocks
    if in_use > REGISTERS_OF_SM:
        wrong.append(f"{kernel.registers} registers of {threads} threads, {blocks} blocks")
    shared = (config.shared_bytes + 1024) / 1024
    available = SHARED_OF_SM[kernel.architecture]
    # The promise is for the largest multiprocessors; elsewhere one block must fit.
    if shared * (blocks if available >= 228 else 1) > available:
        wrong.append(f"{shared:.1f} KiB of shared memory, {blocks} blocks")
    asynchronous = any(i.name == "LDGSTS" and ".128" in i.opcode for i in kernel.instructions)
    gathers = config.name.startswith("tiled_wgrad") and config.name.endswith("_gather")
    if not asynchronous and not gathers:
        wrong.append("no asynchronous copies of 16 bytes")
    loops = main_loops(kernel)
    if not streaming_loops(kernel):
        wrong.append("no loop that copies and multiplies")
    # The ends of a run of NCHW pixels are stored in pieces; what is gathered comes in elements.
    wide: tuple[str, ...] = ("LDG", "STG", "LDGSTS")
    if config.name.startswith("nchw"):
        wide = ("LDG", "LDGSTS")
    elif config.name.endswith("_gather"):
        wide = ("STG", "LDGSTS")
    wrong += [
        f"narrow access to global memory in an inner loop: {i.opcode}"
        for loop in loops
        for i in loop.instructions
        if i.name in wide and ".128" not in i.opcode
    ]
    return wrong


def against_record(
    figures: dict[str, float], recorded: dict[str, float], architectures: set[str]
) -> tuple[list[str], list[str]]:
    """Figures that got worse or are missing, and those that got better."""
    worse = [f"{k}: not recorded" for k in figures if k not in recorded]
    worse += [
        f"{k}: recorded, but not in the library"
        for k in recorded
        if k not in figures and k.split()[-1] in architectures
    ]
    both = [k for k in figures if k in recorded]
    worse += [
        f"{k}: {figures[k]:.2f} instructions per mma, recorded {recorded[k]:.2f}"
        for k in both
        if figures[k] > recorded[k]
    ]
    better = [
        f"{k}: {figures[k]:.2f} < {recorded[k]:.2f}" for k in both if figures[k] < recorded[k]
    ]
    return worse, better


def toolkit(library: Path, cuobjdump: Path) -> str:
    """The CUDA release that compiled a library."""
    elf = subprocess.run([cuobjdump, "-elf", library], capture_output=True, text=True, check=True)
    found = re.search(r"toolkit=([\d.]+)", elf.stdout)
    return found[1] if found else "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Check a library and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--record", action="store_true", help=f"rewrite {RECORD.name}")
    flags = parser.parse_args(argv)
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        parser.error("there is no cuobjdump: it is part of CUDA and of the triton package")
    kernels = read(flags.library, cuobjdump)
    wrong = [f"{name(k)}: {fault}" for k in kernels for fault in faults(k)]
    figures = {
        name(k): round(instructions_per_mma(k), 2) for k in kernels if configuration(k) is not None
    }
    release = toolkit(flags.library, cuobjdump)
    if flags.record:
        content = {"cuda": release, "instructions_per_mma": dict(sorted(figures.items()))}
        RECORD.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"recorded {len(figures)} figures of CUDA {release}")
    else:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        if record["cuda"] == release:
            here = {f"sm_{k.architecture}" for k in kernels}
            worse, better = against_record(figures, record["instructions_per_mma"], here)
            wrong += worse
            for line in better:
                print(f"better than recorded: {line}")
        else:
            print(f"figures are of CUDA {record['cuda']}, not compared with those of {release}")
    print(f"{len(kernels)} kernels, {len(figures)} of them of a table, {len(wrong)} faults")
    for line in wrong:
        print(f"FAULT {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
