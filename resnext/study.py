"""The paper's claim on a small scale, and its tables: ``python -m resnext.study``.

``cardinality``: test error against cardinality at equal complexity, on scikit-learn's digits.
``complexity``: parameters and FLOPs of the paper's Tables 1 and 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from resnext.complexity import measure, path_parameters
from resnext.config import Config, missing_extra
from resnext.data import build
from resnext.distributed import World
from resnext.trainer import Trainer
from resnext.zoo import create_model, resnext50, tiny_resnext11

TABLE_2 = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))
"""Cardinality C and width d of a path in the paper's Table 2."""


@dataclass(frozen=True)
class Template:
    """A network in versions that differ in cardinality and cost about the same."""

    name: str
    stage_channels: int
    versions: tuple[tuple[int, int], ...]
    """Cardinality and base width of each."""

    def config(self, version: tuple[int, int], seed: int, epochs: int) -> Config:
        return Config(
            model="tiny_resnext11",
            cardinality=version[0],
            base_width=version[1],
            stage_channels=self.stage_channels,
            epochs=epochs,
            seed=seed,
        )


TEMPLATES = (
    Template("small", 32, ((1, 8), (2, 5), (4, 3))),
    Template("large", 64, ((1, 16), (2, 10), (4, 6))),
)


def label(version: tuple[int, int]) -> str:
    """The paper's name of a version, such as 4x3d."""
    return f"{version[0]}x{version[1]}d"


@dataclass(frozen=True)
class Difference:
    """Of the test errors of two versions with the same seeds, in percentage points."""

    mean: float
    standard_error: float


def mean_and_error(values: Sequence[float]) -> Difference:
    """Mean, and standard error of the mean (NaN of one value)."""
    several = len(values) > 1
    error = statistics.stdev(values) / math.sqrt(len(values)) if several else math.nan
    return Difference(statistics.fmean(values), error)


def run_one(config: Config) -> float:
    """Test error in percent after a run; weights, order and augmentation are the seed's."""
    torch.set_num_threads(1)
    trainer = Trainer(config, build(config), World(0, 1, torch.device("cpu")), None)
    trainer.run()
    return 100.0 * (1.0 - float(trainer.history[-1]["test_top1"]))


def cardinality(seeds: int, epochs: int, jobs: int) -> dict[str, Any]:
    """Train every version of every template with every seed."""
    from tqdm import tqdm

    runs = [
        (template, version, seed)
        for template in TEMPLATES
        for seed in range(seeds)
        for version in template.versions
    ]
    configs = [template.config(version, seed, epochs) for template, version, seed in runs]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        errors = list(tqdm(pool.map(run_one, configs), total=len(runs), unit="run", disable=None))
    found: dict[str, Any] = {
        "schema": "resnext.study/1",
        "seeds": seeds,
        "epochs": epochs,
        "torch": torch.__version__,
        "templates": [],
    }
    for template in TEMPLATES:
        by_version: dict[tuple[int, int], list[float]] = {v: [] for v in template.versions}
        for (owner, version, _), error in zip(runs, errors, strict=True):
            if owner is template:
                by_version[version].append(error)
        base = by_version[template.versions[0]]
        rows = []
        for version, values in by_version.items():
            cost = measure(lambda t=template, v=version: _network(t, v), (1, 8, 8))
            paired = mean_and_error([a - b for a, b in zip(values, base, strict=True)])
            rows.append(
                {
                    "version": label(version),
                    "cardinality": version[0],
                    "parameters": cost.parameters,
                    "macs": cost.macs,
                    "errors": [round(value, 4) for value in values],
                    **dataclasses.asdict(mean_and_error(values)),
                    "paired_mean": paired.mean,
                    "paired_standard_error": paired.standard_error,
                }
            )
        found["templates"].append({"name": template.name, "versions": rows})
    return found


def _network(template: Template, version: tuple[int, int]) -> torch.nn.Module:
    return tiny_resnext11(*version, stage_channels=template.stage_channels)


def cardinality_tables(found: dict[str, Any], tablefmt: str = "github") -> str:
    """The result as tables."""
    from tabulate import tabulate

    parts = []
    for template in found["templates"]:
        rows = []
        for index, row in enumerate(template["versions"]):
            paired = f"{row['paired_mean']:+.2f} ± {row['paired_standard_error']:.2f}"
            rows.append(
                [
                    row["version"],
                    f"{row['parameters']:,}",
                    f"{row['macs']:,}",
                    f"{row['mean']:.2f} ± {row['standard_error']:.2f}",
                    paired if index else "",
                ]
            )
        base = template["versions"][0]["version"]
        columns = ["version", "parameters", "multiply-adds", "test error %", f"minus {base}'s"]
        table = tabulate(rows, columns, tablefmt=tablefmt, disable_numparse=True)
        parts.append(f"Template {template['name']}:\n\n{table}")
    return "\n\n".join(parts)


def draw(found: dict[str, Any], path: Path) -> None:
    """Test error against cardinality, and the paired difference, a line for each template."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for template in found["templates"]:
        rows = template["versions"]
        places = [row["cardinality"] for row in rows]
        name = f"{template['name']}, {rows[0]['parameters'] // 1000}k parameters"
        style = {"marker": "o", "capsize": 3, "label": name}
        errors = [row["standard_error"] for row in rows]
        left.errorbar(places, [row["mean"] for row in rows], errors, **style)
        paired = [row["paired_standard_error"] for row in rows]
        right.errorbar(places, [row["paired_mean"] for row in rows], paired, **style)
    left.set_ylabel("test error, %")
    right.set_ylabel("minus that of cardinality 1, points")
    right.axhline(0.0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4], ["1", "2", "4"])
        axes.set_xlabel("cardinality")
    left.legend(fontsize="small")
    figure.suptitle(f"digits, {found['seeds']} seeds, mean ± standard error", fontsize="medium")
    figure.savefig(path, dpi=120)


def complexity_tables(tablefmt: str = "github") -> str:
    """The paper's Tables 1 and 2 and the models' exact counts, computed from the networks."""
    from tabulate import tabulate

    def grid(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
        return str(tabulate(rows, columns, tablefmt=tablefmt, disable_numparse=True))

    def counted(name: str, **options: Any) -> list[str]:
        image = (3, 32, 32) if name.startswith("cifar") else (3, 224, 224)
        cost = measure(lambda: create_model(name, **options), image)
        return [
            f"{cost.parameters:,}",
            f"{cost.macs:,}",
            f"{cost.grouped_macs:,}",
        ]

    counts = ["parameters", "multiply-adds", "of them grouped"]
    table_1 = [
        ["ResNet-50", *counted("resnet50")],
        ["ResNeXt-50 (32x4d)", *counted("resnext50_32x4d")],
    ]
    table_2 = []
    for c, d in TABLE_2:
        cost = measure(lambda c=c, d=d: resnext50(c, d))
        weights = path_parameters(c, d)
        formula = f"{c}·(256·{d} + 9·{d}² + {d}·256) = {weights:,}"
        row = [str(c), str(d), str(c * d), formula, f"{cost.parameters:,}", f"{cost.macs:,}"]
        table_2.append(row)
    names = (
        *("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d"),
        *("resnext101_32x8d", "resnext101_64x4d", "resnext101_32x16d", "resnext101_32x32d"),
        *("seresnext50_32x4d", "seresnext101_32x4d"),
        *("cifar_resnext29_8x64d", "cifar_resnext29_16x64d"),
    )
    models = [[name, *counted(name)] for name in names]
    columns_2 = ["C", "d", "C·d", "weights of a block", "ResNeXt-50's parameters", "multiply-adds"]
    return "\n\n".join(
        [
            "Table 1 of the paper (there: 25.5 and 25.0 million parameters, 4.1 and 4.2 billion "
            "FLOPs)\n\n" + grid(table_1, ["network", *counts]),
            "Table 2 of the paper, at equal complexity\n\n" + grid(table_2, columns_2),
            "Every network of the package, 224x224 images; CIFAR's 32x32\n\n"
            + grid(models, ["network", *counts]),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m resnext.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    studies = parser.add_subparsers(dest="study", required=True)
    run = studies.add_parser("cardinality", help="train at equal complexity and compare")
    run.add_argument("--seeds", type=int, default=30, help="runs of each version (default: 30)")
    run.add_argument("--epochs", type=int, default=8, help="of each run (default: 8)")
    run.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    run.add_argument("--json", type=Path, metavar="PATH", help="write every run's error")
    run.add_argument("--plot", type=Path, metavar="PATH", help="draw it")
    run.add_argument("--from-json", type=Path, metavar="PATH", help="train nothing: an old result")
    studies.add_parser("complexity", help="count parameters and FLOPs")
    flags = parser.parse_args(argv)
    if (advice := missing_extra()) is not None:
        parser.error(advice)
    if flags.study == "complexity":
        print(complexity_tables())
        return 0
    if min(flags.seeds, flags.epochs, flags.jobs) < 1:
        parser.error("seeds, epochs and jobs must be positive")
    if flags.from_json is not None:
        found = json.loads(flags.from_json.read_text(encoding="utf-8"))
    else:
        found = cardinality(flags.seeds, flags.epochs, flags.jobs)
    print(cardinality_tables(found))
    if flags.json is not None:
        flags.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if flags.plot is not None:
        draw(found, flags.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
