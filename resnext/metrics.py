"""Loss and accuracy over a data set, in one process or many."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext.config import Amp
from resnext.distributed import World
from resnext.recipe import AMP_DTYPES


@dataclass(frozen=True)
class Metrics:
    """Mean loss and accuracies of ``images`` images; ``seconds`` are those of the network."""

    images: int
    loss: float
    top1: float
    top5: float
    seconds: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    world: World,
    *,
    dtype: torch.dtype = torch.float32,
    amp: Amp = "none",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Metrics:
    """Run a network over batches of images ``[n, C, H, W]`` and labels ``[n]``.

    Each process gives its own batches; the sums are exact and over all processes, so the result
    does not depend on how the images are shared out. The network is put into evaluation.
    """
    model.eval()
    device = world.device
    lower = AMP_DTYPES.get(amp)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    seconds = 0.0
    for images, labels in batches:
        images = images.to(device, dtype, memory_format=memory_format, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        begin = _now(device)
        with torch.autocast(device.type, lower, enabled=lower is not None):
            logits = model(images).to(dtype)
        seconds += _now(device) - begin
        loss = F.cross_entropy(logits, labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
        counts = (loss, best[:, 0].sum(), best.sum(), torch.tensor(len(labels), device=device))
        sums += torch.stack([count.double() for count in counts])
    loss_sum, top1, top5, images_seen = world.sum(sums).tolist()
    if not images_seen:
        raise ValueError("there are no images to evaluate")
    return Metrics(
        int(images_seen),
        loss_sum / images_seen,
        top1 / images_seen,
        top5 / images_seen,
        seconds,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
