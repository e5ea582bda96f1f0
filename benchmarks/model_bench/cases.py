"""What is measured: models, each with several convolutions, in training and inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grouped_conv
import resnext

Mode = Literal["inference", "training"]
MODES: tuple[Mode, ...] = ("inference", "training")
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

VARIANTS = {
    "conv2d": "torch.nn.Conv2d",
    "grouped": "GroupedConv2d",
    "fused": "GroupedConv2d, batch normalizations and relus folded into it (inference)",
    "conv2d+compile": "torch.nn.Conv2d under torch.compile",
    "grouped+compile": "GroupedConv2d under torch.compile",
}
BASE = "conv2d"

REPLACED = {
    "grouped": ("grouped 3x3",),
    "fused": ("grouped 3x3", "batch norm", "relu"),
}
"""Classes of operators whose time a variant can at most save."""


@dataclass(frozen=True)
class Case:
    """One model with one kind of convolution in one setting.

    ``bfloat16`` is float32 weights under autocast, as in mixed-precision training.
    """

    model: str
    variant: str
    mode: Mode
    dtype: str
    layout: str
    batch: int
    size: int
    device: torch.device

    @property
    def setting(self) -> str:
        """What variants that are compared have in common."""
        return f"{self.mode} {self.dtype} {self.layout} N={self.batch} {self.size}x{self.size}"

    def of(self, variant: str) -> Case:
        return replace(self, variant=variant)


def refusal(case: Case) -> str | None:
    """Why a case makes no sense here, or None."""
    if case.variant == "fused":
        if case.mode == "training":
            return "statistics of the batch cannot be folded in training"
        if "fuse_grouped_conv_bn_" not in grouped_conv.__all__:
            return "this grouped_conv has no fuse_grouped_conv_bn_"
    if case.variant.startswith("grouped") and cardinality(case.model) == 1:
        return "the model has no grouped convolution"
    return None


def cardinality(model: str) -> int:
    """Groups of the model's 3x3 convolutions."""
    with torch.device("meta"):
        built = resnext.create_model(model)
    return max(m.groups for m in built.modules() if isinstance(m, nn.Conv2d))


def network(case: Case) -> nn.Module:
    """The model, with the same weights for all variants, ready for the case's mode."""
    torch.manual_seed(0)
    plain = case.variant.startswith("conv2d")
    conv_layer = nn.Conv2d if plain else grouped_conv.GroupedConv2d
    model: nn.Module = resnext.create_model(case.model, conv_layer=conv_layer)
    model = model.to(case.device, memory_format=LAYOUTS[case.layout])
    model.train(case.mode == "training")
    if case.variant == "fused":
        grouped_conv.fuse_grouped_conv_bn_(model)
    return torch.compile(model) if case.variant.endswith("+compile") else model


def images(case: Case, count: int) -> list[Tensor]:
    """Different batches ``[N, 3, size, size]``."""
    random = torch.Generator().manual_seed(1)
    shape = (case.batch, 3, case.size, case.size)
    return [
        torch.randn(shape, generator=random)
        .to(case.device)
        .contiguous(memory_format=LAYOUTS[case.layout])
        for _ in range(count)
    ]


def step(case: Case, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """One step: logits of a batch, or forward, backward and SGD, which gives the loss."""
    autocast = torch.autocast(
        case.device.type, torch.bfloat16, enabled=case.dtype == "bfloat16", cache_enabled=True
    )

    def infer(x: Tensor) -> Tensor:
        with torch.inference_mode(), autocast:
            return model(x)

    if case.mode == "inference":
        return infer
    labels = torch.arange(case.batch, device=case.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def train(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        with autocast:
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train
