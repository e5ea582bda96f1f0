"""Which kernel ``auto`` takes for a convolution on a GPU, by the rules alone.

    python tests/cuda_choices.py > docs/cuda-choices.md

Asks the rule that routing and ``explain`` ask, as if the CUDA library and a GPU were there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from tabulate import tabulate

from grouped_conv import _libraries, routing
from grouped_conv.backends import Query, native
from grouped_conv.problem import PASSES, ConvProblem, Pass

GROUPS = 32
WIDTHS = (4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 112, 120, 128, 168, 232, 264)
DTYPES = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "TF32": (torch.float32, True),
    "float32": (torch.float32, False),
    "float64": (torch.float64, False),
}
"""Each with whether factors may be cut to TF32."""
LAYOUTS = ("NHWC", "NCHW")
STRIDES = (1, 2)
CUDA = torch.device("cuda")


class Choice(NamedTuple):
    """Who computes a pass: on ``auto``, and the compiled kernel if ``native`` is named."""

    auto: str
    native: str
    reason: str


Box = tuple[tuple[str, ...], ...]
"""dtypes, layouts, strides and passes, every combination of which is meant."""


def kind(kernel: str) -> str:
    """``rowstream`` for ``fprop_rowstream_float16_cuda``."""
    return kernel.split("_")[1]


def choice(precision: str, layout: str, stride: int, pass_name: Pass, width: int) -> Choice:
    channels = GROUPS * width
    p = ConvProblem(
        32, channels, 28, 28, channels, 3, 3, GROUPS, 1, 1, stride_h=stride, stride_w=stride
    )
    dtype, allow_tf32 = DTYPES[precision]
    query = Query.of(pass_name, p, dtype, CUDA, layout == "NHWC")._replace(allow_tf32=allow_tf32)
    by_name = kind(native.kernel(query))
    decision = routing.decide_by_rule(query)
    if decision.backend == "native":
        return Choice(kind(decision.kernel), by_name, "")
    return Choice("cuDNN", by_name, dict(decision.refused)["native"])


def rows() -> dict[Box, tuple[Choice, ...]]:
    """The choice for each width, for every box of which all combinations have the same."""
    found: dict[Box, tuple[Choice, ...]] = {}
    with (
        mock.patch.object(_libraries, "cuda_absent_reason", return_value=None),
        mock.patch.object(native, "_CUDA_AUTO", True),
    ):
        for precision, layout, stride, name in itertools.product(DTYPES, LAYOUTS, STRIDES, PASSES):
            box = ((precision,), (layout,), (str(stride),), (name,))
            found[box] = tuple(choice(precision, layout, stride, name, width) for width in WIDTHS)
    for dimension in reversed(range(4)):
        found = merged(found, dimension)
    return found


def merged(found: dict[Box, tuple[Choice, ...]], dimension: int) -> dict[Box, tuple[Choice, ...]]:
    """Boxes with equal choices that differ in one dimension alone become one."""
    joined: dict[tuple[Box, tuple[Choice, ...]], tuple[str, ...]] = {}
    for box, choices in found.items():
        rest = box[:dimension] + box[dimension + 1 :]
        joined[rest, choices] = joined.get((rest, choices), ()) + box[dimension]
    return {
        (*rest[:dimension], values, *rest[dimension:]): choices
        for (rest, choices), values in joined.items()
    }


def lines() -> Iterator[list[str]]:
    for box, choices in rows().items():
        widths: dict[Choice, list[str]] = {}
        for width, taken in zip(WIDTHS, choices, strict=True):
            widths.setdefault(taken, []).append(str(width))
        for taken, these in widths.items():
            which = "all" if len(these) == len(WIDTHS) else ", ".join(these)
            yield [*(", ".join(values) for values in box), which, *taken]


COLUMNS = ["dtype", "layout", "stride", "pass", "channels per group", "`auto`", "`native`", "why"]
TEXT = """\
# Which kernel computes on a GPU

Printed by `python tests/cuda_choices.py` from the rules that `explain` asks. Nothing here was
measured on a GPU.

3x3 filters, padding 1, {groups} groups of as many channels in as out:
{widths}.

- **`auto`**: the choice with the compiled CUDA library and `GROUPED_CONV_CUDA_AUTO=1`. Without that
  variable it is cuDNN for all; where `autotune` has measured, it is the fastest.
- **TF32** is float32 where PyTorch's setting for convolutions allows its factors to be cut to TF32.
- **`native`**: the kernel that computes if that backend is named.
- **why**: the rule that keeps `auto` from that kernel.
"""


def text() -> str:
    """The page."""
    head = TEXT.format(groups=GROUPS, widths=", ".join(map(str, WIDTHS)))
    return f"{head}\n{tabulate(lines(), COLUMNS, tablefmt='github', disable_numparse=True)}\n"


if __name__ == "__main__":
    print(text(), end="")
