"""What a training run is told: every setting, the named recipes, and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

DataName = Literal["digits", "cifar10", "cifar100", "folder", "synthetic"]
Amp = Literal["none", "bf16", "fp16"]


@dataclass(frozen=True)
class Config:
    """Settings of a run; a preset gives the defaults."""

    preset: str = "digits"
    """Recipe whose settings are the defaults of all others."""

    model: str = "tiny_resnext11"
    """A constructor of resnext, such as resnext50_32x4d."""
    cardinality: int | None = None
    """Groups of the 3x3 convolutions (the model's own if not given)."""
    base_width: int | None = None
    """Channels per group in the first stage (the model's own if not given)."""
    stage_channels: int | None = None
    """Output channels of the first stage (the model's own if not given)."""
    conv: Literal["grouped", "torch"] = "grouped"
    """3x3 convolutions: grouped_conv.GroupedConv2d or torch.nn.Conv2d."""
    fused_norm: bool = False
    """Compute the 3x3 convolutions together with their batch normalizations (not with sync_bn)."""
    drop_path: float = 0.0
    """Probability to drop the last block's branch."""
    dropout: float = 0.0
    """Dropout before the classifier."""
    zero_init: bool = False
    """Start every block as its shortcut."""
    initial_weights: Path | None = None
    """Weights to start from; another number of classes or channels is adapted."""

    data: DataName = "digits"
    """folder: train/CLASS/IMAGE and val/CLASS/IMAGE; cifar: the binary version's files."""
    data_path: Path | None = None
    """Directory of the data."""
    image_size: int = 8
    """Extent of the images (folder and synthetic)."""
    pad: int = 1
    """Random crops of images padded by so many pixels (not for folder)."""
    flip: bool = False
    """Mirror half of the images."""
    augment: Literal["crop", "jitter", "trivial"] = "crop"
    """Folder only: random resized crops, and with them colour jitter or TrivialAugment."""
    erase: float = 0.0
    """Folder only: probability to erase a rectangle."""
    workers: int = 0
    """Processes that load data."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 64
    """Images of one step, in all processes and accumulation steps together."""
    accumulate: int = 1
    """Parts of a step's share that are computed one after the other."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov's momentum."""
    lr: float = 0.1
    """Learning rate after the warm-up."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 5e-4
    """Of all parameters, or of weights alone."""
    decay_norms: bool = True
    """Whether normalizations and biases decay too, as in the paper."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: to nothing; step: times gamma at each milestone."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the learning rate drops."""
    gamma: float = 0.1
    """Factor at a milestone."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly."""
    label_smoothing: float = 0.0
    """Probability spread over all classes."""
    mixup: float = 0.0
    """Mixup's alpha (arXiv 1710.09412); 0 is off."""
    cutmix: float = 0.0
    """CutMix' alpha (arXiv 1905.04899); 0 is off. With both, each step draws one."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 is off."""
    ema: float = 0.0
    """Decay of the averaged weights, 0.9999 for long runs; 0 is off."""

    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and images; float64 is for comparisons that rounding would disturb."""
    amp: Amp = "none"
    """Automatic mixed precision."""
    compile: bool = False
    """Run the network through torch.compile."""
    channels_last: bool = False
    """Keep images and weights in channels_last."""
    grad_checkpointing: bool = False
    """Compute inner activations again in the backward pass."""
    sync_bn: bool = True
    """Normalize over the batches of all processes."""
    device: str = "auto"
    """auto is cuda where there is one, else cpu."""
    threads: int | None = None
    """CPU threads of each process (PyTorch's choice if not given)."""
    seed: int = 0
    """Decides weights, order, augmentation and dropout."""
    deterministic: bool = False
    """Refuse algorithms that can differ from run to run (matters on GPUs)."""

    output: Path | None = None
    """Directory of the run (default: runs/PRESET-DATE)."""
    resume: bool = False
    """Go on from the output's last checkpoint if there is one."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0: only after each epoch."""
    log_steps: int = 10
    """Steps between lines of the log."""
    tensorboard: bool = True
    """Write TensorBoard's event files too."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_steps", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "checkpoint_steps", "pad", "warmup_epochs", "clip_grad", "lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema", "label_smoothing", "dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


def as_json(config: Config) -> dict[str, Any]:
    """The settings as what JSON and a checkpoint can hold."""
    fields = dataclasses.asdict(config)
    return {
        name: str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in fields.items()
    }


def from_json(fields: Mapping[str, Any]) -> Config:
    """The settings that :func:`as_json` wrote; unknown ones, of a later version, are an error."""
    hints = get_type_hints(Config)
    unknown = sorted(set(fields) - set(hints))
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}")
    values = dict(fields)
    for name, value in values.items():
        if value is not None and hints[name] == (Path | None):
            values[name] = Path(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return Config(**values)


_CIFAR = Config(
    preset="cifar10",
    model="cifar_resnext29_8x64d",
    data="cifar10",
    pad=4,
    flip=True,
    workers=2,
    epochs=300,
    batch_size=128,
    lr=0.1,
    weight_decay=5e-4,
    schedule="step",
    milestones=(150, 225),
    warmup_epochs=0.0,
)

_IMAGENET = Config(
    preset="imagenet",
    model="resnext50_32x4d",
    data="folder",
    image_size=224,
    flip=True,
    augment="jitter",
    workers=8,
    epochs=120,
    batch_size=256,
    lr=0.1,
    weight_decay=1e-4,
    schedule="step",
    milestones=(30, 60, 90),
    warmup_epochs=0.0,
    sync_bn=False,
    log_steps=100,
)

PRESETS: dict[str, Config] = {
    # One thread: its images are so small that two would wait for each other.
    "digits": Config(threads=1),
    "cifar10": _CIFAR,
    "cifar100": replace(_CIFAR, preset="cifar100", data="cifar100"),
    "imagenet": _IMAGENET,
    "imagenet-modern": replace(
        _IMAGENET,
        preset="imagenet-modern",
        augment="trivial",
        erase=0.1,
        epochs=300,
        batch_size=1024,
        lr=0.5,
        weight_decay=2e-5,
        decay_norms=False,
        schedule="cosine",
        milestones=(),
        warmup_epochs=5.0,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        ema=0.9999,
        clip_grad=5.0,
        amp="bf16",
        compile=True,
        channels_last=True,
        zero_init=True,
    ),
    "synthetic": Config(
        preset="synthetic",
        model="resnext50_32x4d",
        data="synthetic",
        image_size=224,
        pad=0,
        epochs=1,
        batch_size=32,
        warmup_epochs=0.0,
        log_steps=1,
    ),
}
"""Recipes by name. ``cifar10``, ``cifar100`` and ``imagenet`` are the paper's (section 4 and 5;
its learning rate drops three times, and colour jitter stands for its PCA lighting noise);
``imagenet-modern`` is close to torchvision's of 2021 (arXiv 2110.00476 studies such recipes)."""


def missing_extra() -> str | None:
    """What to do where the command lines' libraries are not installed, or None."""
    names = ("sklearn", "tabulate", "tensorboard", "tqdm", "tyro")
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} missing: pip install 'grouped-conv[train]'"


def parse(argv: Sequence[str] | None = None) -> Config:
    """Settings of a command line: those of ``--preset`` (default digits), changed by the others."""
    import tyro

    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=PRESETS, default="digits")
    known, rest = first.parse_known_args(argv)
    return tyro.cli(
        Config,
        args=list(rest),
        default=PRESETS[known.preset],
        prog="python -m resnext.train",
        description=f"Train a network. Presets: {', '.join(PRESETS)} (--preset NAME).",
    )
