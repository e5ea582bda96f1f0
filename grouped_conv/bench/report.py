"""Renders results as text: one table per group of rows, notes, and the summary."""

from __future__ import annotations

from collections.abc import Sequence

from grouped_conv.bench.results import Row, Run, Summary, grouped, summaries, summarise

LEGEND = """\
µs     median per call with cold inputs; ± half the interquartile range
floor  max(FLOP / peak, bytes / bandwidth) over the time; bound: which of the two it is
ratio  median over the rounds of the fastest peer's time by ours
err    our rms error against float64 over PyTorch's
first  µs of the first call with this shape, ours / the fastest peer's
MiB    what a call adds to the memory in use at its highest, ours / PyTorch's (--memory)"""


def _micros(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"


def _grid(
    lines: Sequence[Sequence[str]], columns: Sequence[str], left: Sequence[str], tablefmt: str
) -> str:
    """A table with the columns named in ``left`` aligned to the left, the others to the right."""
    from tabulate import tabulate  # type: ignore[import-untyped,unused-ignore]

    alignment = ["left" if name in left else "right" for name in columns]
    return str(
        tabulate(lines, columns, tablefmt=tablefmt, disable_numparse=True, colalign=alignment)
    )


def _cells(row: Row) -> dict[str, str]:
    """What is known of a row, by column."""
    cells = {"layer": row.layer, "kernel": _kernel(row)}
    if row.ours is None or row.best is None:
        return cells | {"µs": row.status.upper()}
    cells |= {
        "µs": _micros(row.ours.median),
        "±": f"{row.ours.spread:.0%}",
        "GFLOP/s": f"{row.flops / row.ours.median / 1e9:.0f}",
        "GB/s": f"{row.min_bytes / row.ours.median / 1e9:.1f}",
        "floor": f"{row.share:.0%}",
        "bound": row.bound,
    }
    cells |= {f"{peer.name} µs": _micros(peer.timing.median) for peer in row.peers}
    cells["ratio"] = f"{row.ratio:.2f}"
    if len({peer.layout for peer in row.peers}) > 1:
        cells["same layout"] = f"{row.same_layout_ratio:.2f}"
    if row.accuracy is not None:
        cells["err"] = f"{row.accuracy.ratio:.2f}"
    cells["first"] = f"{_micros(row.ours.cold)} / {_micros(row.best.timing.cold)}"
    if row.memory is not None:
        memory = row.memory
        cells["MiB"] = f"{_mebibytes(memory.ours)} / {_mebibytes(memory.torch)}"
        cells["result MiB"] = _mebibytes(memory.result)
    return cells


_ORDER = ("layer", "kernel", "µs", "±", "GFLOP/s", "GB/s", "floor", "bound")
_LAST = ("ratio", "same layout", "err", "first", "MiB", "result MiB")


def _columns(cells: Sequence[dict[str, str]]) -> list[str]:
    """The columns that any row fills, the peers' between the fixed ones."""
    filled = list(dict.fromkeys(name for row in cells for name in row))
    peers = [name for name in filled if name not in (*_ORDER, *_LAST)]
    return [name for name in (*_ORDER, *peers, *_LAST) if name in filled]


def _kernel(row: Row) -> str:
    if not row.kernel:
        return row.backend
    return row.kernel if row.backend in row.kernel else f"{row.backend}: {row.kernel}"


def table(rows: Sequence[Row], tablefmt: str = "simple") -> str:
    """The table of one group of rows, its geometric mean, and the rows' messages."""
    cells = [_cells(row) for row in rows]
    columns = _columns(cells)
    lines = [[row.get(name, "") for name in columns] for row in cells]
    parts = [str(rows[0].key), _grid(lines, columns, ("layer", "kernel", "bound"), tablefmt)]
    summary = summarise(str(rows[0].key), rows)
    if summary is not None:
        parts.append(_sentence(summary))
    for row in rows:
        parts += [f"{row.status}: {row.layer}: {row.message}"] if row.message else []
        parts += [f"note: {row.layer}: {note}" for note in row.notes]
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines())


def _sentence(summary: Summary) -> str:
    rows = "1 row" if summary.rows == 1 else f"{summary.rows} rows"
    return (
        f"geometric mean {summary.ratio:.2f}x over {rows}, "
        f"{summary.share:.0%} of the floor; worst {summary.worst:.2f}x at {summary.worst_row}"
    )


def closing(rows: Sequence[Row], tablefmt: str = "simple") -> str:
    """The table of geometric means, a line per group and one of all, if there are several."""
    found = summaries(rows)
    if not found:
        return "nothing was timed"
    if len(found) == 1:
        return ""
    with_layouts = any(abs(s.ratio - s.same_layout_ratio) > 1e-9 for s in found)
    columns = ["geometric mean over", "rows", "ratio", "same layout", "floor", "worst", "worst row"]
    lines = [
        [
            summary.name,
            str(summary.rows),
            f"{summary.ratio:.2f}",
            f"{summary.same_layout_ratio:.2f}",
            f"{summary.share:.0%}",
            f"{summary.worst:.2f}",
            summary.worst_row,
        ]
        for summary in found
    ]
    if not with_layouts:
        del columns[3]
        for line in lines:
            del line[3]
    return _grid(lines, columns, ("geometric mean over", "worst row"), tablefmt)


def header(run: Run) -> str:
    """Machine, versions, ceilings and how to read the tables."""
    settings = ", ".join(f"{name} {value}" for name, value in run.settings.items())
    return "\n".join([*run.machine.lines(), *run.roofline.lines(), settings, "", LEGEND])


def whole(run: Run, tablefmt: str = "simple") -> str:
    """Everything that a run prints."""
    tables = [table(rows, tablefmt) for rows in grouped(run.rows).values()]
    return "\n\n".join(filter(None, [header(run), *tables, closing(run.rows, tablefmt)]))
