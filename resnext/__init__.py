"""ResNeXt on grouped convolution: models whose convolution class is a parameter.

>>> import resnext
>>> model = resnext.resnext50_32x4d()
>>> resnext.load_weights(model, "resnext50_32x4d.pth")
"""

from resnext.blocks import DropPath, GroupedBottleneck, SqueezeExcite
from resnext.forms import ConcatBottleneck, SplitBottleneck, concat_paths, join_paths, split_paths
from resnext.model import ResNeXt, ResNeXtFeatures
from resnext.weights import LoadReport, load_weights, save_weights
from resnext.zoo import (
    MODELS,
    cifar_resnext29,
    cifar_resnext29_8x64d,
    cifar_resnext29_16x64d,
    create_model,
    resnet50,
    resnet101,
    resnet152,
    resnext50,
    resnext50_32x4d,
    resnext101,
    resnext101_32x4d,
    resnext101_32x8d,
    resnext101_32x16d,
    resnext101_32x32d,
    resnext101_64x4d,
    resnext152,
    seresnext50_32x4d,
    seresnext101_32x4d,
    tiny_resnext11,
)

__all__ = [
    "MODELS",
    "ConcatBottleneck",
    "DropPath",
    "GroupedBottleneck",
    "LoadReport",
    "ResNeXt",
    "ResNeXtFeatures",
    "SplitBottleneck",
    "SqueezeExcite",
    "cifar_resnext29",
    "cifar_resnext29_8x64d",
    "cifar_resnext29_16x64d",
    "concat_paths",
    "create_model",
    "join_paths",
    "load_weights",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50",
    "resnext50_32x4d",
    "resnext101",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_64x4d",
    "resnext152",
    "save_weights",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
    "split_paths",
    "tiny_resnext11",
]
