"""Measures which backend computes a convolution fastest on this device, and remembers it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grouped_conv import configurations, functional, measured
from grouped_conv.backends import ORDER, Query, dtype_name
from grouped_conv.bench.machine import last_level_cache
from grouped_conv.bench.peers import Case, Contender, Operands, ours
from grouped_conv.bench.roofline import DTYPES
from grouped_conv.bench.timing import Budget, interleave, quartiles, slots_for, stopwatch
from grouped_conv.measured import Entry, Key
from grouped_conv.problem import PASSES, ConvProblem, Pass
from grouped_conv.request import Request, is_traced, parse, transform_reason
from grouped_conv.routing import refusal, suggests_channels_last

_CPU = torch.device("cpu")
_LEAST_ROUNDS = 5
_HOPELESS = 5.0
"""A backend that takes so many times as long as the fastest is timed no further."""
_MOST_SETS = 128
"""Sets of inputs, so that the tensors of a tiny problem are soon made; they may stay in cache."""


@dataclass(frozen=True)
class Workload:
    """A convolution as it occurs: a problem, and how its tensors are stored."""

    problem: ConvProblem
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    device: torch.device = _CPU

    @classmethod
    def of_request(cls, request: Request) -> Workload:
        x = request.input
        return cls(request.problem, x.dtype, suggests_channels_last(x), x.device)

    def query(self, pass_name: Pass) -> Query:
        return Query.of(pass_name, self.problem, self.dtype, self.device, self.channels_last)

    def key(self, pass_name: Pass) -> Key:
        p = self.problem
        return self.query(pass_name), p.N, p.H, p.W

    def __str__(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        return f"{self.problem} {dtype_name(self.dtype)} {layout} on {self.device}"


@dataclass(frozen=True)
class Measurement:
    """One pass of a workload: what each backend took, and who could not take part."""

    workload: Workload
    pass_name: Pass
    microseconds: dict[str, float]
    """Medians, the fastest first."""
    left_out: dict[str, str]
    """Backends that were not timed, or gave a wrong result, each with its reason."""
    configurations: dict[str, float]
    """Of the native CUDA kernels, microseconds of each configuration where there is a choice."""
    source: str = ""
    """Where the measurement is kept."""

    @property
    def backend(self) -> str:
        """The fastest."""
        return next(iter(self.microseconds))

    @property
    def entry(self) -> Entry:
        """As it stands in the table."""
        configuration = min(self.configurations, key=self.configurations.__getitem__, default="")
        return Entry(tuple(self.microseconds.items()), self.source, configuration)

    def __str__(self) -> str:
        parts = [f"{name} {us:.1f} us" for name, us in self.microseconds.items()]
        parts += [f"{name} {us:.1f} us" for name, us in self.configurations.items()]
        parts += [f"{name} left out: {why}" for name, why in self.left_out.items()]
        return f"{self.pass_name} of {self.workload}: " + ", ".join(parts)


def workloads(model: nn.Module, *inputs: Any, **keywords: Any) -> list[Workload]:
    """The distinct grouped convolutions of a model's forward pass that come to this library.

    Runs the model once, without gradients; its buffers and the random numbers stay as they are.
    For 16-bit tensors under autocast, call it under autocast.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cuda = {t.device for t in (*buffers.values(), *model.parameters()) if t.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(cuda), _Recorder() as recorder:
        torch.func.functional_call(model, buffers, inputs, keywords)
    return list(dict.fromkeys(recorder.found))


class _Recorder(TorchFunctionMode):
    """Notes the calls of our functions and makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Workload] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        request: Request | str = ""
        if func is functional.grouped_conv2d:
            request = parse(*args)
        elif func is functional.grouped_conv2d_affine:
            request = parse(*args[:3], *args[7:])  # without the epilogue
        if isinstance(request, Request) and request.groups > 1 and request.input.shape[0] > 0:
            self.found.append(Workload.of_request(request))
        return func(*args, **(kwargs or {}))


def autotune(
    problems: Iterable[Workload] | nn.Module,
    *inputs: Any,
    passes: Sequence[Pass] = PASSES,
    seconds: float = 0.1,
) -> list[Measurement]:
    """Measure the backends on problems, and let ``auto`` take the fastest of each from now on.

    Every backend that supports a pass computes it on random tensors; one whose result is not
    PyTorch's is left out. The others are timed in turn, with cold inputs. The medians go to the
    table of this device, which later processes read: a file in ``GROUPED_CONV_CACHE_DIR``, else in
    ``grouped_conv`` of the user's cache directory. :func:`explain` says what was measured. Choices
    for a batch or an image that was not measured, and those in compiled graphs, follow the
    measurements of the same layer where these agree. Graphs that are compiled already keep theirs.

    Args:
        problems: workloads, or a model.
        inputs: of the model; its grouped convolutions on them are what is measured
            (:func:`workloads`).
        passes: which of fprop, dgrad and wgrad. The gradients of a forward pass that ATen computes
            are ATen's too.
        seconds: the time to spend on each backend and pass, beside checking its result.

    Returns:
        One measurement per workload and pass.

    Raises:
        RuntimeError: in a graph that is traced, under a transform, or while a CUDA graph is
            captured. ValueError: no backend but ATen computes such tensors, or there is no output.
    """
    if reason := _hindrance():
        raise RuntimeError(f"grouped_conv.autotune cannot measure {reason}")
    found = workloads(problems, *inputs) if isinstance(problems, nn.Module) else problems
    with torch.no_grad():
        return _keep(
            [_measure(w, pass_name, seconds) for w in dict.fromkeys(found) for pass_name in passes]
        )


def _hindrance() -> str | None:
    """Why nothing can be timed here."""
    if is_traced():
        return "while a graph is traced or compiled"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "while a CUDA graph is captured"
    if transform_reason() is not None or torch._C._len_torch_dispatch_stack() > 0:
        return "under a transform or a dispatch mode"
    return None


def _keep(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Put measurements into the tables of their devices and the files of these."""
    kept: list[Measurement] = []
    tables: dict[torch.device, list[Measurement]] = {}
    for m in measurements:
        tables.setdefault(m.workload.device, []).append(m)
    for device, these in tables.items():
        source = measured.write(device, {m.workload.key(m.pass_name): m.entry for m in these})
        kept += (named := [replace(m, source=source) for m in these])
        measured.record(device, {m.workload.key(m.pass_name): m.entry for m in named})
    functional.forget()
    return kept


def _measure(workload: Workload, pass_name: Pass, seconds: float) -> Measurement:
    w = workload
    if w.dtype not in DTYPES.values() or w.device.type not in ("cpu", "cuda"):
        kind = f"{dtype_name(w.dtype)} on {w.device.type}"
        raise ValueError(f"grouped_conv.autotune does not measure {kind}")
    if min(w.problem.output_size) < 1:
        raise ValueError(f"grouped_conv.autotune cannot measure {w}: its output is empty")
    layout = "nhwc" if w.channels_last else "nchw"
    case = Case(w.problem, pass_name, dtype_name(w.dtype), layout, w.device)
    query, *image = w.key(pass_name)
    contenders, left_out = _contenders(case, query, image)
    operands = Operands.random(case, 0)
    expected = contenders["aten"].run(operands)
    first: dict[str, float] = {}
    for name, contender in contenders.items():
        try:
            result = contender.run(operands)
        except Exception as error:  # no memory left, or whatever a compiler raises
            left_out[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            continue
        if difference := _difference(result, expected):
            left_out[name] = difference
        else:
            first[name] = min(_seconds(contender, operands) for _ in range(3))
    limit = _HOPELESS * min(first.values())
    hopeful = {name: contenders[name] for name, taken in first.items() if taken <= limit}
    medians = {**first, **_medians(hopeful, operands, seconds)}
    microseconds = {name: round(1e6 * median, 3) for name, median in medians.items()}
    configured = {n: microseconds.pop(n) for n in tuple(microseconds) if n not in ORDER}
    if configured:
        microseconds["native"] = min(configured.values())
        configurations.prefer(case.device, query, image, "")
    fastest_first = dict(sorted(microseconds.items(), key=lambda item: item[1]))
    return Measurement(w, pass_name, fastest_first, left_out, configured)


def _contenders(
    case: Case, query: Query, image: Sequence[int]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Backends, native by each of its configurations where it has a choice; and who cannot."""
    contenders: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for backend in ORDER:
        if reason := refusal(backend, query):
            left_out[backend] = reason
        else:
            contenders[backend] = ours(case, backend)
    choice = configurations.candidates(query, image)
    if choice and "native" in contenders:
        native = contenders.pop("native")
        contenders |= {name: _by(native, query, image, name) for name in choice}
    return contenders, left_out


def _by(native: Contender, query: Query, image: Sequence[int], configuration: str) -> Contender:
    """native by one of its configurations."""

    def run(operands: Operands) -> Tensor:
        configurations.prefer(native.case.device, query, image, configuration)
        return native.run(operands)

    return replace(native, name=configuration, run=run)


def _difference(result: Tensor, expected: Tensor) -> str | None:
    """How far a result is from PyTorch's, where that is more than rounding explains."""
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return f"its result is {result.dtype} {tuple(result.shape)}"
    result, exact = result.double(), expected.double()
    difference, size = (result - exact).abs().max(), exact.square().mean().sqrt()
    dtype = expected.dtype
    if dtype is torch.float32 and expected.is_cuda and measured.float32_precision() == "tf32":
        dtype = torch.float16  # which has as many bits
    # Largest values are a few rms, and so are their roundings; float32 sums have errors of many.
    allowed = max(16 * torch.finfo(dtype).eps, 1e-4)
    if bool(difference <= allowed * size):  # and not NaN
        return None
    return f"its result is {difference / size:.2g} of the rms away from PyTorch's"


def _seconds(contender: Contender, operands: Operands) -> float:
    """Seconds of one call."""

    def synchronize() -> None:
        if contender.case.device.type == "cuda":
            torch.cuda.synchronize(contender.case.device)

    synchronize()
    begin = time.perf_counter()
    contender.run(operands)
    synchronize()
    return time.perf_counter() - begin


def _medians(
    contenders: dict[str, Contender], operands: Operands, seconds: float
) -> dict[str, float]:
    """Seconds of each contender, interleaved, on inputs that are not in the cache."""
    case = next(iter(contenders.values())).case
    bytes_per_set = case.problem.min_bytes(DTYPES[case.dtype])
    slots = slots_for(bytes_per_set, last_level_cache(case.device), _MOST_SETS)
    sets = [operands.copy(case) for _ in range(slots)]

    def bound(contender: Contender) -> Callable[[int], Tensor]:
        return lambda slot: contender.run(sets[slot])

    samples = interleave(
        [bound(contender) for contender in contenders.values()],
        slots,
        stopwatch(case.device),
        Budget(min_time=seconds, repeats=_LEAST_ROUNDS),
        random.Random(0),
    )
    return {name: quartiles(taken)[1] for name, taken in zip(contenders, samples, strict=True)}
