"""pytest-benchmark cases over ResNeXt-50's layers, ours and PyTorch's side by side.

They are skipped unless asked for, and assert nothing about time. To compare two versions:

    pytest tests/test_benchmark_regressions.py --benchmark-only --benchmark-save=before
    pytest tests/test_benchmark_regressions.py --benchmark-only --benchmark-compare=0001 \
        --benchmark-compare-fail=median:10%
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from grouped_conv.bench.machine import last_level_cache
from grouped_conv.bench.peers import Case, Operands, ours, pytorch
from grouped_conv.bench.problems import Layer, network
from grouped_conv.bench.roofline import DTYPES
from grouped_conv.bench.timing import slots_for
from grouped_conv.problem import PASSES, Pass

pytest.importorskip("pytest_benchmark")

CPU = torch.device("cpu")
BATCH = 8


@pytest.mark.parametrize("who", ["ours", "pytorch"])
@pytest.mark.parametrize("layer", list(network("resnext50")), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pass_name", PASSES)
def test_layer(benchmark: Any, pass_name: Pass, dtype: str, layer: Layer, who: str) -> None:
    case = Case(layer.problem(BATCH), pass_name, dtype, "nhwc", CPU)
    benchmark.group = f"{pass_name} {dtype} {layer}"
    contender = ours(case) if who == "ours" else pytorch(case)
    base = Operands.random(case, seed=0)
    slots = slots_for(case.problem.min_bytes(DTYPES[dtype]), last_level_cache(CPU))
    cold_inputs = itertools.cycle([base.copy(case) for _ in range(slots)])
    with torch.no_grad():
        result = benchmark.pedantic(
            contender.run,
            setup=lambda: ((next(cold_inputs),), {}),
            rounds=30,
            warmup_rounds=3,
        )
    assert result.isfinite().all()
