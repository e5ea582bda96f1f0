"""ResNeXt and ResNet of bottleneck blocks, from one class.

The names of modules, and so the keys of a ``state_dict``, are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from grouped_conv import GroupedConv2d
from resnext.blocks import GroupedBottleneck, Layer

STEM_CHANNELS = 64
STAGE_CHANNELS = 256
"""Output channels of the first stage; each further stage doubles them."""


class ResNeXt(nn.Module):
    """ImageNet ResNeXt (Xie et al., arXiv 1611.05431, Table 1).

    Maps images ``[N, in_chans, H, W]`` of any floating dtype and either memory format to logits
    ``[N, num_classes]``. By the paper's two rules, all blocks of a stage are alike, and each stage
    has half the extent and twice the width of the one before it: block width
    ``cardinality * base_width * 2**stage``, output channels ``256 * 2**stage``.

    Args:
        layers: number of blocks of each of the four stages.
        cardinality: number of groups of the 3x3 convolutions; 1 with ``base_width=64`` is ResNet.
        base_width: channels per group in the first stage, the paper's ``d``.
        num_classes: number of logits.
        in_chans: channels of the images.
        conv_layer: class of the 3x3 convolutions of the blocks; ``torch.nn.Conv2d`` gives the stock
            model with the same parameters.
        norm_layer: class of all normalizations.
        zero_init_last: start each block as its shortcut, with zero scale in its last normalization
            (Goyal et al., arXiv 1706.02677).
    """

    def __init__(
        self,
        layers: Sequence[int],
        cardinality: int = 32,
        base_width: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        conv_layer: Layer = GroupedConv2d,
        norm_layer: Layer = nn.BatchNorm2d,
        zero_init_last: bool = False,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers must be four positive numbers of blocks, got {layers!r}")
        self.conv1 = nn.Conv2d(in_chans, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        channels = STEM_CHANNELS
        for stage, depth in enumerate(layers):
            out_channels = STAGE_CHANNELS << stage
            blocks = [
                GroupedBottleneck(
                    channels if block == 0 else out_channels,
                    cardinality * base_width << stage,
                    out_channels,
                    cardinality=cardinality,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv_layer=conv_layer,
                    norm_layer=norm_layer,
                )
                for block in range(depth)
            ]
            stages.append(nn.Sequential(*blocks))
            channels = out_channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters(zero_init_last=zero_init_last)

    def reset_parameters(self, *, zero_init_last: bool = False) -> None:
        """Draw new weights: He et al. (arXiv 1502.01852), fan-out, for every convolution."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.Linear, nn.BatchNorm2d)):
                module.reset_parameters()
        for module in self.modules():
            if zero_init_last and isinstance(module, GroupedBottleneck):
                nn.init.zeros_(module.bn3.get_parameter("weight"))

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map ``[N, C, ceil(H/32), ceil(W/32)]`` of the last stage."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.avgpool(self.forward_features(x)).flatten(1))
        return logits


def resnext50(cardinality: int = 32, base_width: int = 4, **options: Any) -> ResNeXt:
    """ResNeXt-50 of any cardinality and width; ``options`` are those of :class:`ResNeXt`."""
    return ResNeXt((3, 4, 6, 3), cardinality, base_width, **options)


def resnext101(cardinality: int = 32, base_width: int = 8, **options: Any) -> ResNeXt:
    """ResNeXt-101 of any cardinality and width; ``options`` are those of :class:`ResNeXt`."""
    return ResNeXt((3, 4, 23, 3), cardinality, base_width, **options)


def resnext152(cardinality: int = 32, base_width: int = 4, **options: Any) -> ResNeXt:
    """ResNeXt-152 of any cardinality and width; ``options`` are those of :class:`ResNeXt`."""
    return ResNeXt((3, 8, 36, 3), cardinality, base_width, **options)


def resnext50_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNeXt-50 32x4d: 25,028,904 parameters, 4.2 GMAC at 224x224."""
    return resnext50(32, 4, num_classes=num_classes, in_chans=in_chans, **options)


def resnext101_32x8d(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNeXt-101 32x8d: 88,791,336 parameters."""
    return resnext101(32, 8, num_classes=num_classes, in_chans=in_chans, **options)


def resnext101_64x4d(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNeXt-101 64x4d: 83,455,272 parameters."""
    return resnext101(64, 4, num_classes=num_classes, in_chans=in_chans, **options)


def resnet50(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNet-50, the paper's baseline 1x64d: 25,557,032 parameters."""
    return resnext50(1, 64, num_classes=num_classes, in_chans=in_chans, **options)


def resnet101(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNet-101, the paper's baseline 1x64d: 44,549,160 parameters."""
    return resnext101(1, 64, num_classes=num_classes, in_chans=in_chans, **options)


def resnet152(num_classes: int = 1000, in_chans: int = 3, **options: Any) -> ResNeXt:
    """ResNet-152 of the same code: 60,192,808 parameters."""
    return resnext152(1, 64, num_classes=num_classes, in_chans=in_chans, **options)
