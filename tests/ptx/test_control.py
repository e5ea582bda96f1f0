"""Moves, branches, scopes and barriers, and what must be refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ptx
from ptx.harness import (
    kernel,
    store_r1,
)
from ptx.machine import DECODERS

pytestmark = pytest.mark.once


def test_setp_joins_a_predicate_and_gives_the_complement() -> None:
    body = """
    mov.u32 %r0, %tid.x;
    setp.lt.u32 %p0, %r0, 16;
    setp.eq.and.u32 %p1|%p2, %r0, 3, !%p0;
    setp.ge.or.u32 %p3, %r0, 30, %p0;
    selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 2, 0, %p2; selp.b32 %r3, 4, 0, %p3;
    or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3;
    """
    found = store_r1(body)
    expected = [
        0 | (2 if i >= 16 and i != 3 else 0) | (4 if i < 16 or i >= 30 else 0) for i in range(32)
    ]
    assert found == expected


def test_moves_pack_and_unpack() -> None:
    body = """
    mov.u32 %r0, 0x12345678;
    mov.b32 {%h0, %h1}, %r0;
    mov.b32 %r2, {%h1, %h0};
    mov.b64 %d0, {%r0, %r2};
    mov.b64 {%r3, %r4}, %d0;
    mov.f32 %f0, 0f3F800000;
    mov.b32 %r5, %f0;
    xor.b32 %r1, %r3, %r4;
    xor.b32 %r1, %r1, %r5;
    """
    assert store_r1(body) == [0x12345678 ^ 0x56781234 ^ 0x3F800000] * 32


def test_special_registers() -> None:
    body = """
    mov.u32 %r2, %laneid; mov.u32 %r3, %tid.x; mov.u32 %r4, %ctaid.x; mov.u32 %r5, %nctaid.x;
    mad.lo.u32 %r1, %r4, 1000, %r2;
    mad.lo.u32 %r1, %r5, 100000, %r1;
    """
    expected = [200000 + block * 1000 + t % 32 for block in range(2) for t in range(64)]
    assert store_r1(body, 64, 2) == expected


def test_lanes_take_their_own_way_through_branches_and_loops() -> None:
    body = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, 0;
    setp.gt.u32 %p0, %r0, 20;
    @%p0 bra $skip;
    $loop:
    add.u32 %r1, %r1, %r0;
    setp.lt.u32 %p1, %r1, 50;
    and.pred %p1, %p1, %p0;
    @!%p1 bra $out;
    bra.uni $loop;
    $skip:
    mov.u32 %r1, 7;
    @%p0 add.u32 %r1, %r1, 1;
    $out:
    """
    assert store_r1(body) == [t if t <= 20 else 8 for t in range(32)]


def test_inner_scopes_hide_registers() -> None:
    body = """
    mov.u32 %r1, 5;
    { .reg .b32 %r1; mov.u32 %r1, 9; { .reg .b32 %r1; mov.u32 %r1, 11; } mov.u32 %r2, %r1; }
    add.u32 %r1, %r1, %r2;
    """
    assert store_r1(body) == [14] * 32


def test_barrier_orders_shared_memory() -> None:
    body = """
    mov.u32 %r0, %tid.x;
    shl.b32 %r2, %r0, 2;
    mov.u32 %r3, tile;
    add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r0;
    bar.sync 0;
    xor.b32 %r5, %r2, 128;
    add.u32 %r5, %r3, %r5;
    ld.shared.u32 %r1, [%r5];
    """
    assert store_r1(body, 64, 2) == [t ^ 32 for _ in range(2) for t in range(64)]


def test_barrier_waits_only_for_threads_that_run() -> None:
    body = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, 3;
    setp.ge.u32 %p0, %r0, 32;
    @%p0 bra $end;
    barrier.cta.sync.aligned 0;
    mov.u32 %r1, 4;
    $end:
    """
    assert store_r1(body, 64) == [4] * 32 + [3] * 32


def test_barriers_reduce_votes_of_a_block() -> None:
    body = """
    mov.u32 %r0, %tid.x; mov.u32 %r2, %ctaid.x;
    add.u32 %r0, %r0, %r2;
    setp.eq.u32 %p0, %r0, 64;
    bar.red.or.pred %p1, 0, %p0;
    setp.lt.u32 %p2, %r0, 64;
    barrier.cta.red.and.aligned.pred %p3, 0, %p2;
    selp.u32 %r1, 1, 0, %p1;
    selp.u32 %r3, 2, 0, %p3;
    or.b32 %r1, %r1, %r3;
    """
    assert store_r1(body.replace("red.and.aligned", "red.and"), 64, 2) == [2] * 64 + [1] * 64


def test_a_barrier_in_a_divergent_warp_is_a_fault() -> None:
    body = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, 0;
    setp.lt.u32 %p0, %r0, 5;
    @%p0 bra $over;
    bar.sync 0;
    $over:
    add.u32 %r1, %r1, 1;
    """
    with pytest.raises(ptx.Fault, match="divergent"):
        store_r1(body)


def test_unknown_instructions_are_refused_when_loaded() -> None:
    for statement in (
        "frobnicate.b32 %r1, %r0;",
        "add.sat.s32 %r1, %r0, %r0;",
        "add.rz.f32 %f0, %f1, %f2;",
        "add.ftz.f32 %f0, %f1, %f2;",
        "ex2.approx.f32 %f0, %f1;",
        "ld.u32 %r0, [%d0];",
        "atom.global.add.u32 %r0, [%d0], %r1;",
        "bar.sync 1;",
        "cp.async.ca.shared.global [%r0], [%d0], 12;",
        "cp.async.cg.shared.global [%r0], [%d0], 8;",
        "cvt.rz.f16.f32 %h0, %f0;",
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r0,%r1}, {%r2,%r3}, {%r4}, {%r0,%r1};",
        "mov.u32 %r0, %clock;",
        "call (%r0), f, (%r1);",
    ):
        with pytest.raises(ptx.Unsupported):
            ptx.launch(kernel(statement), ptx.GlobalMemory(), (1,), (32,), [0])


def test_every_instruction_has_a_test() -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    for name in DECODERS:
        # In a statement, or as a name that a test completes by a type.
        assert any(re.search(rf"[\"\s]{name}[.\"]", text) for text in texts), name
