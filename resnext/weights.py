"""Weights of other libraries: torchvision's, timm's and Detectron2's names.

Files are read without running code from them: ``torch.load(weights_only=True)`` or safetensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights, the averaged ones first (timm's order)."""

_PREFIX = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|bottom_up|encoder)\.)+")

_DETECTRON2 = (
    (re.compile(r"^stem\."), ""),
    (re.compile(r"^res([2-5])\."), lambda m: f"layer{int(m[1]) - 1}."),
    (re.compile(r"\.shortcut\.norm\."), ".downsample.1."),
    (re.compile(r"\.shortcut\.weight$"), ".downsample.0.weight"),
    (re.compile(r"(^|\.)conv([123])\.norm\."), r"\1bn\2."),
    (re.compile(r"^linear\."), "fc."),
)

_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did beyond copying tensors of the same name and shape."""

    naming: str
    """``torchvision`` (which is timm's and ours) or ``detectron2``."""
    adapted: list[str] = field(default_factory=list)
    """Parameters made from others of another shape, or left as they were initialized."""
    unused: list[str] = field(default_factory=list)
    """Keys of the file for which the model has no part: a classifier or stages it leaves out."""

    def __str__(self) -> str:
        lines = [f"names of {self.naming}"]
        lines += [f"adapted: {line}" for line in self.adapted]
        lines += [f"not used: {_listed(self.unused)}"] if self.unused else []
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    adapt: bool = False,
) -> LoadReport:
    """Load weights into a network of this package, all or nothing.

    Wrappers are taken off: entries such as ``state_dict``, ``model`` and ``state_dict_ema`` (the
    averaged weights win), prefixes such as ``module.`` of DistributedDataParallel, ``_orig_mod.``
    of torch.compile and ``backbone.bottom_up.`` of Detectron2. A statistic that Detectron2's frozen
    normalizations lack, ``num_batches_tracked``, stays as it is in the model.

    Detectron2 names its parameters differently; it also feeds many of its networks with BGR images
    and has the stride of some in the first 1x1, which names do not tell: ResNeXt's have it in the
    3x3, as here.

    Args:
        model: a :class:`resnext.ResNeXt`, or :class:`resnext.ResNeXtFeatures`, which leaves out
            what the file has for a classifier and for later stages.
        source: file of ``torch.save`` or safetensors, or what such a file holds.
        adapt: accept another number of classes, and keep the model's own classifier for them, and
            another number of input channels: the first convolution's filters are summed for one
            channel, else repeated in turn and scaled to keep the response's size (timm's rule).

    Returns:
        What was adapted and what of the file was not used.

    Raises:
        ValueError: keys are missing or left over, or shapes differ; the message names them.
        RuntimeError: the file is a pickle of more than tensors.
    """
    tensors, naming = _normalized(source)
    expected = model.state_dict()
    adapted: list[str] = []
    unused = [key for key in tensors if key not in expected and _left_out(model, key)]
    tensors = {key: value for key, value in tensors.items() if key not in unused}
    problems: list[str] = []
    for key, own in expected.items():
        if key not in tensors:
            if key.endswith("num_batches_tracked"):
                tensors[key] = own
            continue
        theirs = tensors[key]
        if theirs.shape == own.shape:
            continue
        change = f"{key} is {_size(theirs)} in the file and {_size(own)} in the model"
        fitted = _fit(key, theirs, own)
        if fitted is None or not adapt:
            hint = "" if fitted is None else " (adapt=True accepts that)"
            problems.append(change + hint)
        else:
            tensors[key] = fitted
            adapted.append(change)
    missing = [key for key in expected if key not in tensors]
    left_over = [key for key in tensors if key not in expected]
    if missing:
        problems.append(f"missing in the file: {_listed(missing)}")
    if left_over:
        problems.append(f"unknown to the model: {_listed(left_over)}")
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(problems))
    model.load_state_dict(tensors)
    return LoadReport(naming, adapted, unused)


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a ``state_dict`` for :func:`load_weights`: safetensors if the path ends so, else
    ``torch.save``."""
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, os.fspath(path))
    else:
        torch.save(state, path)


def read_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a file of ``torch.save`` or safetensors holds, on the CPU."""
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: Mapping[str, Any] = load_file(os.fspath(path))
        return tensors
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # torch's message advises to load the file without that restraint: not here.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RuntimeError(
            f"{os.fspath(path)} is not a file of tensors that can be read without running code "
            f"from it ({reason}); save its state_dict with torch.save or safetensors"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{os.fspath(path)} holds a {type(loaded).__name__}, not a state_dict")
    return loaded


def _normalized(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[dict[str, Tensor], str]:
    """Tensors by our names, without wrappers, and whose names they had."""
    found = source if isinstance(source, Mapping) else read_file(source)
    while True:
        inner = next((found[w] for w in _WRAPPERS if isinstance(found.get(w), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor) and k != "n_averaged"}
    if not tensors:
        raise ValueError(f"there are no tensors under the keys {_listed(list(found))}")
    tensors = {_PREFIX.sub("", key): value for key, value in tensors.items()}
    if not any(key.startswith(("stem.", "res2.")) for key in tensors):
        return tensors, "torchvision"
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        for pattern, replacement in _DETECTRON2:
            key = pattern.sub(replacement, key)
        renamed[key] = value
    return renamed, "detectron2"


def _left_out(model: nn.Module, key: str) -> bool:
    """Whether a key is of a part that this kind of model never has."""
    part = key.split(".")[0]
    features_only = not hasattr(model, "fc")
    optional = part == "fc" or re.fullmatch(r"layer\d", part) is not None
    return features_only and optional and not hasattr(model, part)


def _fit(key: str, theirs: Tensor, own: Tensor) -> Tensor | None:
    """A tensor of our shape for one of theirs, or None where there is no sense in it."""
    if key in ("fc.weight", "fc.bias") and theirs.shape[1:] == own.shape[1:]:
        return own
    same_filters = theirs.dim() == 4 and (theirs.shape[0], *theirs.shape[2:]) == (
        own.shape[0],
        *own.shape[2:],
    )
    if key != "conv1.weight" or not same_filters:
        return None
    have, want = theirs.shape[1], own.shape[1]
    if want == 1:
        return theirs.sum(1, keepdim=True)
    return theirs.repeat(1, -(-want // have), 1, 1)[:, :want] * (have / want)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _listed(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more"
