"""What a launch runs on: memories, registers, operands, and the table of instructions."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx.copies import AsyncCopies
from ptx.parser import Instruction, Kernel, Unsupported
from ptx.types import UNSIGNED, Array, Mnemonic, Type, raw_bits, typed

Lanes = slice | npt.NDArray[np.int64]
"""The lanes that run an instruction: ``slice(None)`` for all of the grid, else their indices."""
Step = Callable[[Lanes], None]

WARP = 32
ALL = slice(None)
SHARED_WINDOW = 1 << 40
"""Where shared memory lies among generic addresses."""
_ALIGNMENT = 256


class Fault(Exception):
    """The program did what a GPU would punish or leave undefined."""


class GlobalMemory:
    """Arrays at addresses; an access must lie within one of them."""

    def __init__(self) -> None:
        self._bytes = np.zeros(2 * _ALIGNMENT, np.uint8)
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._bounds: tuple[Array, Array] | None = None

    def allocate(self, values: Array) -> int:
        """A copy of an array; the result is its address."""
        data = np.ascontiguousarray(values).view(np.uint8).ravel()
        address = self._bytes.size
        padded = (data.size // _ALIGNMENT + 2) * _ALIGNMENT
        self._bytes = np.concatenate([self._bytes, np.zeros(padded, np.uint8)])
        self._bytes[address : address + data.size] = data
        self._starts.append(address)
        self._ends.append(address + data.size)
        self._bounds = (np.array(self._starts), np.array(self._ends))
        return address

    def read(self, address: int, like: Array) -> Array:
        """What lies at an address now, with the shape and type of an array."""
        return self._bytes[address : address + like.nbytes].view(like.dtype).reshape(like.shape)

    def words(self, width: int) -> Array:
        """All of the memory as unsigned words of some bytes."""
        return self._bytes.view(UNSIGNED[8 * width])

    def check(self, address: Array, size: int, what: str) -> None:
        """Whether accesses of ``size`` bytes are aligned and inside an array."""
        if (address % size).any():
            raise Fault(f"{what}: misaligned address")
        self.check_bounds(address, size, what)

    def check_bounds(self, address: Array, size: int | Array, what: str) -> None:
        if address.size == 0:
            return
        if self._bounds is None:
            raise Fault(f"{what}: out of bounds, nothing is allocated")
        starts, ends = self._bounds
        index = np.searchsorted(starts, address, side="right") - 1
        if (index < 0).any() or (address + size > ends[np.maximum(index, 0)]).any():
            bad = (index < 0) | (address + size > ends[np.maximum(index, 0)])
            where = int(address[np.flatnonzero(bad)[0]])
            near = bisect.bisect_right(self._starts, where) - 1
            offset = where - self._starts[max(near, 0)]
            raise Fault(f"{what}: out of bounds, byte {offset} of array {max(near, 0)}")


Decoder = Callable[["Machine", Instruction], Step]
DECODERS: dict[str, Decoder] = {}
"""How to run the instructions of each name; see :func:`decoder`."""


def decoder(*names: str) -> Callable[[Decoder], Decoder]:
    """Registers a function that turns instructions of some opcodes into steps."""

    def register(function: Decoder) -> Decoder:
        for name in names:
            assert name not in DECODERS
            DECODERS[name] = function
        return function

    return register


class Compute:
    """An instruction without side effects: source types, result type, and the function between."""

    def __init__(self, sources: Sequence[Type], result: Type, function: Callable[..., Any]) -> None:
        self.sources, self.result, self.function = sources, result, function


def compute(*names: str) -> Callable[[Callable[[Mnemonic], Compute]], None]:
    """Registers opcodes that only compute: ``d, a, b...``."""

    def register(describe: Callable[[Mnemonic], Compute]) -> None:
        def decode(machine: Machine, instruction: Instruction) -> Step:
            c = describe(Mnemonic(instruction.opcode))
            target, *operands = instruction.operands
            if len(operands) != len(c.sources):
                raise Unsupported(f"{instruction}: expected {len(c.sources)} sources")
            read = [machine.source(o, t) for o, t in zip(operands, c.sources, strict=True)]
            write = machine.target(target, c.result)
            function = c.function
            return lambda lanes: write(lanes, function(*[r(lanes) for r in read]))

        decoder(*names)(decode)

    return register


class Machine:
    """The state of a launch, and what decoders need of it."""

    def __init__(
        self,
        kernel: Kernel,
        memory: GlobalMemory,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: bytes,
        dynamic_shared: int,
    ) -> None:
        self.kernel, self.memory = kernel, memory
        self.threads = int(np.prod(block))
        self.blocks = int(np.prod(grid))
        if self.threads % WARP:
            raise Unsupported("blocks that are not whole warps")
        self.count = n = self.threads * self.blocks
        self.lane = np.arange(n)
        self.block = self.lane // self.threads
        self.registers = {
            name: np.zeros(n, np.bool_ if kind == "pred" else UNSIGNED[int(kind[1:])])
            for name, kind in kernel.registers.items()
        }
        self.special = self._special_registers(grid, block)
        # Whole words of the widest load.
        self.parameters = np.frombuffer(arguments + bytes(-len(arguments) % 16), np.uint8)
        self.shared_size = kernel.static_shared + dynamic_shared
        # Poisoned: what is read before it was written becomes NaN or a wild address.
        self.shared_stride = -(-max(self.shared_size, 1) // 128) * 128
        self.shared = np.full(self.blocks * self.shared_stride, 0xFF, np.uint8)
        self.copies = AsyncCopies(self)

    def _special_registers(
        self, grid: tuple[int, int, int], block: tuple[int, int, int]
    ) -> dict[str, Array]:
        thread = self.lane % self.threads
        special = {"%laneid": self.lane % WARP, "%warpid": thread // WARP}
        stride_t = stride_b = 1
        for axis, size_t, size_b in zip("xyz", block, grid, strict=True):
            special[f"%tid.{axis}"] = thread // stride_t % size_t
            special[f"%ctaid.{axis}"] = self.block // stride_b % size_b
            special[f"%ntid.{axis}"] = np.full(self.count, size_t)
            special[f"%nctaid.{axis}"] = np.full(self.count, size_b)
            stride_t, stride_b = stride_t * size_t, stride_b * size_b
        return {name: value.astype(np.uint32) for name, value in special.items()}

    # Operands --------------------------------------------------------------------------------

    def source(self, operand: str, type_: Type) -> Callable[[Lanes], Any]:
        """Reads an operand as values of a type: an array, or a scalar for an immediate."""
        if operand.startswith("!"):
            inner = self.source(operand[1:], type_)
            return lambda lanes: ~inner(lanes)
        if (register := self.registers.get(operand)) is not None:
            if (type_.kind == "pred") != (register.dtype == np.bool_):
                raise Unsupported(f"operand {operand} as {type_.kind}{type_.bits}")
            return lambda lanes: typed(register[lanes], type_)
        if (special := self.special.get(operand)) is not None:
            return lambda lanes: typed(special[lanes], type_)
        value = typed(self._constant(operand, type_), type_)
        return lambda lanes: value

    def _constant(self, operand: str, type_: Type) -> Any:
        width = UNSIGNED[64]
        if operand[:2] in ("0f", "0F"):
            return np.uint32(int(operand[2:], 16))
        if operand[:2] in ("0d", "0D"):
            return np.uint64(int(operand[2:], 16))
        if operand in self.kernel.shared:
            return width(self.kernel.shared[operand].offset)
        if operand in self.kernel.parameters:
            return width(self.kernel.parameters[operand].offset)
        try:
            number = int(operand.rstrip("U"), 0)
        except ValueError:
            raise Unsupported(f"operand {operand!r}") from None
        if type_.kind == "pred":
            return np.bool_(number)
        return width(number % (1 << 64))

    def sources(self, operand: str, type_: Type) -> list[Callable[[Lanes], Any]]:
        """The members of a ``{vector}``, or the one operand."""
        return [self.source(member, type_) for member in members(operand)]

    def target(self, operand: str, type_: Type) -> Callable[[Lanes, Any], None]:
        """Writes values of a type to a register."""
        if operand == "_":
            return lambda lanes, value: None
        register = self.registers.get(operand)
        if register is None or (type_.kind == "pred") != (register.dtype == np.bool_):
            raise Unsupported(f"result {operand!r} as {type_.kind}{type_.bits}")
        width = register.dtype.itemsize * 8
        if type_.kind != "pred" and type_.bits > width:
            raise Unsupported(f"result {operand!r} of {type_.bits} bits")

        def write(lanes: Lanes, value: Any) -> None:
            register[lanes] = raw_bits(value, type_, width)

        return write

    def targets(self, operand: str, type_: Type) -> list[Callable[[Lanes, Any], None]]:
        return [self.target(member, type_) for member in members(operand)]

    def address(self, operand: str, type_: Type) -> Callable[[Lanes], Array]:
        """``[base]`` or ``[base+offset]`` as signed 64-bit numbers, one per lane."""
        base, _, offset = operand.strip("[] ").partition("+")
        read = self.source(base.strip(), type_)
        shift = int(offset or "0", 0)

        def evaluate(lanes: Lanes) -> Array:
            address = np.asarray(read(lanes)).astype(np.int64) + shift
            return np.broadcast_to(address, self.lane[lanes].shape)

        return evaluate

    def whole_warps(self, lanes: Lanes, what: str) -> Array:
        """The lanes as [warps, 32]; a Fault unless each warp is there as a whole."""
        lane = self.lane[lanes]
        if lane.size % WARP:
            raise Fault(f"{what}: a warp is divergent")
        warps = lane.reshape(-1, WARP)
        if (warps[:, 0] % WARP).any() or (warps[:, -1] - warps[:, 0] != WARP - 1).any():
            raise Fault(f"{what}: a warp is divergent")
        return warps


def members(operand: str) -> list[str]:
    """The operands in braces, or the operand itself."""
    if operand.startswith("{"):
        return [member.strip() for member in operand[1:-1].split(",")]
    return [operand]
