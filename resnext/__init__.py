"""ResNeXt on grouped convolution: models whose convolution class is a parameter."""

from resnext.model import (
    ResNeXt,
    resnet50,
    resnet101,
    resnet152,
    resnext50,
    resnext50_32x4d,
    resnext101,
    resnext101_32x8d,
    resnext101_64x4d,
    resnext152,
)

__all__ = [
    "ResNeXt",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50",
    "resnext50_32x4d",
    "resnext101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152",
]
