"""Matrix products and loads, exchanges between lanes, asynchronous copies and memory accesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ptx
from ptx.warp import multiply_accumulate

pytestmark = pytest.mark.once

Array = npt.NDArray[Any]
WARPS = 2
THREADS = 32 * WARPS


def run(body: str, inputs: list[Array], outputs: list[Array]) -> list[Array]:
    """Run instructions in one block of two warps; %a0, %a1... are the addresses of the arrays."""
    arrays = [*inputs, *outputs]
    names = ", ".join(f".param .u64 p{i}" for i in range(len(arrays)))
    loads = "\n".join(f"ld.param.u64 %a{i}, [p{i}];" for i in range(len(arrays)))
    text = f"""
.extern .shared .align 128 .b8 dynamic[];
.visible .entry test({names}) {{
    .reg .pred %p<4>; .reg .b32 %r<32>; .reg .b64 %a<8>; .reg .b64 %d<8>; .reg .f32 %f<8>;
    {loads}
    mov.u32 %r0, %tid.x;
    {body}
    ret;
}}"""
    memory = ptx.GlobalMemory()
    addresses = [memory.allocate(array) for array in arrays]
    ptx.launch(ptx.parse(text)["test"], memory, (1,), (THREADS,), addresses, 4096)
    return [memory.read(a, o) for a, o in zip(addresses[len(inputs) :], outputs, strict=True)]


def lane_words(prefix: str, argument: int, count: int, kind: str = "u32") -> str:
    """Load ``count`` words per thread from an argument into registers."""
    lines = [f"mul.wide.u32 %d0, %r0, {4 * count};", f"add.s64 %d0, %a{argument}, %d0;"]
    lines += [f"ld.global.{kind} {prefix}{i}, [%d0+{4 * i}];" for i in range(count)]
    return "\n".join(lines)


def store_words(prefix: str, first: int, argument: int, count: int, kind: str = "u32") -> str:
    lines = [f"mul.wide.u32 %d0, %r0, {4 * count};", f"add.s64 %d0, %a{argument}, %d0;"]
    lines += [f"st.global.{kind} [%d0+{4 * i}], {prefix}{first + i};" for i in range(count)]
    return "\n".join(lines)


def encode(values: Array, kind: str) -> Array:
    """16-bit codes (or, for tf32, 32-bit ones) of values that the type represents."""
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(("kind", "k"), [("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16),
                                         ("tf32", 4), ("tf32", 8)])  # fmt: skip
def test_mma_multiplies_matrices(kind: str, k: int) -> None:
    rng = np.random.default_rng(0)
    # Small integers: every sum is exact, so only the places of the elements matter.
    a, b = rng.integers(-8, 8, (WARPS, 16, k)), rng.integers(-8, 8, (WARPS, k, 8))
    c = rng.integers(-100, 100, (WARPS, 16, 8)).astype(np.float32)
    per = 1 if kind == "tf32" else 2
    n_a, n_b = 16 * k // 32 // per, 8 * k // 32 // per
    codes_a, codes_b = encode(a, kind), encode(b, kind)
    words_a = np.zeros((WARPS, 32, n_a), np.uint32)
    words_b = np.zeros((WARPS, 32, n_b), np.uint32)
    words_c = np.zeros((WARPS, 32, 4), np.float32)
    for lane in range(32):  # figures of "Matrix Fragments for mma" in the PTX ISA
        group, member = lane // 4, lane % 4
        for i in range(n_a * per):
            if kind == "tf32":
                row, column = group + 8 * (i & 1), member + 4 * (i >> 1)
            else:
                row, column = group + 8 * (i >> 1 & 1), 2 * member + (i & 1) + 8 * (i >> 2)
            code = codes_a[:, row, column].astype(np.uint32)
            words_a[:, lane, i // per] |= code << np.uint32(16 * (i % per))
        for i in range(n_b * per):
            row = member + 4 * i if kind == "tf32" else 2 * member + (i & 1) + 8 * (i >> 1)
            code = codes_b[:, row, group].astype(np.uint32)
            words_b[:, lane, i // per] |= code << np.uint32(16 * (i % per))
        for i in range(4):
            words_c[:, lane, i] = c[:, group + 8 * (i >> 1), 2 * member + (i & 1)]
    registers = [
        ", ".join(f"%r{1 + i}" for i in range(n_a)),
        ", ".join(f"%r{9 + i}" for i in range(n_b)),
    ]
    sums = "{%f0, %f1, %f2, %f3}"
    body = f"""
    {lane_words("%f", 2, 4, "f32")}
    {shifted(lane_words("%r", 0, n_a), 1, n_a)}
    {shifted(lane_words("%r", 1, n_b), 9, n_b)}
    mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {sums},
        {{{registers[0]}}}, {{{registers[1]}}}, {sums};
    {store_words("%f", 0, 3, 4, "f32")}
    """
    (found,) = run(body, [words_a, words_b, words_c], [np.zeros_like(words_c)])
    product = c + a @ b
    for lane in range(32):
        for i in range(4):
            expected = product[:, lane // 4 + 8 * (i >> 1), 2 * (lane % 4) + (i & 1)]
            np.testing.assert_array_equal(found[:, lane, i], expected)


def shifted(text: str, first: int, count: int) -> str:
    """Loads of %r0, %r1... directed to registers from another number on."""
    for i in reversed(range(count)):
        text = text.replace(f" %r{i}, [", f" %r{first + i}, [")
    return text


def test_mma_sums_in_order_and_rounds_once() -> None:
    a = np.zeros((1, 16, 8))
    b = np.zeros((1, 8, 8))
    a[0, 0], b[0, :, 0] = [2.0**30, 1.0, -(2.0**30), 0, 0, 0, 0, 0], 1.0
    c = np.full((1, 16, 8), 2.0**-24, np.float32)
    found = multiply_accumulate(a, b, c)
    assert found[0, 0, 0] == np.float32(1 + 2.0**-24)
    assert found[0, 1, 1] == np.float32(2.0**-24)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    stored = np.arange(WARPS * 8 * count * 8, dtype=np.uint16).reshape(WARPS, count, 8, 8)
    out = ", ".join(f"%r{8 + i}" for i in range(count))
    body = f"""
    // Every thread writes one row of 16 bytes, rows of a matrix backwards.
    mul.lo.u32 %r1, %r0, 16;
    mul.wide.u32 %d0, %r0, 16;
    add.s64 %d0, %a0, %d0;
    ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%d0];
    mov.u32 %r6, dynamic;
    add.u32 %r7, %r6, %r1;
    st.shared.v4.u32 [%r7], {{%r2, %r3, %r4, %r5}};
    bar.sync 0;
    xor.b32 %r1, %r1, 112;
    add.u32 %r7, %r6, %r1;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{out}}}, [%r7];
    {store_words("%r", 8, 1, count)}
    """
    rows = np.zeros((WARPS, 32, 8), np.uint16)
    rows[:, : 8 * count] = stored[:, :, ::-1].reshape(WARPS, 8 * count, 8)
    (found,) = run(body, [rows.view(np.uint32)], [np.zeros((WARPS, 32, count), np.uint32)])
    for lane in range(32):
        for i in range(count):
            matrix = stored[:, i].transpose(0, 2, 1) if transposed else stored[:, i]
            low, high = (matrix[:, lane // 4, 2 * (lane % 4) + e].astype(np.uint32) for e in (0, 1))
            np.testing.assert_array_equal(found[:, lane, i], low | high << 16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, transposed: bool) -> None:
    values = ", ".join(f"%r{8 + i}" for i in range(count))
    opcode = f"stmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    parts = "\n".join(f"mad.lo.u32 %r{8 + i}, %r0, 65541, {i * 17};" for i in range(count))
    body = f"""
    // Rows of a matrix backwards, and matrices of a warp one behind the other.
    mul.lo.u32 %r1, %r0, 16;
    xor.b32 %r1, %r1, 112;
    mov.u32 %r6, dynamic;
    add.u32 %r7, %r6, %r1;
    {parts}
    {opcode} [%r7], {{{values}}};
    bar.sync 0;
    xor.b32 %r1, %r1, 112;
    add.u32 %r7, %r6, %r1;
    ld.shared.v4.u32 {{%r2, %r3, %r4, %r5}}, [%r7];
    {store_words("%r", 2, 0, 4)}
    """
    (found,) = run(body, [], [np.zeros((WARPS * 32, 4), np.uint32)])
    rows = found.view(np.uint16).reshape(WARPS, 4, 8, 8)[:, :count, ::-1]
    lanes = np.arange(WARPS * 32, dtype=np.uint32).reshape(WARPS, 1, 8, 4)
    words = lanes * np.uint32(65541) + np.arange(0, 17 * count, 17, dtype=np.uint32)[:, None, None]
    expected = words[..., None].view(np.uint16).reshape(WARPS, count, 8, 8)
    np.testing.assert_array_equal(rows, expected.swapaxes(2, 3) if transposed else expected)


@pytest.mark.parametrize(("mode", "operand", "clamp"), [
    ("bfly", 3, 31), ("down", 5, 31), ("up", 4, 0), ("idx", 7, 31), ("down", 2, 0x1807),
    ("bfly", 9, 0x181F), ("idx", 3, 0x1C1F),
])  # fmt: skip
def test_shuffle(mode: str, operand: int, clamp: int) -> None:
    body = f"""
    add.u32 %r1, %r0, 100;
    shfl.sync.{mode}.b32 %r2|%p0, %r1, {operand}, {clamp}, -1;
    selp.b32 %r3, 1, 0, %p0;
    {store_words("%r", 2, 0, 2)}
    """
    (found,) = run(body, [], [np.zeros((THREADS, 2), np.uint32)])
    for thread in range(THREADS):
        lane, segment, bound = thread % 32, clamp >> 8 & 31, clamp & 31
        last = (lane & segment) | (bound & ~segment)
        first = lane & segment
        source = {
            "up": lane - operand,
            "down": lane + operand,
            "bfly": lane ^ operand,
            "idx": first | (operand & ~segment),
        }[mode]
        valid = source >= last if mode == "up" else source <= last
        expected = thread - lane + (source if valid else lane) + 100
        assert found[thread].tolist() == [expected, int(valid)]


@pytest.mark.parametrize(("mode", "type_"), [
    ("min", "u32"), ("max", "u32"), ("add", "u32"), ("min", "s32"), ("max", "s32"), ("add", "s32"),
])  # fmt: skip
def test_reductions(mode: str, type_: str) -> None:
    body = f"""
    mul.lo.u32 %r1, %r0, 0x9e3779b1;
    redux.sync.{mode}.{type_} %r2, %r1, 0xffffffff;
    {store_words("%r", 2, 0, 1)}
    """
    (found,) = run(body, [], [np.zeros((THREADS, 1), np.uint32)])
    values = np.arange(THREADS, dtype=np.uint32) * np.uint32(0x9E3779B1)
    warps = values.view(np.dtype(type_.replace("u32", "uint32").replace("s32", "int32")))
    for warp, lanes in zip(warps.reshape(-1, 32), found.reshape(-1, 32), strict=True):
        expected = {"min": min, "max": max, "add": sum}[mode](int(v) for v in warp)
        assert (lanes == expected % 2**32).all()


def test_votes() -> None:
    body = f"""
    setp.eq.u32 %p0, %r0, 37;
    vote.sync.any.pred %p1, %p0, 0xffffffff;
    vote.sync.all.pred %p2, !%p0, -1;
    vote.sync.ballot.b32 %r3, %p0, -1;
    selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 1, 0, %p2;
    {store_words("%r", 1, 0, 3)}
    """
    (found,) = run(body, [], [np.zeros((THREADS, 3), np.uint32)])
    assert found[:32].tolist() == [[0, 1, 0]] * 32
    assert found[32:].tolist() == [[1, 0, 1 << 5]] * 32


COPY = """
    mul.lo.u32 %r1, %r0, 16; mov.u32 %r2, dynamic; add.u32 %r2, %r2, %r1;
    mul.wide.u32 %d0, %r0, 16; add.s64 %d1, %a0, %d0;
    st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0};
    and.b32 %r3, %r0, 3; mul.lo.u32 %r3, %r3, 5; min.u32 %r3, %r3, 16;
"""
READ = """
    ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r2];
"""


def test_async_copy_lands_at_the_wait_and_fills_with_zeros() -> None:
    source = np.arange(1, THREADS * 16 + 1).astype(np.uint8).reshape(THREADS, 16)
    body = f"""{COPY}
    cp.async.cg.shared.global [%r2], [%d1], 16, %r3;
    cp.async.commit_group;
    cp.async.wait_group 0;
    {READ}
    {store_words("%r", 8, 1, 4)}
    """
    (found,) = run(body, [source], [np.zeros((THREADS, 16), np.uint8)])
    for thread in range(THREADS):
        size = min(16, thread % 4 * 5)
        expected = [*source[thread, :size], *[0] * (16 - size)]
        assert found[thread].tolist() == expected


@pytest.mark.parametrize("width", [4, 8])
def test_narrow_async_copy(width: int) -> None:
    source = np.arange(1, THREADS * 16 + 1).astype(np.uint8).reshape(THREADS, 16)
    body = f"""{COPY}
    min.u32 %r3, %r3, {width};
    cp.async.ca.shared.global [%r2+{width}], [%d1], {width:#x}, %r3;
    cp.async.wait_all;
    {READ}
    {store_words("%r", 8, 1, 4)}
    """
    (found,) = run(body, [source], [np.zeros((THREADS, 16), np.uint8)])
    for thread in range(THREADS):
        size = min(width, thread % 4 * 5)
        expected = np.full(4, thread, np.uint32).view(np.uint8)
        expected[width : 2 * width] = [*source[thread, :size], *[0] * (width - size)]
        assert (found[thread] == expected).all()


def test_async_copy_is_not_there_before_its_own_group_was_awaited() -> None:
    source = np.ones((THREADS, 16), np.uint8)
    body = f"""{COPY}
    cp.async.commit_group;
    cp.async.cg.shared.global [%r2], [%d1], 16;
    cp.async.commit_group;
    cp.async.wait_group 1;
    {READ}
    {store_words("%r", 8, 1, 4)}
    cp.async.wait_all;
    {READ}
    {store_words("%r", 8, 2, 4)}
    """
    early, late = run(body, [source], [np.zeros((THREADS, 16), np.uint8)] * 2)
    assert (early == 0xFF).all()
    assert (late == 1).all()


def test_a_copy_outside_of_any_group_needs_wait_all() -> None:
    source = np.ones((THREADS, 16), np.uint8)
    body = f"""{COPY}
    cp.async.cg.shared.global [%r2], [%d1], 16;
    cp.async.wait_group 0;
    {READ}
    {store_words("%r", 8, 1, 4)}
    """
    (found,) = run(body, [source], [np.zeros((THREADS, 16), np.uint8)])
    assert (found == 0xFF).all()


def test_lanes_wait_for_their_own_copies() -> None:
    source = np.ones((THREADS, 16), np.uint8)
    body = f"""{COPY}
    setp.lt.u32 %p0, %r0, 32;
    cp.async.cg.shared.global [%r2], [%d1], 16;
    cp.async.commit_group;
    @%p0 cp.async.wait_group 0;
    {READ}
    {store_words("%r", 8, 1, 4)}
    """
    (found,) = run(body, [source], [np.zeros((THREADS, 16), np.uint8)])
    assert (found[:32] == 1).all()
    assert (found[32:] == 0xFF).all()


def test_generic_and_shared_addresses() -> None:
    body = f"""
    mov.u64 %d1, dynamic;
    cvta.shared.u64 %d2, %d1;
    cvta.to.shared.u64 %d3, %d2;
    sub.s64 %d4, %d3, %d1;
    cvta.to.global.u64 %d5, %a0;
    sub.s64 %d5, %d5, %a0;
    or.b64 %d4, %d4, %d5;
    setp.ne.s64 %p0, %d2, %d1;
    cvt.u32.u64 %r1, %d4;
    selp.b32 %r2, 1, 0, %p0;
    {store_words("%r", 1, 0, 2)}
    """
    (found,) = run(body, [], [np.zeros((THREADS, 2), np.uint32)])
    assert found.tolist() == [[0, 1]] * THREADS


def test_narrow_loads_extend_and_narrow_stores_cut() -> None:
    source = np.array([0x80, 0x7F] * THREADS, np.uint8)
    body = f"""
    cvt.u64.u32 %d0, %r0; add.s64 %d1, %a0, %d0;
    ld.global.nc.u8 %r1, [%d1];
    ld.global.s8 %r2, [%d1];
    mul.wide.u32 %d0, %r0, 2; add.s64 %d1, %a1, %d0;
    st.global.u16 [%d1], %r2;
    membar.gl; fence.acq_rel.gpu; prefetch.global.L2 [%d1];
    {store_words("%r", 1, 2, 2)}
    """
    cut, words = run(
        body, [source], [np.zeros(THREADS, np.uint16), np.zeros((THREADS, 2), np.uint32)]
    )
    assert cut.tolist() == [0xFF80, 0x7F] * (THREADS // 2)
    assert words.tolist() == [[0x80, 0xFFFFFF80], [0x7F, 0x7F]] * (THREADS // 2)


def test_structures_are_read_from_parameters() -> None:
    text = """
.visible .entry test(.param .align 8 .b8 arguments[24], .param .f32 scale) {
    .reg .b64 %d<3>; .reg .b32 %r<4>; .reg .f32 %f<3>;
    ld.param.u64 %d0, [arguments];
    ld.param.v2.u32 {%r0, %r1}, [arguments+8];
    ld.param.f32 %f0, [arguments+16];
    ld.param.f32 %f1, [scale];
    mul.rn.f32 %f0, %f0, %f1;
    add.u32 %r0, %r0, %r1;
    st.global.u32 [%d0], %r0;
    st.global.f32 [%d0+4], %f0;
    ret;
}"""
    memory = ptx.GlobalMemory()
    out = np.zeros(2, np.uint32)
    address = memory.allocate(out)
    structure = address.to_bytes(8, "little") + np.array([3, 4], np.uint32).tobytes()
    structure += np.array([1.5, 0.0], np.float32).tobytes()
    kernel = ptx.parse(text)["test"]
    ptx.launch(kernel, memory, (1,), (32,), [structure, 2.0])
    found = memory.read(address, out)
    assert found[0] == 7
    assert found[1:].view(np.float32)[0] == 3.0
    with pytest.raises(ValueError, match="24 bytes"):
        ptx.launch(kernel, memory, (1,), (32,), [structure[:8], 2.0])


SHARED = "mov.u32 %r1, dynamic; mov.u32 %r2, 17;"
FAULTS = {
    "out of bounds, byte 1024": "mul.wide.u32 %d0, %r0, 16; add.s64 %d0, %a0, %d0;"
    "ld.global.u32 %r1, [%d0+16];",
    "out of bounds of shared": f"{SHARED} st.shared.u32 [%r1+4096], %r0;",
    "misaligned": "add.s64 %d0, %a0, 2; ld.global.u32 %r1, [%d0];",
    "misaligned address in shared": f"{SHARED} ld.shared.v2.u32 {{%r2, %r3}}, [%r1+4];",
    "cp.async: misaligned": f"{SHARED} cp.async.cg.shared.global [%r1], [%a0+8], 16;",
    "cp.async: out of bounds": f"{SHARED} cp.async.cg.shared.global [%r1], [%a0+1024], 16;",
    "more source bytes": f"{SHARED} cp.async.cg.shared.global [%r1], [%a0], 16, %r2;",
    "shfl: a warp is divergent": "setp.lt.u32 %p0, %r0, 40;"
    "@%p0 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
    "ldmatrix: a warp is divergent": f"{SHARED} setp.ne.u32 %p0, %r0, 3;"
    "@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults(message: str) -> None:
    with pytest.raises(ptx.Fault, match=message):
        run(FAULTS[message], [np.zeros(1024, np.uint8)], [])


def test_zero_fill_does_not_read_its_source() -> None:
    body = f"""{COPY}
    mov.u64 %d1, 0; mov.u32 %r3, 0;
    cp.async.cg.shared.global [%r2], [%d1], 16, %r3;
    cp.async.wait_all;
    {READ}
    {store_words("%r", 8, 0, 4)}
    """
    (found,) = run(body, [], [np.ones((THREADS, 16), np.uint8)])
    assert (found == 0).all()


def test_masks_of_some_lanes_are_refused() -> None:
    for text in ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, 3;", "vote.sync.any.pred %p0, 1, 3;",
                 "redux.sync.add.u32 %r1, %r0, 7;",
                 "bar.warp.sync 7;"):  # fmt: skip
        with pytest.raises(ptx.Unsupported, match="mask"):
            run(text, [], [])
    run("bar.warp.sync -1;", [], [])


def test_executed_instructions_are_counted_by_warp() -> None:
    text = """
.visible .entry test() {
    .reg .pred %p<2>; .reg .b32 %r<4>;
    mov.u32 %r0, %tid.x;
    setp.lt.u32 %p0, %r0, 33;
    @%p0 add.u32 %r0, %r0, 1;
    setp.lt.u32 %p1, %r0, 5;
    @%p1 add.u32 %r0, %r0, 1;
    ret;
}"""
    done = ptx.launch(ptx.parse(text)["test"], ptx.GlobalMemory(), (3,), (64,), [])
    assert done.executed == {"mov.u32": 6, "setp.lt.u32": 12, "add.u32": 9, "ret": 6}
    assert done.warp_instructions == 33
