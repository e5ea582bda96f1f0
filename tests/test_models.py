"""The swap and the fusion in models of torchvision, timm and transformers."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import Tensor, nn

from grouped_conv import (
    GroupedConv2d,
    GroupedConvReLU2d,
    fuse_grouped_conv_bn_,
    replace_grouped_conv_,
    revert_grouped_conv_,
)

pytestmark = pytest.mark.once


@pytest.fixture(params=zoo.MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> nn.Module:
    """In evaluation, with statistics that normalize: random weights alone do not."""
    model = zoo.MODELS[name][0]().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            with torch.no_grad():
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradient of the input and of every parameter."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """In the norm: where rounding turns a relu or a maximum, single gradients differ by more."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error, size = float((ours[name] - expected).norm()), float(expected.norm())
        assert error <= 5e-3 * size, f"{name}: {error:.1e} of {size:.1e}"


def test_swap(name: str, model: nn.Module):
    x = images()
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    before = results(model, x)
    report = replace_grouped_conv_(model)
    count = sum(entry.replaced for entry in report)
    assert count >= zoo.MODELS[name][1]
    assert all(entry.kernel if entry.replaced else entry.reason for entry in report)
    assert sum(isinstance(m, GroupedConv2d) for m in model.modules()) == count
    assert list(model.state_dict()) == keys
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert_alike(results(model, x), before)
    revert_grouped_conv_(model)
    assert not any(isinstance(m, GroupedConv2d) for m in model.modules())
    assert_alike(results(model, x), before)


@torch.no_grad()
def test_fusion(name: str, model: nn.Module):
    relus = zoo.MODELS[name][2]
    x = images()
    before = model(x)
    original = copy.deepcopy(model)
    report = fuse_grouped_conv_bn_(model)
    assert sum("folded" in entry.detail for entry in report) > 10
    assert sum(type(m) is GroupedConvReLU2d for m in model.modules()) >= relus
    assert_alike({"y": model(x)}, {"y": before})
    assert torch.equal(original(x), before)
