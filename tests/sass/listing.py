"""Machine code as cuobjdump prints it -> kernels, instructions and loops."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_SECTION = re.compile(r"code for sm_(\d+)|Function : (\S+)")
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.M)
_TARGET = re.compile(r"`?\(?\.?(0x[0-9a-f]+)")
_USAGE = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """``opcode`` with its modifiers, without predicate and operands."""

    address: int
    opcode: str
    operands: str = ""

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Loop:
    """From the target of a backward branch to the branch."""

    instructions: tuple[Instruction, ...]

    def count(self, name: str) -> int:
        return sum(i.name == name for i in self.instructions)


@dataclass(frozen=True)
class MachineKernel:
    """One kernel for one architecture."""

    symbol: str
    architecture: int
    instructions: tuple[Instruction, ...]
    registers: int
    stack: int

    def loops(self) -> Iterator[Loop]:
        """Loops, as far as a backward branch shows them."""
        for i in self.instructions:
            target = _TARGET.search(i.operands) if i.name == "BRA" else None
            if target and int(target[1], 16) < i.address:
                first = int(target[1], 16)
                inside = [j for j in self.instructions if first <= j.address <= i.address]
                yield Loop(tuple(inside))

    def inner_loops(self, name: str) -> list[Loop]:
        """Loops with an instruction of some name that have no such loop inside."""
        with_name = [loop for loop in self.loops() if loop.count(name)]

        def within(inner: Loop, outer: Loop) -> bool:
            begins = outer.instructions[0].address <= inner.instructions[0].address
            ends = inner.instructions[-1].address <= outer.instructions[-1].address
            return inner != outer and begins and ends

        return [a for a in with_name if not any(within(b, a) for b in with_name)]


def find_cuobjdump() -> Path | None:
    """cuobjdump of the CUDA toolkit, or that of the triton package."""
    for name in ("cuobjdump", "/usr/local/cuda/bin/cuobjdump"):
        if found := shutil.which(name):
            return Path(found)
    spec = find_spec("triton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        tool = Path(location, "backends", "nvidia", "bin", "cuobjdump")
        if tool.exists():
            return tool
    return None


def parse(code: str, usage: str) -> list[MachineKernel]:
    """Kernels of ``cuobjdump -sass`` and ``cuobjdump --dump-resource-usage``."""
    used = _resource_usage(usage)
    kernels = []
    architecture = 0
    marks = list(_SECTION.finditer(code))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1]:
            architecture = int(mark[1])
            continue
        text = code[mark.end() : following.start() if following else len(code)]
        instructions = tuple(Instruction(int(a, 16), o, r) for a, o, r in _LINE.findall(text))
        # Of a single cubin the architecture is not printed.
        registers, stack = used.get((architecture, mark[2])) or used[0, mark[2]]
        kernels.append(MachineKernel(mark[2], architecture, instructions, registers, stack))
    return kernels


def _resource_usage(text: str) -> dict[tuple[int, str], tuple[int, int]]:
    """Registers, and bytes of stack and local memory, of each architecture's kernels."""
    used = {}
    architecture = 0
    for part in re.split(r"(arch = sm_\d+|code for sm_\d+)", text):
        if named := re.fullmatch(r"(?:arch =|code for) sm_(\d+)", part):
            architecture = int(named[1])
        for symbol, registers, stack, _, local in _USAGE.findall(part):
            used[architecture, symbol] = (int(registers), int(stack) + int(local))
    return used


def read(library: Path, cuobjdump: Path) -> list[MachineKernel]:
    """The kernels in a library, an object file or a cubin."""

    def dump(option: str) -> str:
        command = [cuobjdump, option, library]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return parse(dump("-sass"), dump("--dump-resource-usage"))
