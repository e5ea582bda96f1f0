"""The CPU kernels of every instruction set that this machine has, not only of the best."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import random_cases, short

from grouped_conv import _C
from grouped_conv.backends import Query, native

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[1]
HERE = _C.cpu_isa()
OTHERS = _C.compiled_isas()[_C.compiled_isas().index(HERE) + 1 :]


def in_process_with(isa: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, native.ISA_VARIABLE: isa, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_portable_kernels_are_in_every_build():
    assert _C.compiled_isas()[-1] == "portable"
    assert set(_C.compiled_isas()) <= set(native.ISAS)


@pytest.mark.skipif(native.ISA_VARIABLE in os.environ, reason="the instruction set is chosen")
def test_the_best_instruction_set_is_used():
    features = _C.cpu_features()
    usable = [isa for isa in _C.compiled_isas() if features.get(isa, isa == "portable")]
    assert usable[0] == HERE


# Test files, and which of their tests.
TARGETS = {
    "test_functional.py": "test_random_problem and native and 3x3 and p1",
    "test_affine.py": "test_every_subset and nhwc and not float64",
    "test_wgrad_winograd.py": "test_as_accurate_as_pytorch",
}


@pytest.mark.parametrize("isa", OTHERS)
def test_function_with_another_instruction_set(isa: str, tmp_path: Path):
    """Problems of other test files, computed by the kernels of another set."""
    program = "from grouped_conv import _C; print(_C.cpu_isa())"
    assert in_process_with(isa, "-c", program, cwd=tmp_path).stdout.strip() == isa
    files = [str(ROOT / "tests" / name) for name in TARGETS]
    chosen = " or ".join(f"({expression})" for expression in TARGETS.values())
    options = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider")
    done = in_process_with(isa, "-m", "pytest", *files, *options, "-qxk", chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 100


def test_unknown_instruction_set_is_ignored_with_a_warning(tmp_path: Path):
    done = in_process_with(
        "sse9", "-c", "from grouped_conv import _C; print(_C.cpu_isa())", cwd=tmp_path
    )
    assert done.stdout.strip() == _C.compiled_isas()[0] or done.stdout.strip() in OTHERS
    assert "sse9" in done.stderr


def test_refusals_of_the_direct_kernels_are_the_compiled_ones():
    for case in random_cases(120, seed=3):
        p = case.problem
        extents = [p.N, *p.input_size[1:], p.K, p.R, p.S, p.G]
        extents += [*p.padding, *p.stride, *p.dilation]
        query = Query.of("fprop", p, case.dtype, torch.device("cpu"), case.layout == "nhwc")
        assert native._no_direct(query) == _C.direct_refusal(extents, short(case.dtype))
