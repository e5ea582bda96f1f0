"""Instructions on integers, bits and predicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.machine import Compute, Fault, Lanes, Machine, Step, compute, decoder
from ptx.parser import Instruction, Unsupported
from ptx.types import B32, PRED, U32, UNSIGNED, Array, Mnemonic, Type

Function = Callable[..., Any]


def is_float(mnemonic: Mnemonic) -> bool:
    return any(t.kind in ("f", "bf16", "f16x2", "bf16x2") for t in mnemonic.types)


def wide(type_: Type) -> Type:
    """The type of twice the width."""
    return Type(type_.kind, 2 * type_.bits)


def high_product(a: Any, b: Any, type_: Type) -> Any:
    """The upper half of a product."""
    if type_.bits < 64:
        double = wide(type_).dtype
        product = a.astype(double) * b.astype(double)
        return (product >> double(type_.bits)).astype(type_.dtype)
    exact = np.asarray(a).astype(object) * np.asarray(b).astype(object)
    return (exact >> 64).astype(type_.dtype)


def multiply(m: Mnemonic, type_: Type) -> tuple[Function, Type]:
    """The product that a modifier selects, and its type."""
    mode = m.allow("lo", "hi", "wide")
    if mode == {"wide"}:
        double = wide(type_).dtype
        return (lambda a, b: a.astype(double) * b.astype(double)), wide(type_)
    if mode == {"hi"}:
        return (lambda a, b: high_product(a, b, type_)), type_
    return np.multiply, type_


def divide(a: Any, b: Any) -> Any:
    """Rounds towards zero."""
    if (np.asarray(b) == 0).any():
        raise Fault("division by zero")
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (b < 0))).astype(quotient.dtype)


INTEGER: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "div": divide,
    "rem": lambda a, b: a - divide(a, b) * b,
    "neg": np.negative,
    "abs": np.abs,
}


def integer_arithmetic(m: Mnemonic) -> Compute:
    """add, sub, min, max, div, rem, neg and abs of integers."""
    m.allow()
    type_ = m.only_type("us")
    function = INTEGER[m.name]
    unary = m.name in ("neg", "abs")
    return Compute([type_] if unary else [type_, type_], type_, function)


def integer_product(m: Mnemonic) -> Compute:
    """mul and mad of integers."""
    type_ = m.only_type("us")
    product, result = multiply(m, type_)
    if m.name == "mul":
        return Compute([type_, type_], result, product)
    return Compute([type_, type_, result], result, lambda a, b, c: product(a, b) + c)


@compute("and", "or", "xor")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.types[0] if m.types == [PRED] else m.only_type("b")
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[m.name]
    return Compute([type_, type_], type_, function)


@compute("not", "cnot")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.types[0] if m.types == [PRED] else m.only_type("b")
    if m.name == "cnot":
        return Compute([type_], type_, lambda a: (a == 0).astype(type_.dtype))
    return Compute([type_], type_, np.invert)


@compute("shl", "shr")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.only_type("b" if m.name == "shl" else "bus")
    last = np.uint32(type_.bits - 1)

    def shift(a: Any, amount: Any) -> Any:
        by = np.minimum(amount, last).astype(type_.dtype)
        moved = a << by if m.name == "shl" else a >> by
        if type_.kind == "s":
            return moved
        return np.where(amount > last, type_.dtype(0), moved)

    return Compute([type_, U32], type_, shift)


@compute("shf")
def _(m: Mnemonic) -> Compute:
    mode = m.allow("l", "r", "wrap", "clamp")
    m.only_type("b", (32,))

    def shift(low: Any, high: Any, amount: Any) -> Any:
        pair = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        by = amount % np.uint32(32) if "wrap" in mode else np.minimum(amount, np.uint32(32))
        by = by.astype(np.uint64)
        moved = pair >> by if "r" in mode else (pair << by) >> np.uint64(32)
        return moved.astype(np.uint32)

    return Compute([B32, B32, U32], B32, shift)


@compute("bfe")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.only_type("us", (32, 64))
    bits, unsigned = type_.bits, UNSIGNED[type_.bits]

    def extract(a: Any, position: Any, length: Any) -> Any:
        position = np.minimum(position & 0xFF, bits).astype(unsigned)
        length = np.minimum(length & 0xFF, bits).astype(unsigned)
        raw = a.view(unsigned)
        one, size = unsigned(1), unsigned(bits)
        field = np.where(position < size, raw >> np.minimum(position, size - one), unsigned(0))
        mask = np.where(length < size, (one << (length % size)) - one, unsigned(2**bits - 1))
        value = field & mask
        if type_.kind == "u":
            return value
        top = np.minimum(position + length - one, size - one)
        sign = (raw >> top) & one & (length > 0).astype(unsigned)
        return (value | np.where(sign.astype(bool), ~mask, unsigned(0))).view(type_.dtype)

    return Compute([type_, U32, U32], type_, extract)


@compute("bfi")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.only_type("b", (32, 64))
    bits, unsigned = type_.bits, type_.dtype

    def insert(a: Any, b: Any, position: Any, length: Any) -> Any:
        position = np.minimum(position & 0xFF, bits).astype(unsigned)
        length = np.minimum(length & 0xFF, bits).astype(unsigned)
        one, size = unsigned(1), unsigned(bits)
        ones = np.where(length < size, (one << (length % size)) - one, unsigned(2**bits - 1))
        inside = position < size
        mask = np.where(inside, ones << (position % size), unsigned(0))
        moved = np.where(inside, a << (position % size), unsigned(0))
        return (b & ~mask) | (moved & mask)

    return Compute([type_, type_, U32, U32], type_, insert)


@compute("popc", "clz", "brev")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.only_type("b", (32, 64))

    def bits_of(a: Any) -> Array:
        """[..., bits], the lowest first."""
        places = np.arange(type_.bits, dtype=type_.dtype)
        return (np.asarray(a)[..., None] >> places) & type_.dtype(1)

    if m.name == "brev":
        weights = type_.dtype(1) << np.arange(type_.bits, dtype=type_.dtype)[::-1]
        return Compute([type_], type_, lambda a: (bits_of(a) * weights).sum(-1, dtype=type_.dtype))
    if m.name == "popc":
        return Compute([type_], U32, lambda a: bits_of(a).sum(-1).astype(np.uint32))

    def leading_zeros(a: Any) -> Any:
        found = bits_of(a)[..., ::-1].astype(bool)
        return np.where(found.any(-1), found.argmax(-1), type_.bits).astype(np.uint32)

    return Compute([type_], U32, leading_zeros)


@compute("lop3")
def _(m: Mnemonic) -> Compute:
    m.allow()
    m.only_type("b", (32,))

    def table(a: Any, b: Any, c: Any, chosen: Any) -> Any:
        result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
        for row in range(8):
            if int(chosen) >> row & 1:
                terms = [v if row >> (2 - i) & 1 else ~v for i, v in enumerate((a, b, c))]
                result = result | (terms[0] & terms[1] & terms[2])
        return result

    return Compute([B32, B32, B32, U32], B32, table)


@compute("prmt")
def _(m: Mnemonic) -> Compute:
    m.allow()
    m.only_type("b", (32,))

    def permute(a: Any, b: Any, selector: Any) -> Any:
        pair = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        result = np.uint32(0)
        for i in range(4):
            choice = (selector >> np.uint32(4 * i)) & np.uint32(0xF)
            shift = ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            byte = ((pair >> shift) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            byte = np.where(choice & np.uint32(8), sign, byte)
            result = result | (byte << np.uint32(8 * i))
        return result

    return Compute([B32, B32, U32], B32, permute)


# Comparison and selection ------------------------------------------------------------------------

_ORDERED: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def comparison(name: str, of_floats: bool) -> Function:
    """The comparison of a name; of floats, ordered ones are false for NaN, others true."""
    if not of_floats:
        return _ORDERED[_UNSIGNED_NAMES.get(name, name)]

    def unordered(a: Any, b: Any) -> Any:
        return np.isnan(a) | np.isnan(b)

    if name == "nan":
        return unordered
    if name == "num":
        return lambda a, b: ~unordered(a, b)
    if name.endswith("u") and name[:-1] in _ORDERED:
        return lambda a, b: _ORDERED[name[:-1]](a, b) | unordered(a, b)
    if name == "ne":
        return lambda a, b: (a != b) & ~unordered(a, b)
    return _ORDERED[name]


_COMPARISONS = {*_ORDERED, *_UNSIGNED_NAMES, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"}


@decoder("setp")
def _(machine: Machine, instruction: Instruction) -> Step:
    m = Mnemonic(instruction.opcode)
    given = m.allow(*_COMPARISONS, "and", "or", "xor")
    names = given & _COMPARISONS
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    joined = [combine[name] for name in given - names]
    type_ = m.only_type("usbf")
    targets, left, right, *third = instruction.operands
    if len(names) != 1 or len(third) != len(joined):
        raise Unsupported(str(instruction))
    compare = comparison(names.pop(), type_.kind == "f")
    a, b = machine.source(left, type_), machine.source(right, type_)
    with_ = [machine.source(operand, PRED) for operand in third]
    first, _, second = targets.partition("|")
    write = machine.target(first, PRED)
    write_other = machine.target(second or "_", PRED)

    def step(lanes: Lanes) -> None:
        holds = compare(a(lanes), b(lanes))
        other = ~np.asarray(holds)
        for join, value in zip(joined, with_, strict=True):
            c = value(lanes)
            holds, other = join(holds, c), join(other, c)
        write(lanes, holds)
        write_other(lanes, other)

    return step


@compute("selp")
def _(m: Mnemonic) -> Compute:
    m.allow()
    type_ = m.only_type("usbf")
    return Compute([type_, type_, PRED], type_, lambda a, b, c: np.where(c, a, b))
