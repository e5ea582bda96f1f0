"""Train a network: ``python -m resnext.train``, or under ``torchrun -m resnext.train``.

Without arguments it trains a small ResNeXt on scikit-learn's digits. ``--help`` lists the settings.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from resnext.config import Config, as_json, missing_extra, parse
from resnext.data import build
from resnext.distributed import World, world
from resnext.trainer import LAST, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit status: 0, or 2 if the settings cannot be used."""
    if (advice := missing_extra()) is not None:
        print(advice, file=sys.stderr)
        return 2
    config = parse(argv)
    _prepare(config.threads, config.deterministic)
    with world(config.device) as here:
        return _train(config, here)


def _train(config: Config, here: World) -> int:
    """This process's part of the run; returns the exit status."""
    try:
        resume = config.resume or here.restarts > 0
        if config.output is None and resume:
            raise ValueError("to go on with a run, say which: --output")
        date = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        output = Path(here.agree(str(config.output or f"runs/{config.preset}-{date}")))
        if not resume and (output / LAST).exists():
            raise ValueError(
                f"{output} holds a run already: --resume goes on with it, "
                "another --output starts a new one"
            )
        data = build(config)
        trainer = Trainer(config, data, here, output, resume=resume)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if here.main:
        output.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(as_json(config), indent=1)
        (output / "config.json").write_text(settings + "\n", encoding="utf-8")
        start = f", from step {trainer.step}" if trainer.step else ""
        parameters = sum(p.numel() for p in trainer.model.parameters())
        print(
            f"{config.model}, {parameters:,} parameters; {config.data}, "
            f"{len(data.train)} + {len(data.test)} images; {trainer.total_steps} steps of "
            f"{config.batch_size} images on {here.size} x {here.device}{start}",
            flush=True,
        )
    trainer.run()
    if here.main:
        print(f"checkpoints and log are in {output}")
    return 0


def _prepare(threads: int | None, deterministic: bool) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


if __name__ == "__main__":
    sys.exit(main())
