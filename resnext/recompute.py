"""Activation checkpointing that leaves running statistics alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, of which only ``x`` is kept; the backward pass computes the rest again.

    The second pass sees the same random numbers. It would also update the running statistics of
    batch normalizations a second time; here it does not.
    """
    out: Tensor = checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _frozen(block))
    )
    return out


@contextlib.contextmanager
def _frozen(block: nn.Module) -> Iterator[None]:
    """No batch normalization inside ``block`` changes its buffers.

    Momentum 0 keeps mean and variance. They must stay arguments of the operation: the second pass
    has to save as many tensors as the first.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
