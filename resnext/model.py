"""ResNeXt and ResNet of bottleneck blocks, from one class.

The names of modules, and so the keys of a ``state_dict``, are torchvision's (timm's for squeeze and
excitation). :mod:`resnext.zoo` has the networks with names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_conv import GroupedConv2d
from resnext.blocks import GroupedBottleneck, Layer
from resnext.recompute import recomputed

STEM_CHANNELS = 64
STAGE_CHANNELS = 256
"""Output channels of the first stage; each further stage doubles them."""

STEM_STRIDE = {"imagenet": 4, "cifar": 1}


class ResNeXt(nn.Module):
    """ResNeXt (Xie et al., arXiv 1611.05431), for images of any size.

    Maps images ``[N, in_chans, H, W]`` of any floating dtype and either memory format to logits
    ``[N, num_classes]``. By the paper's two rules, all blocks of a stage are alike, and each stage
    has half the extent and twice the width of the one before it: block width
    ``cardinality * base_width * 2**stage``, output channels ``stage_channels * 2**stage``.

    Args:
        layers: number of blocks of each stage; four stages in the paper's Table 1, three for CIFAR.
        cardinality: number of groups of the 3x3 convolutions; 1 with ``base_width=64`` is ResNet.
        base_width: channels per group in the first stage, the paper's ``d``.
        num_classes: number of logits.
        in_chans: channels of the images.
        stem: ``"imagenet"``, a 7x7 convolution and a pooling that leave a quarter of the extent, or
            ``"cifar"``, a 3x3 convolution that leaves all of it.
        stem_channels: output channels of the stem.
        stage_channels: output channels of the first stage.
        output_stride: extent of the image over that of the last feature map. Where it is less than
            the product of all strides (32 for ImageNet), the last stages have dilation in the place
            of stride (Chen et al., arXiv 1706.05587): 8 or 16 for segmentation.
        conv_layer: class of the 3x3 convolutions of the blocks; ``torch.nn.Conv2d`` gives the stock
            model with the same parameters.
        norm_layer: class of all normalizations.
        se_reduction: reduction of squeeze and excitation in every block, or None for none.
        drop_path_rate: probability that the last block's branch is dropped in training; it grows
            linearly from nothing at the first block (Huang et al., arXiv 1603.09382).
        drop_rate: dropout before the classifier.
        zero_init_last: start each block as its shortcut, with zero scale in its last normalization
            (Goyal et al., arXiv 1706.02677).
        fused_norm: compute each 3x3 convolution of a block together with its normalization
            (:func:`grouped_conv.conv_batch_norm`); parameters, names and results are the same.
    """

    def __init__(
        self,
        layers: Sequence[int],
        cardinality: int = 32,
        base_width: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        stem_channels: int = STEM_CHANNELS,
        stage_channels: int = STAGE_CHANNELS,
        output_stride: int | None = None,
        conv_layer: Layer = GroupedConv2d,
        norm_layer: Layer = nn.BatchNorm2d,
        se_reduction: int | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        zero_init_last: bool = False,
        fused_norm: bool = False,
    ) -> None:
        super().__init__()
        if not layers or min(layers) < 1:
            raise ValueError(f"layers must be positive numbers of blocks, got {layers!r}")
        if stem not in STEM_STRIDE:
            raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")
        strides, dilations = _strides(len(layers), STEM_STRIDE[stem], output_stride)
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_chans, stem_channels, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_chans, stem_channels, 3, padding=1, bias=False)
        self.bn1 = norm_layer(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        pooled = stem == "imagenet"
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()

        self.feature_info = [{"channels": stem_channels, "reduction": 2 if pooled else 1}]
        """Channels and stride of the stem's output before the pooling, then of each stage's."""
        reduction = STEM_STRIDE[stem]
        channels = stem_channels
        done, last = 0, max(sum(layers) - 1, 1)
        for stage, depth in enumerate(layers):
            out_channels = stage_channels << stage
            blocks = []
            for block in range(depth):
                first = block == 0
                blocks.append(
                    GroupedBottleneck(
                        channels if first else out_channels,
                        cardinality * base_width << stage,
                        out_channels,
                        cardinality=cardinality,
                        stride=strides[stage] if first else 1,
                        dilation=dilations[stage] if first else dilations[stage + 1],
                        conv_layer=conv_layer,
                        norm_layer=norm_layer,
                        se_reduction=se_reduction,
                        drop_path=drop_path_rate * done / last,
                        fused_norm=fused_norm,
                    )
                )
                done += 1
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out_channels
            reduction *= strides[stage]
            self.feature_info.append({"channels": channels, "reduction": reduction})
        self.num_stages = len(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.reset_parameters(zero_init_last=zero_init_last)

    def reset_parameters(self, *, zero_init_last: bool = False) -> None:
        """Draw new weights: He et al. (arXiv 1502.01852), fan-out, for every convolution."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Linear, nn.BatchNorm2d)):
                module.reset_parameters()
        for module in self.modules():
            if zero_init_last and isinstance(module, GroupedBottleneck):
                nn.init.zeros_(module.bn3.get_parameter("weight"))

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and compute the rest again there.

        Less memory, about a third more time; gradients and running statistics stay the same.
        """
        self.grad_checkpointing = enabled

    def forward_stem(self, x: Tensor) -> Tensor:
        """``[N, stem_channels, ceil(H/2), ceil(W/2)]``, or all of H and W for CIFAR's stem."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        return out

    def forward_stage(self, stage: int, x: Tensor) -> Tensor:
        """Output of a stage, counted from 1, given the output of what is before it."""
        for block in self.get_submodule(f"layer{stage}").children():
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = recomputed(block, x)
            else:
                x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map ``[N, C, ceil(H/stride), ceil(W/stride)]`` of the last stage."""
        x = self.maxpool(self.forward_stem(x))
        for stage in range(1, self.num_stages + 1):
            x = self.forward_stage(stage, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.forward_features(x)).flatten(1)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        logits: Tensor = self.fc(x)
        return logits


class ResNeXtFeatures(ResNeXt):
    """The trunk of a :class:`ResNeXt` for feature pyramids, detection and segmentation heads.

    Maps images ``[N, in_chans, H, W]`` to a list of feature maps, the finest first. It has no
    classifier and no stage after the last that is asked for; what it has keeps its names, so the
    weights of a whole network load with :func:`resnext.load_weights`.

    Args:
        out_indices: 0 for the output of the stem before its pooling, ``i`` for that of stage ``i``.
        layers, options: as in :class:`ResNeXt`.

    Attributes:
        feature_info: ``channels`` and ``reduction`` (stride) of each map that is returned.
    """

    def __init__(
        self, layers: Sequence[int], *args: object, out_indices: Sequence[int], **options: object
    ) -> None:
        wanted = sorted(set(out_indices))
        if not wanted or wanted[0] < 0 or wanted[-1] > len(layers):
            raise ValueError(
                f"out_indices must be of 0 to {len(layers)}, got {tuple(out_indices)!r}"
            )
        super().__init__(layers, *args, **options)
        del self.fc
        for stage in range(wanted[-1] + 1, self.num_stages + 1):
            delattr(self, f"layer{stage}")
        self.num_stages = wanted[-1]
        self.out_indices = tuple(wanted)
        self.feature_info = [self.feature_info[index] for index in wanted]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.forward_stem(x)
        features = [x] if 0 in self.out_indices else []
        if self.num_stages:
            x = self.maxpool(x)
        for stage in range(1, self.num_stages + 1):
            x = self.forward_stage(stage, x)
            if stage in self.out_indices:
                features.append(x)
        return features


def _strides(
    stages: int, stem_stride: int, output_stride: int | None
) -> tuple[list[int], list[int]]:
    """Stride of each stage's first 3x3, and the dilations before and after each stage."""
    possible = [stem_stride << stage for stage in range(stages)]
    if output_stride is not None and output_stride not in possible:
        raise ValueError(f"output_stride must be one of {possible}, got {output_stride}")
    strides, dilations = [1], [1, 1]
    reached = stem_stride
    for _ in range(stages - 1):
        if output_stride is not None and reached == output_stride:
            strides.append(1)
            dilations.append(2 * dilations[-1])
        else:
            strides.append(2)
            reached *= 2
            dilations.append(dilations[-1])
    return strides, dilations
