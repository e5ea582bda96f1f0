"""replace_grouped_conv_: what it replaces, what it leaves, and what it reports."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from grouped_conv import GroupedConv2d, replace_grouped_conv_, revert_grouped_conv_

pytestmark = pytest.mark.once


class Branch(nn.Module):
    """Grouped and dense convolutions at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 32, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.ModuleDict({"conv": nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=4)})["conv"],
        )
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, x):
        return self.head(self.body(self.stem(x))).mean((2, 3))


GROUPED = ["body.1", "body.3"]
DENSE = ["stem", "head"]


class Special(nn.Conv2d):
    """Somebody else's subclass."""


def entries(report) -> dict:
    return {entry.name: entry for entry in report}


def classes(model: nn.Module) -> dict[str, type]:
    return {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_replaces_grouped_layers_only():
    model = Branch()
    replace_grouped_conv_(model)
    found = classes(model)
    assert {n for n, c in found.items() if c is GroupedConv2d} == set(GROUPED)
    assert {n for n, c in found.items() if c is nn.Conv2d} == set(DENSE)


def test_same_outputs_and_gradients():
    model = Branch()
    x = torch.randn(2, 3, 11, 10)
    before = model(x)
    expected = torch.autograd.grad(before.square().sum(), list(model.parameters()))
    replace_grouped_conv_(model)
    after = model(x)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    actual = torch.autograd.grad(after.square().sum(), list(model.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_parameters_are_shared_so_that_optimizers_survive():
    model = Branch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    replace_grouped_conv_(model)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    weight = model.body[1].weight.detach().clone()
    model(torch.randn(2, 3, 11, 10)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.body[1].weight, weight)


def test_state_dict_keys_are_kept():
    model = Branch()
    keys = list(model.state_dict())
    replace_grouped_conv_(model)
    assert list(model.state_dict()) == keys
    Branch().load_state_dict(model.state_dict())


def test_configuration_is_kept():
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, 2, (1, 2), 1, 8, False, "reflect"),
        nn.Conv2d(32, 32, 3, padding="same", groups=8, dtype=torch.float64),
    )
    before = [repr(m) for m in model]
    replace_grouped_conv_(model)
    assert [repr(m) for m in model] == ["Grouped" + text for text in before]


def test_module_state_is_kept():
    model = Branch()
    model.train()
    model.body[3].eval()
    model.body[1].weight.requires_grad_(False)
    model.body[1].tag = "mine"
    model.body[1].register_buffer("steps", torch.tensor(7))
    calls = []
    model.body[1].register_forward_hook(lambda m, args, y: calls.append(type(m)))
    model.body[1].register_forward_pre_hook(lambda m, args: calls.append("before"))
    model.body[1].register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    replace_grouped_conv_(model)
    assert model.body[1].training
    assert not model.body[3].training
    assert not model.body[1].weight.requires_grad
    assert model.body[1].tag == "mine"
    assert model.body[1].steps == 7
    assert "body.1.steps" in model.state_dict()
    model(torch.randn(2, 3, 11, 10)).sum().backward()
    assert calls == ["before", GroupedConv2d, "backward"]


def test_hooks_can_still_be_removed():
    model = Branch()
    calls = []
    handle = model.body[1].register_forward_hook(lambda m, args, y: calls.append(1))
    replace_grouped_conv_(model)
    handle.remove()
    model(torch.randn(2, 3, 11, 10))
    assert calls == []


def test_report_names_each_convolution():
    report = replace_grouped_conv_(Branch())
    found = entries(report)
    assert set(GROUPED) <= set(found)
    for name in GROUPED:
        assert found[name].replaced
    for name in DENSE:
        if name in found:
            assert not found[name].replaced
            assert "group" in found[name].reason
    text = str(report)
    for name in found:
        assert name in text
    assert len(text.splitlines()) >= len(report)


def test_report_is_a_sequence():
    report = replace_grouped_conv_(Branch())
    assert len(report) == len(list(report))
    assert report[0].name == next(iter(report)).name
    assert sum(entry.replaced for entry in report) == 2


def test_is_idempotent():
    model = Branch()
    replace_grouped_conv_(model)
    modules = dict(model.named_modules())
    second = replace_grouped_conv_(model)
    assert not any(entry.replaced for entry in second)
    assert all(modules[name] is m for name, m in model.named_modules())


def test_subclasses_are_left_alone_and_reported():
    model = nn.Sequential(Special(32, 32, 3, groups=8), nn.Conv2d(32, 32, 3, groups=8))
    report = entries(replace_grouped_conv_(model))
    assert type(model[0]) is Special
    assert type(model[1]) is GroupedConv2d
    assert not report["0"].replaced
    assert "Special" in report["0"].reason


def test_other_convolutions_are_left_alone():
    model = nn.Sequential(nn.Conv1d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=2))
    report = replace_grouped_conv_(model)
    assert [type(m) for m in model] == [nn.Conv1d, nn.ConvTranspose2d]
    assert not any(entry.replaced for entry in report)


def test_lazy_layers_are_left_alone():
    model = nn.Sequential(nn.LazyConv2d(32, 3, groups=8))
    report = replace_grouped_conv_(model)
    assert type(model[0]) is nn.LazyConv2d
    assert not any(entry.replaced for entry in report)


def test_filter_fn():
    model = Branch()
    asked = []

    def keep_first(name: str, module: nn.Module) -> bool:
        asked.append((name, type(module)))
        return name == "body.1"

    report = entries(replace_grouped_conv_(model, filter_fn=keep_first))
    assert (type(model.body[1]), type(model.body[3])) == (GroupedConv2d, nn.Conv2d)
    assert {name for name, _ in asked} >= set(GROUPED)
    assert report["body.1"].replaced
    assert not report["body.3"].replaced
    assert "filter" in report["body.3"].reason


def test_the_model_itself_may_be_the_layer():
    layer = nn.Conv2d(32, 32, 3, groups=8)
    report = replace_grouped_conv_(layer)
    assert len(report) == 1
    assert report[0].replaced == (type(layer) is GroupedConv2d)
    if not report[0].replaced:
        assert report[0].reason


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Conv2d(32, 32, 3, padding=1, groups=8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    replace_grouped_conv_(model)
    assert type(model["a"]) is GroupedConv2d
    assert model["a"] is model["b"][0]
    assert len(list(model.parameters())) == 2


def test_parametrized_layers_still_work():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3, groups=8))
    model = nn.Sequential(layer)
    x = torch.randn(2, 32, 9, 9)
    before = model(x)
    report = replace_grouped_conv_(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    assert report[0].replaced or report[0].reason


def test_empty_model():
    report = replace_grouped_conv_(nn.Sequential(nn.Linear(3, 3)))
    assert len(report) == 0
    assert str(report)


def test_reverts():
    model = Branch()
    before = {name: type(m) for name, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    x = torch.randn(2, 3, 11, 10)
    expected = model(x)
    replace_grouped_conv_(model)
    report = revert_grouped_conv_(model)
    assert [(e.name, e.replaced) for e in report] == [(name, True) for name in GROUPED]
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert torch.equal(model(x), expected)
    assert len(revert_grouped_conv_(model)) == 0
    assert all(entry.replaced for entry in replace_grouped_conv_(model))


def test_lazy_and_parametrized_layers_have_their_reasons():
    lazy = nn.LazyConv2d(32, 3, groups=8)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3, groups=8))
    pruned = nn.utils.prune.l1_unstructured(nn.Conv2d(32, 32, 3, groups=8), "weight", amount=0.5)
    model = nn.Sequential(lazy, normed, pruned)
    x = torch.randn(2, 32, 9, 8)
    report = entries(replace_grouped_conv_(model))
    assert "lazy" in report["0"].reason
    assert "parametrized" in report["1"].reason
    assert report["2"].replaced
    before = model(x)
    assert entries(replace_grouped_conv_(model))["0"].replaced  # it has seen an input
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
