"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnext import checkpoint, recipe
from resnext.config import Config, as_json
from resnext.data import Batches, Data, loader
from resnext.distributed import World, synchronize_batch_norm_
from resnext.logs import Log
from resnext.metrics import Metrics, evaluate
from resnext.mixing import mixed
from resnext.seeds import mixed_seed

LAST, BEST = "last.pt", "best.pt"


class Trainer:
    """One process's part of a run, from the last checkpoint in ``output`` if ``resume`` is true.

    All chance is a function of the seed and of the step (:mod:`resnext.seeds`), so the state of a
    run is its weights, its optimizer's buffers and the number of steps taken.

    Args:
        config: the settings; ``output`` is not read.
        data: what to train on.
        world: this process among the others.
        output: directory of checkpoints and logs, the same in all processes; None writes nothing.
        resume: go on from ``output``'s last checkpoint, if there is one.
    """

    def __init__(
        self, config: Config, data: Data, world: World, output: Path | None, *, resume: bool = False
    ) -> None:
        self.config, self.data, self.world, self.output = config, data, world, output
        share = config.batch_size // world.size
        if share % config.accumulate:
            raise ValueError(f"a share of {share} images does not divide by {config.accumulate}")
        place = {"seed": config.seed, "rank": world.rank, "world": world.size}
        pin = world.device.type == "cuda"
        self.batches = Batches(len(data.train), config.batch_size, shuffle=True, **place)
        tests = Batches(len(data.test), config.batch_size, shuffle=False, **place)
        self.train_loader = loader(data.train, self.batches, workers=config.workers, pin=pin)
        self.test_loader = loader(data.test, tests, workers=config.workers, pin=pin)
        self.steps_per_epoch = len(self.batches)
        self.total_steps = config.epochs * self.steps_per_epoch

        torch.manual_seed(mixed_seed(config.seed, "weights"))
        self.memory_format = (
            torch.channels_last if config.channels_last else torch.contiguous_format
        )
        model: nn.Module = recipe.build_model(config, data.num_classes, data.channels)
        if world.several and config.sync_bn:
            if config.fused_norm:
                raise ValueError(
                    "fused_norm takes the statistics of one process, sync_bn those of all: "
                    "turn one of them off"
                )
            model = synchronize_batch_norm_(model, world.device)
        self.dtype = recipe.DTYPES[config.dtype]
        self.model = model.to(world.device, self.dtype, memory_format=self.memory_format)
        self.optimizer = recipe.build_optimizer(config, self.model)
        self.ema = recipe.averaged(self.model, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "fp16")
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        """Of this epoch's steps so far, in this process. It stays on the device: a GPU is not
        waited for but where a number is wanted."""
        self.best = -1.0
        self.history: list[dict[str, Any]] = []
        """One entry per epoch that this process has finished."""
        if resume and output is not None and (output / LAST).exists():
            self.load(output / LAST)

        self.network: nn.Module = self.model
        if world.several:
            ids = [world.device.index] if pin else None
            self.network = DistributedDataParallel(self.model, device_ids=ids)
        if config.compile:
            self.network = torch.compile(self.network)

    def run(self) -> None:
        """Train to the end, with an evaluation and a checkpoint after each epoch.

        Raises:
            FloatingPointError: the loss is not a finite number any more.
        """
        config = self.config
        log = Log(
            self.output if self.world.main else None,
            step=self.step,
            total=self.total_steps,
            tensorboard=config.tensorboard,
        )
        try:
            while self.step < self.total_steps:
                self._epoch(log)
        finally:
            log.close()

    def _epoch(self, log: Log) -> None:
        """What is left of the present epoch."""
        config = self.config
        epoch, start = divmod(self.step, self.steps_per_epoch)
        self.batches.set_position(epoch, start)
        since, images_since = time.perf_counter(), 0
        for images, labels in self.train_loader:
            loss = self._step(images, labels)
            self.step += 1
            images_since += config.batch_size
            self.loss_sum += loss
            remark = ""
            if self.step % config.log_steps == 0:
                total = self._over_processes(loss)
                now = time.perf_counter()
                log.event(
                    "step",
                    self.step,
                    {
                        "loss": total,
                        "lr": self.optimizer.param_groups[0]["lr"],
                        "images_per_second": images_since / (now - since),
                    },
                )
                since, images_since = now, 0
                remark = f"epoch {epoch + 1}, loss {total:.3f}"
            log.advance(remark)
            inside = self.step % self.steps_per_epoch != 0
            if inside and config.checkpoint_steps and self.step % config.checkpoint_steps == 0:
                self.save()
        self._finish_epoch(epoch, log)

    def _finish_epoch(self, epoch: int, log: Log) -> None:
        train_loss = self._over_processes(self.loss_sum) / self.steps_per_epoch
        found = {"test": self.evaluate(self.model)}
        if self.ema is not None:
            found["ema"] = self.evaluate(self.ema.module)
        self.loss_sum.zero_()
        values: dict[str, Any] = {"epoch": epoch + 1, "train_loss": train_loss}
        for name, metrics in found.items():
            values |= {
                f"{name}_loss": metrics.loss,
                f"{name}_top1": metrics.top1,
                f"{name}_top5": metrics.top5,
            }
        self.history.append(values)
        log.event("epoch", self.step, values)
        accuracies = ", ".join(f"{name} {metrics.top1:.2%}" for name, metrics in found.items())
        log.say(f"epoch {epoch + 1}/{self.config.epochs}: loss {train_loss:.4f}, {accuracies}")
        top1 = max(metrics.top1 for metrics in found.values())
        better = top1 > self.best
        self.best = max(top1, self.best)
        self.save(best=better)

    def _over_processes(self, loss: Tensor) -> float:
        """Mean of a loss over all processes."""
        mean = float(self.world.sum(loss)) / self.world.size
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} by step {self.step}: try a smaller learning rate"
            )
        return mean

    def evaluate(self, model: nn.Module) -> Metrics:
        """Metrics of a network on all test images, from all processes."""
        self.world.share_buffers(model)
        return evaluate(
            model,
            self.test_loader,
            self.world,
            dtype=self.dtype,
            amp=self.config.amp,
            memory_format=self.memory_format,
        )

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer; returns the mean loss of this process's share."""
        config, world = self.config, self.world
        # What the step draws (dropped paths, mixing) depends on the step, not on what went before.
        torch.manual_seed(mixed_seed(config.seed, "step", self.step, world.rank))
        images = images.to(
            world.device, self.dtype, memory_format=self.memory_format, non_blocking=True
        )
        targets = labels.to(world.device, non_blocking=True)
        if config.mixup or config.cutmix:
            images, targets = mixed(
                images, targets, self.data.num_classes, mixup=config.mixup, cutmix=config.cutmix
            )
        rate = recipe.learning_rate(config, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        self.optimizer.zero_grad()
        losses = []
        parts = zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True)
        for index, (x, target) in enumerate(parts):
            last = index == config.accumulate - 1
            with contextlib.nullcontext() if last or not world.several else self._no_sync():
                with self._autocast():
                    logits = self.network(x)
                logits = logits.to(self.dtype)
                loss = F.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
                self.scaler.scale(loss / config.accumulate).backward()
            losses.append(loss.detach())
        if config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return torch.stack(losses).mean()

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of all but the last part stay in this process."""
        wrapped = getattr(self.network, "_orig_mod", self.network)
        return wrapped.no_sync()

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = recipe.AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.world.device.type, dtype, enabled=dtype is not None)

    def save(self, *, best: bool = False) -> None:
        """Write the last checkpoint, and the best if this is it.

        The main process writes; all must call this, for the mean of their losses.
        """
        loss_sum = self._over_processes(self.loss_sum)
        if self.output is None or not self.world.main:
            return
        state = {
            "step": self.step,
            "loss_sum": loss_sum,
            "best": self.best,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": as_json(self.config),
            "data": {"num_classes": self.data.num_classes, "channels": self.data.channels},
        }
        for name in (LAST, BEST) if best else (LAST,):
            checkpoint.save(state, self.output / name)

    def load(self, path: Path) -> None:
        """Take the state of a checkpoint.

        Raises:
            ValueError: it is of a run with other settings that the state depends on.
        """
        state = checkpoint.load(path, self.world.device)
        for name in ("batch_size", "seed", "model", "optimizer"):
            theirs, ours = state["config"][name], as_json(self.config)[name]
            if theirs != ours:
                raise ValueError(f"{path} is of a run with {name} {theirs}, this one has {ours}")
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            if state["ema"] is None:
                raise ValueError(f"{path} has no averaged weights")
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loss_sum.fill_(state["loss_sum"])
        self.step, self.best = state["step"], state["best"]
