"""Parameters and multiply-adds, counted the way the paper's tables do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Complexity:
    """Numbers of a network; ``macs`` are multiply-adds of convolutions and linear layers for one
    image, the paper's FLOPs."""

    parameters: int
    macs: int
    grouped_macs: int
    """Those of convolutions with more than one group."""


def path_parameters(cardinality: int, d: int, channels: int = 256) -> int:
    """Weights of a block by the paper's formula, C * (256 d + 9 d d + 256 d)."""
    return cardinality * (channels * d + 9 * d * d + d * channels)


def measure(
    build: Callable[[], nn.Module], image: tuple[int, int, int] = (3, 224, 224)
) -> Complexity:
    """Count the network that ``build`` makes; nothing is allocated or computed.

    Args:
        build: makes the network. It is called with the meta device as the default.
        image: ``(C, H, W)`` of one image.
    """
    macs = {True: 0, False: 0}

    def conv(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        macs[module.groups > 1] += output[0].numel() * per_output

    def linear(module: nn.Linear, _: Any, output: Tensor) -> None:
        macs[False] += output[0].numel() * module.in_features

    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(conv)
            elif isinstance(module, nn.Linear):
                module.register_forward_hook(linear)
        model(torch.empty(1, *image))
    return Complexity(sum(p.numel() for p in model.parameters()), sum(macs.values()), macs[True])
