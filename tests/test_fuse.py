"""fuse_grouped_conv_bn_: what it folds and fuses, what it refuses, and what it leaves as it is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import LAYOUTS
from torch import Tensor, nn

import resnext
from grouped_conv import (
    GroupedConv2d,
    GroupedConvReLU2d,
    fuse_grouped_conv_bn_,
    replace_grouped_conv_,
    revert_grouped_conv_,
)

pytestmark = pytest.mark.once


def calibrated(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model in evaluation, with statistics and factors that fold visibly."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for t, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if t is not None:
                    nn.init.uniform_(t, low, high)
    return model.to(dtype).eval()


def conv(groups: int = 8, **options) -> nn.Conv2d:
    return nn.Conv2d(32, 32, 3, padding=1, groups=groups, bias=False, **options)


class Block(nn.Module):
    """A bottleneck as torchvision writes it: one relu module for all places."""

    def __init__(self, layer=conv) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = layer(), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + x)


class Functional(Block):
    """The same, with the relu as a function."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)).relu()
        return torch.relu(self.bn3(self.conv3(y)) + x)


class Untraceable(nn.Module):
    """Control flow on data around blocks that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(32)
        self.blocks = nn.ModuleList([Block(), Functional()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        for block in self.blocks:
            x = block(x) if x.abs().max() > 0 else x
        return x


class Optional(Block):
    """A block whose forward goes two ways, by an argument that is mostly left out."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.conv2(y)
        y = self.relu(self.bn2(y) if skip is None else y + skip)
        return self.relu(self.bn3(self.conv3(y)) + x)


class DPN(nn.Module):
    """Normalization and relu in front of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(32), conv()
        self.bn3, self.conv3 = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.bn1(x)))
        y = self.conv2(self.act(self.bn2(y)))
        return self.conv3(self.act(self.bn3(y)))


def sequential(*between: nn.Module) -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm2d(32), *between, nn.ReLU(), nn.Conv2d(32, 8, 1))


# Model, convolutions that get a normalization, of these those that get a relu, normalizations left.
MODELS = {
    "block": (Block, 3, 1, 0),
    "functional": (Functional, 3, 1, 0),
    "sequential": (sequential, 1, 1, 0),
    "idle modules between": (lambda: sequential(nn.Identity(), nn.Dropout(0.5)), 1, 1, 0),
    "two blocks that share a relu": (lambda: shared_relu(), 6, 2, 0),
    "untraceable": (Untraceable, 6, 2, 1),
    "DPN": (DPN, 2, 1, 1),
    "optional arguments": (lambda: nn.Sequential(Optional()), 3, 0, 0),
    "dense alone": (lambda: Block(lambda: conv(groups=1)), 3, 0, 0),
    "grouped, but not for our kernels": (
        lambda: Block(lambda: conv(groups=32)),
        3,
        0,
        0,
    ),
    "ours already": (lambda: Block(lambda: GroupedConv2d(32, 32, 3, padding=1, groups=8)), 3, 1, 0),
    "reflected padding": (lambda: Block(lambda: conv(padding_mode="reflect")), 3, 1, 0),
    "two normalizations": (lambda: sequential(nn.BatchNorm2d(32)), 1, 1, 0),
    "without affine": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(32, affine=False), nn.ReLU()),
        1,
        1,
        0,
    ),
    "resnext": (lambda: resnext.resnext50_32x4d(num_classes=10), 53, 16, 0),
}


def shared_relu() -> nn.Module:
    blocks = nn.Sequential(Block(), Block())
    blocks[1].relu = blocks[0].relu
    return blocks


def image(model: nn.Module) -> Tensor:
    return torch.randn(2, 3, 64, 64) if isinstance(model, resnext.ResNeXt) else data()


def data() -> Tensor:
    return torch.randn(2, 32, 9, 8)


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def fused_layers(model: nn.Module) -> int:
    return sum(type(m) is GroupedConvReLU2d for m in model.modules())


@torch.no_grad()
def same_output(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_same_output_from_fewer_passes(name: str, layout: str):
    build, folded, relus, left = MODELS[name]
    model = calibrated(build()).to(memory_format=LAYOUTS[layout])
    x = image(model).contiguous(memory_format=LAYOUTS[layout])
    before = model(x)
    report = fuse_grouped_conv_bn_(model)
    same_output(model(x), before)
    assert sum("folded" in entry.detail for entry in report) == folded
    assert sum("relu fused" in entry.detail for entry in report) == relus
    assert fused_layers(model) == relus
    assert norms(model) == left
    assert str(report).startswith(f"{folded} of ")


@pytest.mark.parametrize("name", ["block", "untraceable", "DPN", "two blocks that share a relu"])
@torch.no_grad()
def test_is_idempotent(name: str):
    model = calibrated(MODELS[name][0]())
    fuse_grouped_conv_bn_(model)
    x = image(model)
    before, state = model(x), copy.deepcopy(model.state_dict())
    report = fuse_grouped_conv_bn_(model)
    assert not any(entry.replaced for entry in report)
    assert all(entry.reason for entry in report)
    assert torch.equal(model(x), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["block", "functional"])
@torch.no_grad()
def test_the_relu_is_gone_from_the_forward(name: str):
    """Counted by the profiler: of three relus two are left."""
    model = calibrated(MODELS[name][0]())
    counts = []
    for _ in range(2):
        with torch.profiler.profile() as profile:
            model(data())
        names = [e.key for e in profile.key_averages() for _ in range(e.count)]
        counts.append(sum(n in ("aten::relu", "aten::relu_") for n in names))
        fuse_grouped_conv_bn_(model)
    assert counts == [3, 2]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    model = calibrated(Block(), dtype)
    x = data().to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    error = (model(x).double() - exact).abs().max()
    fuse_grouped_conv_bn_(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    limit = 2 * error + 8 * torch.finfo(torch.float64).eps
    assert (model(x).double() - exact).abs().max() <= limit


@torch.no_grad()
def test_parameters_of_others_are_not_touched():
    model = calibrated(Block())
    held = {name: (p, p.clone()) for name, p in model.named_parameters()}
    model.conv2.weight.requires_grad_(False)
    fuse_grouped_conv_bn_(model)
    assert all(torch.equal(p, before) for p, before in held.values())
    assert not model.conv2.weight.requires_grad
    assert model.conv1.weight.requires_grad


class Twice(Block):
    """One layer in two places of the forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.conv2(x)))


class Reads(Block):
    """A forward that reads the statistics of its normalization."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(x)) + self.bn2.running_mean[:, None, None]


class Branches(Block):
    """A normalization that is not the only one to read the convolution's output."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(x)
        return self.bn2(y) + y


class TakenApart(nn.Module):
    """An nn.Sequential whose parts a forward calls one by one, which cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Sequential(conv(), nn.BatchNorm2d(32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for layer in self.conv2:
            x = layer(x)
            total = total + x.mean() if x.mean() > 0 else total
        return x + total


def training() -> nn.Module:
    model = calibrated(Block())
    model.bn2.train()
    return model


def hooked(name: str) -> nn.Module:
    model = calibrated(Block())
    model.get_submodule(name).register_forward_hook(lambda m, args, y: None)
    return model


class Special(nn.Conv2d):
    """Somebody else's subclass."""


REFUSALS = {
    "called twice": (lambda: calibrated(Twice()), "conv2", "more than once"),
    "statistics are read": (lambda: calibrated(Reads()), "conv2", "reads its parameters"),
    "output used twice": (lambda: calibrated(Branches()), "conv2", "used more than once"),
    "normalization in training": (training, "conv2", "training"),
    "all in training": (lambda: calibrated(Block()).train(), "conv2", "training"),
    "hook on the layer": (lambda: hooked("conv2"), "conv2", "hooks"),
    "hook on the normalization": (lambda: hooked("bn2"), "conv2", "hooks"),
    "taken apart": (lambda: calibrated(TakenApart()), "conv2.0", "cannot be followed"),
    "control flow": (lambda: calibrated(Untraceable()), "conv", "cannot be followed"),
    "optional arguments": (lambda: calibrated(Optional()), "conv2", "may be left out"),
    "no statistics": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(32, track_running_stats=False)).eval(),
        "0",
        "no running statistics",
    ),
    "another class": (
        lambda: nn.Sequential(Special(32, 32, 3, groups=8), nn.BatchNorm2d(32)).eval(),
        "0",
        "class of its own",
    ),
    "never called": (lambda: calibrated(Branches()), "conv1", "no forward calls it"),
    "nothing follows": (lambda: nn.Sequential(conv()).eval(), "0", "no batch normalization"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_and_says_why(name: str):
    build, layer, reason = REFUSALS[name]
    model = build()
    x = data()
    before = copy.deepcopy(model)(x)
    found = {entry.name: entry for entry in fuse_grouped_conv_bn_(model)}
    assert not found[layer].replaced
    assert reason in found[layer].reason
    assert f"{layer}: left alone" in str(found[layer])
    same_output(model(x), before)


def test_filter_fn():
    model = calibrated(Block())
    report = fuse_grouped_conv_bn_(model, filter_fn=lambda name, layer: name != "conv2")
    assert [(e.name, e.replaced) for e in report] == [
        ("conv1", True),
        ("conv2", False),
        ("conv3", True),
    ]
    assert type(model.conv2) is nn.Conv2d


def test_module_state_is_kept():
    model = calibrated(Block())
    model.conv2.tag = "mine"
    model.register_buffer("steps", torch.tensor(7))
    seen = []
    model.relu.register_forward_hook(lambda m, args, y: seen.append("relu"))
    model.register_forward_hook(lambda m, args, y: seen.append("block"))
    fuse_grouped_conv_bn_(model)
    assert model.conv2.tag == "mine"
    assert model.state_dict()["steps"] == 7
    assert not any(m.training for m in model.modules())
    model(data())
    # The hook on the relu kept it in all three places.
    assert seen == ["relu"] * 3 + ["block"]
    assert type(model.conv2) is GroupedConv2d


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@torch.no_grad()
def test_copies(copier):
    model = calibrated(Block())
    x = data()
    fuse_grouped_conv_bn_(model)
    copied = copier(model)
    assert type(copied.conv2) is GroupedConvReLU2d
    before = model(x)
    torch.testing.assert_close(copied(x), before)
    nn.init.zeros_(copied.conv3.weight)
    assert not torch.equal(copied(x), before)
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_compiled():
    model = calibrated(Block())
    x = data()
    fuse_grouped_conv_bn_(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_revert_keeps_what_a_relu_was_fused_into():
    model = calibrated(nn.Sequential(Block(), Branches()))
    fuse_grouped_conv_bn_(model)
    x = data()
    before = model(x)
    found = {entry.name: entry for entry in revert_grouped_conv_(model)}
    assert not found["0.conv2"].replaced
    assert "relu" in found["0.conv2"].reason
    assert found["1.conv2"].replaced
    same_output(model(x), before)


def test_a_replaced_model_can_be_fused_later():
    model = calibrated(Block())
    replace_grouped_conv_(model)
    fuse_grouped_conv_bn_(model)
    assert type(model.conv2) is GroupedConvReLU2d
