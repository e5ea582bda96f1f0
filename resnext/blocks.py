"""Residual blocks of ResNeXt (Xie et al., "Aggregated Residual Transformations for Deep Neural
Networks", arXiv 1611.05431) and the parts that newer networks put into them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from grouped_conv import conv_batch_norm

Layer = Callable[..., nn.Module]
"""A module class, or any callable that takes its arguments and returns a module."""


def projection(in_channels: int, out_channels: int, stride: int, norm_layer: Layer) -> nn.Module:
    """Shortcut for a block that changes shape: a strided 1x1 convolution and its normalization.

    Maps ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H/stride), ceil(W/stride)]``
    (option B of the paper).
    """
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, norm_layer(out_channels))


class SqueezeExcite(nn.Module):
    """Scales each channel by a function of all channels' means (Hu et al., arXiv 1709.01507).

    Maps ``[N, channels, H, W]`` to the same shape. The names of the layers are timm's.

    Args:
        channels: channels of the input.
        reduction: how many times fewer channels the layer between the two has.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if channels % reduction:
            raise ValueError(f"{channels} channels cannot be reduced {reduction} times")
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class DropPath(nn.Module):
    """Drops the whole residual branch of a sample with a probability, in training (Huang et al.,
    "Deep networks with stochastic depth", arXiv 1603.09382).

    Branches that stay are scaled by ``1 / (1 - probability)``, so evaluation needs no change.
    """

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"probability must be in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3g}"


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
        dilation: dilation of the 3x3 convolution, in networks that keep a finer map.
        conv_layer: class of the 3x3 convolution, called like ``torch.nn.Conv2d``.
        norm_layer: class of the normalizations, called with the number of channels.
        se_reduction: reduction of a :class:`SqueezeExcite` before the addition, or None.
        drop_path: probability to drop the branch of a sample in training.
        fused_norm: compute the 3x3 convolution and its normalization together, by
            :func:`grouped_conv.conv_batch_norm`; the result is the same.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        cardinality: int,
        stride: int = 1,
        dilation: int = 1,
        conv_layer: Layer,
        norm_layer: Layer = nn.BatchNorm2d,
        se_reduction: int | None = None,
        drop_path: float = 0.0,
        fused_norm: bool = False,
    ) -> None:
        super().__init__()
        self.fused_norm = fused_norm
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv_layer(
            width,
            width,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=cardinality,
            bias=False,
        )
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.se: nn.Module | None = None
        if se_reduction is not None:
            self.se = SqueezeExcite(out_channels, se_reduction)
        self.drop_path: nn.Module | None = DropPath(drop_path) if drop_path else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = projection(in_channels, out_channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        if self.fused_norm:
            y = self.relu(conv_batch_norm(y, self.conv2, self.bn2))
        else:
            y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.se is not None:
            y = self.se(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out
