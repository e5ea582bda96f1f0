"""Residual blocks of ResNeXt (Xie et al., "Aggregated Residual Transformations for Deep Neural
Networks", arXiv 1611.05431)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Layer = Callable[..., nn.Module]
"""A module class, or any callable that takes its arguments and returns a module."""


def projection(in_channels: int, out_channels: int, stride: int, norm_layer: Layer) -> nn.Module:
    """Shortcut for a block that changes shape: a strided 1x1 convolution and its normalization.

    Maps ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H/stride), ceil(W/stride)]``
    (option B of the paper).
    """
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, norm_layer(out_channels))


class GroupedBottleneck(nn.Module):
    """The grouped form of the block (paper, Fig. 3c): 1x1 reduce, grouped 3x3, 1x1 expand, add.

    Maps ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H/stride), ceil(W/stride)]`` in any
    floating dtype and in both memory formats. The stride is in the 3x3; normalization follows each
    convolution, ReLU each normalization but the last, which it follows after the addition; the
    shortcut is the identity unless the shape changes.

    Args:
        in_channels: channels of the input.
        width: channels inside the block, ``cardinality * d`` where ``d`` is the paper's width of
            one path; a multiple of ``cardinality``.
        out_channels: channels of the output.
        cardinality: number of groups of the 3x3 convolution; 1 gives ResNet's bottleneck.
        stride: stride of the 3x3 convolution and of the projection.
        conv_layer: class of the 3x3 convolution, called like ``torch.nn.Conv2d``.
        norm_layer: class of the normalizations, called with the number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        cardinality: int,
        stride: int = 1,
        conv_layer: Layer,
        norm_layer: Layer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv_layer(
            width, width, 3, stride=stride, padding=1, groups=cardinality, bias=False
        )
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = projection(in_channels, out_channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out
