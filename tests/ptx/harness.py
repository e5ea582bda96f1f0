"""Runs single instructions: what the tests of the opcodes share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import ptx

INTEGERS = [0, 1, 2, 3, 7, 31, 32, 33, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
LONG = [*INTEGERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x0123456789ABCDEF]
FLOATS = [
    0.0, -0.0, 1.0, -1.0, 1.5, 2.5, -2.5, 3.0, 65504.0, 65520.0, 1e-7, 2**-24, 2**-25, 1e30, -1e30,
    3.0e38, math.pi, 1 / 3, 2.0**31, -(2.0**31), 1e10, math.inf, -math.inf, math.nan,
]  # fmt: skip
BITS = {"b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}
PREFIX = {"b16": "%h", "b32": "%r", "b64": "%d", "f32": "%f", "f64": "%g"}
NUMPY = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def kernel(body: str, parameters: int = 1) -> ptx.Kernel:
    """A kernel around some instructions, with registers of every width."""
    names = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    code = f"""
.visible .entry test({names}) {{
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<16>;
    .reg .f32 %f<8>; .reg .f64 %g<8>; .reg .b64 %a<8>; .reg .b32 %t<4>;
    .shared .align 16 .b8 tile[4096];
    {body}
    ret;
}}"""
    return ptx.parse(code)["test"]


def evaluate(opcode: str, result: str, sources: list[tuple[str, list[int]]], tail: str = "") -> Any:
    """Bits of ``opcode result, sources...`` for every row of sources."""
    count = len(sources[0][1])
    padded = -(-count // 32) * 32
    memory = ptx.GlobalMemory()
    lines, addresses = ["mov.u32 %t0, %tid.x;"], []
    names = []
    for i, (kind, values) in enumerate(sources):
        column = np.array([*values, *([values[0]] * (padded - count))], NUMPY[BITS[kind]])
        addresses.append(memory.allocate(column))
        size = BITS[kind] // 8
        lines += [
            f"ld.param.u64 %a{i}, [p{i}];",
            f"mad.wide.u32 %a{i}, %t0, {size}, %a{i};",
            f"ld.global.{kind} {PREFIX[kind]}{i}, [%a{i}];",
        ]
        names.append(f"{PREFIX[kind]}{i}")
    bits = BITS.get(result, 32)
    empty = np.zeros(padded, NUMPY[bits])
    where = len(sources)
    out = f"{PREFIX[result]}7" if result in PREFIX else "%p7"
    lines.append(f"{opcode} {out}, {', '.join(names)}{tail};")
    if result == "pred":
        lines.append("selp.b32 %r7, 1, 0, %p7;")
    stored = out if result in PREFIX else "%r7"
    lines += [
        f"ld.param.u64 %a{where}, [p{where}];",
        f"mad.wide.u32 %a{where}, %t0, {bits // 8}, %a{where};",
        f"st.global.b{bits} [%a{where}], {stored};",
    ]
    addresses.append(memory.allocate(empty))
    ptx.launch(kernel("\n".join(lines), where + 1), memory, (1,), (padded,), addresses)
    return memory.read(addresses[-1], empty)[:count]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def store_r1(body: str, threads: int = 32, blocks: int = 1) -> list[int]:
    """What every thread has in %r1 behind the body."""
    memory = ptx.GlobalMemory()
    out = np.zeros(threads * blocks, np.uint32)
    address = memory.allocate(out)
    tail = """
    ld.param.u64 %a0, [p0];
    mov.u32 %t0, %ctaid.x; mov.u32 %t1, %ntid.x; mov.u32 %t2, %tid.x;
    mad.lo.u32 %t0, %t0, %t1, %t2;
    mad.wide.u32 %a0, %t0, 4, %a0;
    st.global.b32 [%a0], %r1;
    """
    ptx.launch(kernel(body + tail), memory, (blocks,), (threads,), [address])
    return memory.read(address, out).tolist()


def float_bits(value: float, kind: str = "f32") -> int:
    raw = np.float32(value) if kind == "f32" else np.float64(value)
    return int(raw.view(NUMPY[BITS[kind]]))


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
