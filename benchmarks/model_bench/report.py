"""Renders and stores what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from model_bench.measure import Row

SCHEMA = "grouped_conv.model_bench/1"

LEGEND = """\
ms      median per step; ± half the interquartile range over the median
ratio   median over the rounds of nn.Conv2d's time by this variant's
bound   Amdahl's: the ratio if what the variant replaces took no time (grouped: the grouped 3x3;
        fused: these, batch normalizations and relus), from nn.Conv2d's shares
MiB     what the first step adds to the memory in use at its highest
shares  part of a step's time in each class of operators, by torch.profiler"""


def _cells(row: Row) -> list[str]:
    head = [row.model, row.variant]
    if row.median is None or row.low is None or row.high is None:
        return [*head, row.status.upper(), *[""] * 5, row.message]
    shares = ", ".join(f"{name} {part:.0%}" for name, part in row.shares.items() if part >= 0.02)
    return [
        *head,
        f"{row.images_per_second:.1f}",
        f"{row.median * 1e3:.1f}",
        f"{(row.high - row.low) / 2 / row.median:.0%}",
        f"{row.ratio:.3f}",
        f"{row.bound:.3f}" if row.bound else "",
        f"{row.peak_bytes / 2**20:.0f}" if row.peak_bytes is not None else "",
        shares,
    ]


def table(rows: Sequence[Row], tablefmt: str) -> str:
    """The rows of one setting."""
    first = rows[0]
    title = f"{first.mode} {first.dtype} {first.layout} N={first.batch} {first.size}x{first.size}"
    columns = ["model", "variant", "images/s", "ms", "±", "ratio", "bound", "MiB", "shares"]
    alignment = ["left", "left", *["right"] * 6, "left"]
    grid = tabulate(
        [_cells(row) for row in rows],
        columns,
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=alignment,
    )
    return "\n".join(line.rstrip() for line in f"{title}\n\n{grid}".splitlines())


def to_json(machine: dict[str, Any], settings: dict[str, Any], rows: Sequence[Row]) -> str:
    """All of a run, a row a line."""
    lines = ",\n".join(f"  {json.dumps(_rounded(dataclasses.asdict(row)))}" for row in rows)
    return (
        f'{{\n "schema": {json.dumps(SCHEMA)},\n "machine": {json.dumps(machine)},\n'
        f' "settings": {json.dumps(settings)},\n "rows": [\n{lines}\n ]\n}}\n'
    )


def from_json(text: str) -> tuple[dict[str, Any], dict[str, Any], list[Row]]:
    """Machine, settings and rows that :func:`to_json` wrote."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a result of this benchmark (schema {SCHEMA})")
    return document["machine"], document["settings"], [Row(**row) for row in document["rows"]]


def rounded(row: Row) -> Row:
    """The row as :func:`to_json` stores it, so that tables are the same of it as of a file."""
    return Row(**_rounded(dataclasses.asdict(row)))


def settings_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by the table that they belong to."""
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.mode, row.dtype, row.layout, row.batch, row.size)
        tables.setdefault(key, []).append(row)
    return list(tables.values())


def _rounded(value: Any) -> Any:
    """Floats to four significant digits; what is empty is left out."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        kept = {key: _rounded(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", {})}
    return value


def draw(rows: Sequence[Row], path: Path) -> None:
    """Throughput of every variant, a panel for each setting."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.images_per_second is not None:
            panels.setdefault((row.mode, row.dtype, row.layout), []).append(row)
    if not panels:
        raise ValueError("no row was timed: there is nothing to draw")
    height = 0.8 + sum(0.35 * len(found) + 0.6 for found in panels.values())
    ratios = [len(found) + 1 for found in panels.values()]
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for (title, found), axis in zip(panels.items(), axes, strict=True):
        names = [f"{row.model} {row.variant}" for row in found]
        bars = axis.barh(names, [row.images_per_second or 0.0 for row in found])
        axis.bar_label(bars, [f"{row.images_per_second:.1f}" for row in found], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set_title(" ".join(title), fontsize="medium")
    axes[-1].set_xlabel("images per second")
    figure.savefig(path, dpi=120)
