"""Loads, stores, asynchronous copies and address conversions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptx.machine import SHARED_WINDOW, Fault, Lanes, Machine, Step, decoder
from ptx.parser import Instruction, Unsupported
from ptx.types import B32, U32, U64, UNSIGNED, Array, Mnemonic, Type

_CACHING = (
    "nc",
    "L1",
    "L2",
    "128B",
    "256B",
    "64B",
    "ca",
    "cg",
    "cs",
    "wb",
    "wt",
    "relaxed",
    "weak",
)
_HINTS = (*_CACHING, "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L2::128B", "L2::256B")
_SPACES = ("global", "shared", "shared::cta", "param")
_VECTORS = {"v2": 2, "v4": 4}


def space_of(m: Mnemonic, *more: str) -> str:
    """The state space of a load or a store."""
    given = m.allow(*_HINTS, *_SPACES, *_VECTORS, *more)
    spaces = {s.removesuffix("::cta") for s in given & set(_SPACES)}
    if len(spaces) != 1:
        raise Unsupported(f"{m.opcode}: generic addresses")
    return spaces.pop()


def address_type(space: str, operand: str, machine: Machine) -> Type:
    """Addresses of shared memory and parameters may be in 32-bit registers."""
    base = operand.strip("[] ").partition("+")[0].strip()
    register = machine.registers.get(base)
    return (
        U64
        if register is not None and register.dtype == np.uint64
        else (U32 if space != "global" else U64)
    )


def shared_bytes(machine: Machine, lanes: Lanes, address: Array, size: int, what: str) -> Array:
    """Indices into ``machine.shared`` of accesses by each lane's own block."""
    if (address % size).any():
        raise Fault(f"{what}: misaligned address in shared memory")
    if (address < 0).any() or (address + size > machine.shared_size).any():
        raise Fault(f"{what}: out of bounds of shared memory")
    return address + machine.block[lanes] * machine.shared_stride


def access(
    machine: Machine, space: str, lanes: Lanes, address: Array, size: int, what: str
) -> tuple[Array, Array]:
    """The bytes of a space and the index of each lane's access."""
    if space == "global":
        machine.memory.check(address, size, what)
        return machine.memory.words(1), address
    if space == "shared":
        return machine.shared, shared_bytes(machine, lanes, address, size, what)
    if (address < 0).any() or (address + size > machine.parameters.size).any():
        raise Fault(f"{what}: out of bounds of the parameters")
    padded = np.zeros(-(-machine.parameters.size // 16) * 16, np.uint8)
    padded[: machine.parameters.size] = machine.parameters
    return padded, address


def _parts(m: Mnemonic) -> tuple[Type, int]:
    (type_,) = m.types
    return type_, next((n for name, n in _VECTORS.items() if name in m.modifiers), 1)


@decoder("ld")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    space, (type_, parts) = space_of(m, "volatile"), _parts(m)
    out, operand = instruction.operands
    address = machine.address(operand, address_type(space, operand, machine))
    writes = machine.targets(out, type_)
    if len(writes) != parts:
        raise Unsupported(str(instruction))
    size, unsigned = type_.bytes, UNSIGNED[type_.bits]

    def load(lanes: Lanes) -> None:
        store, at = access(machine, space, lanes, address(lanes), size * parts, "load")
        words = store.view(unsigned)
        values = [words[at // size + i].view(type_.dtype) for i in range(parts)]
        for write, value in zip(writes, values, strict=True):
            write(lanes, value)

    return load


@decoder("st")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    space, (type_, parts) = space_of(m, "volatile"), _parts(m)
    operand, source = instruction.operands
    if space == "param":
        raise Unsupported(str(instruction))
    address = machine.address(operand, address_type(space, operand, machine))
    raw = Type("b", type_.bits)
    reads = machine.sources(source, raw)
    if len(reads) != parts:
        raise Unsupported(str(instruction))
    size, unsigned = type_.bytes, UNSIGNED[type_.bits]

    def store(lanes: Lanes) -> None:
        memory, at = access(machine, space, lanes, address(lanes), size * parts, "store")
        words = memory.view(unsigned)
        for i, read in enumerate(reads):
            words[at // size + i] = read(lanes)

    return store


@decoder("cvta")
def _(machine: Machine, instruction: Instruction) -> Step:
    """Generic addresses are global addresses; shared memory has a window of its own."""
    m = Mnemonic(instruction.opcode)
    given = m.allow("to", "global", "shared", "param")
    out, operand = instruction.operands
    type_ = m.only_type("u", (64,))
    read, write = machine.source(operand, type_), machine.target(out, type_)
    window = np.uint64(SHARED_WINDOW if "shared" in given else 0)
    if "param" in given:
        raise Unsupported(str(instruction))
    if "to" in given:
        return lambda lanes: write(lanes, read(lanes) - window)
    return lambda lanes: write(lanes, read(lanes) + window)


# Asynchronous copies -----------------------------------------------------------------------------


@dataclass
class _Copy:
    """Copies in flight: one per lane."""

    lanes: Array
    group: Array
    target: Array
    source: Array
    size: Array


class AsyncCopies:
    """cp.async: the data lands when a wait demands it, and the target is poisoned until then."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.count, np.int64)
        self.flying: list[_Copy] = []

    def start(self, lanes: Lanes, target: Array, source: Array, size: Array, width: int) -> None:
        words = self.machine.shared.reshape(-1, width)
        words[target // width] = 0xFF
        ids = self.machine.lane[lanes]
        self.flying.append(_Copy(ids, self.committed[ids], target, source, size))

    def commit(self, lanes: Lanes) -> None:
        self.committed[lanes] += 1

    def wait(self, lanes: Lanes, allowed: int | None) -> None:
        """Land all but the last ``allowed`` groups of some lanes; None: also what no group has."""
        waits = np.zeros(self.machine.count, np.bool_)
        waits[lanes] = True
        still = []
        for copy in self.flying:
            due = waits[copy.lanes]
            if allowed is not None:
                due = due & (copy.group < self.committed[copy.lanes] - allowed)
            if due.all():
                self.land(copy)
            elif due.any():
                self.land(_select(copy, due))
                still.append(_select(copy, ~due))
            else:
                still.append(copy)
        self.flying = still

    def land(self, copy: _Copy) -> None:
        source, shared = self.machine.memory.words(1), self.machine.shared
        width = self.width
        offset = np.arange(width)
        inside = offset < copy.size[:, None]
        taken = source[np.where(inside, copy.source[:, None] + offset, 0)]
        shared.reshape(-1, width)[copy.target // width] = np.where(inside, taken, 0)

    width = 16


def _select(copy: _Copy, chosen: Array) -> _Copy:
    return _Copy(
        copy.lanes[chosen],
        copy.group[chosen],
        copy.target[chosen],
        copy.source[chosen],
        copy.size[chosen],
    )


def _copies(machine: Machine) -> AsyncCopies:
    """The copies of a launch; made when the first instruction needs them."""
    if not hasattr(machine, "copies"):
        machine.copies = AsyncCopies(machine)  # type: ignore[attr-defined]
    return machine.copies  # type: ignore[attr-defined,no-any-return]


@decoder("cp")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    given = m.allow(
        "async", "cg", "ca", "shared", "shared::cta", "global", "L2::128B", "L2::256B",
        "commit_group", "wait_group", "wait_all",
    )  # fmt: skip
    if "async" not in given:
        raise Unsupported(instruction.opcode)
    copies = _copies(machine)
    if "commit_group" in given:
        return copies.commit
    if "wait_all" in given:
        return lambda lanes: copies.wait(lanes, None)
    if "wait_group" in given:
        allowed = int(instruction.operands[0])
        return lambda lanes: copies.wait(lanes, allowed)
    return _start_copy(machine, instruction, copies)


def _start_copy(machine: Machine, instruction: Instruction, copies: AsyncCopies) -> Step:
    target_operand, source_operand, width_text, *rest = instruction.operands
    width = int(width_text)
    if width != copies.width or len(rest) > 1:
        raise Unsupported(f"{instruction}: copies of other than 16 bytes")
    target_type = address_type("shared", target_operand, machine)
    target = machine.address(target_operand, target_type)
    source = machine.address(source_operand, U64)
    size: Callable[[Lanes], Any] = machine.source(rest[0] if rest else width_text, B32)

    def start(lanes: Lanes) -> None:
        to = shared_bytes(machine, lanes, target(lanes), width, "cp.async")
        at = source(lanes)
        count = np.broadcast_to(np.asarray(size(lanes)).astype(np.int64), at.shape)
        if (count > width).any():
            raise Fault("cp.async: more source bytes than the copy has")
        reads = count > 0
        if (at[reads] % width).any():
            raise Fault("cp.async: misaligned source")
        machine.memory.check_bounds(at[reads], count[reads], "cp.async")
        copies.start(lanes, to, at, count, width)

    return start
