"""The ResNeXt models: sizes, names, and the same function with either convolution class."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support import LAYOUTS
from torch import Tensor, nn

import resnext
from grouped_conv import GroupedConv2d
from resnext import complexity

PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x16d": 194_026_792,
    "resnext101_32x32d": 468_530_472,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101_32x4d": 48_955_416,
    "cifar_resnext29_8x64d": 34_426_698,
    "cifar_resnext29_16x64d": 68_155_210,
}

# The same complexity spent on more and more paths (paper, Table 3), then wider ones.
TEMPLATES = {
    ("resnext50", 1, 64): 25_557_032,
    ("resnext50", 2, 40): 25_425_000,
    ("resnext50", 4, 24): 25_292_968,
    ("resnext50", 8, 14): 25_603_016,
    ("resnext50", 32, 4): 25_028_904,
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str):
    with torch.device("meta"):
        assert count(getattr(resnext, name)()) == PARAMETERS[name]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: f"{t[0]} {t[1]}x{t[2]}d")
def test_number_of_parameters_of_a_template(template):
    name, cardinality, base_width = template
    with torch.device("meta"):
        model = getattr(resnext, name)(cardinality=cardinality, base_width=base_width)
    assert count(model) == TEMPLATES[template]


@pytest.mark.once
def test_number_of_multiply_adds():
    """Beside the paper's figures, 4.2 and 4.1 billion, PyTorch's own counter as the oracle."""
    from torch.utils.flop_counter import FlopCounterMode

    expected = {"resnext50_32x4d": (4_230_479_872, 231_211_008), "resnet50": (4_089_184_256, 0)}
    for name, (macs, grouped) in expected.items():
        found = complexity.measure(lambda name=name: resnext.create_model(name))
        assert (found.macs, found.grouped_macs) == (macs, grouped)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            resnext.create_model(name, conv_layer=nn.Conv2d)(torch.empty(1, 3, 224, 224))
        assert counter.get_total_flops() == 2 * macs


def torchvision_keys(layers: tuple[int, ...]) -> list[str]:
    """Names of all parameters and buffers of torchvision's ResNeXt, in its order."""

    def norm(name: str) -> list[str]:
        fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{field}" for field in fields]

    keys = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(layers, 1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for i in (1, 2, 3):
                keys += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            if block == 0:
                keys += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnext50_32x4d", (3, 4, 6, 3)),
        ("resnext101_32x8d", (3, 4, 23, 3)),
        ("resnet152", (3, 8, 36, 3)),
    ],
)
@pytest.mark.parametrize("conv_layer", [GroupedConv2d, nn.Conv2d])
def test_names_are_torchvision_s(name: str, layers: tuple[int, ...], conv_layer):
    with torch.device("meta"):
        model = getattr(resnext, name)(conv_layer=conv_layer)
    assert list(model.state_dict()) == torchvision_keys(layers)


def test_shapes_of_the_weights():
    with torch.device("meta"):
        weights = resnext.resnext50_32x4d(num_classes=10, in_chans=1).state_dict()
    assert weights["conv1.weight"].shape == (64, 1, 7, 7)
    assert weights["layer1.0.conv1.weight"].shape == (128, 64, 1, 1)
    assert weights["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)
    assert weights["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert weights["layer4.2.conv2.weight"].shape == (1024, 32, 3, 3)
    assert weights["layer4.2.conv3.weight"].shape == (2048, 1024, 1, 1)
    assert weights["fc.weight"].shape == (10, 2048)


def test_design():
    """Stride in the 3x3 of the first block of stages 2 to 4; grouped layers where they belong."""
    with torch.device("meta"):
        model = resnext.resnext50_32x4d()
    for name, module in model.named_modules():
        if isinstance(module, GroupedConv2d):
            first = name in ("layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2")
            assert name.endswith("conv2")
            assert module.stride == ((2, 2) if first else (1, 1))
            assert (module.groups, module.padding, module.bias) == (32, (1, 1), None)
        elif isinstance(module, nn.Conv2d):
            strided = name == "conv1" or name in [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]
            assert type(module) is nn.Conv2d
            assert module.stride == ((2, 2) if strided else (1, 1))
            assert module.groups == 1


def test_convolution_class_is_a_parameter():
    made = []

    def conv_layer(*args, **kwargs) -> nn.Module:
        made.append(kwargs["groups"])
        return nn.Conv2d(*args, **kwargs)

    with torch.device("meta"):
        model = resnext.resnext50(cardinality=8, base_width=14, conv_layer=conv_layer)
    assert made == [8] * 16
    assert not any(isinstance(m, GroupedConv2d) for m in model.modules())


def test_normalization_class_is_a_parameter():
    model = small(norm_layer=lambda c: nn.GroupNorm(4, c))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (1, 0, 1, 1)}, "layers"),
        ({"layers": (1, 1, 1, 1), "stem": "mnist"}, "stem"),
        ({"layers": (1, 1, 1, 1), "output_stride": 12}, r"\[4, 8, 16, 32\]"),
        ({"layers": (1, 1), "se_reduction": 7}, "256 channels cannot be reduced 7 times"),
        ({"layers": (1, 1), "drop_path_rate": 1.0}, "probability"),
    ],
)
@pytest.mark.once
def test_wrong_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        resnext.ResNeXt(**arguments)


@pytest.mark.once
def test_models_by_name():
    with torch.device("meta"):
        assert isinstance(resnext.create_model("resnet50", num_classes=7), resnext.ResNeXt)
    with pytest.raises(ValueError, match="no model 'resnext51'; there are resnext50, "):
        resnext.create_model("resnext51")


def test_initialization():
    model = small()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert float(module.weight.detach().std()) == pytest.approx(
                (2 / fan_out) ** 0.5, rel=0.15
            )
    zeros = small(zero_init_last=True)
    for name, parameter in zeros.named_parameters():
        if name.endswith("bn3.weight"):
            assert not parameter.any()
        elif "bn" in name and name.endswith("weight"):
            assert torch.equal(parameter, torch.ones_like(parameter))


def test_zero_init_makes_each_block_its_shortcut():
    block = small(zero_init_last=True).layer1[1].eval()
    x = torch.randn(2, 256, 7, 7)
    torch.testing.assert_close(block(x), x.relu())


def small(conv_layer=GroupedConv2d, **options) -> resnext.ResNeXt:
    """A model with every kind of block, in a second of computing."""
    return resnext.ResNeXt((2, 1, 1, 1), 8, 4, num_classes=5, conv_layer=conv_layer, **options)


def twins(dtype: torch.dtype, layout: str) -> tuple[resnext.ResNeXt, resnext.ResNeXt]:
    """Models with our convolution and with PyTorch's, with the same weights."""
    ours, stock = small(), small(nn.Conv2d)
    ours.load_state_dict(stock.state_dict())
    return tuple(m.to(dtype=dtype, memory_format=LAYOUTS[layout]) for m in (ours, stock))


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits, gradients and buffers after one step."""
    x = x.detach().requires_grad_()
    logits = model(x)
    logits.square().sum().backward()
    found = {"logits": logits.detach(), "input": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return found | {f"buffer {name}": b for name, b in model.named_buffers()}


TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [(32, 32), (37, 45)], ids=["32x32", "37x45"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
def test_same_function_as_with_conv2d(dtype, size, training: bool, layout: str):
    ours, stock = (m.train(training) for m in twins(dtype, layout))
    x = torch.randn(4, 3, *size, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    expected = run(stock, x)
    actual = run(ours, x)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.dtype.is_floating_point else 0
        tolerance = TOLERANCE[dtype] * max(scale, 1e-6)
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_full_model_runs_forward_and_backward():
    ours = resnext.resnext50_32x4d(num_classes=10).to(memory_format=torch.channels_last)
    with torch.device("meta"):
        stock = resnext.resnext50_32x4d(num_classes=10, conv_layer=nn.Conv2d)
    stock.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    ours(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    with torch.no_grad():
        expected = stock.eval()(x)
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("extent", [(1, 1), (33, 31), (65, 64), (96, 40)])
def test_extent_of_the_features(extent: tuple[int, int]):
    features = small().eval().forward_features(torch.randn(1, 3, *extent))
    assert features.shape == (1, 2048, *(-(-n // 32) for n in extent))


def test_channels_last_goes_through_the_model():
    model = small().to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    features = model.forward_features(x)
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_input_channels():
    model = small(in_chans=1).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_state_dict_round_trip(tmp_path):
    model, other = small().eval(), small().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(copier):
    model = small().eval()
    x = torch.randn(1, 3, 40, 40)
    expected = model(x)
    other = copier(model)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        other.fc.bias.add_(1)
    assert torch.equal(model(x), expected)


@pytest.mark.once
def test_the_public_api_is_all_that_the_package_uses_of_the_kernels():
    import ast
    from pathlib import Path

    import grouped_conv

    sources = list(Path(resnext.__file__).parent.rglob("*.py"))
    assert len(sources) > 5
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grouped_conv"):
                assert node.module == "grouped_conv"
                assert {alias.name for alias in node.names} <= set(grouped_conv.__all__)
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert not any(name.startswith("grouped_conv.") for name in names)
