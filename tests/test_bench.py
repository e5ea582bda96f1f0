"""The benchmark's own machinery. Nothing here asserts on a measured time."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grouped_conv import functional, reference
from grouped_conv.bench import cli, machine, memory, plots, problems, report, results, timing
from grouped_conv.bench.memory import Memory
from grouped_conv.bench.peers import WORKS, Case, Operands, ours, pytorch
from grouped_conv.bench.problems import Layer, network, parse_spec, resolve
from grouped_conv.bench.results import Peer, Row, Run, Timing
from grouped_conv.bench.roofline import Ceiling, Roofline
from grouped_conv.bench.run import Plan, measure_row
from grouped_conv.bench.timing import Budget, Call, CpuStopwatch
from grouped_conv.bench.verify import Accuracy, Mismatch, exact_part, spread, verify
from grouped_conv.problem import ConvProblem

pytestmark = pytest.mark.once

MISSING = [name for name in ("tabulate", "tqdm") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "grouped_conv.py"
CPU = torch.device("cpu")
TINY = Layer(C=8, H=6, W=5, K=8, G=2)
ROOFLINE = Roofline({"float32": Ceiling(100e9, "product")}, Ceiling(10e9, "copy"))


# Problem lists.


def test_resnext50_has_its_seven_layers() -> None:
    layers = network("resnext50")
    assert [(layer.C, layer.H, layer.stride) for layer in layers] == [
        (128, 56, 1),
        (256, 56, 2),
        (256, 28, 1),
        (512, 28, 2),
        (512, 14, 1),
        (1024, 14, 2),
        (1024, 7, 1),
    ]
    assert all(layer.G == 32 and layer.K == layer.C for layer in layers)
    assert sum(layers.values()) == 16
    assert {layer.problem(1).flops for layer in layers} == {28_901_376}
    # 0.231 of ResNeXt-50's 4.23 GMACs are in these layers.
    macs = sum(count * layer.problem(1).flops for layer, count in layers.items()) / 2
    assert round(macs / 1e9, 3) == 0.231


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("regnetx_002", (24, 56, 152, 368)),
        ("regnetx_032", (96, 192, 432, 1008)),
        ("regnetx_040", (80, 240, 560, 1360)),
        ("regnety_004", (48, 104, 208, 440)),
        ("regnety_016", (48, 120, 336, 888)),
        ("regnety_080", (168, 448, 896, 2016)),
        ("regnety_320", (696, 1392, 3712)),  # its first stage of 232 is a single group
    ],
)
def test_regnets_have_the_published_widths(name: str, widths: tuple[int, ...]) -> None:
    layers = network(name)
    assert tuple(dict.fromkeys(layer.C for layer in layers)) == widths
    depth, _, _, _, group_width = problems._REGNETS[name]
    assert {layer.C // layer.G for layer in layers} == {group_width}
    assert sum(layers.values()) in (depth, depth - 2)


def test_resnext101_and_senet154_group_widths() -> None:
    assert {layer.C // layer.G for layer in network("resnext101_32x8d")} == {8, 16, 32, 64}
    assert {layer.C // layer.G for layer in network("resnext101_64x4d")} == {4, 8, 16, 32}
    assert all(layer.G == 64 and layer.K == 2 * layer.C for layer in network("senet154"))
    assert sum(network("senet154").values()) == 50


@pytest.mark.parametrize("name", problems.NAMES)
def test_every_network_is_grouped_and_its_layers_read_back(name: str) -> None:
    layers = network(name)
    assert layers
    for layer, count in layers.items():
        assert count > 0
        assert layer.G > 1
        assert layer.C % layer.G == 0
        assert layer.K % layer.G == 0
        assert parse_spec(str(layer)) == layer


def test_regnet_list_covers_every_group_width_and_stride() -> None:
    def kinds(name: str) -> set[tuple[int, int]]:
        return {(layer.C // layer.G, layer.stride) for layer in network(name)}

    assert kinds("regnet") == kinds("regnet_all")
    assert set(network("regnet")) < set(network("regnet_all"))


def test_resolve_keeps_the_commas_of_a_specification() -> None:
    layers = list(resolve("64x9x9,g4,s2, resnext50 ,32x9x7,k64,g8,r5,d2,p3"))
    assert layers[0] == Layer(64, 9, 9, 64, 4, stride=2)
    assert layers[1:-1] == list(network("resnext50"))
    assert layers[-1] == Layer(32, 9, 7, 64, 8, R=5, pad=3, dilation=2)
    assert len(resolve("resnext50,128x56x56,g32,s1")) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18", "unknown problem 'resnet18'"),
        ("", "empty"),
        ("64x9", "not CxHxW"),
        ("64x9x9,g5", "do not divide"),
        ("64x9x9,s0", "zero"),
        ("64x1x1,p0", "does not fit"),
    ],
)
def test_resolve_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(text)


# Timing.


class Clock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_stopwatch_times_the_call_and_not_the_keeping() -> None:
    clock = Clock()

    def run() -> torch.Tensor:
        clock.now += 5_000
        return torch.zeros(1)

    def keep(_: torch.Tensor) -> None:
        clock.now += 1_000_000

    assert CpuStopwatch(clock)([Call(run, keep)] * 2) == pytest.approx([5e-6, 5e-6])


def test_interleave_rotates_inputs_and_calls_each_contender_once_a_round() -> None:
    clock = Clock()
    calls: list[tuple[int, int]] = []

    def contender(index: int, cost: int) -> timing.Callable[[int], torch.Tensor]:
        def run(slot: int) -> torch.Tensor:
            calls.append((index, slot))
            clock.now += cost
            return torch.zeros(1)

        return run

    samples = timing.interleave(
        [contender(0, 1_000), contender(1, 3_000), contender(2, 2_000)],
        slots=4,
        watch=CpuStopwatch(clock),
        budget=Budget(min_time=0.0, repeats=50),
        rng=random.Random(1),
    )
    assert [len(values) for values in samples] == [50, 50, 50]
    for values, seconds in zip(samples, (1e-6, 3e-6, 2e-6), strict=True):
        assert values == pytest.approx([seconds] * 50)
    assert [slot for _, slot in calls] == [i % 4 for i in range(len(calls))]
    rounds = [tuple(index for index, _ in calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 51  # one to warm up
    assert all(sorted(order) == [0, 1, 2] for order in rounds)
    assert len(set(rounds)) == 6  # in every order


def test_budget_needs_time_and_rounds_but_does_not_wait_for_slow_calls() -> None:
    budget = Budget(min_time=1.0, repeats=20, max_repeats=100)
    assert not budget.enough(19, 5.0, contenders=2)
    assert not budget.enough(20, 1.9, contenders=2)
    assert budget.enough(20, 2.0, contenders=2)
    assert budget.enough(3, 20.0, contenders=2)
    assert not budget.enough(2, 20.0, contenders=2)
    assert budget.enough(100, 0.0, contenders=2)


def test_rotated_inputs_outgrow_the_cache() -> None:
    for size in (1, 1000, 1 << 20, 1 << 30):
        slots = timing.slots_for(size, cache=32 << 20)
        assert slots >= 2
        assert (slots - 1) * size >= 32 << 20 or slots == 1024


def test_statistics() -> None:
    assert timing.quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    # A disturbed round slows both calls and leaves the median of the pairs alone.
    assert timing.paired_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0
    assert results.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert results.geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
    assert math.isnan(results.geometric_mean([]))


class FakeEvent:
    """A CUDA event whose time is the fake device's when it is recorded."""

    device_ms = 0.0
    slept: list[int] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.device_ms

    def query(self) -> bool:
        return FakeEvent.slept[-1] < 1 << 24  # shorter sleeps end before the host is done

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_cuda_stopwatch_sleeps_until_the_host_keeps_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEvent, "slept", [])
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", FakeEvent.slept.append)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())

    def run() -> torch.Tensor:
        FakeEvent.device_ms += 2.0
        return torch.zeros(1)

    watch = timing.CudaStopwatch(torch.device("cuda", 0))
    assert watch([Call(run, lambda _: None)] * 3) == pytest.approx([2e-3] * 3)
    assert FakeEvent.slept == [1 << 22, 1 << 23, 1 << 24]
    watch([Call(run, lambda _: None)])
    assert FakeEvent.slept[-1] == 1 << 24  # the length that sufficed is kept


# Roofline.


def test_floor_is_the_slower_of_arithmetic_and_traffic() -> None:
    problem = ConvProblem(1, 128, 56, 56, 128, G=32, pad_h=1, pad_w=1)
    arithmetic, traffic = problem.flops / 100e9, problem.min_bytes(torch.float32) / 10e9
    assert traffic > arithmetic
    assert ROOFLINE.floor(problem, "float32") == (traffic, "memory")
    dense = replace(problem, G=1)
    assert ROOFLINE.floor(dense, "float32") == (dense.flops / 100e9, "compute")


# Verification.


def case_of(layer: Layer, pass_name: str, batch: int = 3, layout: str = "nhwc") -> Case:
    return Case(layer.problem(batch), pass_name, "float32", layout, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("pass_name", WORKS)
@pytest.mark.parametrize("budget", [1e9, 6e-4, 1e-9])
def test_exact_part_is_a_part_of_the_oracle(pass_name: str, budget: float) -> None:
    case = case_of(Layer(C=12, H=7, W=6, K=18, G=3, stride=2), pass_name, batch=5)
    operands = Operands.random(case, seed=3)
    p = case.problem
    if pass_name == "fprop":
        whole = reference.fprop(operands.x, operands.w, None, p)
    elif pass_name == "fprop_affine":
        whole = reference.fprop(operands.x, operands.w, None, p)
        whole = whole * operands.scale.double()[:, None, None]
        whole = (whole + operands.shift.double()[:, None, None] + operands.dy.double()).relu()
    elif pass_name == "dgrad":
        whole = reference.dgrad(operands.dy, operands.w, p)
    else:
        whole = reference.wgrad(operands.dy, operands.x, p)
    exact = exact_part(case, operands, budget)
    assert exact.values.numel() > 0
    assert (exact.name == "all") == (budget == 1e9)
    assert exact.values.numel() < whole.numel() or budget == 1e9
    torch.testing.assert_close(exact.select(whole), exact.values, rtol=1e-12, atol=1e-12)


def test_spread_has_both_ends() -> None:
    assert spread(10, 3) == [0, 1, 2]
    assert spread(0, 32) == [0, 31]
    assert spread(3, 33) == [0, 16, 32]
    assert spread(1, 1) == [0]


@pytest.mark.parametrize("pass_name", WORKS)
def test_verify_finds_every_kind_of_fault(pass_name: str) -> None:
    case = case_of(Layer(C=64, H=8, W=8, K=64, G=4), pass_name, batch=8)
    operands = Operands.random(case, seed=1)
    right = pytorch(case).run(operands)
    part = exact_part(case, operands, budget=1e-9)
    assert part.name != "all"
    accuracy = verify(case, part, right.clone(), right)
    assert accuracy.ratio == 1.0

    everything = exact_part(case, operands)
    noise = 1e-5 * torch.randn_like(right)
    with pytest.raises(Mismatch, match="rms error"):
        verify(case, everything, right + noise, right)
    for fault in (math.nan, math.inf, 0.1):
        for position in (0, right.shape[0] // 2, right.shape[0] - 1):
            wrong = right.clone()
            wrong[position, 0, 0, 0] += fault
            with pytest.raises(Mismatch):
                verify(case, part, wrong, right)
    with pytest.raises(Mismatch, match="PyTorch's is"):
        verify(case, part, right.double(), right)
    if pass_name != "wgrad":
        with pytest.raises(Mismatch, match="not in nhwc"):
            verify(case, part, right.contiguous(), right)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("pass_name", WORKS)
def test_contenders_compute_the_same(pass_name: str, layout: str) -> None:
    case = case_of(Layer(C=12, H=7, W=6, K=18, G=3, stride=2), pass_name, layout=layout)
    operands = Operands.random(case, seed=2)
    copy = operands.copy(case)
    expected = pytorch(case).run(operands)
    torch.testing.assert_close(ours(case).run(copy), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        copy.read_by(case.pass_name), operands.read_by(case.pass_name), strict=True
    ):
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.is_contiguous(memory_format=case.memory_format)


# Rows.


class Scripted:
    """A stopwatch that runs each call and reports times of its own."""

    rounds_per_batch = 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, calls: timing.Sequence[Call]) -> list[float]:
        for call in calls:
            call.keep(call.run())
        return [self.seconds] * len(calls)


PLAN = Plan([TINY], ["fprop"], ["float32"], ["nhwc"], [2], CPU, budget=Budget(0.0, 4))


def measured(plan: Plan = PLAN, pass_name: str = "fprop") -> Row:
    case = case_of(TINY, pass_name, batch=2)
    return measure_row(TINY, case, plan, ROOFLINE, cache=1 << 12, watch=Scripted(1e-3))


@pytest.mark.parametrize("pass_name", WORKS)
def test_measured_row(pass_name: str) -> None:
    row = measured(pass_name=pass_name)
    assert (row.status, row.message, row.notes) == ("ok", "", [])
    assert row.layer == "8x6x5,g2,s1"
    assert row.ours is not None
    assert (row.ours.median, row.ours.low, row.ours.high, row.ours.calls) == (1e-3, 1e-3, 1e-3, 4)
    assert row.ours.cold > 0
    peers = ["PyTorch", "PyTorch folded"] if pass_name == "fprop_affine" else ["PyTorch"]
    assert [peer.name for peer in row.peers] == peers
    assert row.ratio == row.same_layout_ratio == 1.0
    assert row.share == pytest.approx(row.floor / 1e-3)
    assert row.accuracy is not None
    assert row.accuracy.checked == "all"
    assert row.backend
    assert row.kernel


def test_a_wrong_kernel_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.fprop
    monkeypatch.setattr(functional, "fprop", lambda *a, **k: right(*a, **k) * 1.001)
    row = measured()
    assert row.status == "mismatch"
    assert "rms error" in row.message
    assert row.ours is None
    assert row.peers == []


def test_a_failing_kernel_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of luck\nwith a long trace")

    monkeypatch.setattr(functional, "fprop", fail)
    row = measured()
    assert row.status == "error"
    assert row.message == "RuntimeError: out of luck"


@needs_extra
def test_a_backend_that_refuses_is_no_failure() -> None:
    row = measured(replace(PLAN, backend="triton"))
    assert row.status == "refused"
    assert "triton" in row.message
    run = replace(RUN, rows=[row])
    assert run.failed == []
    assert "REFUSED" in report.whole(run)


@needs_extra
def test_another_backend_can_be_a_peer() -> None:
    row = measured(replace(PLAN, backend="aten", peers=("torch", "native", "triton")))
    assert (row.status, row.notes) == ("ok", [])
    names = [peer.name for peer in row.peers]
    assert names == ["PyTorch", "native"]  # the Triton kernels do not take tensors of a CPU


# Reports.


def made_row(layer: str, batch: int, mine: float, theirs: dict[str, float]) -> Row:
    def times(seconds: float) -> Timing:
        return Timing(seconds, 0.9 * seconds, 1.1 * seconds, 0.8 * seconds, 30, 5 * seconds)

    return Row(
        layer=layer,
        pass_name="fprop",
        dtype="float32",
        layout="nhwc",
        batch=batch,
        flops=28_901_376 * batch,
        min_bytes=1_000_000 * batch,
        floor=mine / 2,
        bound="memory",
        status="ok",
        backend="native",
        kernel="fprop_direct_float32_avx512",
        refused=[["triton", "no GPU"]],
        ours=times(mine),
        peers=[Peer(name, name, times(value), value / mine) for name, value in theirs.items()],
        accuracy=Accuracy(1e-7, 1e-6, 2e-7, 2e-6, "all"),
        memory=Memory(1 << 20, 2 << 20, 3 << 20),
    )


RUN = Run(
    machine=machine.describe(CPU),
    settings={"backend": "auto", "seed": 0},
    roofline=ROOFLINE,
    rows=[
        made_row("128x56x56,g32,s1", 1, 1e-3, {"nhwc": 3e-3, "nchw": 2e-3}),
        made_row("256x28x28,g32,s1", 1, 1e-3, {"nhwc": 4e-3, "nchw": 8e-3}),
        made_row("128x56x56,g32,s1", 8, 1e-3, {"nhwc": 1e-3, "nchw": 1e-3}),
        replace(
            made_row("256x28x28,g32,s1", 8, 1e-3, {}),
            status="mismatch",
            message="rms error 1",
            ours=None,
            accuracy=None,
            memory=None,
        ),
    ],
)


def test_summaries_are_geometric_means_per_group_and_of_all() -> None:
    first, second, everything = results.summaries(RUN.rows)
    assert (first.name, first.rows) == ("fprop float32 nhwc N=1", 2)
    assert first.ratio == pytest.approx(math.sqrt(2 * 4))  # against the faster peer
    assert first.same_layout_ratio == pytest.approx(math.sqrt(3 * 4))
    assert (first.worst, first.worst_row) == (2.0, "128x56x56,g32,s1")
    assert (second.rows, second.ratio) == (1, 1.0)
    assert everything.ratio == pytest.approx((2 * 4 * 1) ** (1 / 3))
    assert everything.share == pytest.approx(0.5)
    assert everything.worst_row == "128x56x56,g32,s1 fprop float32 nhwc N=8"
    assert [row.layer for row in RUN.failed] == ["256x28x28,g32,s1"]


@needs_extra
@pytest.mark.parametrize("tablefmt", ["simple", "github"])
def test_tables_are_plain_text(tablefmt: str) -> None:
    text = report.whole(RUN, tablefmt)
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    line = next(line for line in text.splitlines() if "128x56x56" in line)
    for cell in (
        "native: fprop_direct_float32_avx512",
        "1000",
        "50%",
        "3000",
        "2000",
        "2.00",
        "3.00",
        "0.50",
    ):
        assert cell in line
    assert "mismatch: 256x28x28,g32,s1: rms error 1" in text
    assert "geometric mean 2.83x over 2 rows" in text


def test_json_round_trip(tmp_path: Path) -> None:
    text = results.to_json(RUN)
    assert json.loads(text)["schema"] == results.SCHEMA
    again = results.from_json(text)
    assert again.machine == RUN.machine
    assert again.rows[3] == RUN.rows[3]
    assert results.to_json(again) == text
    assert len(text.splitlines()) < 20 + 2 * len(RUN.rows)
    for wrong in ("{}", "[]", '{"schema": "another/1"}'):
        with pytest.raises(ValueError, match="not a result"):
            results.from_json(wrong)
    name = results.default_path(tmp_path, replace(RUN.machine, name="AMD EPYC (family 25)"))
    assert name == tmp_path / f"amd-epyc-family-25_{RUN.machine.date[:10]}.json"


def test_results_name_no_path_of_the_machine() -> None:
    text = results.to_json(RUN)
    for path in (Path.cwd(), Path(sys.prefix), Path(__file__).parent):
        assert str(path) not in text


def test_csv_has_a_line_per_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    results.write_csv(RUN, path)
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(RUN.rows)
    assert float(lines[0]["ratio"]) == 2.0
    assert float(lines[0]["us"]) == 1000.0
    assert lines[0]["best_peer"] == "nchw"
    assert (lines[3]["status"], lines[3]["us"]) == ("mismatch", "")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    plots.draw(RUN, path)
    assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw(replace(RUN, rows=RUN.rows[3:]), path)


# Machine and memory.


def test_machine_is_described() -> None:
    described = machine.describe(CPU)
    assert described.cores >= 1
    assert described.last_level_cache >= 1 << 18
    assert described.torch == torch.__version__
    assert all(described.lines())


def test_high_water_sees_what_a_call_allocates() -> None:
    size = 64 << 20
    raised = memory.high_water(lambda: torch.ones(size, dtype=torch.uint8))
    assert 0.9 * size < raised < 1.5 * size


# The command line.


@needs_extra
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float8"], "unknown 'float8' (choose from float32, bfloat16, float16)"),
        (["--layout", "nhwc,chwn"], "unknown 'chwn'"),
        (["--passes", ","], "the list is empty"),
        (["--batch", "0"], "not a positive whole number"),
        (["--batch", "1,x"], "'x' is not a positive whole number"),
        (["--problems", "resnet18"], "unknown problem 'resnet18'"),
        (["--backend", "magic"], "invalid choice"),
        (["--peers", "magic"], "unknown 'magic'"),
        (["--device", "tpu"], "neither cpu nor cuda"),
        (["--min-time", "long"], "not a number of seconds"),
        (["--plot", "plot.txt"], "does not end in .png"),
        (["--csv", "no/such/directory/rows.csv"], "there is no such directory"),
        (["--device", "cpu", "--peers", "spio"], "spio needs a CUDA device"),
        (["--device", "cpu", "--peers", "triton"], "triton needs a CUDA device"),
        (["--from-json", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_bad_flags_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        cli.main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        cli.main(["--device", "cuda"])
    assert status.value.code == 2
    assert "CUDA" in capsys.readouterr().err


@needs_extra
def test_defaults_and_quick() -> None:
    _, flags = cli.parse(["--device", "cpu"])
    assert list(flags.problems) == list(network("resnext50"))
    assert (flags.dtype, flags.layout, flags.passes, flags.batch) == (
        ["float32"],
        ["nhwc"],
        ["fprop"],
        [8],
    )
    assert (flags.min_time, flags.repeats) == (0.4, 20)
    _, flags = cli.parse(["--device", "cpu", "--quick", "--repeats", "3", "--dtype", "bf16,fp32"])
    assert (flags.min_time, flags.repeats, flags.dtype) == (0.1, 3, ["bfloat16", "float32"])
    _, flags = cli.parse(["--device", "cpu", "--passes", "all", "--batch", "1,8,32,8"])
    assert (flags.passes, flags.batch) == (["fprop", "dgrad", "wgrad"], [1, 8, 32])


def run_script(
    arguments: list[str], script: Path = SCRIPT, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@needs_extra
@pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmark script is in the repository only")
class TestScript:
    """benchmarks/grouped_conv.py in a process of its own."""

    def test_end_to_end(self, tmp_path: Path) -> None:
        written = [tmp_path / "out.json", tmp_path / "out.csv"]
        done = run_script(
            [
                *("--device", "cpu", "--problems", "16x6x6,g4,s1,8x5x5,g2,s2"),
                *("--passes", "all", "--layout", "nhwc,nchw", "--batch", "2"),
                *("--min-time", "0", "--repeats", "2", "--threads", "1"),
                *("--json", str(written[0]), "--csv", str(written[1])),
            ],
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert "\x1b" not in done.stdout + done.stderr
        assert "%|" not in done.stderr  # no progress bar on a pipe
        assert done.stdout.splitlines()[-1].startswith("all ")
        run = results.from_json(written[0].read_text(encoding="utf-8"))
        assert [row.status for row in run.rows] == ["ok"] * 12
        assert run.machine.threads == 1
        again = run_script(["--from-json", str(written[0])])
        assert again.returncode == 0, again.stderr
        shown = [line for line in again.stdout.splitlines() if line.startswith("16x6x6")]
        assert len(shown) == 6
        assert all(row.kernel in again.stdout for row in run.rows)

    def test_memory_is_measured_in_spawned_processes(self, tmp_path: Path) -> None:
        # From the script's own folder, where its name shadows the package most.
        path = tmp_path / "out.json"
        arguments = ["--device", "cpu", "--problems", "16x32x32,g4", "--batch", "16", "--memory"]
        arguments += ["--min-time", "0", "--repeats", "2", "--json", str(path)]
        done = run_script(arguments, cwd=SCRIPT.parent)
        assert done.returncode == 0, done.stderr + done.stdout
        (row,) = results.from_json(path.read_text(encoding="utf-8")).rows
        assert row.memory is not None
        assert row.memory.result == 16 * 16 * 32 * 32 * 4
        assert min(row.memory.ours, row.memory.torch) > 0.5 * row.memory.result

    @pytest.mark.parametrize("path", ["", "benchmarks", "benchmarks{sep}."])
    def test_the_script_does_not_shadow_the_package(self, tmp_path: Path, path: str) -> None:
        saved = tmp_path / "run.json"
        saved.write_text(results.to_json(RUN), encoding="utf-8")
        environment = dict(os.environ)
        if path:
            added = path.format(sep=os.pathsep).split(os.pathsep)
            inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
            environment["PYTHONPATH"] = os.pathsep.join([*added, *inherited])
        root = SCRIPT.parent.parent
        for folder, script in (
            (root, SCRIPT.relative_to(root)),
            (SCRIPT.parent, Path(SCRIPT.name)),
        ):
            done = run_script(["--from-json", str(saved)], script, cwd=folder, env=environment)
            assert done.returncode == 1, done.stderr  # one of the saved rows is a mismatch
            assert "1 of 4 rows failed" in done.stderr

    def test_an_import_of_the_script_hands_on_the_package(self) -> None:
        code = "import grouped_conv, grouped_conv.bench as b; print(b.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=SCRIPT.parent,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).resolve() == Path(machine.__file__).with_name(
            "__init__.py"
        )

    def test_an_unbuilt_source_tree_gives_way_to_the_installed_package(
        self, tmp_path: Path
    ) -> None:
        tree = tmp_path / "tree"
        (tree / "benchmarks").mkdir(parents=True)
        (tree / "grouped_conv").mkdir()
        (tree / "grouped_conv" / "__init__.py").write_text("raise ImportError('not built')")
        script = Path(shutil.copy(SCRIPT, tree / "benchmarks"))
        saved = tmp_path / "run.json"
        saved.write_text(results.to_json(replace(RUN, rows=RUN.rows[:3])), encoding="utf-8")
        done = run_script(["--from-json", str(saved)], script, cwd=tree)
        assert done.returncode == 0, done.stderr


@needs_extra
def test_interrupted_run_reports_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = iter(RUN.rows[:1])

    def stop_after_one(*_: object) -> Row:
        try:
            return next(rows)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cli, "measure_row", stop_after_one)
    monkeypatch.setattr(cli.roofline, "measure", lambda *_: ROOFLINE)
    assert cli.main(["--device", "cpu", "--fresh-pages"]) == 130
    output = capsys.readouterr().out
    assert "128x56x56,g32,s1" in output
    assert "geometric mean 2.00x over 1 row," in output


@needs_extra
def test_wrong_rows_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "measure_row", lambda *_: RUN.rows[3])
    monkeypatch.setattr(cli.roofline, "measure", lambda *_: ROOFLINE)
    assert cli.main(["--device", "cpu", "--fresh-pages"]) == 1
    captured = capsys.readouterr()
    assert "7 of 7 rows failed" in captured.err
    assert "nothing was timed" in captured.out
