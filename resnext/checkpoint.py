"""Checkpoints: whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that ``path`` holds the old one or the new one, whenever it is killed.

    The new one is written beside it, forced to the disk, and renamed.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint that :func:`save` wrote; no code is run from it.

    Raises:
        ValueError: the file is something else, or of a later version.
    """
    state: Any = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of resnext.train (format {FORMAT})")
    return state
