"""What the lanes of a warp do together: matrix products and loads, shuffles, votes, barriers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.floating import widen_bf16
from ptx.machine import WARP, Lanes, Machine, Step, decoder, members
from ptx.parser import Instruction, Unsupported
from ptx.transfer import address_type, shared_bytes
from ptx.types import B32, F32, PRED, Array, Mnemonic

_LANE = np.arange(WARP)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4
_TF32_BITS = np.uint32(0xFFFFE000)


# Matrix fragments --------------------------------------------------------------------------------


def _elements(register: Array, kind: str, half: int) -> Array:
    """One element of each lane's register, in float64."""
    if kind == "tf32":
        return (register & _TF32_BITS).view(np.float32).astype(np.float64)
    bits = (register >> np.uint32(16 * half)).astype(np.uint16)
    values = widen_bf16(bits) if kind == "bf16" else bits.view(np.float16)
    return values.astype(np.float64)


def gather_a(registers: list[Array], kind: str, k: int) -> Array:
    """[warps, 16, k] from the fragment of A; each register is [warps, 32]."""
    a = np.zeros((registers[0].shape[0], 16, k))
    for i, register in enumerate(registers):
        row = _GROUP + 8 * (i % 2)
        if kind == "tf32":
            a[:, row, _IN_GROUP + 4 * (i // 2)] = _elements(register, kind, 0)
            continue
        for half in range(2):
            a[:, row, 2 * _IN_GROUP + half + 8 * (i // 2)] = _elements(register, kind, half)
    return a


def gather_b(registers: list[Array], kind: str, k: int) -> Array:
    """[warps, k, 8] from the fragment of B."""
    b = np.zeros((registers[0].shape[0], k, 8))
    for i, register in enumerate(registers):
        if kind == "tf32":
            b[:, _IN_GROUP + 4 * i, _GROUP] = _elements(register, kind, 0)
            continue
        for half in range(2):
            b[:, 2 * _IN_GROUP + half + 8 * i, _GROUP] = _elements(register, kind, half)
    return b


def multiply_accumulate(a: Array, b: Array, c: Array) -> Array:
    """a b + c: summed in float64 with k ascending, rounded to float32 once.

    Tensor cores cut off instead of rounding, in an order that is not published. This order is the
    one that the emulator of the sources uses as well, so that the two agree bit for bit.
    """
    total = c.astype(np.float64)
    for k in range(a.shape[2]):
        total += a[:, :, k, None] * b[:, None, k, :]
    return total.astype(np.float32)


@decoder("mma")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    (shape,) = m.allow("sync", "aligned", "row", "col", "m16n8k8", "m16n8k16", "m16n8k4") - {
        "sync", "aligned", "row", "col",
    }  # fmt: skip
    matched = re.fullmatch(r"m16n8k(\d+)", shape)
    assert matched is not None
    k = int(matched[1])
    kinds = [t.kind if t.kind != "f" else f"f{t.bits}" for t in m.types]
    kind = kinds[1]
    if kinds != ["f32", kind, kind, "f32"] or kind not in ("f16", "bf16", "tf32"):
        raise Unsupported(instruction.opcode)
    d, a, b, c = instruction.operands
    per_register = 1 if kind == "tf32" else 2
    expected = [4, 16 * k // WARP // per_register, 8 * k // WARP // per_register, 4]
    if [len(members(o)) for o in (d, a, b, c)] != expected:
        raise Unsupported(str(instruction))
    read_a, read_b = machine.sources(a, B32), machine.sources(b, B32)
    read_c, write_d = machine.sources(c, F32), machine.targets(d, F32)

    def step(lanes: Lanes) -> None:
        warps = machine.whole_warps(lanes, "mma").shape

        def registers(reads: list[Any]) -> list[Array]:
            return [np.broadcast_to(r(lanes), (warps[0] * WARP,)).reshape(warps) for r in reads]

        sums = np.empty((warps[0], 16, 8), np.float32)
        places = [(_GROUP + 8 * (i // 2), 2 * _IN_GROUP + i % 2) for i in range(4)]
        for (row, column), value in zip(places, registers(read_c), strict=True):
            sums[:, row, column] = value
        product = multiply_accumulate(
            gather_a(registers(read_a), kind, k), gather_b(registers(read_b), kind, k), sums
        )
        for (row, column), write in zip(places, write_d, strict=True):
            write(lanes, product[:, row, column].ravel())

    return step


def _matrices(
    machine: Machine, instruction: Instruction, operand: str, registers: int
) -> tuple[Callable[[Lanes], Array], bool]:
    """Of ldmatrix and stmatrix: the places of each matrix's elements among the halves of shared
    memory, ``[matrix, warp, row, column]``, and whether they are transposed."""
    m = Mnemonic(instruction.opcode)
    given = m.allow(
        "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"
    )  # fmt: skip
    (count,) = [int(name[1:]) for name in given & {"x1", "x2", "x4"}]
    m.only_type("b", (16,))
    if registers != count:
        raise Unsupported(str(instruction))
    name = instruction.opcode.split(".")[0]
    address = machine.address(operand, address_type("shared", operand, machine))

    def places(lanes: Lanes) -> Array:
        warps = machine.whole_warps(lanes, name)
        used = warps[:, : 8 * count].ravel()
        rows = address(lanes).reshape(warps.shape)[:, : 8 * count].ravel()
        at = shared_bytes(machine, used, rows, 16, name).reshape(-1, count, 8)
        return at.swapaxes(0, 1)[..., None] // 2 + np.arange(8)

    return places, "trans" in given


@decoder("ldmatrix")
def _(machine: Machine, instruction: Instruction) -> Step:
    out, operand = instruction.operands
    writes = machine.targets(out, B32)
    places, transposed = _matrices(machine, instruction, operand, len(writes))

    def step(lanes: Lanes) -> None:
        halves = machine.shared.view(np.uint16)
        for write, at in zip(writes, places(lanes), strict=True):
            matrix = halves[at]
            if transposed:
                matrix = matrix.transpose(0, 2, 1)
            pair = [matrix[:, _GROUP, 2 * _IN_GROUP + e].astype(np.uint32) for e in range(2)]
            write(lanes, (pair[0] | (pair[1] << np.uint32(16))).ravel())

    return step


@decoder("stmatrix")
def _(machine: Machine, instruction: Instruction) -> Step:
    """What ldmatrix reads, written."""
    operand, value = instruction.operands
    reads = machine.sources(value, B32)
    places, transposed = _matrices(machine, instruction, operand, len(reads))

    def step(lanes: Lanes) -> None:
        halves = machine.shared.view(np.uint16)
        for read, at in zip(reads, places(lanes), strict=True):
            words = np.broadcast_to(read(lanes), machine.lane[lanes].shape)
            pair = words.reshape(-1, 8, 4)
            parts = [pair & np.uint32(0xFFFF), pair >> np.uint32(16)]
            matrix = np.stack(parts, 3).reshape(-1, 8, 8).astype(np.uint16)
            if transposed:
                matrix = matrix.transpose(0, 2, 1)
            halves[at] = matrix

    return step


# Exchange ----------------------------------------------------------------------------------------


def _all_take_part(mask: Any, what: str) -> None:
    if (np.asarray(mask) != np.uint32(0xFFFFFFFF)).any():
        raise Unsupported(f"{what}: a mask of some lanes only")


@decoder("shfl")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    (mode,) = m.allow("sync", "up", "down", "bfly", "idx") - {"sync"}
    if "sync" not in m.modifiers:
        raise Unsupported(instruction.opcode)
    out, value, operand, clamp, mask = instruction.operands
    target, _, valid = out.partition("|")
    write, write_valid = machine.target(target, B32), machine.target(valid or "_", PRED)
    read = machine.source(value, B32)
    lane_operand, clamp_operand = machine.source(operand, B32), machine.source(clamp, B32)
    mask_operand = machine.source(mask, B32)

    def step(lanes: Lanes) -> None:
        warps = machine.whole_warps(lanes, "shfl")
        _all_take_part(mask_operand(lanes), "shfl")

        def each(x: Any) -> Array:
            return np.broadcast_to(np.asarray(x).astype(np.int64), (warps.size,)).reshape(
                warps.shape
            )

        b, c = each(lane_operand(lanes)) & 31, each(clamp_operand(lanes))
        bound, segment = c & 31, c >> 8 & 31
        last = (_LANE & segment) | (bound & ~segment)
        first = _LANE & segment
        source = {
            "up": _LANE - b,
            "down": _LANE + b,
            "bfly": _LANE ^ b,
            "idx": first | (b & ~segment),
        }[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, _LANE)
        values = np.broadcast_to(read(lanes), (warps.size,)).reshape(warps.shape)
        write(lanes, np.take_along_axis(values, source, 1).ravel())
        write_valid(lanes, inside.ravel())

    return step


@decoder("vote")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    (mode,) = m.allow("sync", "all", "any", "ballot") - {"sync"}
    out, operand, mask = instruction.operands
    read, mask_operand = machine.source(operand, PRED), machine.source(mask, B32)
    write = machine.target(out, B32 if mode == "ballot" else PRED)

    def step(lanes: Lanes) -> None:
        warps = machine.whole_warps(lanes, "vote")
        _all_take_part(mask_operand(lanes), "vote")
        votes = np.broadcast_to(read(lanes), (warps.size,)).reshape(warps.shape)
        if mode == "ballot":
            result = (votes.astype(np.uint32) << _LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
        else:
            result = votes.all(1) if mode == "all" else votes.any(1)
        write(lanes, np.repeat(result, WARP))

    return step


@decoder("redux")
def _(machine: Machine, instruction: Instruction) -> Step:
    """The least, greatest or summed value of a warp, for all of its lanes."""
    m = Mnemonic(instruction.opcode)
    (mode,) = m.allow("sync", "min", "max", "add") - {"sync"}
    type_ = m.only_type("us", (32,))
    out, value, mask = instruction.operands
    read, mask_operand = machine.source(value, type_), machine.source(mask, B32)
    write = machine.target(out, type_)
    reduce = {"min": np.minimum, "max": np.maximum, "add": np.add}[mode].reduce

    def step(lanes: Lanes) -> None:
        warps = machine.whole_warps(lanes, "redux")
        _all_take_part(mask_operand(lanes), "redux")
        values = np.broadcast_to(read(lanes), (warps.size,)).reshape(warps.shape)
        write(lanes, np.repeat(reduce(values, 1, dtype=type_.dtype), WARP))

    return step


# Order -------------------------------------------------------------------------------------------


@decoder("bar", "barrier")
def _(machine: Machine, instruction: Instruction) -> Step:
    """The barrier of a warp; that of a block is the program's business."""
    m = Mnemonic(instruction.opcode)
    if m.allow("warp", "sync") != {"warp", "sync"}:
        raise Unsupported(instruction.opcode)
    mask = machine.source(instruction.operands[0], B32)

    def step(lanes: Lanes) -> None:
        machine.whole_warps(lanes, "bar.warp.sync")
        _all_take_part(mask(lanes), "bar.warp.sync")

    return step


@decoder("membar", "fence", "prefetch")
def _(machine: Machine, instruction: Instruction) -> Step:
    """Lanes that run in step see each other's writes at once; hints change nothing."""
    return lambda lanes: None
