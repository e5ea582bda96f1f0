"""Draws a run: how many times faster than the best peer, and how near to the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grouped_conv.bench.results import Row, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(run: Run, path: Path) -> None:
    """One line of two panels per (pass, dtype, layout); one bar per layer and batch."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in run.rows:
        if row.best is not None:
            panels.setdefault((row.pass_name, row.dtype, row.layout), []).append(row)
    if not panels:
        raise ValueError("no row was timed: there is nothing to draw")
    widest = max(len({row.layer for row in rows}) for rows in panels.values())
    figure = Figure(figsize=(4 + 0.9 * max(8, widest), 3.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (title, rows), (left, right) in zip(panels.items(), axes, strict=True):
        _bars(left, rows, [row.ratio or 0.0 for row in rows])
        left.axhline(1.0, color="black", linewidth=0.8)
        left.set_ylabel("best peer's time / ours")
        left.set_title(" ".join(title))
        _bars(right, rows, [100 * (row.share or 0.0) for row in rows])
        _dashes(right, rows, [100 * row.floor / row.best.timing.median for row in rows if row.best])
        right.axhline(100.0, color="black", linewidth=0.8)
        right.set_ylabel("% of the roofline")
        right.set_title("ours (bar), best peer (dash)")
    figure.suptitle("\n".join(run.machine.lines()[:2]), fontsize="small")
    figure.savefig(path, dpi=150)


def _places(rows: Sequence[Row]) -> tuple[list[float], float]:
    """Where on the x axis each row's bar stands, and how wide it is."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    batches = list(dict.fromkeys(row.batch for row in rows))
    width = 0.8 / len(batches)
    middle = (len(batches) - 1) / 2
    at = [layers.index(row.layer) + (batches.index(row.batch) - middle) * width for row in rows]
    return at, width


def _bars(axes: Axes, rows: Sequence[Row], heights: Sequence[float]) -> None:
    places, width = _places(rows)
    for batch in dict.fromkeys(row.batch for row in rows):
        chosen = [index for index, row in enumerate(rows) if row.batch == batch]
        axes.bar(
            [places[index] for index in chosen],
            [heights[index] for index in chosen],
            width,
            label=f"N={batch}",
        )
    layers = list(dict.fromkeys(row.layer for row in rows))
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right", fontsize="small")
    axes.margins(x=0.02)
    axes.legend(fontsize="small")


def _dashes(axes: Axes, rows: Sequence[Row], heights: Sequence[float]) -> None:
    places, width = _places(rows)
    starts = [place - width / 2 for place in places]
    axes.hlines(heights, starts, [start + width for start in starts], color="black")
