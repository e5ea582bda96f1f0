"""GroupedConv2d is an nn.Conv2d in everything but speed."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import DTYPES, LAYOUTS, memory_format, short, threads
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune

from grouped_conv import GroupedConv2d, LazyGroupedConv2d, grouped_conv2d

CONFIGURATIONS = {
    "four per group": {"groups": 8, "padding": 1},
    "four per group, strided": {"groups": 8, "padding": 1, "stride": 2},
    "no bias": {"groups": 8, "bias": False},
    "same": {"groups": 8, "padding": "same"},
    "same, dilated": {"groups": 8, "padding": "same", "dilation": 2},
    "valid": {"groups": 8, "padding": "valid"},
    "asymmetric": {"groups": 8, "padding": (2, 1), "stride": (1, 2), "dilation": (2, 1)},
    "one group": {},
    "depthwise": {"groups": 32},
    "reflect": {"groups": 8, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"groups": 8, "padding": (2, 1), "padding_mode": "replicate"},
    "circular": {"groups": 8, "padding": 2, "padding_mode": "circular", "stride": 2},
    "circular same": {"groups": 8, "padding": "same", "padding_mode": "circular"},
}


@pytest.fixture(params=CONFIGURATIONS)
def options(request: pytest.FixtureRequest) -> dict:
    return CONFIGURATIONS[request.param]


def pair(**options) -> tuple[GroupedConv2d, nn.Conv2d]:
    """Our layer and PyTorch's, with the same parameters."""
    theirs = nn.Conv2d(32, 32, 3, **options)
    ours = GroupedConv2d(32, 32, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient, parameter gradients."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_alike(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        if a.dim() == 4:
            assert memory_format(a) == memory_format(b)


def test_signature_is_conv2d_s():
    ours, theirs = (inspect.signature(c.__init__) for c in (GroupedConv2d, nn.Conv2d))
    assert list(ours.parameters) == list(theirs.parameters)
    for name, parameter in theirs.parameters.items():
        assert ours.parameters[name].default == parameter.default
        assert ours.parameters[name].kind == parameter.kind


def test_is_a_conv2d():
    assert issubclass(GroupedConv2d, nn.Conv2d)
    assert GroupedConv2d.__module__.startswith("grouped_conv")
    assert GroupedConv2d.__doc__


def test_repr(options: dict):
    ours, theirs = pair(**options)
    assert repr(ours) == "Grouped" + repr(theirs)


def test_forward_and_backward(options: dict, memory_format: torch.memory_format):
    ours, theirs = pair(**options)
    x = torch.randn(2, 32, 9, 8).contiguous(memory_format=memory_format)
    for module in (ours, theirs):
        module.to(memory_format=memory_format)
    assert_alike(run(ours, x), run(theirs, x))


def test_unbatched(options: dict):
    ours, theirs = pair(**options)
    x = torch.randn(32, 9, 8)
    assert_alike(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=short)
def test_dtype_argument(dtype: torch.dtype):
    theirs = nn.Conv2d(32, 32, 3, groups=8, dtype=dtype)
    ours = GroupedConv2d(32, 32, 3, groups=8, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    assert {p.dtype for p in ours.parameters()} == {dtype}
    x = torch.randn(2, 32, 9, 8, dtype=dtype)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-4)
    assert_alike([ours(x).detach()], [theirs(x).detach()], tolerance)


def test_device_argument_and_context():
    assert GroupedConv2d(8, 8, 3, groups=2, device="meta").weight.is_meta
    with torch.device("meta"):
        layer = GroupedConv2d(8, 8, 3, groups=2)
    assert layer.weight.is_meta
    assert layer(torch.empty(2, 8, 5, 5, device="meta")).shape == (2, 8, 3, 3)
    assert layer.to_empty(device="cpu").weight.device.type == "cpu"


def test_same_random_initialization():
    layers = []
    for cls in (GroupedConv2d, nn.Conv2d):
        torch.manual_seed(3)
        layers.append(cls(32, 32, 3, groups=8))
    for name, value in layers[1].state_dict().items():
        assert torch.equal(layers[0].state_dict()[name], value)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_goes_both_ways(bias: bool):
    ours, theirs = pair(groups=8, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        ours.weight.mul_(2)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


def test_state_dict_mismatch_is_reported():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        GroupedConv2d(32, 32, 3, groups=8).load_state_dict(nn.Conv2d(32, 32, 3).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        GroupedConv2d(32, 32, 3, groups=8, bias=False).load_state_dict(
            nn.Conv2d(32, 32, 3, groups=8).state_dict()
        )


def save_and_load(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(copier, options: dict):
    layer = GroupedConv2d(32, 32, 3, **options)
    x = torch.randn(2, 32, 9, 8)
    layer(x)
    other = copier(layer)
    assert type(other) is GroupedConv2d
    assert repr(other) == repr(layer)
    assert other.weight.data_ptr() != layer.weight.data_ptr()
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("training", [True, False])
def test_autocast(dtype: torch.dtype, training: bool, layout: str):
    ours, theirs = pair(groups=8, padding=1)
    for module in (ours, theirs):
        module.to(memory_format=LAYOUTS[layout])
    x = torch.randn(2, 32, 9, 8).contiguous(memory_format=LAYOUTS[layout])
    results = []
    for module in (ours, theirs):
        leaf = x.detach().requires_grad_(training)
        with torch.autocast("cpu", dtype=dtype):
            y = module(leaf)
        assert y.dtype == dtype
        if training:
            y.float().square().sum().backward()
            results.append([y.detach(), leaf.grad, *(p.grad for p in module.parameters())])
        else:
            results.append([y.detach()])
    for ours_, theirs_ in zip(*results, strict=True):
        assert ours_.dtype == theirs_.dtype
        scale = float(theirs_.abs().max())
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=scale * 4 * torch.finfo(dtype).eps)


def test_autocast_disabled_inside():
    layer = GroupedConv2d(32, 32, 3, groups=8)
    x = torch.randn(2, 32, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32


def test_autocast_leaves_float64_alone():
    ours, theirs = pair(groups=8, dtype=torch.float64)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype


@pytest.mark.once
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
def test_autocast_on_cuda(dtype: torch.dtype):
    """On tensors without data, so that no GPU is needed; the operators have a rule of their own."""
    before = torch.get_autocast_dtype("cuda")
    with FakeTensorMode():
        x, w, b = (torch.empty(s, device="cuda") for s in ((2, 32, 9, 8), (32, 4, 3, 3), (32,)))
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            results = [
                grouped_conv2d(x, w, b, groups=8),
                torch.ops.grouped_conv.fprop(x, w, b, (1, 1), (0, 0), (1, 1), 8),
            ]
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
        assert [(y.device.type, y.dtype) for y in results] == [("cuda", dtype)] * 2
        assert grouped_conv2d(x, w, b, groups=8).dtype == torch.float32


@pytest.mark.once
def test_per_sample_gradients_by_expanded_weights():
    """An old way of PyTorch's, which knows its own convolution alone."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    x = torch.randn(3, 32, 9, 8)
    grads = []
    for module in pair(groups=8):
        call_for_per_sample_grads(module)(x).square().sum().backward()
        grads.append([p.grad_sample for p in module.parameters()])
    assert_alike(*grads)


def test_module_methods_keep_the_class():
    layer = GroupedConv2d(32, 32, 3, groups=8)
    assert layer.double().weight.dtype == torch.float64
    assert type(layer.eval().requires_grad_(False).to(torch.bfloat16)) is GroupedConv2d
    assert layer(torch.randn(2, 32, 9, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_hooks():
    layer = GroupedConv2d(32, 32, 3, groups=8)
    order = []
    layer.register_forward_pre_hook(lambda m, args: order.append("before"))
    layer.register_forward_hook(lambda m, args, y: order.append("after"))
    layer.register_full_backward_hook(lambda m, gi, go: order.append("backward"))
    layer(torch.randn(2, 32, 9, 8, requires_grad=True)).sum().backward()
    assert order == ["before", "after", "backward"]


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_parametrized_weights(wrap):
    ours, theirs = pair(groups=8, padding=1)
    torch.manual_seed(5)
    ours = wrap(ours)
    torch.manual_seed(5)
    theirs = wrap(theirs)
    x = torch.randn(2, 32, 9, 8)
    assert_alike(run(ours, x), run(theirs, x))


@pytest.mark.once
def test_lazy_layer_becomes_ours_at_its_first_input():
    torch.manual_seed(7)
    ours = LazyGroupedConv2d(32, 3, padding=1, groups=8)
    x = torch.randn(2, 32, 9, 8)
    y = ours(x)
    assert type(ours) is GroupedConv2d
    assert ours.weight.shape == (32, 4, 3, 3)
    theirs = nn.Conv2d(32, 32, 3, padding=1, groups=8)
    theirs.load_state_dict(ours.state_dict())
    assert_alike([y.detach()], [theirs(x).detach()])


@pytest.mark.once
def test_fuse_conv_bn_eval():
    layer = GroupedConv2d(32, 32, 3, groups=8).eval()
    norm = nn.BatchNorm2d(32).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    fused = nn.utils.fuse_conv_bn_eval(layer, norm)
    x = torch.randn(2, 32, 9, 8)
    assert type(fused) is GroupedConv2d
    torch.testing.assert_close(fused(x), norm(layer(x)), rtol=1e-4, atol=1e-4)


def test_deterministic_mode(layout: str):
    """It changes nothing: the kernels are deterministic without."""
    layer = GroupedConv2d(32, 32, 3, padding=1, groups=8).to(memory_format=LAYOUTS[layout])
    x = torch.randn(2, 32, 9, 8).contiguous(memory_format=LAYOUTS[layout])
    expected = run(layer, x)
    torch.use_deterministic_algorithms(True)
    try:
        actual = run(layer, x)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_functional_call():
    layer = GroupedConv2d(32, 32, 3, groups=8)
    weights = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(2, 32, 9, 8)
    torch.testing.assert_close(torch.func.functional_call(layer, weights, x), 2 * layer(x))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_several_python_threads(workers: int):
    layer = GroupedConv2d(64, 64, 3, padding=1, groups=16)
    inputs = [torch.randn(2, 64, 15, 15) for _ in range(8)]
    expected = [run(copy.deepcopy(layer), x) for x in inputs]
    with threads(2), ThreadPoolExecutor(workers) as pool:
        actual = list(pool.map(lambda x: run(copy.deepcopy(layer), x), inputs))
    for a, b in zip(actual, expected, strict=True):
        assert_alike(a, b, tolerance=1e-6)
