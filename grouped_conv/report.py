"""What a conversion of a model did to each of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True)
class Entry:
    """What became of one layer."""

    name: str
    """Qualified name in the model, empty for the model itself."""
    replaced: bool
    """Whether the layer was changed."""
    backend: str = ""
    kernel: str = ""
    """Who takes the layer in its present dtype and device, NCHW; explain() tells about others."""
    reason: str = ""
    """Why it was left alone."""
    detail: str = ""
    """What was folded into it."""

    def __str__(self) -> str:
        name = self.name or "(the model)"
        if not self.replaced:
            return f"{name}: left alone, {self.reason}"
        return f"{name}: " + ", ".join(filter(None, (self.backend, self.kernel, self.detail)))


class Report(Sequence[Entry]):
    """One entry for each convolution that was looked at; prints as a list."""

    def __init__(
        self, entries: Sequence[Entry], summary: str = "grouped convolutions replaced"
    ) -> None:
        self._entries = tuple(entries)
        self._summary = summary

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Report({self._entries!r})"

    def __str__(self) -> str:
        count = sum(entry.replaced for entry in self._entries)
        head = f"{count} of {len(self)} {self._summary}"
        return "\n".join([head, *(f"  {entry}" for entry in self._entries)])
