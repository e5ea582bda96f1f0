"""Benchmark of whole models, training and inference: ``python benchmarks/resnext.py --help``.

This script has the name of the package that it measures, and Python puts a script's own folder
first on the import path. So the path is put in order before anything else is imported; the folder
comes last, for the sake of model_bench, once the packages have been found elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))


def _put_path_in_order() -> None:
    """Leave out this folder; use the repository only if it is built, or nothing is installed."""
    root = os.path.dirname(HERE)
    built = os.path.exists(os.path.join(root, "grouped_conv", "_cpu.so"))
    unwanted = {HERE} if built else {HERE, root}
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) not in unwanted]
    if importlib.util.find_spec("grouped_conv") is None:
        sys.path.append(root)


if __name__ == "resnext":
    # Somebody imported the package from this folder and got this script: hand on the package.
    del sys.modules["resnext"]

_put_path_in_order()

try:
    import resnext  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit("the benchmark needs torch: pip install torch")

sys.path.append(HERE)

if __name__ == "__main__":
    from model_bench.cli import main

    sys.exit(main())
