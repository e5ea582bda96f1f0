"""The paper's three forms of a block are one function, and its formulas count their weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from grouped_conv import GroupedConv2d
from resnext import forms
from resnext.blocks import GroupedBottleneck
from resnext.complexity import path_parameters

pytestmark = pytest.mark.once

TABLE_2 = {1: 64, 2: 40, 4: 24, 8: 14, 32: 4}
"""Width d of a path for each cardinality C (paper, Table 2)."""

FORMS = {
    "split": (forms.SplitBottleneck, forms.split_paths),
    "concat": (forms.ConcatBottleneck, forms.concat_paths),
}


def convolution_weights(block: nn.Module) -> int:
    return sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))


def grouped(cardinality: int, d: int, *, channels: int = 256, stride: int = 1) -> GroupedBottleneck:
    """A block in form (c), in float64, with normalizations that do something."""
    block = GroupedBottleneck(
        channels,
        cardinality * d,
        256,
        cardinality=cardinality,
        stride=stride,
        conv_layer=GroupedConv2d,
    ).double()
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    value.uniform_(0.5, 1.5)
                for value in (module.bias, module.running_mean):
                    value.uniform_(-0.5, 0.5)
    return block


def run(block: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, gradient of the input, and gradients and buffers by name."""
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(dy)
    named = {name: p.grad for name, p in block.named_parameters()}
    return y.detach(), x.grad, named | dict(block.named_buffers())


@pytest.mark.parametrize("cardinality", TABLE_2)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("stride", [1, 2])
def test_forms_are_equal(cardinality: int, form: str, training: bool, stride: int):
    make, leave = FORMS[form]
    channels = 256 // stride
    c = grouped(cardinality, TABLE_2[cardinality], channels=channels, stride=stride)
    width = c.conv1.out_channels
    other = make(channels, width, 256, cardinality=cardinality, stride=stride).double()
    other.load_state_dict(leave(c.state_dict(), cardinality))
    x = torch.randn(2, channels, 7, 7, dtype=torch.float64)
    dy = torch.randn(2, 256, -(-7 // stride), -(-7 // stride), dtype=torch.float64) / 8
    y, dx, named = run(c.train(training), x, dy)
    other_y, other_dx, other_named = run(other.train(training), x, dy)
    joined = forms.join_paths(other_named)
    assert joined.keys() == named.keys()
    pairs = [(other_y, y), (other_dx, dx), *((joined[name], named[name]) for name in named)]
    assert max(float((a - b).abs().max()) for a, b in pairs) <= 1e-12
    assert float(y.abs().max()) > 1
    assert float(dx.abs().max()) > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_maps_are_inverse(form: str):
    state = grouped(4, 6).state_dict()
    there = FORMS[form][1](state, 4)
    assert set(there) == set(FORMS[form][0](256, 24, 256, cardinality=4).state_dict())
    back = forms.join_paths(there)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_cardinality_that_does_not_divide():
    with pytest.raises(ValueError, match=r"conv1.weight .* does not split into 5 paths"):
        forms.split_paths(grouped(4, 6).state_dict(), 5)
    with pytest.raises(ValueError, match="width 24 is not a multiple of cardinality 5"):
        forms.SplitBottleneck(256, 24, 256, cardinality=5)


@pytest.mark.parametrize("cardinality", TABLE_2)
def test_number_of_weights(cardinality: int):
    """C(256d + 9dd + 256d), about 70 thousand for every pair of Table 2, in all three forms."""
    d = TABLE_2[cardinality]
    expected = cardinality * (256 * d + 9 * d * d + 256 * d)
    blocks = [
        make(256, cardinality * d, 256, cardinality=cardinality) for make, _ in FORMS.values()
    ]
    blocks.append(grouped(cardinality, d))
    assert [convolution_weights(block) for block in blocks] == [expected] * 3
    assert path_parameters(cardinality, d) == expected
    assert expected == pytest.approx(70_000, rel=0.03)


def test_the_paper_s_example():
    """Fig. 3 at 32x4d: 256 * 128 weights reduce, 4 * 3 * 3 * 4 * 32 transform, 128 * 256 expand."""
    block = grouped(32, 4)
    counts = [m.weight.numel() for m in (block.conv1, block.conv2, block.conv3)]
    assert counts == [32_768, 4_608, 32_768]
