"""Instructions on integers, bits and predicates, against plain Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import ptx
from ptx.harness import (
    COMPARE,
    INTEGERS,
    LONG,
    evaluate,
    signed,
)

pytestmark = pytest.mark.once


def pairs_of(values: list[int], bits: int) -> tuple[list[int], list[int]]:
    cut = sorted({v & ((1 << bits) - 1) for v in values})
    return [a for a in cut for _ in cut], [b for _ in cut for b in cut]


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: (a * b) >> n,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: toward_zero(a, b),
    "rem": lambda a, b, n: a - b * toward_zero(a, b),
}


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_integer_arithmetic(name: str, type_: str) -> None:
    bits = int(type_[1:])
    left, right = pairs_of(LONG, bits)
    if name in ("div", "rem"):
        kept = [(a, b) for a, b in zip(left, right, strict=True) if b]
        left, right = [list(column) for column in zip(*kept, strict=True)]
    found = evaluate(f"{name}.{type_}", f"b{bits}", [(f"b{bits}", left), (f"b{bits}", right)])
    as_value = (lambda v: signed(v, bits)) if type_[0] == "s" else (lambda v: v)
    expected = [
        BINARY[name](as_value(a), as_value(b), bits) % (1 << bits)
        for a, b in zip(left, right, strict=True)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32"])
def test_wide_products(type_: str) -> None:
    bits = int(type_[1:])
    left, right = pairs_of(INTEGERS, bits)
    as_value = (lambda v: signed(v, bits)) if type_[0] == "s" else (lambda v: v)
    products = [as_value(a) * as_value(b) for a, b in zip(left, right, strict=True)]
    double = f"b{2 * bits}"
    found = evaluate(f"mul.wide.{type_}", double, [(f"b{bits}", left), (f"b{bits}", right)])
    assert found.tolist() == [p % (1 << 2 * bits) for p in products]
    added = [(f"b{bits}", left), (f"b{bits}", right), (double, [5] * len(left))]
    found = evaluate(f"mad.wide.{type_}", double, added)
    assert found.tolist() == [(p + 5) % (1 << 2 * bits) for p in products]


def test_division_by_zero_is_a_fault() -> None:
    with pytest.raises(ptx.Fault, match="division by zero"):
        evaluate("div.u32", "b32", [("b32", [1]), ("b32", [0])])


BITWISE: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("name", BITWISE)
def test_bitwise(name: str, bits: int) -> None:
    left, right = pairs_of(LONG, bits)
    kind = f"b{bits}"
    found = evaluate(f"{name}.{kind}", kind, [(kind, left), (kind, right)])
    assert found.tolist() == [BITWISE[name](a, b) for a, b in zip(left, right, strict=True)]


UNARY: dict[str, Callable[[int, int], int]] = {
    "not.b": lambda a, n: ~a,
    "cnot.b": lambda a, n: int(a == 0),
    "neg.s": lambda a, n: -signed(a, n),
    "abs.s": lambda a, n: abs(signed(a, n)),
    "brev.b": lambda a, n: int(f"{a:0{n}b}"[::-1], 2),
    "popc.b": lambda a, n: bin(a).count("1"),
    "clz.b": lambda a, n: n - a.bit_length(),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, bits: int) -> None:
    values = [v % (1 << bits) for v in LONG]
    result = 32 if name[:4] in ("popc", "clz.") else bits
    found = evaluate(f"{name}{bits}", f"b{result}", [(f"b{bits}", values)])
    assert found.tolist() == [UNARY[name](v, bits) % (1 << result) for v in values]


@pytest.mark.parametrize("bits", [32, 64])
def test_shifts(bits: int) -> None:
    values, amounts = pairs_of(INTEGERS, 32)
    values = [v << (bits - 32) for v in values]
    sources = [(f"b{bits}", values), ("b32", amounts)]
    rows = list(zip(values, amounts, strict=True))
    mask = (1 << bits) - 1
    left = evaluate(f"shl.b{bits}", f"b{bits}", sources).tolist()
    assert left == [(v << min(a, bits)) & mask for v, a in rows]
    right = evaluate(f"shr.u{bits}", f"b{bits}", sources).tolist()
    assert right == [v >> min(a, bits) for v, a in rows]
    arithmetic = evaluate(f"shr.s{bits}", f"b{bits}", sources).tolist()
    assert arithmetic == [(signed(v, bits) >> min(a, bits)) & mask for v, a in rows]


@pytest.mark.parametrize("side", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(side: str, mode: str) -> None:
    low, amount = pairs_of(INTEGERS, 32)
    high = [v ^ 0x5A5A5A5A for v in low]
    found = evaluate(
        f"shf.{side}.{mode}.b32", "b32", [("b32", low), ("b32", high), ("b32", amount)]
    )
    for result, lo, hi, n in zip(found.tolist(), low, high, amount, strict=True):
        by = n % 32 if mode == "wrap" else min(n, 32)
        pair = hi << 32 | lo
        expected = pair << by >> 32 if side == "l" else pair >> by
        assert result == expected & 0xFFFFFFFF


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(bits: int) -> None:
    places = [(p, n) for p in (0, 1, 7, 31, 32, 40, 63) for n in (0, 1, 8, 31, 32, 33, 64)]
    value, base = 0xF123456789ABCDEF % (1 << bits), 0x5555AAAA5555AAAA % (1 << bits)
    count = len(places)
    position, length = [p for p, _ in places], [n for _, n in places]
    ends = [("b32", position), ("b32", length)]
    kind = f"b{bits}"
    unsigned = evaluate(f"bfe.u{bits}", kind, [(kind, [value] * count), *ends]).tolist()
    arithmetic = evaluate(f"bfe.s{bits}", kind, [(kind, [value] * count), *ends]).tolist()
    inserted = evaluate(
        f"bfi.{kind}", kind, [(kind, [value] * count), (kind, [base] * count), *ends]
    )
    for i, (p, n) in enumerate(places):
        field = value >> p & ((1 << n) - 1)
        assert unsigned[i] == field
        top = value >> min(p + n - 1, bits - 1) & 1 if n else 0
        extended = field | (-(1 << n) if top and n < bits else 0)
        assert arithmetic[i] == extended % (1 << bits)
        mask = ((1 << n) - 1) << p & ((1 << bits) - 1)
        assert int(inserted[i]) == (base & ~mask) | (value << p & mask)


def test_lop3() -> None:
    a, b, c = [0xF0F0F0F0] * 2, [0xCCCCCCCC] * 2, [0xAAAAAAAA] * 2
    sources = [("b32", a), ("b32", b), ("b32", c)]
    # With these operands the result repeats the table itself.
    for table in (0x00, 0x80, 0x96, 0xE8, 0xFE, 0xCA, 0xFF):
        found = evaluate("lop3.b32", "b32", sources, f", {table}")
        assert found[0] == int(f"{table:02x}" * 4, 16)


def test_prmt() -> None:
    selectors = [0x3210, 0x7654, 0x5410, 0x7632, 0x0000, 0xBA98, 0x8F1C]
    a, b = [0x80017F04] * len(selectors), [0x11F23344] * len(selectors)
    found = evaluate("prmt.b32", "b32", [("b32", a), ("b32", b), ("b32", selectors)])
    bytes_ = [*a[0].to_bytes(4, "little"), *b[0].to_bytes(4, "little")]
    for result, selector in zip(found.tolist(), selectors, strict=True):
        picked = []
        for i in range(4):
            nibble = selector >> 4 * i & 0xF
            byte = bytes_[nibble & 7]
            picked.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
        assert result == int.from_bytes(picked, "little")


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64", "b32", "u16", "s16"])
@pytest.mark.parametrize("name", COMPARE)
def test_setp_of_integers(name: str, type_: str) -> None:
    bits = int(type_[1:])
    left, right = pairs_of(LONG, bits)
    kind = f"b{bits}"
    found = evaluate(f"setp.{name}.{type_}", "pred", [(kind, left), (kind, right)])
    as_value = (lambda v: signed(v, bits)) if type_[0] == "s" else (lambda v: v)
    expected = [COMPARE[name](as_value(a), as_value(b)) for a, b in zip(left, right, strict=True)]
    assert found.astype(bool).tolist() == expected
