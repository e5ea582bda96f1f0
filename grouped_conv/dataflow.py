"""What follows each convolution of a model, read from torch.fx graphs of its forward."""

from __future__ import annotations

import inspect
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_RELU_FUNCTIONS = (F.relu, torch.relu, F.relu_, torch.relu_)
_RELU_METHODS = ("relu", "relu_")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class _Tracer(fx.Tracer):
    """Follows the forward of everything but convolutions, normalizations and PyTorch's modules."""

    proxy_buffer_attributes = True  # else reading a buffer leaves a constant, and no trace

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (nn.Conv2d, _BatchNorm)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _OwnTracer(fx.Tracer):
    """Follows the forward of one module alone."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def is_norm_act(module: nn.Module) -> bool:
    """timm's batch normalization with an activation inside, its dropout idle."""
    return (
        type(module).__name__ == "BatchNormAct2d"
        and isinstance(module, nn.BatchNorm2d)
        and isinstance(getattr(module, "act", None), nn.Module)
        and isinstance(getattr(module, "drop", None), nn.Identity)
    )


def is_batch_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) or is_norm_act(module)


@dataclass
class Flow:
    """One traced module: where its nodes are, and who they belong to."""

    name: str
    root: nn.Module
    graph: fx.Graph

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, None if it calls none."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def next(self, node: fx.Node) -> fx.Node | None:
        """The only reader of a node's output, past modules that do nothing in evaluation."""
        while len(node.users) == 1:
            (node,) = node.users
            module = self.module(node)
            if type(module) is nn.Identity and not has_hooks(module):
                continue
            if type(module) in _DROPOUTS and module is not None and not module.training:
                continue
            return node
        return None

    def is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.module(node)) is nn.ReLU
        if node.op == "call_function":
            return node.target in _RELU_FUNCTIONS
        return node.op == "call_method" and node.target in _RELU_METHODS

    def owner(self, node: fx.Node) -> nn.Module:
        """The module whose forward contains the call of a node."""
        stack = list(node.meta.get("nn_module_stack", {}))
        if node.op == "call_module":
            stack.pop()
        # A key is the qualified name, with a counter behind @ from the second call on.
        return self.root.get_submodule(stack[-1].split("@")[0]) if stack else self.root


@dataclass
class Analysis:
    """The flows of a model, which together reach all that can be followed."""

    flows: list[Flow] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)
    """How often each module, by id, is called."""
    unfollowed: dict[str, str] = field(default_factory=dict)
    """Names of modules whose own forward could not be followed, and why."""
    read: set[int] = field(default_factory=set)
    """Modules, by id, whose parameters or buffers a forward reads itself."""

    def why_unreached(self, name: str) -> str:
        """Why a module is in no flow."""
        parent = name.rpartition(".")[0]
        while parent not in self.unfollowed and parent:
            parent = parent.rpartition(".")[0]
        if parent in self.unfollowed:
            where = parent or "the model"
            return f"the forward of {where} cannot be followed: {self.unfollowed[parent]}"
        return "no forward calls it"


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody observes or changes what goes in and out of a module."""
    return any(
        getattr(module, name)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def analyse(model: nn.Module) -> Analysis:
    """Trace a model; where control flow on data prevents that, its parts, as large as possible."""
    analysis = Analysis()
    for flow in _flows(model, "", analysis, called=True):
        analysis.flows.append(flow)
        for node in flow.graph.nodes:
            if (module := flow.module(node)) is not None:
                analysis.calls[id(module)] += 1
            elif node.op == "get_attr":
                owner = str(node.target).rpartition(".")[0]
                analysis.read.add(id(flow.root.get_submodule(owner)))
    return analysis


def _trace(tracer: fx.Tracer, module: nn.Module) -> fx.Graph:
    """The graph of a module's forward, whatever its arguments are.

    An argument with a default would be traced as if it was given.
    """
    for argument in inspect.signature(module.forward).parameters.values():
        positional = argument.kind is argument.POSITIONAL_OR_KEYWORD
        if not positional or argument.default is not argument.empty:
            raise ValueError(f"its argument {argument.name} may be left out")
    return tracer.trace(module)


def _flows(module: nn.Module, name: str, analysis: Analysis, called: bool) -> Iterator[Flow]:
    """The flows of a module, which is called as a whole or belongs to one that was not followed."""
    if isinstance(module, nn.Conv2d) or not any(isinstance(m, nn.Conv2d) for m in module.modules()):
        return
    try:
        if type(module) is nn.Sequential and not called:
            raise ValueError("it may take the nn.Sequential inside it apart")
        graph = _trace(_Tracer(), module)
    except Exception as error:  # whatever the code of a model raises for a symbolic input
        analysis.unfollowed[name] = str(error).partition("\n")[0]
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            yield from _flows(child, path, analysis, called=False)
        return
    yield Flow(name, module, graph)


def relus_of(flow: Flow, owner: nn.Module) -> list[fx.Node]:
    """The relus that the forward of one module calls, in order."""
    return [n for n in flow.graph.nodes if flow.is_relu(n) and flow.owner(n) is owner]


def without_relus(owner: nn.Module, expected: int, dropped: set[int]) -> types.MethodType | None:
    """The forward of a module without some of the relus that it calls, by their order.

    None if it cannot be followed by itself, or does not call the expected number.
    """
    try:
        graph = _trace(_OwnTracer(), owner)
    except Exception:  # as in _flows
        return None
    flow = Flow("", owner, graph)
    relus = [n for n in graph.nodes if flow.is_relu(n)]
    if len(relus) != expected:
        return None
    for i in dropped:
        relus[i].replace_all_uses_with(relus[i].all_input_nodes[0])
        graph.erase_node(relus[i])
    code = type(fx.GraphModule(owner, graph)).forward
    return types.MethodType(code, owner)
