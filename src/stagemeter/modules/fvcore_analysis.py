"""fvcore's analyses under their own names, for models that fvcore cannot trace, too.

Accounting, conventions, handles, warnings and tables are fvcore's. Its trace by ``torch.jit`` fails on meta tensors and
on many current models. The model then runs in inference mode, where torch shows each operator before decomposing it,
under the names of a jit trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Self

import torch
from fvcore.nn import ActivationCountAnalysis as _ActivationCountAnalysis
from fvcore.nn import FlopCountAnalysis as _FlopCountAnalysis
from fvcore.nn import jit_analysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stagemeter.modules.as_found import left_as_found
from stagemeter.modules.run import asks_for_values
from stagemeter.modules.shapes import tensors_of, with_values, with_weights
from stagemeter.modules.step_limit import steps_limited

logger = logging.getLogger(__name__)

aten = torch.ops.aten
#: Operators that a jit trace replaces by their parts (tools/autograd/gen_trace_type.py in torch,
#: ``DONT_RECORD_TRACE``).
_NOT_TRACED = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
    | {"gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell"}
)
#: Arguments of ``_convolution``, which a trace shows, beyond those of ``convolution``: whether cuDNN benchmarks, is
#: deterministic, is used, and may use TF32.
_CUDNN_ARGUMENTS = (False, False, True, True)


@dataclass(frozen=True)
class _Type:
    shape: torch.Size

    def sizes(self) -> list[int]:
        return list(self.shape)


@dataclass(frozen=True)
class _Value:
    """A value in a trace, with the methods that handles of operators call (``torch._C.Value``)."""

    value: Any

    def isCompleteTensor(self) -> bool:  # noqa: N802 - torch's name
        return isinstance(self.value, torch.Tensor)

    def type(self) -> _Type | None:
        return _Type(self.value.shape) if isinstance(self.value, torch.Tensor) else None

    def toIValue(self) -> Any:  # noqa: N802 - torch's name
        return self.value

    def node(self) -> _List:
        return _List([_Value(item) for item in self.value])


@dataclass(frozen=True)
class _List:
    """The node that makes a list of its inputs."""

    items: list[_Value]

    def inputs(self) -> list[_Value]:
        return self.items


@dataclass(frozen=True)
class _Node:
    """An operator in a trace (``torch._C.Node``)."""

    name: str
    scope: str
    arguments: list[_Value]
    results: list[_Value]

    def kind(self) -> str:
        return self.name

    def scopeName(self) -> str:  # noqa: N802 - torch's name
        return self.scope

    def inputs(self) -> list[_Value]:
        return self.arguments

    def outputs(self) -> list[_Value]:
        return self.results


class _Graph:
    """The operators of a run (``torch._C.Graph``)."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._scopes: list[str] = []

    def nodes(self) -> list[_Node]:
        return self._nodes

    def add(self, kind: str, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        scope = "/".join(self._scopes)
        self._nodes.append(_Node(kind, scope, list(map(_Value, arguments)), list(map(_Value, results))))

    @contextmanager
    def scoped(self, names: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
        """Follow which modules run, under fvcore's names."""
        handles: list[Any] = []
        try:
            for module, name in names:
                handles.append(module.register_forward_pre_hook(lambda m, args, name=name: self._enter(name)))
                handles.append(module.register_forward_hook(lambda m, args, out: self._leave(), always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> None:
        self._scopes.append(name)

    def _leave(self) -> None:
        self._scopes.pop()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: _Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = func._overloadpacket.__name__, dict(kwargs or {})
        if name in _NOT_TRACED:
            with self:
                return func.decompose(*args, **given)
        out = func(*args, **given)
        arguments = _in_order(func._schema, args, given)
        if func is aten.convolution.default:
            name, arguments = "_convolution", [*arguments, *_CUDNN_ARGUMENTS]
        self._graph.add(f"{func.namespace}::{name}", arguments, out if isinstance(out, (tuple, list)) else [out])
        return out


def _in_order(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return all arguments of an operator in the order of its schema, with defaults for missing ones."""
    values = list(args)
    for argument in schema.arguments[len(args) :]:
        values.append(kwargs.get(argument.name, argument.default_value))
    return values


def _trace(model: nn.Module, inputs: Any, aliases: Mapping[Any, str]) -> Any:
    """Trace a model as fvcore does or, if that fails, by running it."""
    hooks = [(m, m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.modules()]
    try:
        return jit_analysis._get_scoped_trace_graph(model, inputs, aliases)
    except Exception as error:
        reason = str(error).strip().splitlines()
        logger.warning(
            "fvcore cannot trace %s (%s%s): its operators are taken from a run instead",
            type(model).__name__,
            type(error).__name__,
            f": {reason[0]}" if reason else "",
        )
        # fvcore leaves its hooks behind after an error.
        for module, forward_hooks, pre_hooks in hooks:
            module._forward_hooks, module._forward_pre_hooks = forward_hooks, pre_hooks
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        return _record(model, given, aliases)
    except RuntimeError as error:
        tensors = [*tensors_of(given), *model.parameters(), *model.buffers()]
        # The model's own errors are raised as they are.
        if all(tensor.device.type != "meta" for tensor in tensors) or not asks_for_values(error):
            raise
        logger.warning(
            "%s asks for values that meta tensors do not have (%s): some are made up",
            type(model).__name__,
            type(error).__name__,
        )
        filled = with_weights(model)
        others = dict(filled.named_modules(remove_duplicate=False))
        renamed = {others[name]: aliases[module] for name, module in model.named_modules(remove_duplicate=False)}
        with steps_limited("the inputs or the weights", "Pass real inputs to a model with weights"):
            return _record(filled, with_values(given, "cpu"), renamed)


def _record(model: nn.Module, inputs: tuple[Any, ...], aliases: Mapping[Any, str]) -> _Graph:
    graph, names = _Graph(), [(module, aliases[module]) for module in model.modules()]
    running = model
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        # As in fvcore, the wrapped module runs under the wrapper's name.
        running = model.module
        names[0] = (running, aliases[model])
    with left_as_found(model), torch.inference_mode(), graph.scoped(names), _Recorder(graph):
        running(*inputs)
    return graph


#: fvcore's own accounting, with `_trace` in place of its own.
_analyze: Callable[[Any], jit_analysis.Statistics] = FunctionType(
    jit_analysis.JitModelAnalysis._analyze.__code__,
    {**vars(jit_analysis), "_get_scoped_trace_graph": _trace},
)


class _Traced(jit_analysis.JitModelAnalysis):
    """An analysis of fvcore that takes its graph from `_trace`."""

    def _analyze(self) -> jit_analysis.Statistics:
        return _analyze(self)

    def copy(self, new_model: nn.Module | None = None, new_inputs: Any = None) -> Self:
        """Return an analysis of another model, or with other inputs, with the same settings."""
        # fvcore's own makes an object of its base class.
        plain = super().copy(new_model, new_inputs)
        made = type(self)(plain._model, plain._inputs)
        own: Any = self
        made.__dict__.update(plain.__dict__)
        made.__dict__.update(_ignored_ops=own._ignored_ops.copy(), _ancestor_mode=own._ancestor_mode)
        return made


class FlopCountAnalysis(_Traced, _FlopCountAnalysis):
    """fvcore's ``FlopCountAnalysis``, for models that it cannot trace, too.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    inputs : torch.Tensor or tuple of torch.Tensor
        Its arguments.

    Notes
    -----
    Methods, conventions, handles (`set_op_handle`), warnings and tables are fvcore's: its flops are
    multiply-accumulates, norms and upsampling count, and attention has no handle. `stagemeter.analyze` counts by our
    conventions instead.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> FlopCountAnalysis(model, torch.empty(5, 3)).total()
    100
    """


class ActivationCountAnalysis(_Traced, _ActivationCountAnalysis):
    """fvcore's ``ActivationCountAnalysis``, for models that it cannot trace, too; see `FlopCountAnalysis`.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    inputs : torch.Tensor or tuple of torch.Tensor
        Its arguments.
    """
