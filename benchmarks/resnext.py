"""Benchmark of whole models, training and inference: ``python benchmarks/resnext.py --help``.

This script has the name of the package that it measures, and Python puts a script's own folder
first on the import path. So the path is put in order before anything else is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _put_path_in_order() -> None:
    """This folder last, for model_bench; the repository only if it is built, or nothing is
    installed."""
    here = os.path.dirname(os.path.realpath(__file__))
    root = os.path.dirname(here)
    built = os.path.exists(os.path.join(root, "grouped_conv", "_cpu.so"))
    unwanted = {here} if built else {here, root}
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) not in unwanted]
    if built and root not in map(os.path.realpath, sys.path):
        sys.path.insert(0, root)
    elif importlib.util.find_spec("resnext") is None:
        sys.path.append(root)
    sys.path.append(here)


if __name__ == "resnext":
    # Somebody imported the package from this folder and got this script: hand on the package.
    del sys.modules["resnext"]

_put_path_in_order()

if __name__ == "resnext":
    import resnext  # noqa: F401

if __name__ == "__main__":
    from model_bench.cli import main

    sys.exit(main())
