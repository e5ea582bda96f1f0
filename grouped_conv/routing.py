"""Which backend computes a pass, and the three passes routed to it, without autograd rules."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from grouped_conv import _libraries
from grouped_conv.backends import ORDER, Query, allows_tf32
from grouped_conv.problem import ConvProblem, Pass

_libraries.load()

from grouped_conv import measured  # noqa: E402  (these need the library)
from grouped_conv.backends import aten, native, triton  # noqa: E402
from grouped_conv.measured import Site  # noqa: E402

BACKEND_VARIABLE = "GROUPED_CONV_BACKEND"

_MODULES: dict[str, ModuleType] = {m.NAME: m for m in (native, triton, aten)}
assert tuple(_MODULES) == ORDER

_OPS = torch.ops.grouped_conv
_PREFIXES = {"native": "", "triton": "triton_"}


def op_of(backend: str, name: str) -> Any:
    """The operator of a backend other than aten: ``fprop``, ``fprop_affine``, ``dgrad``..."""
    return getattr(_OPS, _PREFIXES[backend] + name).default


@dataclass(frozen=True)
class PassDecision:
    """Who computes one pass."""

    backend: str
    kernel: str
    refused: tuple[tuple[str, str], ...]
    """The backends that were asked before, each with its reason."""
    measured: str = ""
    """The measurement that decided, where one did."""

    @property
    def reason(self) -> str:
        """Why this backend: empty for the first choice of the rules, else why those before it
        refused, or what was measured."""
        refused = "; ".join(f"{name}: {why}" for name, why in self.refused)
        return "; ".join(filter(None, (self.measured, refused)))


def _check_name(name: object, source: str = "") -> str:
    if not isinstance(name, str) or name not in ("auto", *ORDER):
        raise ValueError(
            f"{source}unknown backend {name!r}: expected auto, {', '.join(ORDER[:-1])} or "
            f"{ORDER[-1]}"
        )
    return name


_default = _check_name(os.environ.get(BACKEND_VARIABLE, "auto"), f"{BACKEND_VARIABLE}: ")


class _Choice(threading.local):
    """The choice of one thread. Not a ContextVar: the compiler cannot trace those."""

    name: str | None = None


_chosen = _Choice()


def current_backend() -> str:
    """The choice in force in this thread: a backend's name or ``auto``."""
    return _chosen.name or _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend within a ``with`` block, for the current thread.

    ``auto`` takes what :func:`grouped_conv.autotune` has measured to be the fastest; where nothing
    was measured, the first of native, triton and aten that supports a problem and is expected to be
    the fastest. A backend's name takes that backend for all it supports and raises ``RuntimeError``
    for what it does not. The environment variable ``GROUPED_CONV_BACKEND`` sets the choice outside
    of any block, the ``backend`` argument of a call overrides both. The gradient passes follow the
    choice in force when they run.

    Raises:
        ValueError: the name is none of auto, native, triton, aten.
    """
    before, _chosen.name = _chosen.name, _check_name(name)
    try:
        yield
    finally:
        _chosen.name = before


def available_backends() -> dict[str, str | None]:
    """Each backend's name with None if it can be used in this process, else the reason why not."""
    return {name: module.unavailable() for name, module in _MODULES.items()}


_cache: dict[tuple[Query, str, Site | None], PassDecision] = {}
_CACHE_LIMIT = 4096


def forget() -> None:
    """Decide anew: the table of measurements is another one."""
    _cache.clear()


def refusal(backend: str, query: Query) -> str | None:
    """Why a backend cannot compute a pass in this process, None if it can."""
    module = _MODULES[backend]
    reason: str | None = module.unavailable() or module.supports(query)
    return reason


def _decide(query: Query, name: str, site: Site | None) -> PassDecision:
    if name != "auto":
        if reason := refusal(name, query):
            raise RuntimeError(
                f"grouped_conv backend {name} cannot compute {query.pass_name}: {reason}"
            )
        return PassDecision(name, _MODULES[name].kernel(query), ())
    if site is not None and (decision := _decide_by_measurement(query, site)) is not None:
        return decision
    return decide_by_rule(query)


def tails(backend: str, query: Query) -> tuple[str, str]:
    """Where a backend computes fprop's epilogue, and the statistics of its output."""
    module = _MODULES[backend]
    return module.epilogue(query), module.statistics(query)


def decide_by_rule(query: Query) -> PassDecision:
    """Who computes a pass on ``auto`` where nothing was measured: a pure function of the query."""
    refused: list[tuple[str, str]] = []
    for candidate in ORDER:
        reason = refusal(candidate, query) or _MODULES[candidate].prefers(query)
        if reason is None:
            return PassDecision(candidate, _MODULES[candidate].kernel(query), tuple(refused))
        refused.append((candidate, reason))
    raise AssertionError("aten takes everything")


def _decide_by_measurement(query: Query, site: Site) -> PassDecision | None:
    """The fastest backend in the table that takes a pass; None where there is none."""
    entry = measured.lookup(query, site)
    if entry is None:
        return None
    for chosen, _ in entry.microseconds:
        if refusal(chosen, query) is not None:
            continue
        before = ORDER[: ORDER.index(chosen)]
        refused = (
            (b, refusal(b, query) or "a later one was measured to be faster") for b in before
        )
        return PassDecision(chosen, _MODULES[chosen].kernel(query), tuple(refused), str(entry))
    return None


def decide_query(
    query: Query, backend: str | None = None, site: Site | None = None
) -> PassDecision:
    """Who computes a pass. A named backend that cannot raises ``RuntimeError`` with its reason.

    Without a site, whose measurements are asked first, the rules alone decide.
    """
    name = current_backend() if backend is None else _check_name(backend)
    if torch.compiler.is_compiling():
        return _decide(query, name, site)
    key = (query, name, site)
    try:
        decision = _cache.get(key)
    except TypeError:  # symbolic extents, while a graph is traced, have no hash
        return _decide(query, name, site)
    if decision is None:
        decision = _decide(query, name, site)
        if len(_cache) >= _CACHE_LIMIT:
            _cache.clear()
        _cache[key] = decision
    return decision


def decide(
    problem: ConvProblem,
    dtype: torch.dtype,
    device: torch.device | str,
    channels_last: bool,
    pass_name: Pass,
    backend: str | None = None,
) -> PassDecision:
    """Who computes one pass of a problem, by the rules that :func:`use_backend` describes."""
    p, where = problem, torch.device(device)
    query = Query.of(pass_name, p, dtype, where, channels_last)
    return decide_query(query, backend, Site(where, p.N, p.H, p.W))


def suggests_channels_last(t: Tensor) -> bool:
    """Whether the strides of a 4-D tensor order it N, H, W, C, dense or not.

    c10's ``is_channels_last_strides_2d``, which decides the memory format of PyTorch's own
    convolution; ambiguous shapes resolve as they do there.
    """
    sizes, strides = t.shape, t.stride()
    if strides[1] == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * sizes[d] if sizes[d] > 1 else strides[d]
    return True


def site_of(x: Tensor) -> Site:
    """Where a convolution of x takes place."""
    n, _, height, width = x.shape
    return Site(x.device, n, height, width)


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def call(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """One of our ops, past its autograd rule if no one records: that takes as long as the rest."""
    if (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args))
        or torch._C._functorch.get_dynamic_layer_stack_depth() > 0
        or forward_ad._current_level >= 0
    ):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def call_below_autocast(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """:func:`call` with tensors that have been cast: autocast's rule would look at each again."""
    if torch.compiler.is_compiling():
        return op(*args)
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return call(op, *args)


def fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    backend: str | None = None,
) -> Tensor:
    """y ``[N, K, P, Q]`` from x ``[N, C, H, W]`` and w ``[K, C/G, R, S]``, in the layout of x."""
    query = _query(
        "fprop", x, suggests_channels_last(x), w.shape, stride, padding, dilation, groups
    )
    if (chosen := decide_query(query, backend, site_of(x)).backend) != "aten":
        op, tf32 = op_of(chosen, "fprop"), query.allow_tf32
        return call(op, x, w, bias, stride, padding, dilation, groups, tf32)
    return torch.conv2d(x, w, bias, stride, padding, dilation, groups)


def dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    backend: str | None = None,
) -> Tensor:
    """dx ``[N, C, H, W]`` from dy ``[N, K, P, Q]`` and w, in the memory format asked for."""
    query = _query("dgrad", dy, channels_last, w.shape, stride, padding, dilation, groups)
    n, _, height, width = input_size
    site = Site(dy.device, n, height, width)
    if (chosen := decide_query(query, backend, site).backend) != "aten":
        op = op_of(chosen, "dgrad")
        attributes = (stride, padding, dilation, groups, channels_last, query.allow_tf32)
        return call(op, dy, w, input_size, *attributes)
    fmt = memory_format(channels_last)
    # Only the shape and the memory format of x matter to this pass.
    x = torch.empty(tuple(input_size), dtype=dy.dtype, device=dy.device, memory_format=fmt)
    grads = torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )
    grad: Tensor = grads[0]
    return grad.contiguous(memory_format=fmt)


def wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    backend: str | None = None,
) -> Tensor:
    """dw ``[K, C/G, R, S]`` from dy and x, in the memory format asked for."""
    layout = suggests_channels_last(x)
    query = _query("wgrad", x, layout, weight_size, stride, padding, dilation, groups)
    if (chosen := decide_query(query, backend, site_of(x)).backend) != "aten":
        op = op_of(chosen, "wgrad")
        attributes = (stride, padding, dilation, groups, channels_last, query.allow_tf32)
        return call(op, dy, x, weight_size, *attributes)
    fmt = memory_format(channels_last)
    # Only the shape and the memory format of w matter, which its gradient gets; but next to a
    # contiguous x a channels_last w would have ATen compute in channels_last.
    like = fmt if layout else torch.contiguous_format
    w = torch.empty(tuple(weight_size), dtype=x.dtype, device=x.device, memory_format=like)
    grads = torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, dilation, False, [0, 0], groups, [False, True, False]
    )
    grad: Tensor = grads[1]
    return grad.contiguous(memory_format=fmt)


def _query(
    pass_name: Pass,
    read: Tensor,
    channels_last: bool,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Query:
    """``Query.of`` without a problem: a call of a few hundred microseconds feels its cost."""
    k, c_per_group, r, s = weight_size
    return Query(
        pass_name,
        read.dtype,
        read.device.type,
        channels_last,
        groups,
        c_per_group,
        k // groups,
        (r, s),
        tuple(stride),  # type: ignore[arg-type]
        tuple(padding),  # type: ignore[arg-type]
        tuple(dilation),  # type: ignore[arg-type]
        allows_tf32(read.dtype, read.device.type),
    )
