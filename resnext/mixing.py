"""Mixup and CutMix: batches whose images and labels are mixed with each other's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed(
    images: Tensor, labels: Tensor, num_classes: int, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself, shifted by one: batches are in random order already.

    Mixup (arXiv 1710.09412) takes the mean of two images, weighted by a draw from Beta(alpha,
    alpha); CutMix (arXiv 1905.04899) puts a rectangle of one into the other. Labels are mixed by
    the same weight, for CutMix the exact part of the area.

    Args:
        images: ``[N, C, H, W]``.
        labels: ``[N]``, classes.
        num_classes: number of classes.
        mixup, cutmix: alpha of each; 0 is off. Where both are on, one is drawn.

    Returns:
        images of the same shape, and probabilities ``[N, num_classes]`` in their dtype.
    """
    if not mixup and not cutmix:
        raise ValueError("neither mixup nor cutmix is on")
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    cut = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cut else mixup
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    others = images.roll(1, 0)
    if cut:
        height, width = images.shape[2:]
        top, bottom, left, right = _rectangle(height, width, 1.0 - weight)
        images = images.clone()
        images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        weight = 1.0 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(others, images, weight)
    return images, torch.lerp(targets.roll(1, 0), targets, weight)


def _rectangle(height: int, width: int, area: float) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle at a random place, cut off at the borders."""
    half_height, half_width = (round(extent * area**0.5 / 2) for extent in (height, width))
    y = int(torch.randint(height, ()))
    x = int(torch.randint(width, ()))
    return (
        max(y - half_height, 0),
        min(y + half_height, height),
        max(x - half_width, 0),
        min(x + half_width, width),
    )
