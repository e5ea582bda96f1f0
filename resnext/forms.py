"""The three forms in which the paper writes one block (Fig. 3), and the maps between them.

(a) :class:`SplitBottleneck`: C separate paths 1x1, 3x3, 1x1, and their sum.
(b) :class:`ConcatBottleneck`: C paths 1x1, 3x3, concatenated, and one 1x1.
(c) :class:`resnext.blocks.GroupedBottleneck`: one path whose 3x3 has C groups.

They are the same function of the same numbers: with W1, W2, W3 the weights of form (c), path i has
rows ``[i*d, (i+1)*d)`` of W1 and W2 and, in form (a), the same columns of W3. Normalizations follow
the 1x1 and 3x3 of each path, which works channel by channel and so is the same in all forms, and
the aggregate; ReLU is where it is in form (c).

A map takes a mapping from parameter names to tensors and returns one for another form. It slices
and concatenates, nothing else, so it maps ``state_dict()`` and a dictionary of gradients alike.
:func:`split_paths` and :func:`concat_paths` leave form (c), :func:`join_paths` returns to it from
either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resnext.blocks import Layer, projection

_PATH = re.compile(r"paths\.(\d+)\.(.+)")


class _Path(nn.Module):
    """1x1 reduce and 3x3 of one path, each normalized and rectified; then, in form (a), a 1x1."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int | None,
        stride: int,
        conv_layer: Layer,
        norm_layer: Layer,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv_layer(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv3: nn.Module | None = None
        if out_channels is not None:
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return y if self.conv3 is None else self.conv3(y)


class _PathsBottleneck(nn.Module):
    """What forms (a) and (b) share: the paths, the shortcut, and the order of things."""

    expand_each: bool

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        cardinality: int,
        stride: int = 1,
        conv_layer: Layer = nn.Conv2d,
        norm_layer: Layer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if width % cardinality:
            raise ValueError(f"width {width} is not a multiple of cardinality {cardinality}")
        path_out = out_channels if self.expand_each else None
        self.paths = nn.ModuleList(
            _Path(in_channels, width // cardinality, path_out, stride, conv_layer, norm_layer)
            for _ in range(cardinality)
        )
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = projection(in_channels, out_channels, stride, norm_layer)

    def aggregate(self, x: Tensor) -> Tensor:
        """What the last normalization is given."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.aggregate(x))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class SplitBottleneck(_PathsBottleneck):
    """Form (a), Fig. 3a: the sum of C paths 1x1, 3x3, 1x1.

    Shapes and arguments are those of :class:`resnext.blocks.GroupedBottleneck`; ``conv_layer``
    makes the dense 3x3 convolution of one path.
    """

    expand_each = True

    def aggregate(self, x: Tensor) -> Tensor:
        return torch.stack([path(x) for path in self.paths]).sum(0)


class ConcatBottleneck(_PathsBottleneck):
    """Form (b), Fig. 3b: C paths 1x1, 3x3, concatenated, and one 1x1.

    Shapes and arguments are those of :class:`resnext.blocks.GroupedBottleneck`; ``conv_layer``
    makes the dense 3x3 convolution of one path.
    """

    expand_each = False

    def __init__(self, in_channels: int, width: int, out_channels: int, **options: object) -> None:
        super().__init__(in_channels, width, out_channels, **options)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)

    def aggregate(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(torch.cat([path(x) for path in self.paths], 1))
        return out


def _leave(tensors: Mapping[str, Tensor], cardinality: int, split_conv3: bool) -> dict[str, Tensor]:
    """Form (c) to form (a) or (b)."""
    mapped: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer = name.split(".")[0]
        if layer == "conv3" and split_conv3:
            parts = value.chunk(cardinality, 1)
        elif layer not in ("conv1", "bn1", "conv2", "bn2"):
            mapped[name] = value
            continue
        elif value.dim() == 0:  # num_batches_tracked: every path has seen as many
            parts = (value,) * cardinality
        else:
            parts = value.chunk(cardinality, 0)
        if len(parts) != cardinality or parts[0].shape != parts[-1].shape:
            raise ValueError(f"{name} {tuple(value.shape)} does not split into {cardinality} paths")
        mapped |= {f"paths.{i}.{name}": part.clone() for i, part in enumerate(parts)}
    return mapped


def split_paths(tensors: Mapping[str, Tensor], cardinality: int) -> dict[str, Tensor]:
    """Map names and tensors of a block in form (c) to those of form (a).

    Args:
        tensors: a state_dict, or gradients by the names of their parameters.
        cardinality: number of paths.

    Raises:
        ValueError: a tensor does not split into so many equal parts.
    """
    return _leave(tensors, cardinality, split_conv3=True)


def concat_paths(tensors: Mapping[str, Tensor], cardinality: int) -> dict[str, Tensor]:
    """Map names and tensors of a block in form (c) to those of form (b); see split_paths."""
    return _leave(tensors, cardinality, split_conv3=False)


def join_paths(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map names and tensors of a block in form (a) or (b) to those of form (c).

    The inverse of :func:`split_paths` and :func:`concat_paths`.
    """
    mapped: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        if found := _PATH.fullmatch(name):
            parts.setdefault(found[2], {})[int(found[1])] = value
        else:
            mapped[name] = value
    for name, by_path in parts.items():
        values = [by_path[i] for i in range(len(by_path))]
        if values[0].dim() == 0:
            mapped[name] = values[0].clone()
        else:
            mapped[name] = torch.cat(values, 1 if name.startswith("conv3.") else 0)
    return mapped
