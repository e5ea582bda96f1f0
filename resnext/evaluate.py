"""Accuracy and speed of a network: ``python -m resnext.evaluate FILE``.

FILE is a checkpoint of resnext.train, which knows its network and data, or weights of torchvision,
timm or Detectron2, with ``--model`` and ``--data`` to say what they are of. ``--help`` lists more.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from resnext.config import Amp, Config, DataName, from_json, missing_extra
from resnext.data import Batches, Data, build, loader
from resnext.distributed import World, world
from resnext.metrics import Metrics, evaluate
from resnext.model import ResNeXt
from resnext.recipe import build_model
from resnext.weights import load_weights, read_file


@dataclass(frozen=True)
class Settings:
    """What to evaluate, and how."""

    file: Path
    """Checkpoint of resnext.train, or weights."""
    model: str | None = None
    """Network of the weights; a checkpoint knows its own."""
    data: DataName | None = None
    """Images (default: what the checkpoint was trained on)."""
    data_path: Path | None = None
    """Directory of the images."""
    image_size: int | None = None
    """Extent of the images (folder and synthetic)."""
    weights: Literal["best", "ema", "model"] = "best"
    """Of a checkpoint: averaged weights or not; best is the averaged ones if there are any."""
    batch_size: int = 256
    """Images at a time, in all processes together."""
    workers: int = 0
    """Processes that load images."""
    conv: Literal["grouped", "torch"] = "grouped"
    """3x3 convolutions: grouped_conv.GroupedConv2d or torch.nn.Conv2d."""
    amp: Amp = "none"
    """Automatic mixed precision."""
    channels_last: bool = False
    """Keep images and weights in channels_last."""
    compile: bool = False
    """Run the network through torch.compile."""
    device: str = "auto"
    """auto is cuda where there is one, else cpu."""
    threads: int | None = None
    """CPU threads (PyTorch's choice if not given)."""
    json: bool = False
    """Print one line of JSON."""


def evaluate_file(settings: Settings, here: World) -> Metrics:
    """Metrics of the network in a file on the test images.

    Raises:
        ValueError: the file does not say, and neither do the settings, what network or data it is
            of; or its weights do not fit.
    """
    found = read_file(settings.file)
    config = _config(settings, found)
    data = build(config)
    model = _network(settings, config, found, data)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    network = model.to(here.device, memory_format=memory_format).eval()
    batches = Batches(
        len(data.test),
        settings.batch_size,
        shuffle=False,
        seed=config.seed,
        rank=here.rank,
        world=here.size,
    )
    images = loader(data.test, batches, workers=settings.workers, pin=here.device.type == "cuda")
    return evaluate(
        torch.compile(network) if settings.compile else network,
        images,
        here,
        amp=settings.amp,
        memory_format=memory_format,
    )


def _config(settings: Settings, found: Mapping[str, Any]) -> Config:
    """The checkpoint's settings, with those of the command line in their place."""
    named = {
        "model": settings.model,
        "data": settings.data,
        "data_path": settings.data_path,
        "image_size": settings.image_size,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if isinstance(found.get("config"), Mapping):
        config = from_json(found["config"])
    elif settings.model is None or settings.data is None:
        raise ValueError(f"{settings.file} is no checkpoint of training: say --model and --data")
    else:
        config = Config()
    return dataclasses.replace(
        config, **given, conv=settings.conv, initial_weights=None, grad_checkpointing=False
    )


def _network(settings: Settings, config: Config, found: Mapping[str, Any], data: Data) -> ResNeXt:
    trained = found.get("data")
    classes = trained["num_classes"] if isinstance(trained, Mapping) else data.num_classes
    channels = trained["channels"] if isinstance(trained, Mapping) else data.channels
    if (classes, channels) != (data.num_classes, data.channels):
        raise ValueError(
            f"the network has {classes} classes and images of {channels} channels, "
            f"{config.data} {data.num_classes} and {data.channels}"
        )
    model = build_model(config, classes, channels)
    if settings.weights != "best":
        wanted = found.get(settings.weights)
        if not isinstance(wanted, Mapping):
            raise ValueError(f"{settings.file} has no weights named {settings.weights}")
        found = wanted
    load_weights(model, found)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status: 0, or 2 if the file or the settings are of no use."""
    if (advice := missing_extra()) is not None:
        print(advice, file=sys.stderr)
        return 2
    import tyro

    settings = tyro.cli(
        Annotated[Settings, tyro.conf.arg(name="")],
        args=argv,
        prog="python -m resnext.evaluate",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        with world(settings.device) as here:
            metrics = evaluate_file(settings, here)
            if here.main:
                _print(metrics, here, as_json=settings.json)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print(metrics: Metrics, here: World, *, as_json: bool) -> None:
    rate = metrics.images / metrics.seconds
    if as_json:
        values = dataclasses.asdict(metrics) | {"images_per_second": rate}
        print(json.dumps(values))
        return
    print(f"top-1 {metrics.top1:.2%}, top-5 {metrics.top5:.2%}, loss {metrics.loss:.4f}")
    print(f"{metrics.images} images, {rate:.0f} a second on {here.size} x {here.device}")


if __name__ == "__main__":
    sys.exit(main())
