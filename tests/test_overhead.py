"""The benchmark of call overhead, and that the calls that matter are within its limit."""

from __future__ import annotations

import pytest
import torch

from grouped_conv import functional
from grouped_conv.bench import overhead

pytestmark = pytest.mark.once

CASES = {case.name: case for case in overhead.cases()}


@pytest.mark.parametrize("name", CASES)
def test_case_computes_the_same(name: str):
    case = CASES[name]
    torch.testing.assert_close(case.ours(), case.theirs(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["function", "module", "recorded", "forward and backward"])
def test_a_call_that_the_kernels_take_is_within_the_limit(name: str):
    """Several times faster when measured alone, so a busy machine does not fail it."""
    assert CASES[name].backend == "native"
    assert overhead.measure(CASES[name], seconds=0.2).ratio <= overhead.LIMIT


def test_known_calls_cost_less_than_parsing(monkeypatch: pytest.MonkeyPatch):
    """The table of known calls is what keeps ATen's calls within the limit."""
    case = CASES["one group"]
    assert case.backend == "aten"
    known = overhead.measure(case, seconds=0.2).ratio
    monkeypatch.setattr(functional, "_key", lambda *args: None)
    assert known < overhead.measure(case, seconds=0.2).ratio


def test_prints_a_table(capsys: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda count: None)
        assert overhead.main(["--seconds", "0.01"]) in (0, 1)
    text = capsys.readouterr().out
    for name in CASES:
        assert name in text
