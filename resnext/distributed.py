"""Processes of one run: who this one is, and what they do together."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """One process among those that torchrun started, or the only one."""

    rank: int
    size: int
    device: torch.device
    restarts: int = 0
    """How often torchrun has started this group of processes again."""

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in float64."""
        values = values.detach().to(torch.float64, copy=True)
        if self.several:
            dist.all_reduce(values)
        return values

    def agree(self, text: str) -> str:
        """The main process's text, in all of them."""
        box = [text]
        if self.several:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the main one's running statistics."""
        if self.several:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextlib.contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes of torchrun; without it, a world of one.

    Args:
        device: ``auto`` is a GPU for each process where there is one, else the CPU.

    Raises:
        RuntimeError: a device was asked for that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {device}: torch finds no CUDA device on this machine")
    if "LOCAL_RANK" not in os.environ:
        yield World(0, 1, chosen)
        return
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it starts the processes again: with it the dead ones' addresses.
    group = {"store": dist.PrefixStore(f"start{restarts}", store), "rank": rank, "world_size": size}
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen, **group)
    else:
        dist.init_process_group("gloo", **group)
    try:
        yield World(rank, size, chosen, restarts)
    except BaseException:
        # The others wait for this process inside an operation: no orderly end is possible, and
        # torchrun only has to see that this process is gone.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    # DistributedDataParallel must go before its group does: as the last to hold it, at the
    # interpreter's end, it would wait for a thread that waits for the interpreter.
    gc.collect()
    dist.destroy_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum over their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes, which are of equal size, on any
    device; torch.nn.SyncBatchNorm runs on GPUs only.

    ``[N, C, H, W]`` to the same shape. Mean first, then squared deviations from it: the variance
    does not suffer from cancellation, so the statistics are a single process's but for rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _SumOverProcesses.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                unbiased = variance * (count / max(count - 1, 1))
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale[:, None, None]
        if self.bias is not None:
            y = y + self.bias[:, None, None]
        return y.to(x.dtype)


def synchronize_batch_norm_(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch normalization one over all processes; parameters and names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model
