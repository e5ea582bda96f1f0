"""The table of measured choices: what :func:`grouped_conv.autotune` has found out, and its files.

The rules of the backends are a pure function of a query. Where a problem has been measured on this
device, the measurement is asked before them. A table belongs to one device with its settings, one
torch and one version of this library: those are the *facts* of its file, which are in the name of
the file, too. Files are only ever replaced as a whole, so a reader needs no lock; writers take
turns under a lock and keep what others have written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch

from grouped_conv import _C, configurations
from grouped_conv._version import __version__
from grouped_conv.backends import ORDER, Query, dtype_name
from grouped_conv.bench.machine import cpu_name
from grouped_conv.problem import PASSES, Pass

DIRECTORY_VARIABLE = "GROUPED_CONV_CACHE_DIR"
SWITCH_VARIABLE = "GROUPED_CONV_AUTOTUNE"

_FORMAT = 1
_DTYPES = {dtype_name(d): d for d in (torch.float32, torch.bfloat16, torch.float16)}


class Site(NamedTuple):
    """What a measurement depends on beside the query: the device, and the extents of x."""

    device: torch.device
    N: int
    H: int
    W: int


Key = tuple[Query, int, int, int]
"""A query and the N, H and W of x."""


@dataclass(frozen=True)
class Entry:
    """Medians of the backends that were measured, in microseconds, the fastest first."""

    microseconds: tuple[tuple[str, float], ...]
    source: str
    """Where it is kept."""
    configuration: str = ""
    """Of the native CUDA kernels, the fastest, where there was a choice."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {us:.1f} us" for name, us in self.microseconds)
        configured = f", native by {self.configuration}" if self.configuration else ""
        return f"measured: {times}{configured} ({self.source})"


@dataclass
class Table:
    """All measurements for one device."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    agreed: dict[Query, Entry] = field(default_factory=dict)
    """For batches and images that were not measured: where all that were have the same winner."""

    def update(self, entries: Mapping[Key, Entry]) -> None:
        self.entries.update(entries)
        winners: dict[Query, set[str]] = {}
        for (query, *_), entry in self.entries.items():
            winners.setdefault(query, set()).add(entry.microseconds[0][0])
        self.agreed = {
            key[0]: entry for key, entry in self.entries.items() if len(winners[key[0]]) == 1
        }


def facts(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for."""
    common = {"torch": torch.__version__, "grouped_conv": __version__}
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return {"device": cpu_name(), "isa": _C.cpu_isa(), "threads": threads, **common}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32": float32_precision(),
        **common,
    }


def float32_precision() -> str:
    """How cuDNN multiplies float32: ``tf32``, ``ieee``, or ``none`` where nothing is set."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return str(conv.fp32_precision)


def directory() -> Path | None:
    """Where tables are kept; None where the process has no home."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the convention ignores a relative one
        return Path(base) / "grouped_conv"
    try:
        return Path.home() / ".cache" / "grouped_conv"
    except RuntimeError:
        return None


def path_of(device: torch.device) -> Path | None:
    """The file of a device's table under the present settings."""
    base = directory()
    if base is None:
        return None
    made_for = facts(device)
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^a-z0-9]+", "-", made_for["device"].lower()).strip("-")
    versions = f"torch-{made_for['torch']}_grouped_conv-{made_for['grouped_conv']}"
    return base / f"{name}_{versions}_{digest[:12]}.json"


_tables: dict[torch.device, Table] = {}


def is_on() -> bool:
    """Whether choices ask the tables."""
    return os.environ.get(SWITCH_VARIABLE) != "0"


def forget() -> None:
    """Read the files again when they are next needed."""
    _tables.clear()


def table(device: torch.device) -> Table:
    """The measurements for a device, read when they are first needed."""
    if not is_on() or (device.type == "cuda" and not torch.cuda.is_available()):
        return Table()
    if device.type == "cuda" and device == torch.device("cuda"):  # without an index
        device = torch.device("cuda", torch.cuda.current_device())
    known = _tables.get(device)
    if known is None:
        path = path_of(device)
        entries = {} if path is None else _read(path, facts(device))
        known = Table()
        known.update(entries)
        _prefer_configurations(device, entries)
        _tables[device] = known  # when it is complete: another thread may ask
    return known


def lookup(query: Query, site: Site | None) -> Entry | None:
    """The measurement of a problem, or what all measurements of its query agree on.

    A graph that is traced keeps one choice for all batches and images, hence the latter.
    """
    if site is None or site.device.type not in ("cpu", "cuda"):
        return None
    if torch.compiler.is_compiling():
        return _matching(query, _agreed(str(site.device)))
    measurements = table(site.device)
    try:
        exact = measurements.entries.get((query, *site[1:]))
        return measurements.agreed.get(query) if exact is None else exact
    except TypeError:  # symbolic extents, while gradients are traced, have no hash
        return _matching(query, measurements.agreed.items())


def _matching(query: Query, entries: Iterable[tuple[Query, Entry]]) -> Entry | None:
    """A look-up by comparison."""
    for known, entry in entries:
        if known == query:
            return entry
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _agreed(device: str) -> tuple[tuple[Query, Entry], ...]:
    return tuple(table(torch.device(device)).agreed.items())


def record(device: torch.device, entries: Mapping[Key, Entry]) -> None:
    """Add measurements to the table in this process."""
    if is_on():
        table(device).update(entries)
        _prefer_configurations(device, entries)


def _prefer_configurations(device: torch.device, entries: Mapping[Key, Entry]) -> None:
    for (query, *image), entry in entries.items():
        if entry.configuration:
            configurations.prefer(device, query, image, entry.configuration)


def write(device: torch.device, entries: Mapping[Key, Entry]) -> str:
    """Merge measurements into the file of a device; where they are kept.

    Where the file cannot be written a warning says so, and they are kept in this process alone.
    """
    path = path_of(device)
    try:
        if path is None:
            raise FileNotFoundError("there is no home directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            made_for = facts(device)
            merged = {**_read(path, made_for), **entries}
            rows = ",\n".join(json.dumps(_row(key, entry)) for key, entry in merged.items())
            head = f'"format": {_FORMAT}, "made_for": {json.dumps(made_for)}'
            _replace(path, f'{{{head}, "measured": [\n{rows}\n]}}\n')
    except OSError as error:
        warnings.warn(
            f"grouped_conv: measurements are kept in this process only: {error}", stacklevel=4
        )
        return "this process"
    return str(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file gives it back
        yield


def _replace(path: Path, text: str) -> None:
    """Put a file in the place of another one, whole or not at all."""
    new = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _read(path: Path, made_for: Mapping[str, Any]) -> dict[Key, Entry]:
    """The measurements in a file; none, and a warning, where it is not what its name says."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, f"it cannot be read: {error}")
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            return _ignored(path, f"its format is {content['format']}, not {_FORMAT}")
        if content["made_for"] != made_for:
            return _ignored(path, f"it was made for {content['made_for']}, this is {made_for}")
        return dict(_parsed(row, str(path)) for row in content["measured"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return _ignored(path, f"it is corrupt: {type(error).__name__}: {error}")


def _ignored(path: Path, reason: str) -> dict[Key, Entry]:
    warnings.warn(f"grouped_conv: {path} is ignored: {reason}", stacklevel=2)
    return {}


def _row(key: Key, entry: Entry) -> dict[str, Any]:
    query, *image = key
    return {
        **query._asdict(),
        "dtype": dtype_name(query.dtype),
        **dict(zip("NHW", image, strict=True)),
        "microseconds": dict(entry.microseconds),
        "configuration": entry.configuration,
    }


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _count(first), _count(second)


def _one_of(known: Iterable[Any]) -> Callable[[Any], Any]:
    values = tuple(known)

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"{value!r} is none of {values}")
        return value

    return check


_DECODERS: dict[Any, Callable[[Any], Any]] = {
    Pass: _one_of(PASSES),
    torch.dtype: lambda name: _DTYPES[name],
    str: _one_of(("cpu", "cuda")),
    bool: _one_of((False, True)),
    int: _count,
    tuple[int, int]: _pair,
}
"""By the types of a query's fields."""
_FIELDS = get_type_hints(Query)


def _parsed(row: Mapping[str, Any], source: str) -> tuple[Key, Entry]:
    """The inverse of :func:`_row`; raises what :func:`_read` catches."""
    query = Query(**{name: _DECODERS[kind](row[name]) for name, kind in _FIELDS.items()})
    times = row["microseconds"]
    for name, us in times.items():
        if name not in ORDER or type(us) not in (int, float) or not 0 < us < float("inf"):
            raise ValueError(f"{name!r}: {us!r} is not a measurement")
    if not times:
        raise ValueError("there is a row without times")
    if type(row["configuration"]) is not str:
        raise ValueError(f"{row['configuration']!r} is not a configuration")
    fastest_first = tuple(sorted(times.items(), key=lambda item: item[1]))
    key = (query, _count(row["N"]), _count(row["H"]), _count(row["W"]))
    return key, Entry(fastest_first, source, row["configuration"])
