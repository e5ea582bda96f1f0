"""Data: every sample once, the same augmentation wherever it is computed, files as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from resnext.config import Config
from resnext.data import Batches, TensorImages, build, loader
from resnext.mixing import mixed
from resnext.seeds import mixed_seed

pytestmark = pytest.mark.once


@pytest.mark.parametrize("world", [1, 2, 4])
def test_training_batches_are_shared_out(world: int):
    """The shares of all processes, put together, are one process's batches."""

    def keys(rank: int, size: int, start: int = 0) -> list[tuple[int, list[int]]]:
        batches = Batches(50, 8, shuffle=True, seed=3, rank=rank, world=size)
        batches.set_position(5, start)
        return list(batches)

    alone = keys(0, 1)
    assert len(alone) == 6
    assert len({i for _, indices in alone for i in indices}) == 48
    shares = [keys(rank, world) for rank in range(world)]
    for batch, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert batch == (5, [i for _, indices in parts for i in indices])
    assert keys(0, 1, start=4) == alone[4:]
    other = Batches(50, 8, shuffle=True, seed=3, rank=0, world=1)
    assert list(other) != alone


@pytest.mark.parametrize("world", [1, 3])
def test_test_batches_have_every_image_once(world: int):
    shares = [Batches(53, 8, shuffle=False, seed=0, rank=r, world=world) for r in range(world)]
    seen = [i for share in shares for _, indices in share for i in indices]
    assert sorted(seen) == list(range(53))


def test_batches_that_cannot_be():
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        Batches(50, 8, shuffle=True, seed=0, rank=0, world=3)
    with pytest.raises(ValueError, match="do not fill a batch of 64"):
        Batches(50, 64, shuffle=True, seed=0, rank=0, world=1)


def test_augmentation_belongs_to_the_sample():
    images = torch.arange(1.0, 1 + 20 * 2 * 5 * 5).reshape(20, 2, 5, 5)
    labels = torch.arange(20)
    data = TensorImages(images, labels, pad=1, flip=True, seed=7)
    whole, _ = data[3, list(range(20))]
    some, some_labels = data[3, [4, 11]]
    assert torch.equal(some, whole[[4, 11]])
    assert some_labels.tolist() == [4, 11]
    again, _ = TensorImages(images, labels, pad=1, flip=True, seed=7)[3, [11]]
    assert torch.equal(again[0], whole[11])
    assert not torch.equal(data[4, list(range(20))][0], whole)


def test_crops_and_flips_are_all_there_and_nothing_else():
    image = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    data = TensorImages(image.expand(600, 1, 3, 3), torch.zeros(600), pad=1, flip=True, seed=0)
    found = {tuple(x.flatten().tolist()) for x in data[0, list(range(600))][0]}
    padded = torch.nn.functional.pad(image, (1,) * 4)
    windows = [padded[0, 0, y : y + 3, x : x + 3] for y in range(3) for x in range(3)]
    expected = {tuple(w.flatten().tolist()) for x in windows for w in (x, x.flip(1))}
    assert found == expected
    test = TensorImages(image, torch.zeros(1), pad=1, flip=True, seed=None)
    assert torch.equal(test[0, [0]][0], image)


def test_workers_change_nothing():
    data = build(Config(data="synthetic", flip=True)).train
    found = []
    for workers in (0, 2):
        batches = Batches(len(data), 64, shuffle=True, seed=0, rank=0, world=1)
        found.append([x for x, _ in loader(data, batches, workers=workers, pin=False)])
    assert len(found[0]) == 8
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_digits():
    data = build(Config())
    assert (len(data.train), len(data.test), data.num_classes, data.channels) == (1000, 797, 10, 1)
    images = data.train.images
    assert images.shape == (1000, 1, 8, 8)
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_s_binary_files(name: str, tmp_path: Path):
    """Files written as the format's description says, with 4 images each."""
    rng = np.random.default_rng(0)
    ten = name == "cifar10"
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    pixels, labels = [], []
    for file in [*files, "test_batch.bin" if ten else "test.bin"]:
        image = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        fine = rng.integers(0, 10 if ten else 100, (4, 1), dtype=np.uint8)
        head = fine if ten else np.concatenate([fine // 5, fine], 1)
        np.concatenate([head, image.reshape(4, -1)], 1).tofile(tmp_path / file)
        pixels.append(image)
        labels.append(fine[:, 0])
    config = Config(data=name, data_path=tmp_path, pad=0)
    data = build(config)
    train = np.concatenate(pixels[:-1]) / 255.0
    mean = train.mean((0, 2, 3), keepdims=True)
    deviation = train.std((0, 2, 3), keepdims=True, ddof=1)
    images, found = data.train[0, list(range(len(train)))]
    np.testing.assert_allclose(images, (train - mean) / deviation, rtol=0, atol=1e-4)
    assert found.tolist() == np.concatenate(labels[:-1]).tolist()
    images, found = data.test[0, [0, 1, 2, 3]]
    np.testing.assert_allclose(images, (pixels[-1] / 255.0 - mean) / deviation, rtol=0, atol=1e-4)
    assert found.tolist() == labels[-1].tolist()
    assert data.num_classes == (10 if ten else 100)
    (tmp_path / files[0]).write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, not a multiple of"):
        build(config)


def test_folder(torchvision: ModuleType, tmp_path: Path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / kind / f"{i}.png")
    config = Config(data="folder", data_path=tmp_path, image_size=32, flip=True)
    for augment in ("crop", "jitter", "trivial"):
        data = build(dataclasses.replace(config, augment=augment, erase=0.5))
        assert (len(data.train), len(data.test), data.num_classes, data.channels) == (6, 4, 2, 3)
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        images, labels = data.train[2, [5, 0]]
        assert torch.equal(torch.random.get_rng_state(), before)
        assert images.shape == (2, 3, 32, 32)
        assert labels.tolist() == [1, 0]
        torch.manual_seed(2)
        assert torch.equal(data.train[2, [0]][0][0], images[1])
        assert not torch.equal(data.train[3, [0]][0][0], images[1])
    test = data.test[0, [3]][0]
    with Image.open(tmp_path / "val" / "dog" / "1.png") as image:
        raw = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert test.shape == (1, 3, 32, 32)
    mean = (raw.mean((1, 2)) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(test.mean((0, 2, 3)), mean, rtol=0, atol=0.2)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(ValueError, match="different classes"):
        build(config)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing(kind: str):
    images = torch.arange(1.0, 5).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 3])
    alphas = {"mixup": 0.0, "cutmix": 0.0, kind: 1.0}
    for _ in range(20):
        x, targets = mixed(images, labels, 4, **alphas)
        weight = targets.diagonal()
        assert torch.equal(weight, weight[:1].expand(4))
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        own, other = images[:, 0, 0, 0], images.roll(1, 0)[:, 0, 0, 0]
        # Both kinds keep the mean of an image of one value a mixture by the labels' weight.
        torch.testing.assert_close(x.mean((1, 2, 3)), weight * own + (1 - weight) * other)
        if kind == "cutmix":
            assert bool(((x == own[:, None, None, None]) | (x == other[:, None, None, None])).all())
    with pytest.raises(ValueError, match="neither"):
        mixed(images, labels, 4, mixup=0.0, cutmix=0.0)


def test_seeds_differ():
    parts = [(0, "order", 1), (0, "order", 2), (1, "order", 1), (0, "step", 1), (0, "order", 11)]
    seeds = {mixed_seed(*p) for p in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(0, "order", 1) == mixed_seed(0, "order", 1)
