"""The operators on DTensors: the batch may be sharded, everything else is replicated.

Shards of a batch need nothing from each other: y and dx are sharded as their batch is, dw is a sum
over the shards that is still to be made (``Partial``). A mesh dimension over which no activation's
batch is sharded computes everything on each of its devices. Inputs in other placements are
redistributed first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_registered = False

# Of each operator: the activations, whose batch is sharded, and the tensors that are replicated.
_ACTIVATIONS = {"fprop": (0,), "fprop_affine": (0, 5), "dgrad": (0,), "wgrad": (0, 1)}
_REPLICATED = {"fprop": (1, 2), "fprop_affine": (1, 2, 3, 4), "dgrad": (1,), "wgrad": ()}


def meets_dtensor(*tensors: Any) -> bool:
    """Whether a tensor is a DTensor. Its module is never imported: that takes a second."""
    if torch.compiler.is_compiling():
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


def register() -> None:
    """Teach DTensor the operators, once."""
    global _registered
    if _registered:
        return
    _registered = True
    from torch.distributed.tensor import DTensor

    for name in _ACTIVATIONS:
        for op in (name, f"triton_{name}"):
            torch.library.register_torch_dispatch(f"grouped_conv::{op}", DTensor, _rule)


def _rule(cls: Any, func: Any, types: Any, args: Sequence[Any], kwargs: Any = None) -> Tensor:
    """One operator on the local shards of its arguments."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    name = func._schema.name.partition("::")[2].removeprefix("triton_")
    first = next(a for a in args if isinstance(a, DTensor))
    mesh = first.device_mesh
    activations = [args[i] for i in _ACTIVATIONS[name]]
    sharded = [
        any(isinstance(a, DTensor) and a.placements[d] == Shard(0) for a in activations)
        for d in range(mesh.ndim)
    ]
    by_batch: list[Any] = [Shard(0) if s else Replicate() for s in sharded]
    everywhere = [Replicate()] * mesh.ndim

    def local(value: Any, placements: list[Any]) -> Any:
        if value is None:
            return None
        if not isinstance(value, DTensor):
            raise RuntimeError(f"{func}: got mixed torch.Tensor and DTensor arguments")
        return value.redistribute(mesh, placements).to_local()

    local_args = list(args)
    for i in _ACTIVATIONS[name]:
        local_args[i] = local(args[i], by_batch)
    for i in _REPLICATED[name]:
        local_args[i] = local(args[i], everywhere)
    whole = (_meta(a) if isinstance(a, Tensor) else a for a in args)
    meta = func(*whole)
    if name == "dgrad":
        local_args[2] = [local_args[0].shape[0], *args[2][1:]]
    out = func(*local_args)
    placements: list[Any] = by_batch
    if name == "wgrad":
        placements = [Partial() if s else Replicate() for s in sharded]
    result: Tensor = DTensor.from_local(
        out, mesh, placements, run_check=False, shape=meta.shape, stride=meta.stride()
    )
    return result


def _meta(t: Tensor) -> Tensor:
    """A tensor like a whole DTensor, without data."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


if "torch.distributed.tensor" in sys.modules:
    register()
