"""Images to train on: scikit-learn's digits, CIFAR's binary files, folders, and synthetic ones.

A data set is asked for a whole batch, ``dataset[epoch, indices]``, and answers with images
``[n, C, H, W]`` in float32 and labels ``[n]``. Augmentation depends on the seed, the epoch and the
index alone, never on the batch, the process or the worker that a sample falls to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resnext.config import Config
from resnext.seeds import generator

Key = tuple[int, list[int]]
"""Epoch, and indices of the samples of one batch."""

DIGITS_TRAIN = 1000
"""The first 1000 of 1797 digits are for training; other people wrote most of the rest."""


@dataclass(frozen=True)
class Data:
    """The two parts of a data set and what a network has to know of it."""

    train: Dataset
    test: Dataset
    num_classes: int
    channels: int


class TensorImages(Dataset):
    """Images in memory, normalized; in training cropped at random and mirrored.

    Args:
        images: ``[n, C, H, W]``, normalized.
        labels: ``[n]``.
        pad: random crops are taken from the image with so many zeros around it; 0 for none.
        flip: mirror half of the images.
        seed: of the augmentation; None for none, as in tests.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, pad: int = 0, flip: bool = False, seed: int | None
    ) -> None:
        self.images, self.labels = images, labels
        self.pad, self.flip, self.seed = pad, flip, seed
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def _draws(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Offsets ``[n, 2]`` of the crops and whether to mirror, ``[n]``, in an epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            random = generator(self.seed or 0, "augmentation", epoch)
            offsets = torch.randint(0, 2 * self.pad + 1, (len(self), 2), generator=random)
            mirrored = torch.rand(len(self), generator=random) < 0.5
            self._drawn = epoch, offsets, mirrored
        return self._drawn[1:]

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        images, labels = self.images[indices], self.labels[indices]
        if self.seed is None:
            return images, labels
        offsets, mirrored = self._draws(epoch)
        if self.pad:
            images = _shifted(images, offsets[indices], self.pad)
        if self.flip:
            images = torch.where(mirrored[indices, None, None, None], images.flip(3), images)
        return images, labels


def _shifted(images: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Windows of the images' size out of the padded images, each at its own offset."""
    n, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    rows = offsets[:, :1] + torch.arange(height)
    columns = offsets[:, 1:] + torch.arange(width)
    sample = torch.arange(n)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Batches(Sampler[Key]):
    """Keys of a process's share of each batch, from any place in any epoch on.

    Args:
        length: size of the data set.
        batch_size: size of a batch of all processes together.
        shuffle: training: a new order each epoch, full batches and equal shares only. Otherwise
            every sample once, in order.
        seed: of the order.
        rank, world: which process of how many.
    """

    def __init__(
        self, length: int, batch_size: int, *, shuffle: bool, seed: int, rank: int, world: int
    ) -> None:
        if shuffle and batch_size % world:
            raise ValueError(f"batch size {batch_size} does not divide among {world} processes")
        if shuffle and length < batch_size:
            raise ValueError(f"{length} images do not fill a batch of {batch_size}")
        self.length, self.batch_size, self.shuffle = length, batch_size, shuffle
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """The next iteration is over an epoch's batches from number ``start`` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def __iter__(self) -> Iterator[Key]:
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator(self.seed, "order", self.epoch))
        else:
            order = torch.arange(self.length)
        share = -(-self.batch_size // self.world)
        for batch in range(self.start, len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            mine = whole[self.rank * share : (self.rank + 1) * share]
            if len(mine):
                yield self.epoch, mine.tolist()


def loader(dataset: Dataset, batches: Batches, *, workers: int, pin: bool) -> DataLoader:
    """Batches of a data set, ``(images, labels)``, fetched ahead by ``workers`` processes."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )


def build(config: Config) -> Data:
    """The data set that the settings name.

    Raises:
        ValueError: no path was given for data that needs one, or a file has a wrong size.
        FileNotFoundError: it is not there.
    """
    if config.data == "digits":
        return _digits(config)
    if config.data == "synthetic":
        return _synthetic(config)
    if config.data_path is None:
        raise ValueError(f"data {config.data} needs --data-path")
    if config.data == "folder":
        from resnext.folder import folder

        return folder(config)
    return _cifar(config, config.data_path)


def _in_memory(
    config: Config,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
) -> Data:
    """Both parts, normalized by mean and deviation of each channel of the training images."""
    deviation, mean = torch.std_mean(train[0], (0, 2, 3), keepdim=True)
    parts = []
    for (images, labels), seed in ((train, config.seed), (test, None)):
        images = (images - mean) / deviation
        parts.append(TensorImages(images, labels, pad=config.pad, flip=config.flip, seed=seed))
    return Data(parts[0], parts[1], num_classes, train[0].shape[1])


def _digits(config: Config) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    n = DIGITS_TRAIN
    return _in_memory(config, (images[:n], labels[:n]), (images[n:], labels[n:]), 10)


def _synthetic(config: Config) -> Data:
    """Noise around a pattern for each of ten classes: something that can be learnt."""
    random = generator(config.seed, "synthetic")
    size = (3, config.image_size, config.image_size)
    patterns = torch.randn(10, *size, generator=random)
    parts = []
    for count in (8 * config.batch_size, 2 * config.batch_size):
        labels = torch.randint(0, 10, (count,), generator=random)
        parts.append((patterns[labels] + torch.randn(count, *size, generator=random), labels))
    return _in_memory(config, parts[0], parts[1], 10)


def _cifar(config: Config, path: Path) -> Data:
    """CIFAR's binary version: a label of one byte (CIFAR-100: two, the second is the finer), then
    32x32 bytes of red, of green, of blue."""
    if config.data == "cifar10":
        files, label_bytes = [f"data_batch_{i}.bin" for i in range(1, 6)], 1
        test_file, num_classes = "test_batch.bin", 10
    else:
        files, label_bytes = ["train.bin"], 2
        test_file, num_classes = "test.bin", 100

    def read(name: str) -> tuple[Tensor, Tensor]:
        record = label_bytes + 3 * 32 * 32
        raw = np.fromfile(path / name, dtype=np.uint8)
        if not raw.size or raw.size % record:
            raise ValueError(f"{path / name} has {raw.size} bytes, not a multiple of {record}")
        records = torch.from_numpy(raw.reshape(-1, record))
        images = records[:, label_bytes:].reshape(-1, 3, 32, 32).float() / 255
        return images, records[:, label_bytes - 1].long()

    parts = [read(name) for name in files]
    train = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    return _in_memory(config, train, read(test_file), num_classes)
