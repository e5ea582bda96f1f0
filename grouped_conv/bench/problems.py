"""The convolution layers of real networks, by name: what the benchmark and the tests run on.

A network is written the way its paper defines it and expanded into layers; equal layers are
merged and counted. Layers with a single group are left out: nothing is grouped about them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from grouped_conv.problem import ConvProblem, output_extent


@dataclass(frozen=True)
class Layer:
    """A convolution of a network with equal vertical and horizontal parameters, for any batch."""

    C: int
    H: int
    W: int
    K: int
    G: int
    stride: int = 1
    R: int = 3
    pad: int = 1
    dilation: int = 1

    def problem(self, batch: int) -> ConvProblem:
        """The layer applied to ``batch`` images."""
        return ConvProblem(
            N=batch,
            C=self.C,
            H=self.H,
            W=self.W,
            K=self.K,
            R=self.R,
            S=self.R,
            G=self.G,
            pad_h=self.pad,
            pad_w=self.pad,
            stride_h=self.stride,
            stride_w=self.stride,
            dilation_h=self.dilation,
            dilation_w=self.dilation,
        )

    def __str__(self) -> str:
        """The shortest specification of this layer; ``parse_spec`` reads it back."""
        text = f"{self.C}x{self.H}x{self.W}"
        text += "" if self.K == self.C else f",k{self.K}"
        text += f",g{self.G},s{self.stride}"
        text += "" if self.R == 3 else f",r{self.R}"
        text += "" if self.dilation == 1 else f",d{self.dilation}"
        return text + ("" if self.pad == self.dilation * (self.R // 2) else f",p{self.pad}")


Counts = Counter[Layer]


def _stages(
    widths: Iterable[int],
    group_width: int,
    depths: Iterable[int],
    image: int,
    stride: int = 2,
    expand: int = 1,
) -> Counts:
    """The 3x3 layers of consecutive stages; the first of each stage has the given stride."""
    counts: Counts = Counter()
    for c, depth in zip(widths, depths, strict=True):
        groups = max(1, c // group_width)
        counts[Layer(c, image, image, expand * c, groups, stride)] += 1
        image //= stride
        counts[Layer(c, image, image, expand * c, groups)] += depth - 1
    return Counter({layer: n for layer, n in counts.items() if n > 0 and layer.G > 1})


def _resnext(depths: tuple[int, ...], groups: int, group_width: int, expand: int = 1) -> Counts:
    """ResNeXt, SE-ResNeXt and SENet at 224 x 224: width doubles by stage, groups stay the same."""
    counts = _stages([groups * group_width], group_width, depths[:1], 56, 1, expand)
    for stage, depth in enumerate(depths[1:], start=1):
        width = group_width << stage
        counts += _stages([groups * width], width, [depth], 112 >> stage, 2, expand)
    return counts


def _regnet(depth: int, w_0: int, w_a: float, w_m: float, group_width: int) -> Counts:
    """RegNetX/Y at 224 x 224 by the paper's rule: a line of widths, quantised to powers of w_m."""
    exponents = [round(math.log(1 + w_a * i / w_0) / math.log(w_m)) for i in range(depth)]
    blocks = Counter(8 * round(w_0 * w_m**exponent / 8) for exponent in exponents)
    multiples = [min(group_width, width) for width in blocks]
    widths = [round(width / m) * m for width, m in zip(blocks, multiples, strict=True)]
    return _stages(widths, group_width, blocks.values(), 112)


def _nfnet(widths: tuple[int, ...], group_width: int) -> Counts:
    """The grouped stages of an NFNet at 224 x 224: F0's depths 2, 6, 3, two 3x3 per block."""
    return _stages(widths, group_width, (4, 12, 6), 56)


def _most_telling(counts: Counts) -> Counts:
    """For each (channels per group, stride): the largest image and the most frequent layer."""
    kinds: dict[tuple[int, int], list[Layer]] = {}
    for layer in counts:
        kinds.setdefault((layer.C // layer.G, layer.stride), []).append(layer)
    chosen: Counts = Counter()
    for _, layers in sorted(kinds.items()):
        largest = max(layers, key=lambda layer: (layer.H, layer.C))
        frequent = max(layers, key=lambda layer: (counts[layer], layer.C))
        chosen.update({layer: counts[layer] for layer in {largest: 0, frequent: 0}})
    return chosen


def _union(*networks: Counts) -> Counts:
    return sum(networks, Counter())


# Depth, w_0, w_a, w_m and group width, from "Designing Network Design Spaces", appendix.
_REGNETS: dict[str, tuple[int, int, float, float, int]] = {
    "regnetx_002": (13, 24, 36.44, 2.49, 8),
    "regnetx_004": (22, 24, 24.48, 2.54, 16),
    "regnetx_006": (16, 48, 36.97, 2.24, 24),
    "regnetx_008": (16, 56, 35.73, 2.28, 16),
    "regnetx_016": (18, 80, 34.01, 2.25, 24),
    "regnetx_032": (25, 88, 26.31, 2.25, 48),
    "regnetx_040": (23, 96, 38.65, 2.43, 40),
    "regnetx_064": (17, 184, 60.83, 2.07, 56),
    "regnetx_080": (23, 80, 49.56, 2.88, 120),
    "regnetx_120": (19, 168, 73.36, 2.37, 112),
    "regnetx_160": (22, 216, 55.59, 2.1, 128),
    "regnetx_320": (23, 320, 69.86, 2.0, 168),
    "regnety_002": (13, 24, 36.44, 2.49, 8),
    "regnety_004": (16, 48, 27.89, 2.09, 8),
    "regnety_006": (15, 48, 32.54, 2.32, 16),
    "regnety_008": (14, 56, 38.84, 2.4, 16),
    "regnety_016": (27, 48, 20.71, 2.65, 24),
    "regnety_032": (21, 80, 42.63, 2.66, 24),
    "regnety_040": (22, 96, 31.41, 2.24, 64),
    "regnety_064": (25, 112, 33.22, 2.27, 72),
    "regnety_080": (17, 192, 76.82, 2.19, 56),
    "regnety_120": (19, 168, 73.36, 2.37, 112),
    "regnety_160": (18, 200, 106.23, 2.48, 112),
    "regnety_320": (20, 232, 115.89, 2.53, 232),
}

_RESNEXT = {
    "resnext50": _resnext((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": _resnext((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": _resnext((3, 4, 23, 3), 64, 4),
}
# Squeeze-and-excitation leaves the 3x3 layers as they are in the ResNeXt of the same name;
# SENet-154 has twice as many channels out of its 3x3 as into it.
_SERESNEXT = {
    "seresnext50_32x4d": _RESNEXT["resnext50"],
    "seresnext101_32x4d": _resnext((3, 4, 23, 3), 32, 4),
    "seresnext101_32x8d": _RESNEXT["resnext101_32x8d"],
    "seresnext101_64x4d": _RESNEXT["resnext101_64x4d"],
    "senet154": _resnext((3, 8, 36, 3), 64, 2, expand=2),
}
_REGNET = {name: _regnet(*arguments) for name, arguments in _REGNETS.items()}
_NFNET = {"nfnet_f0": _nfnet((256, 768, 768), 128), "nfnet_l0": _nfnet((128, 384, 384), 64)}
_NETWORKS: dict[str, Counts] = {
    **_RESNEXT,
    **_SERESNEXT,
    **_REGNET,
    **_NFNET,
    "seresnext": _union(*_SERESNEXT.values()),
    "regnet": _most_telling(_union(*_REGNET.values())),
    "regnet_all": _union(*_REGNET.values()),
    "nfnet": _union(*_NFNET.values()),
}
_NETWORKS["all"] = _union(
    *_RESNEXT.values(), _NETWORKS["seresnext"], _NETWORKS["regnet"], _NETWORKS["nfnet"]
)

NAMES: tuple[str, ...] = tuple(_NETWORKS)
FAMILIES: tuple[str, ...] = (*_RESNEXT, "seresnext", "regnet", "regnet_all", "nfnet", "all")


def network(name: str) -> Counts:
    """The distinct grouped layers of a named network or family, and how often each occurs."""
    return _NETWORKS[name].copy()


def parse_spec(text: str) -> Layer:
    """A layer from ``CxHxW[,kK][,gG][,sSTRIDE][,rKERNEL][,dDILATION][,pPADDING]``.

    Defaults: K = C, 32 groups, stride 1, a 3x3 kernel, dilation 1, "same" padding.
    """
    shape, *options = text.lower().split(",")
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if match is None:
        raise ValueError(f"'{shape}' is not CxHxW, as in 128x56x56")
    c, h, w = (int(number) for number in match.groups())
    values = {"k": c, "g": 32, "s": 1, "r": 3, "d": 1}
    for option in options:
        found = re.fullmatch(r"([kgsrdp])(\d+)", option)
        if found is None:
            raise ValueError(f"'{option}' in '{text}' is none of kN, gN, sN, rN, dN, pN")
        values[found[1]] = int(found[2])
    if min(c, h, w, *(value for name, value in values.items() if name != "p")) < 1:
        raise ValueError(f"'{text}' has a zero")
    if c % values["g"] or values["k"] % values["g"]:
        raise ValueError(f"'{text}': {values['g']} groups do not divide the channels")
    pad = values.get("p", values["d"] * (values["r"] // 2))
    if min(output_extent(size, values["r"], pad, values["s"], values["d"]) for size in (h, w)) < 1:
        raise ValueError(f"'{text}': the kernel does not fit the padded image")
    return Layer(c, h, w, values["k"], values["g"], values["s"], values["r"], pad, values["d"])


def resolve(text: str) -> Counts:
    """Layers of a comma-separated list of network names and specifications, in order, merged.

    Commas inside a specification are no ambiguity: ``resnext50,128x56x56,g32,s1,nfnet``.
    """
    items: list[str] = []
    for token in filter(None, (token.strip() for token in text.split(","))):
        if items and items[-1][0].isdigit() and re.fullmatch(r"[kgsrdp]\d+", token.lower()):
            items[-1] += f",{token}"
        else:
            items.append(token)
    if not items:
        raise ValueError("the list of problems is empty")
    counts: Counts = Counter()
    for item in items:
        if item[0].isdigit():
            counts[parse_spec(item)] += 1
        elif item.lower().replace("-", "_") in _NETWORKS:
            counts += network(item.lower().replace("-", "_"))
        else:
            known = ", ".join(FAMILIES)
            raise ValueError(
                f"unknown problem '{item}' (choose from {known}, one model of those families, "
                "or a layer as in 128x56x56,g32,s1)"
            )
    return counts
