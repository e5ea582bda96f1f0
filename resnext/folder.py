"""Folders of images, ``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE``, by means of torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from resnext.config import Config
from resnext.data import Data, Key
from resnext.seeds import mixed_seed

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_RATIO = 256 / 224
"""In tests the shorter side is resized to so many times the crop's."""


class FolderImages(Dataset):
    """A torchvision.datasets.ImageFolder, decoded and transformed sample by sample.

    Every sample's transforms draw from a generator of its own, seeded by the seed, the epoch and
    the index; the process's generator is left as it was.
    """

    def __init__(self, root: str, transform: object, seed: int | None) -> None:
        from torchvision.datasets import ImageFolder

        self.folder = ImageFolder(root, transform)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        images, labels = [], []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                torch.manual_seed(mixed_seed(self.seed or 0, "augmentation", epoch, index))
                image, label = self.folder[index]
                images.append(image)
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)


def folder(config: Config) -> Data:
    """Both folders, with the transforms that the settings ask for.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        FileNotFoundError: a folder is missing or has no images.
        ValueError: the two folders have different classes.
    """
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "folders of images need torchvision: pip install 'grouped-conv[vision]'",
            name=error.name,
        ) from error
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    size = config.image_size
    train: list[object] = [v2.RandomResizedCrop(size)]
    if config.flip:
        train.append(v2.RandomHorizontalFlip())
    if config.augment == "jitter":
        train.append(v2.ColorJitter(0.4, 0.4, 0.4))
    elif config.augment == "trivial":
        train.append(v2.TrivialAugmentWide())
    train += to_tensor
    if config.erase:
        train.append(v2.RandomErasing(config.erase))
    test = [v2.Resize(round(size * CROP_RATIO)), v2.CenterCrop(size), *to_tensor]

    root = config.data_path
    parts = [
        FolderImages(f"{root}/train", v2.Compose(train), config.seed),
        FolderImages(f"{root}/val", v2.Compose(test), None),
    ]
    classes = parts[0].folder.classes
    if parts[1].folder.classes != classes:
        raise ValueError(f"{root}/train and {root}/val have different classes")
    return Data(parts[0], parts[1], len(classes), 3)
