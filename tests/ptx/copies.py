"""Asynchronous copies from global to shared memory: cp.async."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ptx.types import Array

if TYPE_CHECKING:
    from ptx.machine import Lanes, Machine

COPY_BYTES = (4, 8, 16)


@dataclass
class _Copy:
    """Copies in flight, one per lane: the lane's group, and where from and to, in bytes."""

    width: int
    lanes: Array
    group: Array
    target: Array
    source: Array
    size: Array

    def select(self, chosen: Array) -> _Copy:
        return _Copy(
            self.width,
            self.lanes[chosen],
            self.group[chosen],
            self.target[chosen],
            self.source[chosen],
            self.size[chosen],
        )


class AsyncCopies:
    """The data lands when a wait demands it, and the target is poisoned until then."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.count, np.int64)
        self.flying: list[_Copy] = []

    def start(self, lanes: Lanes, target: Array, source: Array, size: Array, width: int) -> None:
        """Begin copies of ``size`` bytes each; zeros follow up to ``width``."""
        self.machine.shared.reshape(-1, width)[target // width] = 0xFF
        ids = self.machine.lane[lanes]
        self.flying.append(_Copy(width, ids, self.committed[ids], target, source, size))

    def commit(self, lanes: Lanes) -> None:
        self.committed[lanes] += 1

    def wait(self, lanes: Lanes, allowed: int | None) -> None:
        """Land all but the last ``allowed`` groups of some lanes; None: also what no group has."""
        waits = np.zeros(self.machine.count, np.bool_)
        waits[lanes] = True
        still = []
        for copy in self.flying:
            due = waits[copy.lanes]
            if allowed is not None:
                due = due & (copy.group < self.committed[copy.lanes] - allowed)
            if due.any():
                self._land(copy.select(due))
            if not due.all():
                still.append(copy.select(~due))
        self.flying = still

    def _land(self, copy: _Copy) -> None:
        source = self.machine.memory.words(1)
        offset = np.arange(copy.width)
        inside = offset < copy.size[:, None]
        taken = source[np.where(inside, copy.source[:, None] + offset, 0)]
        shared = self.machine.shared.reshape(-1, copy.width)
        shared[copy.target // copy.width] = np.where(inside, taken, 0)
