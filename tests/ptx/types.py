"""Types of PTX, and how their bits are read and written as numpy arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx.parser import Unsupported

Array = npt.NDArray[Any]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


@dataclass(frozen=True)
class Type:
    """A fundamental type. Kinds without a numpy equivalent (bf16, pairs, tf32) stay as bits."""

    kind: str
    bits: int

    @property
    def dtype(self) -> type[Any]:
        if self.kind == "pred":
            return np.bool_
        if self.kind == "s":
            return _SIGNED[self.bits]
        return _FLOAT[self.bits] if self.kind == "f" else UNSIGNED[self.bits]

    @property
    def bytes(self) -> int:
        return self.bits // 8


_NAMED = {
    "pred": Type("pred", 1),
    "bf16": Type("bf16", 16),
    "tf32": Type("tf32", 32),
    "f16x2": Type("f16x2", 32),
    "bf16x2": Type("bf16x2", 32),
    "b128": Type("b", 128),
}
B16, B32, B64 = Type("b", 16), Type("b", 32), Type("b", 64)
F16, F32, F64 = Type("f", 16), Type("f", 32), Type("f", 64)
S32, U32, U64, PRED = Type("s", 32), Type("u", 32), Type("u", 64), _NAMED["pred"]


def find_type(name: str) -> Type | None:
    """The type of a modifier, or None where it is none."""
    if name in _NAMED:
        return _NAMED[name]
    match = re.fullmatch(r"([usbf])(8|16|32|64)", name)
    return Type(match[1], int(match[2])) if match and name != "f8" else None


class Mnemonic:
    """An opcode taken apart: its name, its types in order, and its other modifiers."""

    def __init__(self, opcode: str) -> None:
        self.opcode = opcode
        self.name, *modifiers = opcode.split(".")
        self.types = [t for t in map(find_type, modifiers) if t is not None]
        self.modifiers = [m for m in modifiers if find_type(m) is None]

    def allow(self, *known: str) -> set[str]:
        """The modifiers given; any that is not known is refused."""
        given = set(self.modifiers)
        if unknown := given - set(known):
            raise Unsupported(f"{self.opcode}: modifier {', '.join(sorted(unknown))}")
        return given

    def only_type(self, kinds: str, bits: tuple[int, ...] = (16, 32, 64)) -> Type:
        """The single type, of one of the kinds (letters) and widths."""
        if (
            len(self.types) != 1
            or self.types[0].kind not in kinds
            or self.types[0].bits not in bits
        ):
            raise Unsupported(f"{self.opcode}: type")
        return self.types[0]


def typed(raw: Any, type_: Type) -> Any:
    """Raw bits of a register or an immediate as values of a type, cut to its width."""
    if type_.kind == "pred":
        return raw
    unsigned = UNSIGNED[type_.bits]
    if raw.dtype != unsigned:
        raw = raw.astype(unsigned)
    return raw if type_.dtype is unsigned else raw.view(type_.dtype)


def raw_bits(value: Any, type_: Type, width: int) -> Any:
    """Values of a type as the bits of a register at least as wide, extended by their sign."""
    value = np.asarray(value)
    if type_.kind == "pred":
        return value
    if value.dtype.kind == "f":
        value = value.view(UNSIGNED[value.dtype.itemsize * 8])
    if type_.kind == "s" and width > type_.bits:
        value = value.astype(_SIGNED[width])
    return value.astype(UNSIGNED[width], copy=False)
