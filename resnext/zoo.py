"""The networks with names.

Every constructor takes the arguments of :class:`resnext.model.ResNeXt` as options, and two more:
``features_only=True`` builds a :class:`resnext.model.ResNeXtFeatures`, which returns the feature
maps of ``out_indices`` (default: those of all stages).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from resnext.model import ResNeXt, ResNeXtFeatures


def _build(
    layers: Sequence[int],
    cardinality: int,
    base_width: int,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> ResNeXt:
    if not features_only:
        if out_indices is not None:
            raise ValueError("out_indices needs features_only=True")
        return ResNeXt(layers, cardinality, base_width, **options)
    if out_indices is None:
        out_indices = range(1, len(layers) + 1)
    return ResNeXtFeatures(layers, cardinality, base_width, out_indices=out_indices, **options)


def resnext50(cardinality: int = 32, base_width: int = 4, **options: Any) -> ResNeXt:
    """ResNeXt-50 of any cardinality and width."""
    return _build((3, 4, 6, 3), cardinality, base_width, **options)


def resnext101(cardinality: int = 32, base_width: int = 8, **options: Any) -> ResNeXt:
    """ResNeXt-101 of any cardinality and width."""
    return _build((3, 4, 23, 3), cardinality, base_width, **options)


def resnext152(cardinality: int = 32, base_width: int = 4, **options: Any) -> ResNeXt:
    """ResNeXt-152 of any cardinality and width."""
    return _build((3, 8, 36, 3), cardinality, base_width, **options)


def resnext50_32x4d(**options: Any) -> ResNeXt:
    """ResNeXt-50 32x4d: 25,028,904 parameters, 4.23 GMAC at 224x224."""
    return resnext50(32, 4, **options)


def resnext101_32x4d(**options: Any) -> ResNeXt:
    """ResNeXt-101 32x4d: 44,177,704 parameters."""
    return resnext101(32, 4, **options)


def resnext101_32x8d(**options: Any) -> ResNeXt:
    """ResNeXt-101 32x8d: 88,791,336 parameters."""
    return resnext101(32, 8, **options)


def resnext101_64x4d(**options: Any) -> ResNeXt:
    """ResNeXt-101 64x4d: 83,455,272 parameters."""
    return resnext101(64, 4, **options)


def resnext101_32x16d(**options: Any) -> ResNeXt:
    """ResNeXt-101 32x16d: 194,026,792 parameters."""
    return resnext101(32, 16, **options)


def resnext101_32x32d(**options: Any) -> ResNeXt:
    """ResNeXt-101 32x32d: 468,530,472 parameters."""
    return resnext101(32, 32, **options)


def seresnext50_32x4d(**options: Any) -> ResNeXt:
    """SE-ResNeXt-50 32x4d (Hu et al., arXiv 1709.01507): 27,559,896 parameters."""
    return resnext50(32, 4, **{"se_reduction": 16, **options})


def seresnext101_32x4d(**options: Any) -> ResNeXt:
    """SE-ResNeXt-101 32x4d: 48,955,416 parameters."""
    return resnext101(32, 4, **{"se_reduction": 16, **options})


def resnet50(**options: Any) -> ResNeXt:
    """ResNet-50, the paper's baseline 1x64d: 25,557,032 parameters."""
    return resnext50(1, 64, **options)


def resnet101(**options: Any) -> ResNeXt:
    """ResNet-101, the paper's baseline 1x64d: 44,549,160 parameters."""
    return resnext101(1, 64, **options)


def resnet152(**options: Any) -> ResNeXt:
    """ResNet-152 of the same code: 60,192,808 parameters."""
    return resnext152(1, 64, **options)


def cifar_resnext29(
    cardinality: int = 8, base_width: int = 64, *, num_classes: int = 10, **options: Any
) -> ResNeXt:
    """The paper's 29-layer network for CIFAR: three stages of three blocks on 32x32 images."""
    options = {"stem": "cifar", **options}
    return _build((3, 3, 3), cardinality, base_width, num_classes=num_classes, **options)


def cifar_resnext29_8x64d(**options: Any) -> ResNeXt:
    """ResNeXt-29 8x64d: 34,426,698 parameters for CIFAR-10."""
    return cifar_resnext29(8, 64, **options)


def cifar_resnext29_16x64d(**options: Any) -> ResNeXt:
    """ResNeXt-29 16x64d: 68,155,210 parameters for CIFAR-10."""
    return cifar_resnext29(16, 64, **options)


def tiny_resnext11(
    cardinality: int = 4,
    base_width: int = 6,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    **options: Any,
) -> ResNeXt:
    """A network for digits of 8x8 pixels: three stages of one block, a quarter of CIFAR's width.

    The default, 4x6d, has 120 thousand parameters; ``stage_channels`` and ``stem_channels`` (64
    and 16) make it smaller or larger.
    """
    options = {"stem": "cifar", "stem_channels": 16, "stage_channels": 64, **options}
    return _build(
        (1, 1, 1), cardinality, base_width, num_classes=num_classes, in_chans=in_chans, **options
    )


MODELS: dict[str, Callable[..., ResNeXt]] = {
    f.__name__: f
    for f in (
        resnext50,
        resnext101,
        resnext152,
        resnext50_32x4d,
        resnext101_32x4d,
        resnext101_32x8d,
        resnext101_64x4d,
        resnext101_32x16d,
        resnext101_32x32d,
        seresnext50_32x4d,
        seresnext101_32x4d,
        resnet50,
        resnet101,
        resnet152,
        cifar_resnext29,
        cifar_resnext29_8x64d,
        cifar_resnext29_16x64d,
        tiny_resnext11,
    )
}
"""Every constructor by its name, as the command lines take it."""


def create_model(name: str, **options: Any) -> ResNeXt:
    """Build a network by name.

    Raises:
        ValueError: there is no such network; the message lists them.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](**options)
