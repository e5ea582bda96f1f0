"""Training: it learns, it resumes exactly, and its parts do what they say."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resnext import checkpoint, logs, recipe
from resnext.config import PRESETS, Config, as_json, from_json, parse
from resnext.data import build
from resnext.distributed import World
from resnext.evaluate import main as evaluate_main
from resnext.metrics import evaluate
from resnext.train import main
from resnext.trainer import LAST, Trainer

pytestmark = pytest.mark.once

ALONE = World(0, 1, torch.device("cpu"))

TINY = Config(
    preset="synthetic",
    data="synthetic",
    image_size=8,
    cardinality=2,
    base_width=2,
    stage_channels=16,
    batch_size=16,
    epochs=2,
    warmup_epochs=0.5,
    log_steps=1,
    tensorboard=False,
)
"""Eight steps an epoch, a hundredth of a second each."""


def trainer(output: Path | None = None, *, resume: bool = False, **changes) -> Trainer:
    config = dataclasses.replace(TINY, **changes)
    return Trainer(config, build(config), ALONE, output, resume=resume)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    other = b.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in a.state_dict().items())


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A third of the default's epochs reach 95 %, and ``evaluate`` agrees with the log."""
    run = tmp_path / "run"
    assert main(["--epochs", "10", "--threads", "1", "--output", str(run)]) == 0
    last = logs.read(run / logs.LOG)[-1]
    assert (last["event"], last["step"], last["epoch"]) == ("epoch", 150, 10)
    assert last["test_top1"] >= 0.95
    capsys.readouterr()
    assert evaluate_main([str(run / LAST), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 797
    assert found["top1"] == last["test_top1"]
    assert found["top5"] == last["test_top5"]
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-4)
    assert found["images_per_second"] > 0
    assert json.loads((run / "config.json").read_text())["epochs"] == 10

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    curve = events.Scalars("epoch/test_top1")
    assert [point.step for point in curve] == [15 * (i + 1) for i in range(10)]
    assert curve[-1].value == pytest.approx(last["test_top1"])

    assert main(["--output", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 8, 13])
def test_resume_is_exact(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that ends anywhere and goes on has the weights, losses and log of one that did not."""
    options = {
        "checkpoint_steps": 2,
        "mixup": 0.4,
        "cutmix": 1.0,
        "drop_path": 0.3,
        "dropout": 0.2,
        "ema": 0.99,
        "flip": True,
        "clip_grad": 1.0,
        "optimizer": "adamw",
        "lr": 1e-3,
    }
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = trainer(tmp_path / "whole", **options)
    whole.run()
    part = trainer(tmp_path / "parts", **options)
    take_step = part._step

    def step(images: Tensor, labels: Tensor) -> Tensor:
        if part.step == stop:
            raise Stopped
        return take_step(images, labels)

    monkeypatch.setattr(part, "_step", step)
    with pytest.raises(Stopped):
        part.run()
    torch.rand(17)  # the state of the generators is no part of it
    resumed = trainer(tmp_path / "parts", resume=True, **options)
    assert resumed.step == (stop - 1) // 2 * 2 + (2 if stop % 2 == 0 else 0)
    resumed.run()
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.ema, whole.ema)
    expected, found = (logs.read(tmp_path / name / logs.LOG) for name in ("whole", "parts"))
    for line in (*expected, *found):
        line.pop("images_per_second", None)
    assert found == expected


def test_a_kill_during_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1, "model": {"w": torch.ones(1000)}}, path)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise Stopped

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            if moment == "fsync":
                patch.setattr(os, "fsync", killed)
            else:
                patch.setattr(Path, "replace", killed)
            with pytest.raises(Stopped):
                checkpoint.save({"step": 2, "model": {"w": torch.zeros(1000)}}, path)
        assert path.read_bytes() == before
        assert checkpoint.load(path)["step"] == 1
    checkpoint.save({"step": 2}, path)
    assert checkpoint.load(path)["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_other_settings_do_not_resume(tmp_path: Path):
    trainer(tmp_path, epochs=1).run()
    with pytest.raises(ValueError, match="batch_size 16, this one has 32"):
        trainer(tmp_path, resume=True, batch_size=32)
    with pytest.raises(ValueError, match="no averaged weights"):
        trainer(tmp_path, resume=True, ema=0.9)
    torch.save({"step": 1}, tmp_path / LAST)
    with pytest.raises(ValueError, match="not a checkpoint"):
        trainer(tmp_path, resume=True)


def test_accumulation_is_the_same_step():
    """Two equal halves have the statistics of the whole, so only the arithmetic can differ."""
    one = trainer(dtype="float64")
    two = trainer(dtype="float64", accumulate=2)
    x, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
    for _ in range(2):
        losses = [t._step(torch.cat([x, x]), torch.cat([labels, labels])) for t in (one, two)]
    torch.testing.assert_close(*losses)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="does not divide"):
        trainer(accumulate=3)


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "bf16", "channels_last": True},
        {"amp": "fp16", "clip_grad": 1.0},
        {"compile": True},
        {"grad_checkpointing": True, "zero_init": True},
        {"conv": "torch", "label_smoothing": 0.1, "schedule": "step", "milestones": (6,)},
        {"workers": 1},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options_train(options: dict, monkeypatch: pytest.MonkeyPatch):
    # Inductor takes a minute and has its own tests: here, that the training goes through Dynamo.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run = trainer(**{"epochs": 8, "base_width": 8, "stage_channels": 64, "pad": 0, **options})
    run.run()
    assert run.step == 64
    assert run.history[-1]["train_loss"] < 0.8 * run.history[0]["train_loss"]
    assert run.history[-1]["test_top1"] > 0.5


def test_a_loss_that_is_no_number_ends_the_run():
    with pytest.raises(FloatingPointError, match="smaller learning rate"):
        trainer(lr=1e20, epochs=5).run()


def test_clipping():
    run = trainer(clip_grad=1e-3, lr=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0.0)
    before = [p.detach().clone() for p in run.model.parameters()]
    images, labels = next(iter(run.train_loader))
    run._step(images, labels)
    moved = [
        float((p.detach() - b).norm()) for p, b in zip(run.model.parameters(), before, strict=True)
    ]
    assert math.hypot(*moved) == pytest.approx(1e-3, rel=1e-2)


def test_learning_rate():
    cosine = dataclasses.replace(TINY, lr=1.0, epochs=10, warmup_epochs=2.0)
    rates = [recipe.learning_rate(cosine, step, 10) for step in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < 0.06
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    paper = PRESETS["imagenet"]
    assert [recipe.learning_rate(paper, e * 7, 7) for e in (0, 29, 30, 60, 90, 119)] == (
        pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001, 0.0001])
    )


def test_average_of_the_weights():
    model = nn.Linear(1, 1, bias=False)
    ema = recipe.averaged(model, 0.5)
    expected = None
    for n in range(6):
        nn.init.constant_(model.weight, float(n))
        ema.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = float(n) if expected is None else decay * expected + (1 - decay) * n
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_decay_of_normalizations():
    model = recipe.build_model(TINY, 10, 3)
    groups = recipe.build_optimizer(dataclasses.replace(TINY, decay_norms=False), model)
    weights, others = groups.param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
    assert {p.dim() for p in others["params"]} == {1}
    assert len(weights["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_metrics():
    """Against a network whose logits are its images."""
    logits = torch.randn(50, 10)
    labels = torch.randint(0, 10, (50,))
    batches = [
        (x[:, :, None, None], y) for x, y in zip(logits.split(16), labels.split(16), strict=True)
    ]
    found = evaluate(nn.Flatten(), batches, ALONE)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.images == 50
    assert found.top1 == pytest.approx(float((ranks == 0).float().mean()))
    assert found.top5 == pytest.approx(float((ranks < 5).float().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str):
    config = parse(["--preset", preset])
    assert config == PRESETS[preset]
    assert config.preset == preset
    assert from_json(json.loads(json.dumps(as_json(config)))) == config
    with torch.device("meta"):
        recipe.build_model(config, 10, 3)


def test_the_command_line_changes_a_preset():
    arguments = ["--preset", "cifar10", "--epochs", "3", "--no-flip", "--data-path", "here"]
    expected = dataclasses.replace(PRESETS["cifar10"], epochs=3, flip=False, data_path=Path("here"))
    assert parse(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "imagenet"], "data folder needs --data-path"),
        (["--model", "resnet51"], "there is no model 'resnet51'"),
        (["--preset", "cifar10", "--data-path", "nowhere"], "data_batch_1.bin"),
        (["--batch-size", "2000"], "1000 images do not fill a batch of 2000"),
        (["--resume"], "say which: --output"),
    ],
)
def test_settings_that_cannot_be_used(arguments, message, capsys: pytest.CaptureFixture[str]):
    assert main(["--threads", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--preset", "nothing"], ["--lr", "x"]])
def test_bad_arguments(arguments: list[str]):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2


def test_weights_of_others_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = dataclasses.replace(PRESETS["digits"], seed=3)
    model = recipe.build_model(config, 10, 1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    assert evaluate_main([path]) == 2
    assert "say --model and --data" in capsys.readouterr().err
    named = ["--model", "tiny_resnext11", "--data", "digits"]
    assert evaluate_main([path, *named, "--amp", "bf16", "--channels-last"]) == 0
    assert "797 images" in capsys.readouterr().out
    assert evaluate_main([path, *named, "--weights", "ema"]) == 2
    assert "no weights named ema" in capsys.readouterr().err
