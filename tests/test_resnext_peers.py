"""The same outputs as torchvision's and timm's own models, given the same weights.

Needs the extra ``vision``; a test skips where its library is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

import resnext

pytestmark = pytest.mark.once

TOLERANCE = 1e-9

TORCHVISION = ("resnet50", "resnext50_32x4d", "resnext101_64x4d")
TIMM = {"resnext50_32x4d": "resnext50_32x4d", "seresnext50_32x4d": "seresnext50_32x4d"}


@pytest.fixture
def timm(torchvision: ModuleType) -> ModuleType:
    """timm, which imports torchvision."""
    return pytest.importorskip("timm", reason="timm is not installed (extra: vision)")


def lively(model: nn.Module) -> nn.Module:
    """The model in evaluation, in float64, with running statistics that are not the initial."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def assert_same_function(theirs: nn.Module, make: Callable[[], resnext.ResNeXt]) -> None:
    ours = make().double().eval()
    report = resnext.load_weights(ours, theirs.state_dict())
    assert (report.adapted, report.unused) == ([], [])
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(torchvision: ModuleType, name: str):
    theirs = lively(torchvision.models.get_model(name))
    assert_same_function(theirs, lambda: resnext.create_model(name))


def test_torchvision_s_dilation(torchvision: ModuleType):
    dilation = {"replace_stride_with_dilation": [False, True, True]}
    theirs = lively(torchvision.models.resnext50_32x4d(**dilation))
    assert_same_function(theirs, lambda: resnext.resnext50_32x4d(output_stride=8))


@pytest.mark.parametrize("name", TIMM)
def test_timm(timm: ModuleType, name: str):
    theirs = lively(timm.create_model(TIMM[name], pretrained=False))
    assert_same_function(theirs, lambda: resnext.create_model(name))


def test_timm_s_features(timm: ModuleType):
    options = {"features_only": True, "out_indices": (0, 2, 4)}
    theirs = timm.create_model("resnext50_32x4d", pretrained=False, **options).double().eval()
    ours = resnext.resnext50_32x4d(**options).double().eval()
    resnext.load_weights(ours, theirs.state_dict())
    assert [info["channels"] for info in ours.feature_info] == theirs.feature_info.channels()
    assert [info["reduction"] for info in ours.feature_info] == theirs.feature_info.reduction()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
