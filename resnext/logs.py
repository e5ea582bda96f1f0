"""What a run tells: a progress bar, a line of JSON for each event, TensorBoard's files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class Log:
    """The main process's log; in the others nothing is written.

    Args:
        directory: where ``log.jsonl`` and ``tensorboard/`` go; None writes nothing.
        step: steps already taken. What an interrupted run logged after them is removed, because
            this run is going to log it again.
        total: steps of the whole run, for the progress bar.
        tensorboard: whether to write its files.
    """

    def __init__(self, directory: Path | None, *, step: int, total: int, tensorboard: bool) -> None:
        self._file = self._writer = self._bar = None
        if directory is None:
            return
        from tqdm import tqdm

        path = directory / LOG
        kept = [line for line in read(path) if line["step"] <= step] if path.exists() else []
        rewritten = path.with_name(f".{LOG}.partial")
        rewritten.write_text("".join(f"{json.dumps(e)}\n" for e in kept), encoding="utf-8")
        rewritten.replace(path)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = step + 1 if step else None
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=purge)
        self._bar = tqdm(
            total=total, initial=step, unit="step", disable=None, file=sys.stderr, leave=False
        )

    def advance(self, text: str = "") -> None:
        """One step of the progress bar, with a remark at its end."""
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Log numbers: a line ``{"event": kind, "step": step, ...}`` and a point in each curve."""
        if self._file is None:
            return
        self._file.write(json.dumps({"event": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        for part in (self._bar, self._writer, self._file):
            if part is not None:
                part.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a log, without a last line that was cut off."""
    text = path.read_text(encoding="utf-8")
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
