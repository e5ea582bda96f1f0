"""Floating-point arithmetic and conversions, rounded as PTX demands; and the opcodes that floats
share with integers."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.integer import INTEGER, integer_arithmetic, integer_product, is_float
from ptx.machine import Compute, Lanes, Machine, Step, compute, decoder, members
from ptx.parser import Instruction, Unsupported
from ptx.types import F16, F32, Array, Mnemonic, Type

Function = Callable[..., Any]
_CANONICAL_NAN = 0x7FFF


def widen_bf16(bits: Any) -> Any:
    """bfloat16 bits as float32."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bf16(value: Any) -> Any:
    """float32 to bfloat16 bits, to nearest even; NaN becomes the canonical one."""
    value = np.asarray(value, np.float32)
    bits = value.view(np.uint32)
    tie = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + tie) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(_CANONICAL_NAN), rounded)


def round_f16(value: Any) -> Any:
    """float32 to float16, to nearest even; NaN becomes the canonical one."""
    value = np.asarray(value)
    rounded = value.astype(np.float16)
    canonical = np.uint16(_CANONICAL_NAN).view(np.float16)
    return np.where(np.isnan(value), canonical, rounded)


def fma_to_odd(a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float64 for factors of at most 26 bits, rounded to odd.

    The product is exact. An odd last bit keeps the memory of what was cut off, so that rounding
    once more, to a type of at most 51 bits, gives what rounding the exact sum would.
    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008.
    """
    p, c = a.astype(np.float64) * b.astype(np.float64), np.asarray(c).astype(np.float64)
    total = p + c
    back = total - p
    error = (p - (total - back)) + (c - back)  # Knuth's exact error of a sum
    even = (total.view(np.int64) & 1) == 0
    fix = (error != 0) & even & np.isfinite(total)
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(fix, np.nextafter(total, towards), total)


def _libm_fma() -> Function:
    fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
    fma.restype, fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    return np.vectorize(fma, otypes=[np.float64])


_fma64 = _libm_fma()


def fused(type_: Type) -> Function:
    """a * b + c, rounded once."""
    if type_ == F32:
        return lambda a, b, c: fma_to_odd(a, b, c).astype(np.float32)
    if type_ == F16:
        return lambda a, b, c: round_f16(fma_to_odd(a, b, c))
    return _fma64


def minimum(a: Any, b: Any) -> Any:
    """The other operand where one is NaN; -0 is less than +0."""
    return np.where((a == b) & np.signbit(a), a, np.fmin(a, b))


def maximum(a: Any, b: Any) -> Any:
    return np.where((a == b) & ~np.signbit(a), a, np.fmax(a, b))


_BINARY: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": minimum,
    "max": maximum,
    "div": np.divide,
}


def unpack_pair(bits: Any, kind: str) -> tuple[Any, Any]:
    """The lower and the upper half of a packed register, as float16 or (from bf16) float32."""
    halves = [(bits >> np.uint32(s)).astype(np.uint16) for s in (0, 16)]
    if kind == "bf16x2":
        return widen_bf16(halves[0]), widen_bf16(halves[1])
    return halves[0].view(np.float16), halves[1].view(np.float16)


def pack_pair(low: Any, high: Any, kind: str) -> Any:
    """Two values, rounded to the elements of a packed register."""
    if kind == "bf16x2":
        halves = round_bf16(low), round_bf16(high)
    else:
        halves = round_f16(low).view(np.uint16), round_f16(high).view(np.uint16)
    return halves[0].astype(np.uint32) | (halves[1].astype(np.uint32) << np.uint32(16))


def float_arithmetic(m: Mnemonic) -> Compute:
    """add, sub, mul, min, max and div; float32 carries bf16 without a second rounding error."""
    m.allow("rn")
    (type_,) = m.types
    function = _BINARY[m.name]
    if type_.kind == "f":
        if type_ == F16:
            return Compute([type_, type_], type_, lambda a, b: round_f16(function(a, b)))
        return Compute([type_, type_], type_, function)
    if type_.kind == "bf16":
        return Compute(
            [type_, type_],
            type_,
            lambda a, b: round_bf16(function(widen_bf16(a), widen_bf16(b))),
        )

    def pairs(a: Any, b: Any) -> Any:
        results = [
            function(x, y)
            for x, y in zip(unpack_pair(a, type_.kind), unpack_pair(b, type_.kind), strict=True)
        ]
        return pack_pair(results[0], results[1], type_.kind)

    return Compute([type_, type_], type_, pairs)


@compute("add", "sub", "min", "max", "div")
def _(m: Mnemonic) -> Compute:
    return float_arithmetic(m) if is_float(m) else integer_arithmetic(m)


@compute("mul")
def _(m: Mnemonic) -> Compute:
    return float_arithmetic(m) if is_float(m) else integer_product(m)


@compute("mad")
def _(m: Mnemonic) -> Compute:
    return integer_product(m)


@compute("rem")
def _(m: Mnemonic) -> Compute:
    return integer_arithmetic(m)


@compute("fma")
def _(m: Mnemonic) -> Compute:
    m.allow("rn")
    (type_,) = m.types
    if type_.kind == "f":
        return Compute([type_] * 3, type_, fused(type_))
    if type_.kind != "f16x2":
        raise Unsupported(m.opcode)

    def pairs(*operands: Any) -> Any:
        low, high = zip(*(unpack_pair(o, type_.kind) for o in operands), strict=True)
        return pack_pair(fma_to_odd(*low), fma_to_odd(*high), type_.kind)

    return Compute([type_] * 3, type_, pairs)


@compute("neg", "abs")
def _(m: Mnemonic) -> Compute:
    if not is_float(m):
        return integer_arithmetic(m)
    m.allow()
    type_ = m.only_type("f")
    return Compute([type_], type_, INTEGER[m.name])


@compute("rcp", "sqrt")
def _(m: Mnemonic) -> Compute:
    m.allow("rn")
    type_ = m.only_type("f", (32, 64))
    if "rn" not in m.modifiers:
        raise Unsupported(f"{m.opcode}: approximations")
    return Compute([type_], type_, np.reciprocal if m.name == "rcp" else np.sqrt)


# Conversions -------------------------------------------------------------------------------------


def _to_float(value: Any, target: Type) -> Any:
    """Float32, float64 or an integer to a float type, to nearest even."""
    if target.kind == "bf16":
        if value.dtype != np.float32:
            raise Unsupported("cvt to bf16 from other than f32")
        return round_bf16(value)
    return round_f16(value) if target == F16 else value.astype(target.dtype)


def _to_integer(value: Any, target: Type, rounding: str) -> Any:
    """A float to an integer, limited to its range; NaN becomes zero."""
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](value)
    limits = np.iinfo(target.dtype)
    whole = np.nan_to_num(whole.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    inside = (whole >= float(limits.min)) & (whole < float(limits.max) + 1)
    edge = np.where(whole < 0, target.dtype(limits.min), target.dtype(limits.max))
    return np.where(inside, np.where(inside, whole, 0.0).astype(target.dtype), edge)


_INTEGER_ROUNDING = {"rni", "rzi", "rmi", "rpi"}


@decoder("cvt")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    target, source = m.types
    floats = ("f", "bf16", "f16x2", "bf16x2", "tf32")
    from_float, to_float = source.kind in floats, target.kind in floats
    out, *operands = instruction.operands
    read = [machine.source(operand, source) for operand in operands]
    write = machine.target(out, target)
    if len(read) != (2 if target.kind in ("f16x2", "bf16x2") else 1):
        raise Unsupported(str(instruction))
    function: Function
    if len(read) == 2:
        if source != F32 or m.allow("rn") != {"rn"}:
            raise Unsupported(instruction.opcode)
        kind = target.kind
        # The first source becomes the upper half.
        function = lambda high, low: pack_pair(low, high, kind)  # noqa: E731
    elif target.kind == "tf32":
        if source != F32 or m.allow("rna") != {"rna"}:
            raise Unsupported(instruction.opcode)
        function = round_tf32
    elif from_float and to_float:
        narrows = target.bits < source.bits
        if m.allow("rn") != ({"rn"} if narrows else set()):
            raise Unsupported(instruction.opcode)
        widen = widen_bf16 if source.kind == "bf16" else lambda value: value
        function = lambda value: _to_float(widen(value), target)  # noqa: E731
    elif from_float:
        (rounding,) = m.allow(*_INTEGER_ROUNDING)
        function = lambda value: _to_integer(value, target, rounding)  # noqa: E731
    elif to_float:
        if m.allow("rn") != {"rn"}:
            raise Unsupported(instruction.opcode)
        function = lambda value: _to_float(value, target)  # noqa: E731
    else:
        m.allow()
        function = lambda value: value.astype(target.dtype)  # noqa: E731
    return lambda lanes: write(lanes, function(*[r(lanes) for r in read]))


def round_tf32(value: Any) -> Any:
    """float32 to the 10 bits of TF32's mantissa, to nearest, ties away from zero."""
    bits = np.asarray(value).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(value), np.uint32(0x7FFFFFFF), rounded)


# Moves -------------------------------------------------------------------------------------------


@decoder("mov")
def _(machine: Machine, instruction: Instruction) -> Step:
    """Between registers, and between a register and a vector of its parts."""
    m = Mnemonic(instruction.opcode)
    m.allow()
    (type_,) = m.types
    out, source = instruction.operands
    outs, sources = members(out), members(source)
    if len(outs) == len(sources) == 1:
        read, write = machine.source(source, type_), machine.target(out, type_)
        return lambda lanes: write(lanes, read(lanes))
    parts = max(len(outs), len(sources))
    if min(len(outs), len(sources)) != 1 or type_.kind != "b":
        raise Unsupported(str(instruction))
    part = Type("b", type_.bits // parts)
    if len(outs) == 1:
        reads, whole = machine.sources(source, part), machine.target(out, type_)

        def pack(lanes: Lanes) -> None:
            total: Array = np.zeros((), type_.dtype)
            for i, read_part in enumerate(reads):
                total = total | (read_part(lanes).astype(type_.dtype) << type_.dtype(part.bits * i))
            whole(lanes, total)

        return pack
    read, writes = machine.source(source, type_), machine.targets(out, part)

    def unpack(lanes: Lanes) -> None:
        value = read(lanes)
        pieces = [(value >> type_.dtype(part.bits * i)).astype(part.dtype) for i in range(parts)]
        for write_part, piece in zip(writes, pieces, strict=True):
            write_part(lanes, piece)

    return unpack
