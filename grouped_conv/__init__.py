"""Fast grouped convolution for PyTorch on CPU and GPU.

>>> from grouped_conv import GroupedConv2d, replace_grouped_conv_
>>> layer = GroupedConv2d(128, 128, 3, padding=1, groups=32)
>>> report = replace_grouped_conv_(model)
"""

from grouped_conv import _libraries as _libraries

_libraries.load()

from grouped_conv._version import __version__  # noqa: E402
from grouped_conv.batch_norm import GroupedConvBN2d, conv_batch_norm  # noqa: E402
from grouped_conv.convert import replace_grouped_conv_, revert_grouped_conv_  # noqa: E402
from grouped_conv.export import aten_decompositions  # noqa: E402
from grouped_conv.functional import (  # noqa: E402
    Decision,
    available_backends,
    explain,
    fold_batch_norm,
    grouped_conv2d,
    grouped_conv2d_affine,
    use_backend,
)
from grouped_conv.fuse import fuse_grouped_conv_bn_  # noqa: E402
from grouped_conv.modules import (  # noqa: E402
    GroupedConv2d,
    GroupedConvReLU2d,
    LazyGroupedConv2d,
)
from grouped_conv.report import Report  # noqa: E402
from grouped_conv.tuning import Measurement, Workload, autotune, workloads  # noqa: E402

__all__ = [
    "Decision",
    "GroupedConv2d",
    "GroupedConvBN2d",
    "GroupedConvReLU2d",
    "LazyGroupedConv2d",
    "Measurement",
    "Report",
    "Workload",
    "__version__",
    "aten_decompositions",
    "autotune",
    "available_backends",
    "conv_batch_norm",
    "explain",
    "fold_batch_norm",
    "fuse_grouped_conv_bn_",
    "grouped_conv2d",
    "grouped_conv2d_affine",
    "replace_grouped_conv_",
    "revert_grouped_conv_",
    "use_backend",
    "workloads",
]
