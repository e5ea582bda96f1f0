"""What a run of the benchmark found: rows, summaries, and their JSON and CSV forms."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grouped_conv.bench.machine import Machine
from grouped_conv.bench.memory import Memory
from grouped_conv.bench.roofline import Ceiling, Roofline
from grouped_conv.bench.verify import Accuracy

SCHEMA = "grouped_conv.bench/1"

Status = Literal["ok", "refused", "mismatch", "error"]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the steady state's median, quartiles and best, and the first call."""

    median: float
    low: float
    high: float
    best: float
    calls: int
    cold: float

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Peer:
    """A peer's timing, and the median over the rounds of its time by ours."""

    name: str
    layout: str
    timing: Timing
    ratio: float


@dataclass(frozen=True)
class Key:
    """Rows with the same key make one table."""

    pass_name: str
    dtype: str
    layout: str
    batch: int

    def __str__(self) -> str:
        return f"{self.pass_name} {self.dtype} {self.layout} N={self.batch}"


@dataclass(frozen=True)
class Row:
    """One layer, pass, dtype, layout and batch."""

    layer: str
    pass_name: str
    dtype: str
    layout: str
    batch: int
    flops: int
    min_bytes: int
    floor: float
    bound: str
    status: Status
    message: str = ""
    backend: str = ""
    kernel: str = ""
    refused: list[list[str]] = field(default_factory=list)
    ours: Timing | None = None
    peers: list[Peer] = field(default_factory=list)
    accuracy: Accuracy | None = None
    memory: Memory | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return Key(self.pass_name, self.dtype, self.layout, self.batch)

    @property
    def best(self) -> Peer | None:
        """The fastest peer."""
        return min(self.peers, key=lambda peer: peer.timing.median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times faster than the fastest peer."""
        return None if self.best is None else self.best.ratio

    @property
    def same_layout_ratio(self) -> float | None:
        """How many times faster than PyTorch in the same layout, which is the first peer."""
        return self.peers[0].ratio if self.peers else None

    @property
    def share(self) -> float | None:
        """Floor over our median: 1 is as fast as the machine can be."""
        return None if self.ours is None else self.floor / self.ours.median


@dataclass(frozen=True)
class Summary:
    """Geometric means of a group of rows, and its slowest row relative to the best peer."""

    name: str
    rows: int
    ratio: float
    same_layout_ratio: float
    share: float
    worst: float
    worst_row: str


@dataclass(frozen=True)
class Run:
    """All of one run."""

    machine: Machine
    settings: dict[str, Any]
    roofline: Roofline
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """Rows that no one should trust this build with."""
        return [row for row in self.rows if row.status in ("mismatch", "error")]


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product; NaN of nothing."""
    values = list(values)
    return statistics.geometric_mean(values) if values else float("nan")


def summarise(name: str, rows: Sequence[Row]) -> Summary | None:
    """Summary of the rows that were timed beside a peer, if any."""
    timed = [row for row in rows if row.ratio is not None]
    if not timed:
        return None
    worst = min(timed, key=lambda row: row.ratio or 0.0)
    one_group = len({row.key for row in rows}) == 1
    return Summary(
        name=name,
        rows=len(timed),
        ratio=geometric_mean(row.ratio or 0.0 for row in timed),
        same_layout_ratio=geometric_mean(row.same_layout_ratio or 0.0 for row in timed),
        share=geometric_mean(row.share or 0.0 for row in timed),
        worst=worst.ratio or 0.0,
        worst_row=worst.layer if one_group else f"{worst.layer} {worst.key}",
    )


def grouped(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows by key, in order of first appearance."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return groups


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary per group of rows, and one of all where there are several groups."""
    groups = grouped(rows)
    found = [summarise(str(key), members) for key, members in groups.items()]
    if len(groups) > 1:
        found.append(summarise("all", rows))
    return [summary for summary in found if summary is not None]


def to_json(run: Run) -> str:
    """The run as JSON, a row a line; benchmarks/results/README.md documents the schema."""
    document = {
        "schema": SCHEMA,
        "machine": dataclasses.asdict(run.machine),
        "settings": run.settings,
        "roofline": dataclasses.asdict(run.roofline),
        "summary": [dataclasses.asdict(summary) for summary in summaries(run.rows)],
        "rows": [_sparse(row) for row in run.rows],
    }
    parts = []
    for name, value in _rounded(document).items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(item)}" for item in value)
            parts.append(f' "{name}": [\n{lines}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _sparse(row: Row) -> dict[str, Any]:
    """The row's fields, without those that have their default value."""
    defaults = Row(**dict.fromkeys(_REQUIRED))  # type: ignore[arg-type]
    return {
        name: value
        for name, value in dataclasses.asdict(row).items()
        if name in _REQUIRED or value != getattr(defaults, name)
    }


_REQUIRED = [
    f.name
    for f in dataclasses.fields(Row)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
]


def _rounded(value: Any) -> Any:
    """Floats to five significant digits: nothing measured here has more."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def from_json(text: str) -> Run:
    """The run that ``to_json`` wrote."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a result of this benchmark (schema {SCHEMA})")
    roofline = document["roofline"]
    return Run(
        machine=Machine(**document["machine"]),
        settings=document["settings"],
        roofline=Roofline(
            {name: Ceiling(**ceiling) for name, ceiling in roofline["peak"].items()},
            Ceiling(**roofline["bandwidth"]),
        ),
        rows=[_row(row) for row in document["rows"]],
    )


def _row(fields: dict[str, Any]) -> Row:
    peers = [
        Peer(**{**peer, "timing": Timing(**peer["timing"])}) for peer in fields.get("peers", [])
    ]
    parts = {"ours": Timing, "accuracy": Accuracy, "memory": Memory}
    built = {name: make(**fields[name]) for name, make in parts.items() if name in fields}
    return Row(**{**fields, "peers": peers, **built})


def default_path(directory: Path, machine: Machine) -> Path:
    """One file per device and date."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in machine.name).lower().split())
    return directory / f"{slug}_{machine.date[:10]}.json"


def write_csv(run: Run, path: Path) -> None:
    """One line per row."""
    lines = [_rounded(_flat(row)) for row in run.rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


def _flat(row: Row) -> dict[str, Any]:
    """The row's figures in the units of the table; None for what was not measured."""
    ours, best, accuracy, memory = row.ours, row.best, row.accuracy, row.memory
    return {
        "pass": row.pass_name,
        "dtype": row.dtype,
        "layout": row.layout,
        "batch": row.batch,
        "layer": row.layer,
        "status": row.status,
        "backend": row.backend,
        "kernel": row.kernel,
        "us": ours and ours.median * 1e6,
        "us_low": ours and ours.low * 1e6,
        "us_high": ours and ours.high * 1e6,
        "us_best": ours and ours.best * 1e6,
        "calls": ours and ours.calls,
        "cold_us": ours and ours.cold * 1e6,
        "gflops": ours and row.flops / ours.median / 1e9,
        "gbytes_s": ours and row.min_bytes / ours.median / 1e9,
        "floor_us": row.floor * 1e6,
        "bound": row.bound,
        "share": row.share,
        "best_peer": best and best.name,
        "best_peer_us": best and best.timing.median * 1e6,
        "best_peer_us_best": best and best.timing.best * 1e6,
        "best_peer_cold_us": best and best.timing.cold * 1e6,
        "ratio": row.ratio,
        "same_layout_ratio": row.same_layout_ratio,
        "rms_error": accuracy and accuracy.rms,
        "torch_rms_error": accuracy and accuracy.torch_rms,
        "memory_bytes": memory and memory.ours,
        "torch_memory_bytes": memory and memory.torch,
        "result_bytes": memory and memory.result,
        "message": row.message,
    }
