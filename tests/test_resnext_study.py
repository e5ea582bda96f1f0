"""The studies and the models' benchmark: what they compute, and that their commands run."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from resnext import study
from resnext.complexity import measure

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "benchmarks" / "resnext.py"


def test_complexity_has_the_exact_counts(capsys: pytest.CaptureFixture[str]):
    assert study.main(["complexity"]) == 0
    text = capsys.readouterr().out
    for count in (
        *("25,028,904", "25,557,032", "25,425,000", "25,292,968", "25,603,016"),
        *("88,791,336", "83,455,272", "44,177,704", "194,026,792", "468,530,472"),
        *("27,559,896", "48,955,416", "34,426,698", "68,155,210"),
        *("69,632", "69,760", "69,888", "71,456", "70,144", "4,230,479,872", "231,211,008"),
    ):
        assert count in text


def test_versions_of_a_template_cost_the_same():
    for template in study.TEMPLATES:
        costs = [
            measure(lambda t=template, v=v: study._network(t, v), (1, 8, 8))
            for v in template.versions
        ]
        for cost in costs[1:]:
            assert cost.parameters == pytest.approx(costs[0].parameters, rel=0.04)
            assert cost.macs == pytest.approx(costs[0].macs, rel=0.04)


def test_cardinality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The arithmetic of means, standard errors and pairs, with training taken out."""

    class Here:
        """A pool in this process."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        map = staticmethod(map)

    monkeypatch.setattr(study, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(study, "run_one", lambda c: 5.0 - c.cardinality + (c.seed % 2) * 0.5)
    path = tmp_path / "study.json"
    assert study.main(["cardinality", "--seeds", "4", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    rows = found["templates"][0]["versions"]
    assert [row["version"] for row in rows] == ["1x8d", "2x5d", "4x3d"]
    assert rows[2]["errors"] == [1.0, 1.5, 1.0, 1.5]
    assert rows[2]["mean"] == pytest.approx(1.25)
    expected = statistics.stdev(rows[2]["errors"]) / math.sqrt(4)
    assert rows[2]["standard_error"] == pytest.approx(expected)
    assert (rows[2]["paired_mean"], rows[2]["paired_standard_error"]) == (-3.0, 0.0)
    assert "-3.00 ± 0.00" in printed
    plot = tmp_path / "study.png"
    assert study.main(["cardinality", "--from-json", str(path), "--plot", str(plot)]) == 0
    assert capsys.readouterr().out == printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        study.main(["cardinality", "--seeds", "0"])


def test_a_run_of_the_study_is_its_seed_s():
    config = study.TEMPLATES[0].config((4, 3), 5, epochs=1)
    assert study.run_one(config) == study.run_one(config)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """The benchmark's code, which is in no package. Its folder comes last on the path: the scripts
    in it have the names of our packages."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARK.parent)])
    from model_bench import measure as found

    return found


def test_classes_of_operators(bench):
    def classify(name: str, *shapes: list[int]) -> str:
        return bench.operator_class(name, shapes, 32)

    x = [8, 128, 56, 56]
    assert classify("grouped_conv::wgrad", x, x) == "grouped 3x3"
    assert classify("aten::mkldnn_convolution", x, [128, 4, 3, 3]) == "grouped 3x3"
    assert classify("aten::convolution_backward", x, x, [128, 4, 3, 3]) == "grouped 3x3"
    assert classify("aten::mkldnn_convolution", x, [256, 128, 1, 1]) == "dense convolution"
    assert classify("aten::mkldnn_convolution", x, [64, 3, 7, 7]) == "dense convolution"
    assert bench.operator_class("aten::mkldnn_convolution", [x, [64, 64, 3, 3]], 1) == (
        "dense convolution"
    )
    assert classify("aten::native_batch_norm", x) == "batch norm"
    assert classify("aten::clamp_min_", x) == "relu"
    assert classify("aten::add_", x) == "add"
    assert classify("aten::copy_", x) == "copies"
    assert classify("Optimizer.step#SGD.step") == "optimizer"


def test_a_wrong_model_is_not_timed(bench, monkeypatch: pytest.MonkeyPatch):
    from model_bench.cases import Case

    from grouped_conv.bench.timing import Budget

    make = bench.network

    def wrong(case: Case) -> nn.Module:
        model = make(case)
        if case.variant == "grouped":
            with torch.no_grad():
                model.conv1.weight.mul_(-1)
        return model

    monkeypatch.setattr(bench, "network", wrong)
    cpu = torch.device("cpu")
    case = Case("resnext50_32x4d", "conv2d", "inference", "float32", "nhwc", 1, 32, cpu)
    budget = Budget(0.0, 3)
    rows = bench.measure_group([case, case.of("grouped")], budget, 0, memory=False, shares=False)
    assert [row.status for row in rows] == ["ok", "mismatch"]
    assert rows[1].median is None


def test_benchmark_s_command(tmp_path: Path):
    arguments = ["--quick", "--models", "resnext50_32x4d,resnet50", "--modes", "inference"]
    paths = [tmp_path / "b.json", tmp_path / "b.png"]
    files = ["--json", str(paths[0]), "--plot", str(paths[1]), "--threads", "1", "--no-memory"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments, *files],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(paths[0].read_text())
    assert found["schema"] == "grouped_conv.model_bench/1"
    rows = {(row["model"], row["variant"]): row for row in found["rows"]}
    assert len(rows) == 6
    base, ours = rows["resnext50_32x4d", "conv2d"], rows["resnext50_32x4d", "grouped"]
    assert base["ratio"] == 1.0
    assert ours["images_per_second"] == pytest.approx(2 / ours["median"], rel=1e-2)
    assert ours["bound"] == pytest.approx(1 / (1 - base["shares"]["grouped 3x3"]), rel=1e-2)
    assert sum(base["shares"].values()) == pytest.approx(1, rel=1e-2)
    assert rows["resnet50", "grouped"]["status"] == "skipped"
    assert "nn.Conv2d" in done.stdout
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.json"
    arguments = ["--from-json", str(paths[0]), "--json", str(again)]
    shown = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert again.read_text() == paths[0].read_text()
    assert shown.stdout.splitlines()[-8:] == done.stdout.splitlines()[-8:]
