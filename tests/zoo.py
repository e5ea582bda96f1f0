"""Other people's models, small and with random weights. What is not installed skips its tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

WHY = "needs the extra [models]"
_library: torch.library.Library | None = None


def torchvision() -> ModuleType:
    """torchvision. Built for CUDA, it misses two operators beside a torch without; none is used."""
    global _library
    pytest.importorskip("numpy")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip(WHY)
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision().models.get_model(name, num_classes=10)


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torchvision()  # which timm imports
        return pytest.importorskip("timm", reason=WHY).create_model(name, num_classes=10)

    return build


class Logits(nn.Module):
    """A model of transformers that returns a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def _transformers_regnet() -> nn.Module:
    torchvision()
    transformers = pytest.importorskip("transformers", reason=WHY)
    config = transformers.RegNetConfig(
        depths=[1, 1, 2, 1], hidden_sizes=[32, 64, 128, 256], groups_width=16, num_labels=10
    )
    return Logits(transformers.RegNetForImageClassification(config))


# Name, and how many grouped layers the kernels take at least and how many of them end in a relu.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "torchvision resnext50_32x4d": (_torchvision("resnext50_32x4d"), 16, 16),
    "torchvision regnet_x_400mf": (_torchvision("regnet_x_400mf"), 22, 22),
    "torchvision regnet_y_400mf": (_torchvision("regnet_y_400mf"), 16, 16),
    "timm resnext50_32x4d": (_timm("resnext50_32x4d"), 16, 16),
    "timm seresnext26d_32x4d": (_timm("seresnext26d_32x4d"), 8, 8),
    "timm regnetx_004": (_timm("regnetx_004"), 22, 22),
    "timm regnety_004": (_timm("regnety_004"), 16, 16),
    "timm regnetz_005": (_timm("regnetz_005"), 21, 0),
    "timm dpn48b": (_timm("dpn48b"), 16, 16),
    "timm skresnext50_32x4d": (_timm("skresnext50_32x4d"), 16, 16),
    "timm resnest14d": (_timm("resnest14d"), 0, 0),
    "transformers RegNet": (_transformers_regnet, 5, 5),
}
