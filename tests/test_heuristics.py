"""Which CUDA kernel is chosen for a problem; no GPU is needed."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import cuda_choices
import pytest
import torch
from support import random_cases, short

from grouped_conv import _C
from grouped_conv.backends import Query, native
from grouped_conv.bench.problems import network, resolve
from grouped_conv.problem import PASSES, ConvProblem, Pass

pytestmark = pytest.mark.once

H100, A100, RTX_3090 = 132, 108, 82
CUDA = torch.device("cuda")


def extents(p: ConvProblem) -> list[int]:
    return [p.N, p.C, p.H, p.W, p.K, p.R, p.S, p.G, *p.padding, *p.stride, *p.dilation]


def query(pass_name: Pass, p: ConvProblem, dtype: torch.dtype = torch.float16) -> Query:
    return Query.of(pass_name, p, dtype, CUDA, True)


@pytest.mark.parametrize("pass_name", PASSES)
def test_refusals_are_the_compiled_ones(pass_name: Pass):
    taken = 0
    for case in random_cases(400, seed=5):
        p = case.problem
        compiled = _C.rowstream_refusal(pass_name, extents(p), short(case.dtype))
        asked = native._no_rowstream(query(pass_name, p, case.dtype))
        if asked is None and compiled is not None:
            assert "images" in compiled  # what depends on batch and image is decided when it runs
        else:
            assert asked == compiled
    for c_per_group in native._ROWSTREAM_CHANNELS:
        p = ConvProblem(2, 128, 9, 9, 128, 3, 3, 128 // c_per_group, 1, 1)
        for dtype in (torch.float16, torch.bfloat16):
            assert _C.rowstream_refusal(pass_name, extents(p), short(dtype)) is None
            assert native._no_rowstream(query(pass_name, p, dtype)) is None
            taken += 1
    assert taken == 10


REFUSED = {
    "compute in 16 bits": ({}, torch.float32),
    "3x3 filters": ({"R": 1, "S": 1, "pad_h": 0, "pad_w": 0}, torch.float16),
    "dilation 1": ({"dilation_h": 2, "dilation_w": 2, "pad_h": 2, "pad_w": 2}, torch.float16),
    "strides 1 and 2": ({"stride_h": 2}, torch.float16),
    "paddings up to 2": ({"pad_w": 3}, torch.float16),
    "channels per group": ({"G": 16}, torch.float16),
    "multiple of 8": ({"C": 12, "K": 12, "G": 3}, torch.bfloat16),
    "have pixels": ({"N": 0}, torch.bfloat16),
    "below 2 GiB": ({"H": 9000, "W": 9000}, torch.float16),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_say_why(words: str):
    changes, dtype = REFUSED[words]
    fields = {"N": 2, "C": 32, "H": 9, "W": 9, "K": 32, "G": 8, "pad_h": 1, "pad_w": 1, **changes}
    reason = _C.rowstream_refusal("fprop", extents(ConvProblem(**fields)), short(dtype))
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("sm_count", [H100, A100, RTX_3090, 1])
def test_every_layer_of_resnext_has_a_plan(pass_name: Pass, sm_count: int):
    named = {config["name"]: config for config in _C.cuda_kernels()}
    for layer in resolve("resnext50"):
        for batch in (1, 32, 256):
            p = layer.problem(batch)
            plan = _C.plan_fast(pass_name, extents(p), sm_count)
            config = named[plan["name"]]
            assert pass_name in config["passes"]
            assert (config["c_per_group"], config["stride"]) == (p.c_per_group, p.stride_h)
            assert plan["threads"] == config["threads"]
            assert plan["shared_bytes"] == config["shared_bytes"]
            assert plan["blocks"] >= 1
            partial_sums = 4 * p.K * p.c_per_group * 9
            assert plan["workspace_bytes"] % partial_sums == 0
            assert (plan["workspace_bytes"] > 0) == (pass_name == "wgrad")


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_batch_fills_an_h100(pass_name: Pass):
    """At least 0.9 of the multiprocessors' rounds have a block."""
    for layer in resolve("resnext50"):
        for batch in (32, 64, 256):
            blocks = _C.plan_fast(pass_name, extents(layer.problem(batch)), H100)["blocks"]
            rounds = -(-blocks // H100)
            assert blocks / (rounds * H100) >= 0.9, (str(layer), batch, blocks)


@pytest.mark.parametrize("tail", ["epilogue", "residual", "statistics"])
def test_every_layer_of_resnext_has_a_plan_with_a_tail(tail: str):
    """The plain kernel's, but where that is not compiled with the tail: there the narrow one."""
    others = set()
    for layer in resolve("resnext50"):
        for batch in (1, 32, 256):
            p = layer.problem(batch)
            plain = _C.plan_fast("fprop", extents(p), H100)
            plan = _C.plan_fast("fprop", extents(p), H100, tail=tail)
            if plan["name"] != plain["name"]:
                others.add((plain["name"], plan["name"]))
                continue
            same = ("blocks", "threads", "shared_bytes")
            assert [plan[key] for key in same] == [plain[key] for key in same]
            assert (plan["workspace_bytes"] > 0) == (tail == "statistics")
            assert plan["workspace_bytes"] < 5e6
    narrow = {("conv_c16_s1", "conv_c16_s1_narrow")}
    assert others == (set() if tail == "epilogue" else narrow)


@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_a_preferred_configuration_is_taken_where_it_computes_the_pass(pass_name: Pass):
    p = extents(ConvProblem(64, 512, 14, 14, 512, 3, 3, 32, 1, 1))
    for name in ("conv_c16_s1", "conv_c16_s1_narrow"):
        assert _C.plan_fast(pass_name, p, H100, preferred=name)["name"] == name
    chosen = _C.plan_fast(pass_name, p, H100)["name"]
    for name in ("conv_c32_s1", "dgrad_c16_s2", "nchw_conv_c16_s1", "nonsense"):
        assert _C.plan_fast(pass_name, p, H100, preferred=name)["name"] == chosen
    with_tail = _C.plan_fast("fprop", p, H100, tail="statistics", preferred="conv_c16_s1")
    assert with_tail["name"] == "conv_c16_s1_narrow"


def test_a_tail_of_what_has_none_is_an_error():
    p = extents(ConvProblem(2, 32, 9, 9, 32, 3, 3, 8, 1, 1))
    for pass_name, channels_last in (("dgrad", True), ("wgrad", True), ("fprop", False)):
        with pytest.raises(ValueError, match="has a tail"):
            _C.plan_fast(pass_name, p, H100, channels_last, "epilogue")


def test_where_epilogue_and_statistics_are_computed():
    p = ConvProblem(2, 128, 9, 9, 128, 3, 3, 32, 1, 1)
    nhwc = query("fprop", p)
    nchw, plain = nhwc._replace(channels_last=False), query("fprop", p, torch.float32)
    where = [(native.epilogue(q), native.statistics(q)) for q in (nhwc, nchw, plain)]
    inside, after = "in the kernel", "in a pass of its own"
    assert where == [(inside, inside), (after, after), (inside, after)]
    assert native.takes_statistics(nhwc)
    assert not native.takes_statistics(nchw)


def test_partial_sums_of_dw_are_bounded():
    """Written and read once, they fit an L2 cache of 40 MiB and are little beside x and dy."""
    for layer in resolve("resnext50"):
        for batch in (32, 64, 256):
            p = layer.problem(batch)
            partial_sums = _C.plan_fast("wgrad", extents(p), H100)["workspace_bytes"]
            assert partial_sums < 5e6
            if batch == 256:
                once = 2 * (math.prod(p.input_size) + math.prod(p.output_size))
                assert 2 * partial_sums < 0.2 * once, str(layer)


def test_every_pass_has_a_configuration():
    for pass_name in PASSES:
        keys = {
            (config["c_per_group"], config["stride"])
            for config in _C.cuda_kernels()
            if pass_name in config["passes"]
        }
        assert keys == {(c, s) for c in native._ROWSTREAM_CHANNELS for s in (1, 2)}


def test_names_are_unique():
    names = [config["name"] for config in _C.cuda_kernels()]
    assert len(set(names)) == len(names)


def test_a_plan_of_what_is_refused_is_an_error():
    p = ConvProblem(2, 30, 9, 9, 30, 3, 3, 6, 1, 1)
    with pytest.raises(ValueError, match="do not take"):
        _C.plan_fast("fprop", extents(p), H100)
    with pytest.raises(ValueError, match="multiprocessors"):
        _C.plan_fast("fprop", extents(ConvProblem(2, 32, 9, 9, 32, 3, 3, 8, 1, 1)), 0)
    with pytest.raises(ValueError, match="14 extents"):
        _C.plan_fast("fprop", [1, 2, 3], H100)


def test_kernels_are_named_and_not_chosen_before_they_are_measured(monkeypatch):
    p = ConvProblem(2, 128, 9, 9, 128, 3, 3, 32, 1, 1)
    monkeypatch.setattr(native, "_CUDA_AUTO", False)
    asked = query("dgrad", p)
    assert native.kernel(asked) == "dgrad_rowstream_float16_cuda"
    assert "not been measured" in native.prefers(asked)
    assert native.CUDA_VARIABLE in native.prefers(asked)
    monkeypatch.setattr(native, "_CUDA_AUTO", True)
    assert native.prefers(asked) is None
    plain = query("dgrad", p, torch.float64)
    assert native.kernel(plain) == "dgrad_simple_float64_cuda"
    assert "16 bits" in native.prefers(plain)
    nchw = asked._replace(channels_last=False)
    assert native.kernel(nchw) == "dgrad_nchw_float16_cuda"
    assert native.prefers(nchw) is None
    assert native.kernel(nchw._replace(pass_name="wgrad")) == "wgrad_nchw_float16_cuda"


@pytest.mark.parametrize("c_per_group", [4, 8, 16, 32, 64])
def test_bands_of_nchw_fit_whatever_the_image(c_per_group: int):
    named = {config["name"]: config for config in _C.nchw_kernels()}
    sides = (1, 3, 7, 14, 15, 28, 33, 56, 65, 113, 224, 2001)
    for stride, pass_name, h, w in itertools.product((1, 2), PASSES, sides, sides):
        p = ConvProblem(9, 64, h, w, 64, 3, 3, 64 // c_per_group, 1, 1, stride, stride)
        plan = _C.plan_fast(pass_name, extents(p), H100, channels_last=False)
        assert 0 < plan["shared_bytes"] <= named[plan["name"]]["shared_bytes"] <= 99 * 1024
        assert plan["blocks"] > 0


def test_every_layer_of_resnext_has_a_plan_in_nchw():
    named = {config["name"]: config for config in _C.nchw_kernels()}
    for layer in resolve("resnext50"):
        for pass_name in PASSES:
            p = layer.problem(64)
            plan = _C.plan_fast(pass_name, extents(p), H100, channels_last=False)
            config = named[plan["name"]]
            assert pass_name in config["passes"]
            assert (config["c_per_group"], config["stride"]) == (p.c_per_group, p.stride_h)
            assert plan["shared_bytes"] <= config["shared_bytes"] <= 99 * 1024
            assert plan["blocks"] >= 0.9 * H100


def test_tiled_refusals_are_the_compiled_ones():
    for case in random_cases(200, seed=6):
        p = case.problem
        for pass_name in PASSES:
            compiled = _C.tiled_refusal(pass_name, extents(p), short(case.dtype))
            asked = native._no_tiled(query(pass_name, p, case.dtype))
            if asked is None and compiled is not None:
                assert "pixels" in compiled  # decided when it runs
            else:
                assert asked == compiled


TILED_REFUSED = {
    "below 2 GiB": ("wgrad", {"H": 1 << 16, "W": 1 << 13}, "float32"),
    "2^30 elements": ("wgrad", {"C": 1 << 20, "K": 1 << 20, "G": 1, "H": 1, "W": 1}, "float16"),
    "float64": ("fprop", {}, "float64"),
    "have pixels": ("dgrad", {"N": 0}, "float16"),
    "up to 2^24": ("fprop", {"pad_h": 1 << 25}, "float16"),
    "below 2^31 pixels": ("dgrad", {"H": 1 << 16, "W": 1 << 16}, "float32"),
    "2^31 blocks": ("fprop", {"N": 1 << 20, "H": 300, "W": 300}, "float16"),
}


@pytest.mark.parametrize("words", TILED_REFUSED)
def test_tiled_refusals_say_why(words: str):
    pass_name, changes, dtype = TILED_REFUSED[words]
    fields = {"N": 2, "C": 32, "H": 9, "W": 9, "K": 32, "G": 8, "pad_h": 1, "pad_w": 1, **changes}
    reason = _C.tiled_refusal(pass_name, extents(ConvProblem(**fields)), dtype)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_every_layer_of_regnet_has_a_tiled_plan(pass_name: Pass, channels_last: bool):
    """Blocks for every multiprocessor, and packed weights of hardly more than the weights' size."""
    for layer in resolve("regnet"):
        p = layer.problem(64)
        for dtype, tf32 in (("float16", False), ("float32", True), ("float32", False)):
            plan = _C.plan_tiled(pass_name, extents(p), H100, dtype, channels_last, tf32)
            assert plan["blocks"] >= H100 * 0.7
            assert plan["workspace_bytes"] % 16 == 0
            size = 2 if dtype == "float16" else 4
            weights = p.K * p.c_per_group * p.R * p.S * size
            assert weights <= plan["workspace_bytes"] <= 3 * weights
    with pytest.raises(ValueError, match="do not take"):
        _C.plan_tiled("fprop", extents(p), H100, "float64")
    with pytest.raises(ValueError, match="multiprocessors"):
        _C.plan_tiled("fprop", extents(p), 0, "float16")


@pytest.mark.parametrize("channels_last", [True, False])
def test_every_layer_has_a_tiled_plan_of_wgrad(channels_last: bool):
    """Blocks for most multiprocessors, and partial sums in bounds."""
    for layer in [*resolve("regnet"), *network("resnext50")]:
        p = layer.problem(64)
        for dtype, tf32 in (("float16", False), ("float32", True), ("float32", False)):
            plan = _C.plan_tiled("wgrad", extents(p), H100, dtype, channels_last, tf32)
            assert plan["blocks"] >= H100 * 0.7
            assert plan["workspace_bytes"] <= 1 << 28


def test_wgrad_tiles_are_those_of_the_channels():
    """Groups of few channels share a block; the widest tile is for many."""
    for channels, config in ((4, "48x8"), (16, "144x32"), (32, "144x32"), (112, "144x64")):
        p = ConvProblem(64, 32 * channels, 14, 14, 32 * channels, 3, 3, 32, 1, 1)
        plan = _C.plan_tiled("wgrad", extents(p), H100, "float32", True, True)
        assert plan["name"] == f"tiled_wgrad_{config}"


CUDNN = {
    "FMA units": (24, 24, torch.float32, False),
    "fewer than 4": (3, 3, torch.float16, False),
    "nearly a dense": (128, 136, torch.float16, False),
}


@pytest.mark.parametrize("words", CUDNN)
def test_what_cudnn_computes_as_fast(words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "_CUDA_AUTO", True)
    c, k, dtype, tf32 = CUDNN[words]
    p = ConvProblem(8, 4 * c, 14, 14, 4 * k, 3, 3, 4, 1, 1)
    reason = native.prefers(query("fprop", p, dtype)._replace(allow_tf32=tf32))
    assert reason is not None
    assert words in reason


def test_what_the_tiled_kernels_are_chosen_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "_CUDA_AUTO", True)
    for c, dtype, tf32 in ((24, torch.float16, False), (56, torch.bfloat16, False),
                           (4, torch.float32, True), (120, torch.float32, True)):  # fmt: skip
        p = ConvProblem(8, 4 * c, 14, 14, 4 * c, 3, 3, 4, 1, 1)
        for pass_name in PASSES:
            asked = query(pass_name, p, dtype)._replace(allow_tf32=tf32)
            assert native.prefers(asked) is None
            math = "tf32" if tf32 else short(dtype)
            assert native.kernel(asked) == f"{pass_name}_tiled_{math}_cuda"
    monkeypatch.setattr(native, "_CUDA_AUTO", False)
    assert "the tiled kernels have not been measured" in native.prefers(asked)


def test_the_table_of_choices_is_what_the_rules_say():
    """docs/cuda-choices.md: print it anew after a change to a rule."""
    table = Path(__file__).parent.parent / "docs" / "cuda-choices.md"
    assert table.read_text() == cuda_choices.text()
    assert " rowstream " in cuda_choices.text()
