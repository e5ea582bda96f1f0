"""Floating-point instructions and conversions, against exact arithmetic."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from ptx.harness import (
    BITS,
    COMPARE,
    FLOATS,
    LONG,
    evaluate,
    float_bits,
    signed,
)

pytestmark = pytest.mark.once


FLOAT_PAIRS = [(a, b) for a in FLOATS for b in FLOATS]


@pytest.mark.parametrize("name", [*COMPARE, *(f"{name}u" for name in COMPARE), "num", "nan"])
def test_setp_of_floats(name: str) -> None:
    columns = [[float_bits(v) for v in column] for column in zip(*FLOAT_PAIRS, strict=True)]
    found = evaluate(f"setp.{name}.f32", "pred", [("f32", columns[0]), ("f32", columns[1])])
    for result, (a, b) in zip(found.tolist(), FLOAT_PAIRS, strict=True):
        a, b = float(np.float32(a)), float(np.float32(b))
        unordered = math.isnan(a) or math.isnan(b)
        if name in ("num", "nan"):
            assert result == (unordered == (name == "nan"))
        else:
            plain = COMPARE[name.removesuffix("u")](a, b)
            assert result == ((name.endswith("u") and unordered) or (plain and not unordered))


# Floating point ----------------------------------------------------------------------------------


def exactly_rounded(value: Fraction, kind: str) -> float:
    """The nearest float32 or float64, ties to even; the value must be in its range."""
    wide = float(value)
    if kind == "f64":
        return wide
    near = np.float32(wide)
    candidates = [np.nextafter(near, np.float32(s * np.inf)) for s in (-1, 1)] + [near]
    finite = [c for c in candidates if np.isfinite(c)]
    best = min(finite, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1))
    return float(best)


def random_floats(kind: str, seed: int, count: int = 300) -> list[float]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * 2.0 ** rng.integers(-12, 12, count)
    return [float(v) for v in (values.astype(np.float32) if kind == "f32" else values)]


FLOAT_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "add.rn": lambda a, b: a + b,
    "sub.rn": lambda a, b: a - b,
    "mul.rn": lambda a, b: a * b,
    "div.rn": lambda a, b: a / b,
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", FLOAT_BINARY)
def test_float_arithmetic_is_rounded_to_nearest_even(name: str, kind: str) -> None:
    left, right = random_floats(kind, 0), random_floats(kind, 1)
    sources = [(kind, [float_bits(v, kind) for v in column]) for column in (left, right)]
    found = evaluate(f"{name}.{kind}", kind, sources)
    for result, a, b in zip(found, left, right, strict=True):
        expected = exactly_rounded(FLOAT_BINARY[name](Fraction(a), Fraction(b)), kind)
        assert int(result) == float_bits(expected, kind)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_rounds_once(kind: str) -> None:
    a, b = random_floats(kind, 0), random_floats(kind, 1)
    # Addends near the negative product, where rounding twice would show.
    c = [-x * y * (1 + 2.0**-30) for x, y in zip(a, b, strict=True)]
    c[::2] = random_floats(kind, 2)[::2]
    columns = [[float_bits(v, kind) for v in column] for column in (a, b, c)]
    found = evaluate(f"fma.rn.{kind}", kind, [(kind, column) for column in columns])
    for result, x, y, bits in zip(found, a, b, columns[2], strict=True):
        z = struct.unpack("f" if kind == "f32" else "d", bits.to_bytes(BITS[kind] // 8, "little"))[
            0
        ]
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert int(result) == float_bits(exactly_rounded(exact, kind), kind)


def test_fma_of_halves_rounds_once() -> None:
    # (1 + 2^-10)^2 = 1 + 2^-9 + 2^-20. With 2^-11 added, the last term alone breaks the tie.
    x, c = (int(np.float16(v).view(np.uint16)) for v in (1 + 2**-10, 2**-11))
    operands = [("b32", [x * 0x10001]), ("b32", [x * 0x10001]), ("b32", [c])]
    found = int(evaluate("fma.rn.f16x2", "b32", operands)[0])
    expected = [int(np.float16(v).view(np.uint16)) for v in (1 + 3 * 2**-10, 1 + 2**-9)]
    assert [found & 0xFFFF, found >> 16] == expected


@pytest.mark.parametrize("kind", ["f16", "f16x2", "bf16", "bf16x2"])
def test_narrow_sums(kind: str) -> None:
    left = [1.0, 2048.0, -3.5, 1e-3]
    right = [2.0**-9, 1.0, 3.5, 2e-3]
    bits = 32 if kind.endswith("x2") else 16

    def encode(value: float) -> int:
        if kind.startswith("f16"):
            return int(np.float16(value).view(np.uint16))
        return (float_bits(value) + 0x7FFF + (float_bits(value) >> 16 & 1)) >> 16

    def decode(code: int) -> float:
        if kind.startswith("f16"):
            return float(np.uint16(code).view(np.float16))
        return float(np.uint32(code << 16).view(np.float32))

    rows = list(zip(left, right, strict=True))
    sources = [
        [encode(v) * (0x10001 if bits == 32 else 1) for v in column] for column in (left, right)
    ]
    found = evaluate(f"add.rn.{kind}", f"b{bits}", [(f"b{bits}", s) for s in sources])
    for result, (a, b) in zip(found.tolist(), rows, strict=True):
        expected = encode(decode(encode(a)) + decode(encode(b)))
        assert result == expected * (0x10001 if bits == 32 else 1)


def test_minimum_and_maximum_pass_over_nan_and_order_zeros() -> None:
    rows = [
        (1.0, 2.0),
        (math.nan, 2.0),
        (1.0, math.nan),
        (0.0, -0.0),
        (-0.0, 0.0),
        (-math.inf, 3.0),
    ]
    columns = [("f32", [float_bits(v) for v in column]) for column in zip(*rows, strict=True)]
    least = evaluate("min.f32", "f32", columns).view(np.float32)
    most = evaluate("max.f32", "f32", columns).view(np.float32)
    assert least.tolist() == [1.0, 2.0, 1.0, 0.0, 0.0, -math.inf]
    assert most.tolist() == [2.0, 2.0, 1.0, 0.0, 0.0, 3.0]
    assert np.signbit(least[3:5]).all()
    assert not np.signbit(most[3:5]).any()


def test_sign_root_and_reciprocal() -> None:
    values = [1.0, 2.0, 3.0, 0.5, 1e30]
    bits = [("f32", [float_bits(v) for v in values])]
    assert evaluate("neg.f32", "f32", bits).view(np.float32).tolist() == [
        -float(np.float32(v)) for v in values
    ]
    negative = [("f32", [float_bits(-v) for v in values])]
    assert evaluate("abs.f32", "f32", negative).tolist() == bits[0][1]
    root = evaluate("sqrt.rn.f32", "f32", bits)
    assert root.tolist() == [float_bits(math.sqrt(np.float32(v))) for v in values]
    inverse = evaluate("rcp.rn.f32", "f32", bits)
    assert inverse.tolist() == [
        float_bits(exactly_rounded(1 / Fraction(float(np.float32(v))), "f32")) for v in values
    ]


# Conversions -------------------------------------------------------------------------------------


CONVERSIONS = ["s64.s32", "u64.u32", "u32.u64", "u16.u32", "s32.s16", "s32.s8"]


@pytest.mark.parametrize("types", CONVERSIONS)
def test_integer_conversions(types: str) -> None:
    target, source = types.split(".")
    to, of = int(target[1:]), int(source[1:])
    register = max(of, 16)
    values = [v % (1 << register) for v in LONG]
    found = evaluate(f"cvt.{target}.{source}", f"b{to}", [(f"b{register}", values)])
    for result, value in zip(found.tolist(), values, strict=True):
        cut = value % (1 << of)
        expected = signed(cut, of) if source[0] == "s" else cut
        assert result == expected % (1 << to)


def test_float_to_half() -> None:
    values = [*FLOATS, *random_floats("f32", 3)]
    found = evaluate("cvt.rn.f16.f32", "b16", [("f32", [float_bits(v) for v in values])])
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float32).astype(np.float16)
    for result, half in zip(found, expected, strict=True):
        assert int(result) == (0x7FFF if np.isnan(half) else int(half.view(np.uint16)))


def test_float_to_bfloat16() -> None:
    values = [*FLOATS, *random_floats("f32", 4), 1.00390625, 1.01171875]
    found = evaluate("cvt.rn.bf16.f32", "b16", [("f32", [float_bits(v) for v in values])])
    for result, value in zip(found.tolist(), values, strict=True):
        exact = float(np.float32(value))
        if not math.isfinite(exact):
            assert result == (0x7FFF if math.isnan(exact) else float_bits(exact) >> 16)
            continue
        below = float_bits(exact) >> 16
        decode = [float(np.uint32(code << 16).view(np.float32)) for code in (below, below + 1)]
        if math.isinf(decode[1]):
            decode[1] = math.copysign(2.0**128, exact)
        gaps = [abs(Fraction(d) - Fraction(exact)) for d in decode]
        upper = gaps[1] < gaps[0] or (gaps[1] == gaps[0] and below & 1)
        assert result == below + upper


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_pair_conversion_puts_the_first_source_on_top(kind: str) -> None:
    high, low = [1.5, -2.0], [3.0, math.nan]
    sources = [("f32", [float_bits(v) for v in column]) for column in (high, low)]
    found = evaluate(f"cvt.rn.{kind}.f32", "b32", sources).tolist()
    codes = {"f16x2": (0x3E00, 0x4200, 0xC000), "bf16x2": (0x3FC0, 0x4040, 0xC000)}[kind]
    assert found == [codes[0] << 16 | codes[1], codes[2] << 16 | 0x7FFF]


def test_widening_is_exact() -> None:
    codes = list(range(0, 0x10000, 257))
    halves = evaluate("cvt.f32.f16", "f32", [("b16", codes)]).view(np.float32)
    np.testing.assert_array_equal(
        halves, np.array(codes, np.uint16).view(np.float16).astype(np.float32)
    )
    brains = evaluate("cvt.f32.bf16", "f32", [("b16", codes)])
    assert brains.tolist() == [code << 16 for code in codes]
    doubles = evaluate("cvt.f64.f32", "f64", [("f32", [float_bits(v) for v in FLOATS])])
    np.testing.assert_array_equal(doubles.view(np.float64), np.array(FLOATS, np.float32))


def test_between_floats_and_integers() -> None:
    values = [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e10, -1e10, math.nan, math.inf, 2147483520.0]
    source = [("f32", [float_bits(v) for v in values])]
    limits = (1 << 31) - 1

    def clamp(value: float) -> int:
        if math.isnan(value):
            return 0
        return -(1 << 31) if value < -(1 << 31) else limits if value > limits else int(value)

    for mode, rounding in (
        ("rni", np.rint),
        ("rzi", np.trunc),
        ("rmi", np.floor),
        ("rpi", np.ceil),
    ):
        found = evaluate(f"cvt.{mode}.s32.f32", "b32", source).view(np.int32)
        assert found.tolist() == [clamp(float(rounding(np.float32(v)))) for v in values]
    integers = [0, 1, 0x1000001, 0x7FFFFFFF, 0xFFFFFFFF]
    found = evaluate("cvt.rn.f32.s32", "f32", [("b32", integers)])
    assert found.tolist() == [
        float_bits(exactly_rounded(Fraction(signed(v, 32)), "f32")) for v in integers
    ]


def test_tf32_keeps_ten_bits() -> None:
    values = [1.0, 1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11, 3.0e38, math.inf, math.nan]
    found = evaluate("cvt.rna.tf32.f32", "b32", [("f32", [float_bits(v) for v in values])])
    expected = [1.0, 1 + 2.0**-10, 1.0, -1 - 2.0**-10]
    assert found[:4].tolist() == [float_bits(v) for v in expected]
    assert (found[:6] & 0x1FFF == 0).all()
    assert found[5:].tolist() == [float_bits(math.inf), 0x7FFFFFFF]
