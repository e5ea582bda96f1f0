"""What a ResNeXt can do besides classify: features, strides, checkpointing, regularization."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import resnext
from grouped_conv import GroupedConv2d
from resnext.blocks import DropPath, SqueezeExcite

pytestmark = pytest.mark.once


def small(**options) -> resnext.ResNeXt:
    return resnext.ResNeXt((2, 1, 1, 1), 8, 2, num_classes=5, **options)


@pytest.mark.parametrize("out_indices", [(0,), (0, 2), (1, 2, 3, 4), (4, 1)])
def test_features(out_indices: tuple[int, ...]):
    whole = small().eval()
    trunk = resnext.ResNeXtFeatures((2, 1, 1, 1), 8, 2, out_indices=out_indices).eval()
    report = resnext.load_weights(trunk, whole.state_dict())
    assert {"fc.weight", "fc.bias"} <= set(report.unused)
    x = torch.randn(1, 3, 64, 96)
    maps = trunk(x)
    expected = [whole.forward_stem(x)]
    y = whole.maxpool(expected[0])
    for stage in (1, 2, 3, 4):
        y = whole.forward_stage(stage, y)
        expected.append(y)
    for index, found, info in zip(sorted(out_indices), maps, trunk.feature_info, strict=True):
        assert torch.equal(found, expected[index])
        assert found.shape[1] == info["channels"]
        assert found.shape[2:] == (64 // info["reduction"], 96 // info["reduction"])


def test_features_by_name_and_their_errors():
    with torch.device("meta"):
        model = resnext.resnext50_32x4d(features_only=True)
    assert [info["channels"] for info in model.feature_info] == [256, 512, 1024, 2048]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    assert not any(name.startswith("fc.") for name in model.state_dict())
    with pytest.raises(ValueError, match="out_indices must be of 0 to 4"):
        resnext.resnext50_32x4d(features_only=True, out_indices=(5,))
    with pytest.raises(ValueError, match="features_only"):
        resnext.resnext50_32x4d(out_indices=(1,))


@pytest.mark.parametrize(
    ("output_stride", "reductions"),
    [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16]), (32, [4, 8, 16, 32])],
)
def test_output_stride(output_stride: int, reductions: list[int]):
    options = {"features_only": True, "output_stride": output_stride}
    model = resnext.resnext50(8, 1, **options).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == reductions
    assert [info["reduction"] for info in model.feature_info] == reductions


def test_dilated_network_is_the_strided_one_at_more_places():
    """With dilation for stride, every second output is what the strided network computes."""
    strided = small().eval()
    dilated = small(output_stride=16).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(
        dilated.forward_features(x)[..., ::2, ::2], strided.forward_features(x)
    )


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    named = {name: p.grad for name, p in model.named_parameters()}
    return named | {"input": x.grad} | dict(model.named_buffers())


def test_checkpointing_changes_nothing():
    plain = small(drop_path_rate=0.3, zero_init_last=True, se_reduction=16).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32)
    expected, found = gradients(plain, x), gradients(checkpointed, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_checkpointing_keeps_less():
    """Tensors saved for backward, counted by the hook that sees them all."""

    def saved(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(2, 3, 64, 64))
        return sum(sizes.values())

    model = small().train()
    before = saved(model)
    model.set_grad_checkpointing()
    # The stem is not checkpointed, and the weights are not counted among what can be saved.
    assert saved(model) < 0.6 * before


def test_drop_path():
    x = torch.randn(4096, 3)
    layer = DropPath(0.25)
    y = layer(x)
    dropped = (y == 0).all(1)
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert layer.eval()(x) is x


def test_drop_path_grows_with_depth():
    model = resnext.ResNeXt((2, 2, 1, 1), 4, 4, drop_path_rate=0.5)
    rates = [m.probability for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_dropout_is_for_training_only():
    model = small(drop_rate=0.5)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), model(x))
    features = model.forward_features(x).mean((2, 3))
    torch.testing.assert_close(model(x), model.fc(features), rtol=1e-4, atol=1e-4)
    model.train()
    assert not torch.equal(model(x), model(x))


def test_squeeze_excite_is_its_formula():
    layer = SqueezeExcite(32, 4).double()
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    mean = x.mean((2, 3))
    hidden = (mean @ layer.fc1.weight[:, :, 0, 0].T + layer.fc1.bias).relu()
    gate = (hidden @ layer.fc2.weight[:, :, 0, 0].T + layer.fc2.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("name", ["cifar_resnext29", "tiny_resnext11"])
def test_networks_for_small_images(name: str):
    model = resnext.create_model(name, cardinality=2, base_width=4, in_chans=3).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[-2:] == (8, 8)
    assert all(m.groups == 2 for m in model.modules() if isinstance(m, GroupedConv2d))
