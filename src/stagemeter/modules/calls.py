"""Calls of modules while they train or serve: shapes of the arguments, and real lengths of sequences."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from stagemeter.counting.modes import replaced
from stagemeter.modules.arguments import (
    Arguments,
    arguments_of,
    arguments_with_values,
    ordered_type,
    reads_more_than_text,
    typed_padding,
    values_key,
)

#: transformers' names of a text's token ids, and of the arguments that tell where sequences begin or end.
TOKENS, MASK, POSITIONS, BOUNDARIES = "input_ids", "attention_mask", "position_ids", "cu_seq_lens_q"
#: transformers' name of the argument that tells which pictures each token attends to.
CROSS_MASK = "cross_attention_mask"
#: Rows of positions in Qwen's models of text and pictures: those in the text, then three of places in time and picture
#: (transformers, ``modeling_qwen3_vl.py``, ``Qwen3VLTextModel.forward``). Three rows alone tell no packed sequences.
_TEXT_FIRST = 4


@dataclass(frozen=True)
class Call:
    """A recorded call; `train` is whether a backward pass follows.

    `signature` is equal for calls of equal cost, apart from padding. `shape` is the number of sequences, and of tokens
    of each with padding; None for other input than text. `lengths` names the argument that gives the real lengths, with
    its values. `rows` is the number of rows of the first tensor.
    """

    module: nn.Module
    train: bool
    signature: Hashable
    shape: tuple[int, int] | None
    lengths: tuple[str, torch.Tensor] | None
    rows: int

    def real_lengths(self) -> list[int]:
        """Return the tokens of each sequence without padding, and of each packed one."""
        if self.shape is None:
            return []
        sequences, padded = self.shape
        if self.lengths is None:
            return [padded] * sequences
        kind, values = self.lengths
        if kind == MASK:
            return [int(length) for length in values.tolist()]
        if kind == BOUNDARIES:
            return [int(length) for length in values.diff().tolist()]
        starts = torch.nonzero(values).flatten().tolist()
        return [end - start for start, end in zip(starts, [*starts[1:], sequences * padded], strict=True)]


class _Running(threading.local):
    """The number of nested modules that run in this thread."""

    depth = 0


class CallRecorder:
    """A recorder of the outermost calls of some modules.

    `bare` holds their arguments on the meta device by signature. `first_evaluation` is the time of the first call
    without a backward pass, by the performance counter. Inside of a training step (`in_step`), such calls are left out:
    those of a reference model or of sampling are no evaluation. `left_out` is whether there were any.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.bare: dict[Hashable, Arguments] = {}
        self.first_evaluation: float | None = None
        self.in_step = self.left_out = False
        self._modules = list(dict.fromkeys(modules))
        self._parameters = {module: _positional(module) for module in self._modules}
        self._ordered_types = {module: ordered_type(module) for module in self._modules if reads_more_than_text(module)}
        self._calls: list[Call] = []
        self._running = _Running()
        self._blind = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Start to record."""
        for module in self._modules:
            # Replicas copy hooks: the hook names the original module.
            before, after = _never_compiled(partial(self._before, module)), _never_compiled(self._after)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, always_call=True))

    def detach(self) -> None:
        """Stop recording, and leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def blind(self) -> Iterator[None]:
        """Record nothing inside of the block: counting runs copies of a module, which have its hooks."""
        with replaced(self, "_blind", True):
            yield

    def take(self, train: bool) -> list[Call]:
        """Return the calls of one kind since the last time."""
        taken = [call for call in self._calls if call.train is train]
        self._calls = [call for call in self._calls if call.train is not train]
        if not train:
            self.first_evaluation = None
        return taken

    def _before(self, module: nn.Module, called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._blind:
            return
        self._running.depth += 1
        # The first run of what activation checkpointing repeats is recorded already.
        if self._running.depth > 1 or torch._C._current_autograd_node() is not None:
            return
        train = torch.is_grad_enabled() and called.training
        if self.in_step and not train:
            self.left_out = True
            return
        if not train and self.first_evaluation is None:
            self.first_evaluation = time.perf_counter()
        parameters, of_text = self._parameters[module], module not in self._ordered_types
        if len(args) <= len(parameters):
            args, kwargs = (), {**dict(zip(parameters, args, strict=False)), **kwargs}
        if not of_text:
            kwargs = typed_padding(kwargs, kwargs.get(MASK), self._ordered_types[module])
        values = () if of_text else values_key(parameters, args, kwargs)
        signature = (id(module), train, call_signature(args, kwargs), values)
        if signature not in self.bare:
            self.bare[signature] = (
                arguments_of(args, kwargs)
                if of_text
                else _without_padding(arguments_with_values(args, kwargs, pixels=False))
            )
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()]
        shape = _text_shape(kwargs)
        self._calls.append(
            Call(
                module=module,
                train=train,
                signature=signature,
                shape=shape,
                lengths=_lengths(kwargs),
                rows=tensors[0].shape[0] if tensors else 0,
            )
        )

    def _after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not self._blind:
            self._running.depth -= 1


def _positional(module: nn.Module) -> list[str]:
    """Return the names of the arguments that a module takes by position or by name; none if some have no name."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    nameless = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return [] if any(parameter.kind in nameless for parameter in parameters) else named


def _without_padding(given: Arguments) -> Arguments:
    """Return arguments with a mask that shows all tokens: one count stands for calls with any padding."""
    mask = given.kwargs.get(MASK)
    values = [(bare, torch.ones_like(value) if bare is mask else value) for bare, value in given.values]
    return Arguments(given.args, given.kwargs, values)


def _never_compiled(hook: Callable[..., None]) -> Any:
    disable: Any = torch.compiler.disable
    return disable(hook)


def call_signature(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return a key that is equal for calls with arguments of equal shapes; it ignores tensors inside of objects."""
    flat, structure = tree_flatten((args, dict(kwargs)))
    return (
        str(structure),
        tuple(
            (tuple(value.shape), value.dtype, value.requires_grad)
            if isinstance(value, torch.Tensor)
            else value
            if isinstance(value, (bool, int, float, str, type(None)))
            else type(value).__qualname__
            for value in flat
        ),
    )


def _text_shape(kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    tokens = kwargs.get(TOKENS)
    if not isinstance(tokens, torch.Tensor) or tokens.dim() != 2:
        return None
    return tokens.shape[0], tokens.shape[1]


def _lengths(kwargs: Mapping[str, Any]) -> tuple[str, torch.Tensor] | None:
    """Return the argument that gives the real lengths, without waiting for the device: its values are read later."""
    shape = _text_shape(kwargs)
    if shape is None:
        return None
    boundaries, mask, positions = (kwargs.get(name) for name in (BOUNDARIES, MASK, POSITIONS))
    if isinstance(positions, torch.Tensor) and tuple(positions.shape) == (_TEXT_FIRST, *shape):
        positions = positions[0]
    if isinstance(boundaries, torch.Tensor):
        return BOUNDARIES, boundaries.detach()
    if isinstance(mask, torch.Tensor) and tuple(mask.shape) == shape:
        return MASK, mask.detach().sum(-1)
    if isinstance(positions, torch.Tensor) and tuple(positions.shape) == shape:
        # Packed sequences begin where positions do not go on (``masking_utils.py``, ``find_packed_sequence_indices``).
        begins = torch.ones_like(positions, dtype=torch.bool)
        begins[:, 1:] = positions.detach().diff(dim=-1) != 1
        return POSITIONS, begins.flatten()
    return None
