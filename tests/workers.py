"""What test_workers.py runs in other processes, in a module that they can import."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from grouped_conv import GroupedConv2d


def layer() -> GroupedConv2d:
    torch.manual_seed(0)
    return GroupedConv2d(32, 32, 3, padding=1, groups=8)


def image(index: int) -> Tensor:
    return torch.randn(1, 32, 9, 8, generator=torch.Generator().manual_seed(index))


def gradients(model: GroupedConv2d, index: int) -> Tensor:
    """Weight gradient and output of one image, in one tensor."""
    model.zero_grad()
    y = model(image(index))
    y.square().sum().backward()
    return torch.cat([model.weight.grad.flatten(), y.detach().flatten()])


class Convolved(Dataset):
    """Images that pass through a layer in the process that loads them."""

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.layer = layer()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return gradients(self.layer, index)


def loaded(path: str) -> Tensor:
    """The gradients of a layer that another process saved."""
    return gradients(torch.load(path, weights_only=False), 0)
