"""Batch normalization and relu folded into convolutions, for inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from grouped_conv.convert import decision_of, replace_grouped_conv_
from grouped_conv.dataflow import (
    Analysis,
    Flow,
    analyse,
    has_hooks,
    is_batch_norm,
    is_norm_act,
    relus_of,
    without_relus,
)
from grouped_conv.functional import fold_batch_norm
from grouped_conv.modules import GroupedConv2d, GroupedConvReLU2d
from grouped_conv.report import Entry, Report


@dataclass
class _Plan:
    """What goes into one convolution."""

    layer: nn.Conv2d
    norms: list[nn.BatchNorm2d] = field(default_factory=list)
    relu: fx.Node | None = None
    flow: Flow | None = None


def _refusal(layer: nn.Module, analysis: Analysis) -> str | None:
    """Why a module can neither change nor vanish."""
    if layer.training:
        return "it is in training, call eval() first"
    if has_hooks(layer):
        return "it has hooks, which would see other values"
    if analysis.calls[id(layer)] > 1:
        return "it is called more than once"
    if id(layer) in analysis.read:
        return "the model reads its parameters itself"
    return None


def _layer_refusal(layer: nn.Conv2d, analysis: Analysis) -> str | None:
    if type(layer) is GroupedConvReLU2d:
        return "a relu was fused into it before"
    if type(layer) not in (nn.Conv2d, GroupedConv2d):
        return f"{type(layer).__name__} is a class of its own"
    return _refusal(layer, analysis)


def _norm_refusal(norm: nn.Module, layer: nn.Conv2d, analysis: Analysis) -> str | None:
    if reason := _refusal(norm, analysis):
        return reason
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return "it has no running statistics"
    if norm.num_features != layer.out_channels:
        return "it does not have the convolution's channels"
    return None


def _plan(flow: Flow, node: fx.Node, layer: nn.Conv2d, analysis: Analysis) -> _Plan | str:
    """What may be folded into a convolution, or why nothing may."""
    if reason := _layer_refusal(layer, analysis):
        return reason
    plan = _Plan(layer, flow=flow)
    follower = flow.next(node)
    while follower is not None:
        norm = flow.module(follower)
        if norm is None or not is_batch_norm(norm):
            break
        if reason := _norm_refusal(norm, layer, analysis):
            if not plan.norms:
                return f"the batch normalization behind it stays: {reason}"
            break
        assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        plan.norms.append(norm)  # type: ignore[arg-type]
        if is_norm_act(norm):
            return plan
        follower = flow.next(follower)
    if follower is not None and type(layer) is GroupedConv2d and flow.is_relu(follower):
        relu = flow.module(follower)
        if relu is None or not has_hooks(relu):
            plan.relu = follower
    if plan.norms or plan.relu is not None:
        return plan
    if node.users and len(node.users) > 1:
        return "its output is used more than once"
    return "no batch normalization follows it"


class _Surgeon:
    """Carries plans out; knows where each module is registered."""

    def __init__(self, model: nn.Module, analysis: Analysis) -> None:
        self._analysis = analysis
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        self._names: dict[int, str] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), name)
            for child_name, child in module.named_children():
                place = (module, child_name)
                places = self._places.setdefault(id(child), [])
                if place not in places:
                    places.append(place)

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        for parent, name in self._places[id(old)]:
            setattr(parent, name, new)

    def fold(self, plan: _Plan) -> str:
        """Fold the normalizations of a plan; the words for it."""
        words = []
        for norm in plan.norms:
            _fold(plan.layer, norm)
            words.append(f"{self._names[id(norm)]} folded")
            rest: nn.Module = nn.Identity().eval()
            if is_norm_act(norm):
                act: nn.Module = norm.act  # type: ignore[assignment]
                if (
                    type(act) is nn.ReLU
                    and type(plan.layer) is GroupedConv2d
                    and not has_hooks(act)
                ):
                    plan.layer.__class__ = GroupedConvReLU2d
                    words.append("relu fused")
                else:
                    rest = act
            self.replace(norm, rest)
        return ", ".join(words)

    def drop_relus(self, plans: list[_Plan]) -> set[int]:
        """Take the relus of plans out of the model; the ids of the layers that shall have them.

        A module of its own becomes an identity. One that is called elsewhere too, or a function, is
        taken out of the forward that calls it.
        """
        done: set[int] = set()
        shared: dict[int, list[_Plan]] = {}
        for plan in plans:
            assert plan.flow is not None
            assert plan.relu is not None
            relu = plan.flow.module(plan.relu)
            once = relu is not None and self._analysis.calls[id(relu)] == 1
            if relu is not None and once and len(self._places.get(id(relu), ())) == 1:
                self.replace(relu, nn.Identity().eval())
                done.add(id(plan.layer))
            else:
                shared.setdefault(id(plan.flow.owner(plan.relu)), []).append(plan)
        for group in shared.values():
            if self._rewrite(group):
                done.update(id(plan.layer) for plan in group)
        return done

    def _rewrite(self, group: list[_Plan]) -> bool:
        flow, first = group[0].flow, group[0].relu
        assert flow is not None
        assert first is not None
        owner = flow.owner(first)
        if "forward" in owner.__dict__ or self._analysis.calls[id(owner)] > 1:
            return False
        relus = relus_of(flow, owner)
        dropped = {relus.index(plan.relu) for plan in group if plan.relu is not None}
        forward = without_relus(owner, len(relus), dropped)
        if forward is None:
            return False
        owner.forward = forward
        return True


@torch.no_grad()
def _fold(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Make a convolution compute its normalization too. New parameters: others may hold the old."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale, shift = fold_batch_norm(mean, var, norm.weight, norm.bias, norm.eps)
    weight = layer.weight
    if layer.bias is not None:
        shift = shift + layer.bias * scale
    folded = (weight * scale[:, None, None, None]).to(weight.dtype)
    layer.weight = nn.Parameter(folded, requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)


def fuse_grouped_conv_bn_(
    model: nn.Module, *, filter_fn: Callable[[str, nn.Conv2d], bool] | None = None
) -> Report:
    """Fold batch normalizations into a model's convolutions and relus into its grouped ones.

    In place, for inference: the model must be in evaluation. Layers that
    :func:`replace_grouped_conv_` would take are replaced first. Then what follows each convolution
    is read from torch.fx graphs of the model's forward, or of its parts where the whole cannot be
    traced. A batch normalization that alone reads a convolution's output goes into its weight and
    bias, of dense convolutions too, and an ``nn.Identity`` takes its place; a relu that alone reads
    the result goes into a grouped convolution, which becomes a :class:`GroupedConvReLU2d`. If that
    relu is a function, or a module that serves several places, the module that calls it gets a
    forward without that call. A second call changes nothing.

    Layers with hooks are left alone, and so are those that run more than once, whose parameters the
    model reads itself, that are of another class, and that no graph reaches; the report says so.
    Everything else keeps its state: other hooks, buffers, training or evaluation. Weights and
    biases become new parameters, in the dtype and memory format of the old, computed in float32.

    Args:
        model: searched with all its submodules.
        filter_fn: called with the name and the layer; False leaves it alone.

    Returns:
        One entry per nn.Conv2d of the model: what went into it, or why nothing did.
    """
    replace_grouped_conv_(model, filter_fn=filter_fn)
    analysis = analyse(model)
    plans: dict[int, _Plan | str] = {}
    for flow in analysis.flows:
        for node in flow.graph.nodes:
            layer = flow.module(node)
            if isinstance(layer, nn.Conv2d):
                plans[id(layer)] = _plan(flow, node, layer, analysis)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name, layer in layers.items():
        if filter_fn is not None and not filter_fn(name, layer):
            plans[id(layer)] = "filter_fn said no"
    surgeon = _Surgeon(model, analysis)
    entries = []
    found = [p for p in plans.values() if isinstance(p, _Plan)]
    with_relu = surgeon.drop_relus([p for p in found if p.relu is not None])
    for name, layer in layers.items():
        plan = plans.get(id(layer)) or _layer_refusal(layer, analysis)
        if not isinstance(plan, _Plan):
            reason = plan or analysis.why_unreached(name)
            entries.append(Entry(name, False, reason=reason))
            continue
        detail = surgeon.fold(plan)
        if id(layer) in with_relu:
            layer.__class__ = GroupedConvReLU2d
            detail = ", ".join(filter(None, (detail, "relu fused")))
        if not detail:
            entries.append(Entry(name, False, reason="the forward that calls its relu stays"))
            continue
        decision = decision_of(layer, layer.weight.dtype, layer.weight.device.type)
        ours = isinstance(layer, GroupedConv2d)
        backend, kernel = (decision.backend, decision.kernel) if ours else ("aten", "")
        entries.append(Entry(name, True, backend, kernel, detail=detail))
    return Report(entries, "convolutions fused")
