"""Text of a PTX module -> kernels: parameters, shared variables and instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class Unsupported(Exception):
    """The interpreter does not know an opcode, a modifier, a type or a form of operand."""


@dataclass(frozen=True)
class Instruction:
    """One instruction; register names are unique within the kernel."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None = None
    negated: bool = False

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Variable:
    """A parameter or a shared variable: where it lies in its space, and its bytes."""

    offset: int
    size: int


@dataclass
class Kernel:
    """An entry function."""

    name: str
    parameters: dict[str, Variable]
    shared: dict[str, Variable]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    """Each register's type, such as ``b32`` or ``pred``."""

    @property
    def parameter_bytes(self) -> int:
        return max((v.offset + v.size for v in self.parameters.values()), default=0)

    @property
    def static_shared(self) -> int:
        """Bytes of the shared variables with a size; the dynamic one begins behind them."""
        return max((v.offset + v.size for v in self.shared.values()), default=0)


_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
_DECLARATION = re.compile(
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[usbf](?:8|16|32|64))"
    r"(?:\s+\.ptr(?:\s+\.(?:global|shared|const))?(?:\s+\.align\s+\d+)?)?"
    r"\s+(?P<name>[\w$%]+)\s*(?P<array>\[\s*(?P<count>\d*)\s*\])?"
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*\{")
_SHARED = re.compile(r"\.shared\s+([^;]+);")
_REGISTERS = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")


def split_operands(text: str) -> tuple[str, ...]:
    """Operands between commas that are outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return (*parts, last) if last else tuple(parts)


def parse(text: str) -> dict[str, Kernel]:
    """The kernels of a module, by their mangled names."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^\s*\.(?:loc|file)\b[^\n]*$", "", text, flags=re.M)
    bodies = list(_bodies(text))
    outside = text
    for _, _, body in bodies:
        outside = outside.replace(body, "", 1)
    kernels = {}
    for name, parameters, body in bodies:
        declarations = _SHARED.findall(outside) + _SHARED.findall(body)
        kernel = Kernel(name, _layout(split_operands(parameters)), _shared(declarations))
        _Body(kernel).read(_SHARED.sub("", body))
        kernels[name] = kernel
    return kernels


def _bodies(text: str) -> Iterator[tuple[str, str, str]]:
    for entry in _ENTRY.finditer(text):
        depth, end = 1, entry.end()
        while depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        yield entry[1], entry[2] or "", text[entry.end() : end - 1]


def _declared(text: str) -> tuple[str, int, int]:
    """Name, bytes and alignment of a declaration; no bytes for an array of unknown length."""
    match = _DECLARATION.fullmatch(re.sub(r"^\.param\s+", "", text.strip()))
    if match is None:
        raise Unsupported(f"declaration {text!r}")
    element = _SIZES[match["type"][1:]]
    count = int(match["count"] or 0) if match["array"] else 1
    return match["name"], element * count, int(match["align"] or element)


def _layout(declarations: tuple[str, ...]) -> dict[str, Variable]:
    variables, end = {}, 0
    for name, size, align in map(_declared, declarations):
        offset = -(-end // align) * align
        variables[name] = Variable(offset, size)
        end = offset + size
    return variables


def _shared(declarations: list[str]) -> dict[str, Variable]:
    """Variables of known size first, then the dynamic ones, which all begin at one address."""
    known = [d for d in declarations if _declared(d)[1]]
    variables = _layout(tuple(known))
    end = max((v.offset + v.size for v in variables.values()), default=0)
    for name, size, align in map(_declared, declarations):
        if size == 0:
            variables[name] = Variable(-(-end // align) * align, 0)
    return variables


class _Body:
    """Reads statements, with the scopes that inline assembly opens."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[dict[str, str]] = []
        self.suffixes: list[str] = []
        self.opened = 0

    def read(self, text: str) -> None:
        pending = ""
        for char, following in zip(text, text[1:] + " ", strict=True):
            stripped = pending.strip()
            if char == ";":
                self.statement(stripped)
                pending = ""
            elif char == "{" and not stripped:
                self.opened += 1
                self.scopes.append({})
                self.suffixes.append(f"@{self.opened}")
            elif char == "}" and not stripped:
                self.scopes.pop()
                self.suffixes.pop()
            elif char == ":" and following != ":" and _NAME.fullmatch(stripped):
                if stripped in self.kernel.labels:
                    raise Unsupported(f"label {stripped} stands twice")
                self.kernel.labels[stripped] = len(self.kernel.instructions)
                pending = ""
            else:
                pending += char
        if pending.strip():
            raise Unsupported(f"text behind the last statement: {pending.strip()!r}")

    def unique(self, name: str) -> str:
        """A name declared in an inner scope hides one of the same spelling outside."""
        if not self.scopes:
            return name
        return self.scopes[-1].setdefault(name, name + self.suffixes[-1])

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare(text)
        elif text.startswith(".pragma"):
            return  # advice on unrolling
        elif text.startswith(".local"):
            return  # Triton leaves some unused; an instruction that names it is refused
        elif text.startswith("."):
            raise Unsupported(f"directive {text!r}")
        elif text:
            self.instruction(text)

    def declare(self, text: str) -> None:
        kind, names = re.sub(r"^\.reg\s+\.", "", text).split(None, 1)
        for name in split_operands(names):
            match = _REGISTERS.fullmatch(name)
            if match is None:
                raise Unsupported(f"register {name!r}")
            stem, count = match[1], match[2]
            members = [stem] if count is None else [f"{stem}{i}" for i in range(int(count))]
            for member in members:
                self.kernel.registers[self.unique(member)] = kind

    def resolve(self, operand: str) -> str:
        def known(match: re.Match[str]) -> str:
            for scope in reversed(self.scopes):
                if match[0] in scope:
                    return scope[match[0]]
            return match[0]

        return _NAME.sub(known, operand)

    def instruction(self, text: str) -> None:
        predicate, negated = None, False
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
            negated = guard.startswith("!")
            predicate = self.resolve(guard.lstrip("!"))
        opcode, _, rest = text.replace("\t", " ").partition(" ")
        operands = tuple(self.resolve(o) for o in split_operands(rest))
        self.kernel.instructions.append(Instruction(opcode, operands, predicate, negated))
