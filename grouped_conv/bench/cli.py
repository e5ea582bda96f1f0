"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from grouped_conv.backends import ORDER
from grouped_conv.bench import machine, plots, report, results, roofline, timing
from grouped_conv.bench.peers import LAYOUTS, PEERS, WORKS, Work, missing
from grouped_conv.bench.problems import FAMILIES, Layer, resolve
from grouped_conv.bench.results import Row, Run
from grouped_conv.bench.run import Plan, measure_row
from grouped_conv.problem import PASSES
from grouped_conv.routing import current_backend

_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")

EPILOG = f"""\
Lists are separated by commas. Problems are {", ".join(FAMILIES)}, a model of one of these
families (regnetx_032, senet154, ...), or a layer: CxHxW and then any of kN (channels out), gN
(groups), sN (stride), rN (kernel), dN (dilation), pN (padding), as in 128x56x56,g32,s1.
Exit status: 0; 1 if a row is wrong or failed; 2 for bad arguments; 130 if interrupted.
"""


def _list_of(choices: Sequence[str], aliases: dict[str, str] | None = None) -> Callable[[str], Any]:
    """An argparse type: a comma-separated list, without duplicates, of some choices."""

    def parse(text: str) -> list[str]:
        items = [item.strip().lower() for item in text.split(",") if item.strip()]
        items = [(aliases or {}).get(item, item) for item in items]
        if not items:
            raise argparse.ArgumentTypeError("the list is empty")
        for item in items:
            if item not in choices:
                allowed = ", ".join(choices)
                raise argparse.ArgumentTypeError(f"unknown '{item}' (choose from {allowed})")
        return list(dict.fromkeys(items))

    return parse


def _positive(text: str) -> int:
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def _batches(text: str) -> list[int]:
    return list(dict.fromkeys(_positive(item) for item in text.split(",")))


def _problems(text: str) -> list[Layer]:
    try:
        return list(resolve(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither cpu nor cuda nor cuda:N")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise argparse.ArgumentTypeError(
                f"this torch ({torch.__version__}) is built without CUDA"
            )
        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("torch finds no CUDA device on this machine")
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise argparse.ArgumentTypeError(f"'{text}': there are only {count} CUDA devices")
    return device


def _plot_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"'{text}' does not end in {', '.join(_PLOT_SUFFIXES)}")
    return path


def _is_file(path: Path | None) -> bool:
    """Whether ``--json`` names a file, and not a directory for one."""
    return path is not None and path.suffix == ".json"


def build_parser() -> argparse.ArgumentParser:
    """All flags; ``--quick`` changes defaults and no flag that was given."""
    parser = argparse.ArgumentParser(
        prog="grouped_conv.py",
        description="Grouped convolution per layer: this library against PyTorch and others. "
        "Each result is verified against a float64 oracle before it is timed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", type=_device, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add(
        "--dtype",
        type=_list_of(list(roofline.DTYPES), _DTYPE_ALIASES),
        default=["float32"],
        metavar="LIST",
        help="float32, bfloat16, float16 (default: float32)",
    )
    add(
        "--layout",
        type=_list_of(list(LAYOUTS)),
        default=["nhwc"],
        metavar="LIST",
        help="nhwc (channels_last), nchw (default: nhwc)",
    )
    add(
        "--passes",
        type=_list_of([*WORKS, "all"]),
        default=["fprop"],
        metavar="LIST",
        help="fprop, dgrad, wgrad or all (these three); fprop_affine: fprop with scale, shift, "
        "residual and relu (default: fprop)",
    )
    add("--batch", type=_batches, default=[8], metavar="LIST", help="images (default: 8)")
    add(
        "--problems",
        type=_problems,
        default="resnext50",
        metavar="LIST",
        help="networks or layers, see below (default: resnext50)",
    )
    add(
        "--backend",
        choices=("auto", *ORDER),
        default=current_backend(),
        help="backend of this library that is measured (default: GROUPED_CONV_BACKEND, or auto)",
    )
    add(
        "--peers",
        type=_list_of(PEERS),
        default=["torch"],
        metavar="LIST",
        help="torch (always), inductor, spio; native, triton: other backends of this library "
        "(default: torch)",
    )
    add("--threads", type=_positive, help="CPU threads (default: PyTorch's choice)")
    add(
        "--min-time",
        type=_seconds,
        metavar="S",
        help="seconds of calls per contender and row, at least (default: 0.4; 0.1 with --quick)",
    )
    add(
        "--repeats",
        type=_positive,
        metavar="N",
        help="rounds per row, at least (default: 20; 10 with --quick)",
    )
    add("--seed", type=int, default=0, help="of the data and of the order of calls (default: 0)")
    add("--quick", action="store_true", help="measure for a shorter time; ends within a minute")
    add(
        "--memory",
        action="store_true",
        help="measure the memory high-water mark of a call too; starts two processes per row",
    )
    add(
        "--fresh-pages",
        action="store_true",
        help="leave glibc's allocator as it is: results over 32 MiB then cost page faults",
    )
    add(
        "--json",
        nargs="?",
        type=Path,
        const=Path("benchmarks/results"),
        metavar="PATH",
        help="write results to a .json file, or into a directory, named by device and date "
        "(default: benchmarks/results)",
    )
    add("--csv", type=Path, metavar="PATH", help="write one line per row")
    add("--plot", type=_plot_path, metavar="PATH", help="draw ratios and roofline shares")
    add("--markdown", action="store_true", help="print tables as Markdown")
    add(
        "--from-json",
        type=Path,
        metavar="PATH",
        help="measure nothing: print, draw and convert an earlier result",
    )
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Parsed flags with the defaults filled in that depend on other flags."""
    parser = build_parser()
    flags = parser.parse_args(argv)
    for name in ("tabulate", "tqdm", *(["matplotlib"] if flags.plot is not None else [])):
        if importlib.util.find_spec(name) is None:
            parser.error(f"{name} is not installed: pip install 'grouped-conv[bench]'")
    for path in (flags.csv, flags.plot, flags.json if _is_file(flags.json) else None):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such directory")
    if flags.from_json is not None:
        return parser, flags
    if flags.device is None:
        flags.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if flags.device.type == "cuda" and flags.device.index is None:
        flags.device = torch.device("cuda", torch.cuda.current_device())
    if "all" in flags.passes:
        flags.passes = list(PASSES)
    for name in flags.peers:
        if (reason := missing(name, flags.device)) is not None:
            parser.error(f"argument --peers: {reason}")
    quick = flags.quick
    flags.min_time = (0.1 if quick else 0.4) if flags.min_time is None else flags.min_time
    flags.repeats = (10 if quick else 20) if flags.repeats is None else flags.repeats
    return parser, flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    parser, flags = parse(argv)
    tablefmt = "github" if flags.markdown else "simple"
    if flags.from_json is not None:
        try:
            run = results.from_json(flags.from_json.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"argument --from-json: {flags.from_json}: {error}")
        print(report.whole(run, tablefmt))
        interrupted = False
    else:
        run, interrupted = _measure(flags, tablefmt)
    _write(run, flags)
    if interrupted:
        return 130
    if run.failed:
        print(f"{len(run.failed)} of {len(run.rows)} rows failed", file=sys.stderr)
    return 1 if run.failed else 0


def _measure(flags: argparse.Namespace, tablefmt: str) -> tuple[Run, bool]:
    """Measure everything, printing each table as it is complete."""
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    recycled = not flags.fresh_pages and flags.device.type == "cpu" and timing.recycle_memory()
    if flags.device.type == "cuda":
        torch.cuda.set_device(flags.device)
        torch.backends.cudnn.benchmark = True
    plan = Plan(
        layers=flags.problems,
        passes=cast(list[Work], flags.passes),
        dtypes=flags.dtype,
        layouts=flags.layout,
        batches=flags.batch,
        device=flags.device,
        backend=flags.backend,
        peers=tuple(flags.peers),
        budget=timing.Budget(flags.min_time, flags.repeats),
        seed=flags.seed,
        memory=flags.memory,
    )
    host = machine.describe(plan.device)
    _warn_if_busy(host.cores)
    ceilings = roofline.measure(plan.device, list(plan.dtypes), host.last_level_cache)
    run = Run(host, _settings(plan, recycled), ceilings, rows=[])
    print(report.header(run), flush=True)
    watch = timing.stopwatch(plan.device)
    groups = plan.groups()
    total = sum(len(group) for group in groups)
    interrupted = False
    with tqdm(total=total, unit="row", leave=False, disable=None, file=sys.stderr) as progress:
        for group in groups:
            rows: list[Row] = []
            try:
                for layer, case in group:
                    progress.set_description(f"{case.pass_name} {case.dtype} {layer}")
                    cache = host.last_level_cache
                    rows.append(measure_row(layer, case, plan, ceilings, cache, watch))
                    progress.update()
            except KeyboardInterrupt:
                interrupted = True
            run.rows.extend(rows)
            if rows:
                progress.clear()
                print(f"\n{report.table(rows, tablefmt)}", flush=True)
            if interrupted:
                break
    if closing := report.closing(run.rows, tablefmt):
        print(f"\n{closing}", flush=True)
    return run, interrupted


def _settings(plan: Plan, recycled: bool) -> dict[str, Any]:
    """What else decides the numbers, for the header and the JSON."""
    settings: dict[str, Any] = {
        "backend": plan.backend,
        "min-time": plan.budget.min_time,
        "repeats": plan.budget.repeats,
        "seed": plan.seed,
    }
    if plan.device.type == "cpu":
        settings["results in"] = "recycled memory" if recycled else "the allocator's default"
    else:
        settings["tf32"] = torch.backends.cudnn.allow_tf32
    return settings


def _warn_if_busy(cores: int) -> None:
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5 * cores:
        print(
            f"warning: the machine is busy (load {load:.1f} on {cores} cores): times will scatter",
            file=sys.stderr,
        )


def _write(run: Run, flags: argparse.Namespace) -> None:
    """Write the files that were asked for and say where."""
    written: list[Path] = []
    if flags.json is not None:
        path = flags.json
        if not _is_file(path):
            path.mkdir(parents=True, exist_ok=True)
            path = results.default_path(path, run.machine)
        path.write_text(results.to_json(run), encoding="utf-8")
        written.append(path)
    if flags.csv is not None:
        results.write_csv(run, flags.csv)
        written.append(flags.csv)
    if flags.plot is not None:
        try:
            plots.draw(run, flags.plot)
            written.append(flags.plot)
        except ValueError as error:
            print(f"no plot: {error}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
