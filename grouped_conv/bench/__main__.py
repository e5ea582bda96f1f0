"""``python -m grouped_conv.bench``."""

import sys

from grouped_conv.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
