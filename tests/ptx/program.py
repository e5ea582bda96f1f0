"""One launch of a kernel: which lanes run which instruction next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ptx import floating, integer, transfer, warp  # noqa: F401  (they register instructions)
from ptx.machine import (
    ALL,
    DECODERS,
    WARP,
    Fault,
    GlobalMemory,
    Lanes,
    Machine,
)
from ptx.parser import Instruction, Kernel, Unsupported
from ptx.types import PRED, Mnemonic


@dataclass
class Launch:
    """What a launch left behind, beside what it wrote to memory."""

    executed: Counter[str] = field(default_factory=Counter)
    """Warp instructions by opcode; a warp counts where any of its lanes took part."""

    @property
    def warp_instructions(self) -> int:
        return sum(self.executed.values())


_RUNS_ON = 0
_JUMPS, _ENDS, _WAITS = 1, 2, 3


class Ballot(NamedTuple):
    """A barrier at which the threads of a block vote."""

    unanimous: bool
    read: Callable[[Lanes], Any]
    write: Callable[[Lanes, Any], None]


class Program:
    """Decoded instructions, and the loop that runs the lanes that stand furthest behind.

    Lanes that took the longer way through a branch catch up before the others go on, so they meet
    again where the ways join, as they do on a GPU. A lane at a barrier stands still until all of
    its block that still run have come.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        code = machine.kernel.instructions
        self.end = len(code)
        self.kinds: list[int] = []
        self.ballots: dict[int, Ballot] = {}
        for instruction in code:
            self.kinds.append(self._kind(instruction))
        self.steps = [
            DECODERS[i.opcode.split(".")[0]](machine, i) if kind == _RUNS_ON else None
            for i, kind in zip(code, self.kinds, strict=True)
        ]
        self.jumps = [
            machine.kernel.labels[i.operands[0]] if kind == _JUMPS else -1
            for i, kind in zip(code, self.kinds, strict=True)
        ]
        self.guards = [machine.registers[i.predicate] if i.predicate else None for i in code]
        self.negated = [i.negated for i in code]
        self.executed = np.zeros(self.end, np.int64)
        self.position = np.zeros(machine.count, np.int64)
        self.resume = np.full(machine.count, -1, np.int64)
        self.votes = np.zeros(machine.count, np.bool_)
        self.running = np.ones(machine.count, np.bool_)
        self.waiting = np.zeros(machine.blocks, np.int64)
        self.alive = np.full(machine.blocks, machine.threads, np.int64)

    def _kind(self, instruction: Instruction) -> int:
        name, *modifiers = instruction.opcode.split(".")
        if name == "bra":
            Mnemonic(instruction.opcode).allow("uni")
            return _JUMPS
        if name in ("ret", "exit"):
            return _ENDS
        if name in ("bar", "barrier") and modifiers[0] != "warp":
            return self._barrier(instruction, [m for m in modifiers if m not in ("cta", "aligned")])
        if name not in DECODERS:
            raise Unsupported(f"opcode {instruction.opcode}")
        return _RUNS_ON

    def _barrier(self, instruction: Instruction, modifiers: list[str]) -> int:
        """bar.sync 0, or bar.red.{and,or}.pred p, 0, q."""
        operands, number = instruction.operands, len(self.kinds)
        if modifiers == ["sync"]:
            barrier = operands[0]
        elif modifiers in (["red", "or", "pred"], ["red", "and", "pred"]):
            out, barrier, vote = operands
            read, write = self.machine.source(vote, PRED), self.machine.target(out, PRED)
            self.ballots[number] = Ballot(modifiers[1] == "and", read, write)
        else:
            raise Unsupported(instruction.opcode)
        if barrier != "0" or instruction.predicate:
            raise Unsupported(f"{instruction}: barriers other than that of the whole block")
        return _WAITS

    def run(self) -> None:
        beyond = self.end
        while True:
            first = int(self.position.min())
            if first >= beyond:
                return
            here = self.position == first
            if here.all():
                self.stretch(first, ALL, beyond)
            else:
                limit = int(self.position[~here].min())
                self.stretch(first, np.flatnonzero(here), limit)

    def stretch(self, at: int, lanes: Lanes, limit: int) -> None:
        """Run lanes from one instruction on, until they branch, stop or meet others."""
        warps = self.warps(lanes)
        while at < limit:
            kind = self.kinds[at]
            guard = self.guards[at]
            taken, count = lanes, warps
            if guard is not None:
                chosen = guard[lanes] != self.negated[at]
                if not chosen.all():
                    taken = self.machine.lane[lanes][chosen]
                    count = self.warps(taken)
            self.executed[at] += count
            if kind == _RUNS_ON:
                if count:
                    self.step(at, taken)
                at += 1
                continue
            self.position[lanes] = at + 1
            if kind == _JUMPS:
                self.position[taken] = self.jumps[at]
            elif kind == _ENDS:
                self.position[taken] = self.end
                self.leave(taken)
            else:
                self.wait(lanes, at)
            return
        self.position[lanes] = at
        if at >= self.end:
            self.leave(lanes)

    def step(self, at: int, lanes: Lanes) -> None:
        step = self.steps[at]
        assert step is not None
        try:
            step(lanes)
        except Fault as fault:
            instruction = self.machine.kernel.instructions[at]
            raise Fault(f"{fault} (instruction {at}: {instruction})") from None

    def warps(self, lanes: Lanes) -> int:
        if isinstance(lanes, slice):
            return self.machine.count // WARP
        index = lanes // WARP
        return int((np.diff(index) != 0).sum()) + 1 if index.size else 0

    def wait(self, lanes: Lanes, at: int) -> None:
        blocks = self.machine.block[lanes]
        warps = self.machine.count // WARP
        came = np.bincount(self.machine.lane[lanes] // WARP, minlength=warps)
        if ((came > 0) & (came != self.running.reshape(warps, WARP).sum(1))).any():
            raise Fault(f"a warp is divergent at a barrier (instruction {at})")
        if at in self.ballots:
            self.votes[lanes] = self.ballots[at].read(lanes)
        self.resume[lanes] = at + 1
        self.position[lanes] = self.end
        self.waiting += np.bincount(blocks, minlength=self.machine.blocks)
        self.release()

    def leave(self, lanes: Lanes) -> None:
        self.running[lanes] = False
        self.alive -= np.bincount(self.machine.block[lanes], minlength=self.machine.blocks)
        self.release()

    def release(self) -> None:
        """Let the blocks go on of which all threads that still run have come to the barrier."""
        complete = (self.waiting > 0) & (self.waiting == self.alive)
        if not complete.any():
            return
        free = np.flatnonzero(complete[self.machine.block] & (self.resume >= 0))
        for at in np.unique(self.resume[free]) - 1:
            if at in self.ballots:
                self.count_votes(self.ballots[at], free[self.resume[free] == at + 1])
        self.position[free] = self.resume[free]
        self.resume[free] = -1
        self.waiting[complete] = 0

    def count_votes(self, ballot: Ballot, lanes: Lanes) -> None:
        blocks = self.machine.block[lanes]
        against = self.votes[lanes] != ballot.unanimous
        some = np.bincount(blocks, weights=against, minlength=self.machine.blocks) > 0
        ballot.write(lanes, some[blocks] != ballot.unanimous)


def launch(
    kernel: Kernel,
    memory: GlobalMemory,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[int | float | bytes],
    dynamic_shared: int = 0,
) -> Launch:
    """Run a kernel to its end.

    Args:
        kernel: from :func:`ptx.parser.parse`.
        memory: what global addresses refer to; the kernel's results are read from it.
        grid: blocks along up to three axes.
        block: threads along up to three axes, in all a multiple of 32.
        arguments: one per parameter: an address or another integer, a float for an f32, or the
            bytes of a structure.
        dynamic_shared: bytes of dynamic shared memory.

    Raises:
        Unsupported: the kernel has an instruction that the interpreter does not know.
        Fault: an address out of bounds or misaligned, a divergent warp instruction, a deadlock.
    """
    packed = bytearray(kernel.parameter_bytes)
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters")
    for value, place in zip(arguments, kernel.parameters.values(), strict=True):
        packed[place.offset : place.offset + place.size] = _argument(value, place.size)
    whole = [(*axes, 1, 1)[:3] for axes in (tuple(grid), tuple(block))]
    machine = Machine(kernel, memory, whole[0], whole[1], bytes(packed), dynamic_shared)
    program = Program(machine)
    with np.errstate(all="ignore"):
        program.run()
    done = Launch()
    for instruction, warps in zip(kernel.instructions, program.executed, strict=True):
        if warps:
            done.executed[instruction.opcode] += int(warps)
    return done


def _argument(value: int | float | bytes, size: int) -> bytes:
    if isinstance(value, bytes):
        if len(value) != size:
            raise ValueError(f"expected an argument of {size} bytes, got {len(value)}")
        return value
    if isinstance(value, float):
        return np.array(value, np.float32 if size == 4 else np.float64).tobytes()
    return (int(value) % (1 << (8 * size))).to_bytes(size, "little")
