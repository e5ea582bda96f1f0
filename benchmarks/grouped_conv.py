"""Benchmark of grouped convolution, layer by layer: ``python benchmarks/grouped_conv.py --help``.

This script has the name of the package that it measures, and Python puts a script's own folder
first on the import path. So the path is put in order before anything else is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _put_path_in_order() -> None:
    """Leave out this folder; use the repository only if it is built, or nothing is installed."""
    here = os.path.dirname(os.path.realpath(__file__))
    root = os.path.dirname(here)
    built = os.path.exists(os.path.join(root, "grouped_conv", "_cpu.so"))
    unwanted = {here} if built else {here, root}
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) not in unwanted]
    if importlib.util.find_spec("grouped_conv") is None:
        sys.path.append(root)


if __name__ == "grouped_conv":
    # Somebody imported the package from this folder and got this script: hand on the package.
    del sys.modules["grouped_conv"]

_put_path_in_order()

if __name__ == "grouped_conv":
    import grouped_conv  # noqa: F401

if __name__ == "__main__":
    try:
        from grouped_conv.bench.cli import main
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        sys.exit("the benchmark needs torch: pip install torch")
    sys.exit(main())
