"""Loads, stores, asynchronous copies and address conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.copies import COPY_BYTES, AsyncCopies
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
    long = space == "global" or (register is not None and register.dtype == np.uint64)
    return U64 if long else U32


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
    if (address < 0).any() or (address + size > machine.kernel.parameter_bytes).any():
        raise Fault(f"{what}: out of bounds of the parameters")
    return machine.parameters, address


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


@decoder("cp")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    given = m.allow(
        "async", "cg", "ca", "shared", "shared::cta", "global", "L2::128B", "L2::256B",
        "commit_group", "wait_group", "wait_all",
    )  # fmt: skip
    if "async" not in given:
        raise Unsupported(instruction.opcode)
    copies = machine.copies
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
    width = int(width_text, 0)
    # Past the first level of cache (cg) go copies of 16 bytes alone.
    allowed = COPY_BYTES if "ca" in Mnemonic(instruction.opcode).modifiers else COPY_BYTES[-1:]
    if width not in allowed or len(rest) > 1:
        raise Unsupported(f"{instruction}: copies of {width} bytes")
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
