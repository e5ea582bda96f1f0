"""From settings to the parts of a training run: network, optimizer, learning rate, averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from grouped_conv import GroupedConv2d
from resnext.config import Amp, Config
from resnext.model import ResNeXt
from resnext.weights import load_weights
from resnext.zoo import create_model

CONVOLUTIONS = {"grouped": GroupedConv2d, "torch": nn.Conv2d}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
AMP_DTYPES: dict[Amp, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(config: Config, num_classes: int, in_chans: int) -> ResNeXt:
    """The network of the settings, with new weights from PyTorch's global generator."""
    given = {
        "cardinality": config.cardinality,
        "base_width": config.base_width,
        "stage_channels": config.stage_channels,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    model = create_model(
        config.model,
        num_classes=num_classes,
        in_chans=in_chans,
        conv_layer=CONVOLUTIONS[config.conv],
        drop_path_rate=config.drop_path,
        drop_rate=config.dropout,
        zero_init_last=config.zero_init,
        fused_norm=config.fused_norm,
        **options,
    )
    if config.initial_weights is not None:
        load_weights(model, config.initial_weights, adapt=True)
    model.set_grad_checkpointing(config.grad_checkpointing)
    return model


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the settings; normalizations and biases in a group of their own."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": config.weight_decay if config.decay_norms else 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine or a staircase."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * (step + 1) / (config.warmup_epochs * steps_per_epoch + 1)
    if config.schedule == "step":
        passed = sum(epoch >= milestone for milestone in config.milestones)
        return config.lr * config.gamma**passed
    length = max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / length))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and running statistics.

    The first steps count for more, ``min(decay, (1 + n) / (10 + n))`` at step n, so that the
    initial weights are forgotten in a short run too.
    """

    def average(averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, values, count)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
