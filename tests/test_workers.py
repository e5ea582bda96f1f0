"""Layers in forked and spawned processes, after this one has used its threads."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import workers
from support import threads
from torch.utils.data import DataLoader

pytestmark = pytest.mark.once


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.timeout(120)
def test_data_loader_workers(context: str):
    dataset = workers.Convolved()
    with threads(2):
        expected = [dataset[i] for i in range(len(dataset))]
        loader = DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=context
        )
        actual = list(loader)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.timeout(120)
def test_a_saved_layer_in_another_process(tmp_path):
    """The process imports grouped_conv because the layer needs it."""
    layer = workers.layer()
    path = tmp_path / "layer.pt"
    torch.save(layer, path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        actual = pool.submit(workers.loaded, str(path)).result()
    assert torch.equal(actual, workers.gradients(layer, 0))
