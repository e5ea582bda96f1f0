"""The command line of the models' benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from model_bench.measure import Row

EPILOG = """\
Lists are separated by commas. Exit status: 0; 1 if a row is wrong or failed; 2 for bad arguments.
"""


def _list_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    allowed = list(choices)

    def parse(text: str) -> list[str]:
        items = list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
        for item in items:
            if item not in allowed:
                raise argparse.ArgumentTypeError(
                    f"unknown '{item}' (choose from {', '.join(allowed)})"
                )
        if not items:
            raise argparse.ArgumentTypeError("the list is empty")
        return items

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    import resnext
    from model_bench.cases import DTYPES, LAYOUTS, MODES, VARIANTS

    parser = argparse.ArgumentParser(
        prog="resnext.py",
        description="Whole models with nn.Conv2d, with GroupedConv2d, fused and compiled: "
        "throughput, peak memory, and where the time goes. Every result is compared with "
        "nn.Conv2d's before it is timed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--models",
        type=_list_of(resnext.MODELS),
        default=["resnext50_32x4d", "resnet50"],
        metavar="LIST",
        help="constructors of resnext (default: resnext50_32x4d,resnet50)",
    )
    add(
        "--variants",
        type=_list_of(VARIANTS),
        default=["conv2d", "grouped", "fused"],
        metavar="LIST",
        help=f"{', '.join(VARIANTS)} (default: conv2d,grouped,fused; conv2d is always there)",
    )
    add("--modes", type=_list_of(MODES), default=list(MODES), metavar="LIST", help="default: both")
    add(
        "--dtype",
        type=_list_of(DTYPES),
        default=["float32"],
        metavar="LIST",
        help="float32, bfloat16 (autocast) (default: float32)",
    )
    add(
        "--layout",
        type=_list_of(LAYOUTS),
        default=["nhwc"],
        metavar="LIST",
        help="nhwc (channels_last), nchw (default: nhwc)",
    )
    add("--batch", type=_positive, default=8, help="images (default: 8)")
    add("--size", type=_positive, default=224, help="extent of the images (default: 224)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--threads", type=_positive, help="CPU threads (default: PyTorch's choice)")
    add("--min-time", type=float, default=0.4, metavar="S", help="seconds a variant (default: 0.4)")
    add("--repeats", type=_positive, default=20, help="rounds, unless slow (default: 20)")
    add("--seed", type=int, default=0, help="of the order of calls (default: 0)")
    add("--no-memory", action="store_true", help="skip peak memory: a process for each row")
    add("--no-shares", action="store_true", help="skip the profiler, and with it the bound")
    add("--quick", action="store_true", help="64x64 images, two of them, and three rounds")
    add("--json", type=Path, metavar="PATH", help="write the result")
    add("--plot", type=Path, metavar="PATH", help="draw throughputs")
    add(
        "--from-json",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="measure nothing: print, draw and put together earlier results of one machine",
    )
    add("--markdown", action="store_true", help="print tables as Markdown")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    absent = [n for n in ("tabulate", "tqdm", "matplotlib") if importlib.util.find_spec(n) is None]
    if absent:
        print(f"{', '.join(absent)} missing: pip install 'grouped-conv[bench]'", file=sys.stderr)
        return 2
    parser = build_parser()
    flags = parser.parse_args(argv)
    for path in (flags.json, flags.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such directory")
    if flags.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device on this machine")
    if flags.quick:
        flags.batch, flags.size, flags.repeats, flags.min_time = 2, 64, 3, 0.0
    if flags.from_json is not None:
        try:
            return _again(flags)
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"argument --from-json: {error}")
    return _measure(flags)


def _again(flags: argparse.Namespace) -> int:
    """Earlier results, as if they had been measured in one run."""
    from model_bench import report

    found = [report.from_json(path.read_text(encoding="utf-8")) for path in flags.from_json]
    machine, settings, _ = found[0]
    if any(other["name"] != machine["name"] for other, _, _ in found):
        raise ValueError("the results are of different machines")
    rows = [row for _, _, rows in found for row in rows]
    print(report.LEGEND)
    for table in report.settings_of(rows):
        print(f"\n{report.table(table, 'github' if flags.markdown else 'simple')}")
    return _written(flags, machine, settings, rows)


def _written(
    flags: argparse.Namespace, machine: dict[str, Any], settings: dict[str, Any], rows: list[Row]
) -> int:
    """Write the files that were asked for; returns the exit status."""
    from model_bench import report

    if flags.json is not None:
        flags.json.write_text(report.to_json(machine, settings, rows), encoding="utf-8")
    if flags.plot is not None:
        report.draw(rows, flags.plot)
    failed = [row for row in rows if row.status in ("mismatch", "error")]
    for row in failed:
        print(f"{row.model} {row.variant}: {row.status}: {row.message}", file=sys.stderr)
    return 1 if failed else 0


def _measure(flags: argparse.Namespace) -> int:
    from tqdm import tqdm

    from grouped_conv.bench import machine, timing
    from model_bench import report
    from model_bench.cases import BASE, Case
    from model_bench.measure import measure_group

    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    recycled = device.type == "cpu" and timing.recycle_memory()
    host = machine.describe(device)
    print("\n".join([*host.lines(), "", report.LEGEND]), flush=True)
    variants = list(dict.fromkeys([BASE, *flags.variants]))
    settings = [
        (mode, dtype, layout)
        for mode in flags.modes
        for dtype in flags.dtype
        for layout in flags.layout
    ]
    budget = timing.Budget(flags.min_time, flags.repeats)
    everything: list[Row] = []
    total = len(settings) * len(flags.models)
    with tqdm(total=total, unit="group", leave=False, disable=None, file=sys.stderr) as progress:
        for mode, dtype, layout in settings:
            rows: list[Row] = []
            for model in flags.models:
                base = Case(model, BASE, mode, dtype, layout, flags.batch, flags.size, device)
                measured = measure_group(
                    [base.of(variant) for variant in variants],
                    budget,
                    flags.seed,
                    memory=not flags.no_memory,
                    shares=not flags.no_shares,
                )
                rows += [report.rounded(row) for row in measured]
                progress.update()
            everything += rows
            progress.clear()
            print(f"\n{report.table(rows, 'github' if flags.markdown else 'simple')}", flush=True)
    chosen = {
        "batch": flags.batch,
        "size": flags.size,
        "min-time": flags.min_time,
        "repeats": flags.repeats,
        "seed": flags.seed,
        "recycled memory": recycled,
    }
    return _written(flags, dataclasses.asdict(host), chosen, everything)
