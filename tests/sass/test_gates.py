"""The gates find what they look for, in listings made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grouped_conv import _C
from sass import gates, listing
from sass.listing import MachineKernel

pytestmark = pytest.mark.once

SYMBOL = "_ZN4cuda22fprop_rowstream_kernelINS_7Float16ELi0EEEvNS_4ArgsE"
GOOD = """
 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]
 HMMA.16816.F32 R4, R4, R8, R4
 IADD3 R1, R1, 0x1, RZ
@P0 BRA {loop}
 STG.E desc[UR4][R2.64], R1
 EXIT
"""


def listed(body: str, symbol: str = SYMBOL, registers: int = 100, stack: int = 0) -> MachineKernel:
    """A kernel from lines of machine code; ``{loop}`` is the address of the first line."""
    lines = []
    for i, line in enumerate(body.format(loop="0x0").strip().splitlines()):
        lines.append(f"        /*{16 * i:04x}*/   {line.strip()} ;   /* 0x000e22 */")
        lines.append("                                          /* 0x000fe2 */")
    code = f"\tcode for sm_90\n\t\tFunction : {symbol}\n" + "\n".join(lines)
    usage = (
        f"arch = sm_90\n Function {symbol}:\n"
        f"  REG:{registers} STACK:{stack} SHARED:1024 LOCAL:0 CONSTANT[0]:640\n"
    )
    (kernel,) = listing.parse(code, usage)
    return kernel


def test_listing() -> None:
    kernel = listed(GOOD)
    assert kernel.architecture == 90
    assert kernel.symbol == SYMBOL
    assert [i.name for i in kernel.instructions] == [
        "LDGSTS",
        "HMMA",
        "IADD3",
        "BRA",
        "STG",
        "EXIT",
    ]
    assert kernel.registers == 100
    (loop,) = kernel.loops()
    assert len(loop.instructions) == 4
    assert loop.count("HMMA") == 1


def test_only_innermost_loops_count() -> None:
    kernel = listed("""
        IADD3 R1, R1, 0x1, RZ
        LDG.E R2, desc[UR4][R2.64]
        HMMA.16816.F32 R4, R4, R8, R4
        LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]
        @P0 BRA 0x20
        @P1 BRA 0x0
        EXIT
    """)
    (inner,) = kernel.inner_loops("HMMA")
    assert [i.address for i in inner.instructions] == [0x20, 0x30, 0x40]
    assert gates.instructions_per_mma(kernel) == 3.0
    assert gates.faults(kernel) == []


def test_the_figure_is_that_of_the_loop_that_streams() -> None:
    second = """
        HMMA.16816.F32 R4, R4, R8, R4
        @P0 BRA 0x60
    """
    assert gates.instructions_per_mma(listed(GOOD + second)) == 4.0


def test_a_kernel_may_copy_a_band_of_rows_outside_of_their_loop() -> None:
    symbol = "_ZN4cuda17nchw_wgrad_kernelILi0ENS_7Float16EEEvNS_4ArgsE"
    row = " HMMA.16816.F32 R4, R4, R8, R4\n@P0 BRA 0x10\n EXIT"
    kernel = listed(" LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]\n" + row, symbol)
    assert gates.faults(kernel) == []
    assert gates.name(kernel) == "nchw_wgrad_c4_s1 Float16 sm_90"
    assert gates.instructions_per_mma(kernel) == 2.0
    assert gates.faults(listed(GOOD.replace("LDGSTS.E.BYPASS.128 [R1]", "LDG.E.128 R1"), symbol))


def test_a_good_kernel_passes() -> None:
    assert gates.faults(listed(GOOD)) == []
    first = next(c for c in _C.cuda_kernels() if "fprop" in c["passes"])
    assert gates.name(listed(GOOD)) == f"{first['name']} Float16 sm_90"


FAULTS = {
    "local memory": (GOOD.replace("EXIT", "STL [R1], R2"), {}),
    "bytes of stack": (GOOD, {"stack": 16}),
    "registers": (GOOD, {"registers": 255}),
    "no asynchronous copies": (GOOD.replace("BYPASS.128", "64"), {}),
    "narrow access": (GOOD.replace("IADD3 R1", "LDG.E.64 R1"), {}),
    "no loop that": (GOOD.replace("HMMA", "FFMA"), {}),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_found(message: str) -> None:
    body, usage = FAULTS[message]
    found = gates.faults(listed(body, **usage))
    assert any(message in fault for fault in found), found


def test_other_kernels_must_only_not_spill() -> None:
    symbol = "_ZN4cuda19fprop_simple_kernelIfEEvNS_4ArgsE"
    assert gates.faults(listed(" LDG.E R2, [R4]\n EXIT", symbol)) == []
    assert gates.faults(listed(" LDL R2, [R4]\n EXIT", symbol))
    assert gates.name(listed("EXIT", symbol)) == f"{symbol} sm_90"


def test_figures_may_only_fall() -> None:
    recorded = {"a sm_90": 4.0, "b sm_90": 4.0, "c sm_80": 1.0, "d sm_90": 1.0}
    worse, better = gates.against_record(
        {"a sm_90": 4.01, "b sm_90": 3.9, "e sm_90": 1.0}, recorded, {"sm_90"}
    )
    assert [line.split(":")[0] for line in worse] == ["e sm_90", "d sm_90", "a sm_90"]
    assert [line.split(":")[0] for line in better] == ["b sm_90"]


def test_the_record_names_every_kernel() -> None:
    record = json.loads(Path(gates.RECORD).read_text(encoding="utf-8"))["instructions_per_mma"]
    expected = {
        f"{config['name']} {element} sm_{architecture}"
        for config in [*_C.cuda_kernels(), *_C.nchw_kernels()]
        for element in ("Float16", "BFloat16")
        for architecture in (80, 90)
    }
    expected |= {
        f"{config['name']}_{way} {math} sm_{architecture}"
        for table, way in (
            (_C.tiled_kernels(), "direct"),
            (_C.tiled_kernels(), "gather"),
            (_C.tiled_wgrad_kernels(), "vector"),
            (_C.tiled_wgrad_kernels(), "gather"),
        )
        for config in table
        for math in ("Float16", "BFloat16", "Tf32", "Fma")
        for architecture in (80, 90)
    }
    tails = {name for name in record if f" {name.split(' ')[2]}" in gates.TAILS}
    assert record.keys() - tails == expected
    # Every kernel of fprop has an epilogue; all but one, which lacks registers, the other tails.
    fprop = [c["name"] for c in _C.cuda_kernels() if "fprop" in c["passes"]]
    most = set(fprop) - {"conv_c16_s1"}
    for tail, kernels in (("epilogue", fprop), ("statistics", most), ("residual", most)):
        named = {name for name in tails if name.split(" ")[2] == tail}
        assert named == {
            f"{kernel} {element} {tail} sm_{architecture}"
            for kernel in kernels
            for element in ("Float16", "BFloat16")
            for architecture in (80, 90)
        }


def test_tiled_kernels_are_known_by_their_arguments() -> None:
    symbol = "_ZN4cuda17tiled_conv_kernelILi1ELNS_9TiledMathE{math}ELb{direct}EEEvNS_9TiledArgsE"
    kernel = listed(GOOD, symbol.format(math=2, direct=1))
    assert gates.name(kernel) == "tiled_n32_direct Tf32 sm_90"
    assert gates.faults(kernel) == []
    assert gates.instructions_per_mma(kernel) == 4
    # Made around multiply-adds, of which those of an epilogue do not count.
    of_fma = symbol.format(math=3, direct=0)
    body = GOOD.replace("HMMA.16816.F32", "FFMA").replace("LDGSTS", "LDG.E R5, [R2];\n LDGSTS")
    assert gates.name(listed(body, of_fma)) == "tiled_n32_gather Fma sm_90"
    assert gates.faults(listed(body, of_fma)) == []
    assert gates.instructions_per_mma(listed(body, of_fma)) == 5
    (fault,) = gates.faults(listed(body, symbol.format(math=3, direct=1)))
    assert "narrow access" in fault
    assert "no loop" in " ".join(gates.faults(listed(GOOD, of_fma)))
    (fault,) = gates.faults(listed(GOOD, symbol.format(math=0, direct=1), registers=200))
    assert "200 registers" in fault
