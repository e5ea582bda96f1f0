"""Many processes: the losses of one, and a run that loses processes and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resnext import checkpoint, logs

pytestmark = pytest.mark.once

SETTINGS = [
    *("--preset", "synthetic", "--model", "tiny_resnext11", "--image-size", "8"),
    *("--cardinality", "2", "--base-width", "4", "--stage-channels", "16", "--batch-size", "16"),
    *("--dtype", "float64", "--device", "cpu", "--no-tensorboard", "--threads", "1"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def start(output: Path, *settings: str, processes: list[str] | None = None) -> subprocess.Popen:
    program = [sys.executable] if processes is None else processes
    command = [*program, "-m", "resnext.train", *SETTINGS, "--output", str(output), *settings]
    with (output.parent / f"{output.name}.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=output.parent)


def finished(process: subprocess.Popen, output: Path) -> None:
    code = process.wait(timeout=240)
    assert code == 0, (output.parent / f"{output.name}.txt").read_text()


def losses(output: Path) -> list[float]:
    events = logs.read(output / logs.LOG)
    return [event["loss"] for event in events if event["event"] == "step"]


def steps_reached(output: Path) -> int:
    path = output / logs.LOG
    events = logs.read(path) if path.exists() else []
    return events[-1]["step"] if events else 0


def wait_for(output: Path, process: subprocess.Popen, steps: int) -> None:
    """Until a run has a checkpoint of at least so many steps and is still at work."""
    deadline = time.monotonic() + 120
    while steps_reached(output) < steps or not (output / "last.pt").exists():
        assert process.poll() is None, (output.parent / f"{output.name}.txt").read_text()
        assert time.monotonic() < deadline, f"{steps_reached(output)} steps in two minutes"
        time.sleep(0.02)


def workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = (checkpoint.load(path / "last.pt") for path in (a, b))
    assert one["step"] == other["step"]
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


def test_processes_and_kills(tmp_path: Path):
    """Four runs of the same 20 epochs; a process takes longer to start than to train.

    One process; the same killed and resumed; two processes; the same, of which one is killed and
    torchrun starts both again.
    """
    long = ("--epochs", "20", "--checkpoint-steps", "3")
    one, killed, two, elastic = (tmp_path / n for n in ("one", "killed", "two", "elastic"))

    first, second = start(one, *long), start(killed, *long)
    wait_for(killed, second, 20)
    second.send_signal(signal.SIGKILL)
    second.wait(timeout=60)
    finished(first, one)
    at_the_kill = checkpoint.load(killed / "last.pt")["step"]
    assert 16 <= at_the_kill < 160
    again = start(killed, *long, "--resume")
    pair = start(two, *long, processes=TORCHRUN)
    finished(again, killed)
    assert f"from step {at_the_kill}" in (tmp_path / "killed.txt").read_text()
    assert_same_weights(killed, one)
    assert losses(killed) == losses(one)

    finished(pair, two)
    assert len(losses(two)) == len(losses(one)) == 160
    difference = max(abs(a - b) for a, b in zip(losses(two), losses(one), strict=True))
    assert difference <= 1e-5
    a, b = (checkpoint.load(path / "last.pt")["model"] for path in (one, two))
    assert a.keys() == b.keys()
    test_events = [logs.read(path / logs.LOG)[-1] for path in (one, two)]
    assert test_events[0]["test_top1"] == test_events[1]["test_top1"]

    restarting = start(elastic, *long, processes=[*TORCHRUN, "--max-restarts", "1"])
    wait_for(elastic, restarting, 20)
    victims = workers(restarting)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    finished(restarting, elastic)
    assert (tmp_path / "elastic.txt").read_text().count("from step") == 1
    assert_same_weights(elastic, two)
    assert losses(elastic) == losses(two)
