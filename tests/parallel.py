"""What the processes of test_distributed.py do, in a module that spawned processes can import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grouped_conv import GroupedConv2d, grouped_conv2d, grouped_conv2d_affine

WORLD = 2
BATCH = 4


def network() -> nn.Module:
    """Without batch normalization: its statistics are those of one process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        GroupedConv2d(32, 32, 3, padding=1, groups=8),
        nn.ReLU(),
        GroupedConv2d(32, 32, 3, stride=2, padding=1, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        images = torch.randn(BATCH, 3, 10, 10, generator=generator)
        yield images, torch.randint(10, (BATCH,), generator=generator)


def train(model: nn.Module, rank: int, world: int) -> list[float]:
    """Losses over the whole batch, of a process that sees its share of it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    losses = []
    for images, labels in batches():
        loss = nn.functional.cross_entropy(model(images[share]), labels[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world)
    return losses


def data_parallel(rank: int) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(network())
    losses = train(model, rank, WORLD)
    return {"losses": losses, "state": model.module.state_dict()}


def fully_sharded(rank: int) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model = network()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            fully_shard(layer)
    fully_shard(model)
    losses = train(model, rank, WORLD)
    state = {name: t.full_tensor() for name, t in model.state_dict().items()}
    return {"losses": losses, "state": state}


# Batch size, layout, stride, epilogue, and whether the input itself requires a gradient.
SHARDED = {
    "even": (4, "nchw", 1, False),
    "uneven": (3, "nchw", 2, False),
    "one image": (1, "nchw", 1, False),
    "channels_last": (4, "nhwc", 2, False),
    "epilogue": (4, "nhwc", 1, True),
}


def sharded_case(name: str) -> tuple[list[Tensor], Any]:
    """Tensors, of which the first and perhaps the last are activations, and a function of them."""
    batch, layout, stride, epilogue = SHARDED[name]
    generator = torch.Generator().manual_seed(2)

    def draw(*size: int) -> Tensor:
        t = torch.randn(size, generator=generator)
        last = layout == "nhwc" and t.dim() == 4
        return t.contiguous(memory_format=torch.channels_last) if last else t

    x, w, b = draw(batch, 32, 9, 8), draw(32, 4, 3, 3), draw(32)
    if not epilogue:
        return [x, w, b], lambda x, w, b: grouped_conv2d(x, w, b, stride, 1, 1, 8)

    def affine(x, w, b, scale, shift, residual):
        return grouped_conv2d_affine(x, w, b, scale, shift, residual, "relu", stride, 1, 1, 8)

    return [x, w, b, draw(32), draw(32), draw(batch, 32, 9, 8)], affine


def sharded(name: str, mesh: Any) -> dict[str, Any]:
    """Output and gradients by DTensors, whole, and the placements that they had."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    layout = SHARDED[name][1]
    tensors, function = sharded_case(name)
    leaves = []
    for i, t in enumerate(tensors):
        if t.dim() == 4 and i != 1:
            chunk = distribute_tensor(t, mesh, [Shard(0)]).to_local()
            if layout == "nhwc":  # which distribute_tensor does not keep
                chunk = chunk.contiguous(memory_format=torch.channels_last)
            leaf = DTensor.from_local(chunk, mesh, [Shard(0)], shape=t.shape, stride=t.stride())
        else:
            leaf = DTensor.from_local(t, mesh, [Replicate()], run_check=False)
        leaves.append(leaf.requires_grad_())
    y = function(*leaves)
    direction = distribute_tensor(torch.ones(y.shape), mesh, [Shard(0)])
    grads = torch.autograd.grad(y, leaves, direction)
    outputs = [y.detach(), *grads]
    return {
        "results": [t.full_tensor() for t in outputs],
        "sharded": [t.placements[0] == Shard(0) for t in outputs],
        "strides": [t.stride() for t in outputs],
        "local strides": [t.to_local().stride() for t in outputs],
        "local batch": y.to_local().shape[0],
    }


def main(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORLD
    )
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    results = {
        "data parallel": data_parallel(rank),
        "fully sharded": fully_sharded(rank),
        "sharded": {name: sharded(name, mesh) for name in SHARDED},
    }
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()
