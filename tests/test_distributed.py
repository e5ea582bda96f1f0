"""Training and computing in two processes, over gloo on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parallel
import pytest
import torch
import torch.distributed as dist

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
    ),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found; started once for all tests, for that takes most of the time."""
    directory: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(parallel.main, (str(directory),), nprocs=parallel.WORLD)
    paths = [directory / f"{rank}.pt" for rank in range(parallel.WORLD)]
    return [torch.load(path) for path in paths]


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters of one process that sees every image."""
    model = parallel.network()
    return parallel.train(model, 0, 1), model.state_dict()


@pytest.mark.parametrize("how", ["data parallel", "fully sharded"])
def test_training_is_that_of_one_process(how: str, ranks, alone):
    losses, state = alone
    assert len(set(losses)) == 3  # else nothing is trained
    for rank in ranks:
        assert rank[how]["losses"] == pytest.approx(losses, rel=1e-4)
        assert rank[how]["state"].keys() == state.keys()
        for name, t in state.items():
            torch.testing.assert_close(rank[how]["state"][name], t, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", parallel.SHARDED)
def test_dtensors_sharded_over_the_batch(name: str, ranks):
    tensors, function = parallel.sharded_case(name)
    leaves = [t.requires_grad_() for t in tensors]
    y = function(*leaves)
    expected = [y.detach(), *torch.autograd.grad(y.sum(), leaves)]
    for rank in ranks:
        found = rank["sharded"][name]
        assert found["strides"] == [t.stride() for t in expected]
        assert found["local strides"] == found["strides"]
        for ours, theirs in zip(found["results"], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        # y, dx and the gradient of a residual stay where their images are.
        activations = [True, True, False, False, False, False, True][: len(expected)]
        assert found["sharded"] == activations
    local = [rank["sharded"][name]["local batch"] for rank in ranks]
    assert sum(local) == len(y)
    assert max(local) < len(y) or len(y) == 1
