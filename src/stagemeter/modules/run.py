"""Counting one pass of a module: from shapes alone where possible, else on real tensors with a note."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import nn
from torch.nested._internal.nested_tensor import NestedTensor

from stagemeter.core.errors import StagemeterError
from stagemeter.counting.counter import CostCounter
from stagemeter.counting.events import Counts
from stagemeter.counting.higher_order import flex_attention_on_any_device
from stagemeter.counting.known_values import KnownValues
from stagemeter.counting.layouts import is_sparse
from stagemeter.counting.registry import Rule
from stagemeter.counting.unseen import is_script
from stagemeter.modules.as_found import left_as_found, random_numbers_left_alone
from stagemeter.modules.input_gradients import without_input_gradients
from stagemeter.modules.masks import meta_tensors_are_symbols
from stagemeter.modules.shapes import (
    Value,
    on_meta,
    on_meta_with_values,
    require_shapes,
    tensors_of,
    with_values,
    with_weights,
    without_weights,
)
from stagemeter.modules.step_limit import steps_limited
from stagemeter.modules.wrappers import is_sharded, plain_name, set_training

#: Turns a model's output into a tensor of one element for the backward pass.
Loss = Callable[[Any], torch.Tensor]
#: transformers' names of arguments whose values tell which pairs of tokens are visible, and change no shape.
_TELL_PAIRS = ("attention_mask", "mm_token_type_ids", "position_ids", "token_type_ids")
#: Memory as a multiple of the weights; training adds gradients and saved activations.
_MEMORY_FACTORS = {False: 1.5, True: 3.5}


@dataclass(frozen=True)
class Pass:
    """A pass of a model to be counted; `train` adds a backward pass, in training mode.

    `loss` computes a loss from the output; None takes the output's own ``loss``, or else the sum of all of its tensors.
    `rules` override the registered ones. `values` are those of arguments on the meta device, in case the model reads
    them. `part` and `method` name the called module and its method; both are empty for the model itself.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    train: bool = False
    loss: Loss | None = None
    rules: Mapping[Any, Rule] = field(default_factory=dict)
    values: Sequence[Value] = ()
    part: str = ""
    method: str = ""


@dataclass(frozen=True)
class CountedPass:
    """The costs of a pass; `backward` includes the recomputation of activation checkpointing.

    `device` is ``meta``, from shapes alone, or the device on which it ran; `notes` say why, and on which values.
    `asked` is whether the model read values of arguments, so that the costs may depend on them.
    """

    forward: Counts
    backward: Counts | None
    device: str
    notes: list[str]
    asked: bool = False


@dataclass(frozen=True)
class _Failure:
    error: Exception
    operator: str
    place: str

    @property
    def where(self) -> str:
        return f"{self.operator} in {self.place}"

    @property
    def asks_for_values(self) -> bool:
        return asks_for_values(self.error)

    @property
    def reason(self) -> str:
        """The reason why shapes alone are not enough."""
        if self.asks_for_values:
            return f"{self.where} reads values"
        return f"{self.where} fails on shapes alone ({type(self.error).__name__})"


def asks_for_values(error: Exception) -> bool:
    """Whether an error comes from the meta device, because the model reads values."""
    return isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error), re.IGNORECASE) is not None


def count_pass(model: nn.Module, wanted: Pass) -> CountedPass:
    """Count a pass of a model on any device, or raise StagemeterError if it depends on values that do not exist."""
    require_shapes(model)
    tensors = [*model.parameters(), *model.buffers()]
    reason = obstacle(model, [*tensors, *tensors_of(wanted.args, wanted.kwargs)])
    failure = None
    if reason is None:
        try:
            bare = without_weights(model)
            (args, kwargs), values = on_meta_with_values(
                (wanted.args, dict(wanted.kwargs)), lambda tensor: True, copied=False
            )
        except StagemeterError as error:
            reason = f"it cannot be copied ({type(error.__cause__).__name__}: {error.__cause__})"
        else:
            with random_numbers_left_alone(model):
                given = replace(wanted, args=args, kwargs=kwargs, values=values)
                counts, failure, asked = _attempt_on_shapes(bare, given)
                if failure is None:
                    _leave_out_input_gradients(bare, given, counts)
            if failure is None:
                return CountedPass(*counts, device="meta", notes=[], asked=asked)
            if not _have_values(tensors) and not failure.asks_for_values:
                # The model's own error, which it has on any device.
                raise failure.error
            reason = failure.reason
    return _count_really(model, tensors, wanted, reason, failure)


def _leave_out_input_gradients(bare: nn.Module, wanted: Pass, counts: tuple[Counts, Counts | None]) -> None:
    """Take out of the model's work gradients of embeddings that trainers ask for and no weight needs."""
    with without_input_gradients(bare) as fewer:
        if not (wanted.train and fewer):
            return
        needed, failure, _ = _attempt_on_shapes(bare, wanted)
    if failure is not None:
        raise failure.error
    for run, alone in zip(counts, needed, strict=True):
        if run is not None and alone is not None:
            run.need_as(alone)


def _count_really(
    model: nn.Module, tensors: list[torch.Tensor], wanted: Pass, reason: str, failure: _Failure | None
) -> CountedPass:
    """Count a pass by running it, with made-up values for missing ones."""
    valued = _have_values(tensors)
    place = tensors[0].device if valued and tensors else torch.device("cpu")
    given = _have_values(tensors_of(wanted.args, wanted.kwargs))
    advice = "Pass a model with weights" if given else "Pass real inputs; the model may stay without weights"
    if not valued:
        _require_memory(tensors, wanted.train, reason, advice)
    args, kwargs = with_values((wanted.args, dict(wanted.kwargs)), place)
    have = (("the inputs", given), ("the weights", valued))
    made_up = " and ".join(what for what, there in have if not there)
    with steps_limited(made_up, advice):
        if valued:
            with left_as_found(model):
                counts, again = _attempt(model, args, kwargs, wanted)
        else:
            with random_numbers_left_alone(model):
                counts, again = _attempt(with_weights(model), args, kwargs, wanted)
    if again is not None:
        if not made_up or failure is None:
            raise again.error
        if not failure.asks_for_values:
            raise failure.error
        raise StagemeterError(
            f"args: {failure.where} reads values, which shapes do not have, and fails on made-up values of {made_up} "
            f"({type(again.error).__name__} in {again.place}). {advice}"
        ) from again.error
    note = f"the pass ran on real tensors, since {reason}"
    if made_up:
        note += f"; values of {made_up} are made up, and the count may depend on them"
    return CountedPass(*counts, device=str(place), notes=[note])


def count_from_shapes(bare: nn.Module, wanted: Pass) -> CountedPass:
    """Count a pass of a model from `without_weights`, or raise StagemeterError if it fails on shapes alone."""
    with random_numbers_left_alone(bare):
        counts, failure, asked = _attempt_on_shapes(bare, wanted)
    if failure is not None:
        raise StagemeterError(
            f"model: {failure.where} fails on shapes alone ({type(failure.error).__name__}: {failure.error}). "
            "Count it on real tensors by stagemeter.analyze"
        ) from failure.error
    return CountedPass(*counts, device="meta", notes=[], asked=asked)


def _attempt_on_shapes(bare: nn.Module, wanted: Pass) -> tuple[tuple[Counts, Counts | None], _Failure | None, bool]:
    """Count a pass of a model without weights; if it reads values, count again with the known ones."""
    named = {id(wanted.kwargs.get(name)) for name in _TELL_PAIRS}
    some = [given for given in wanted.values if id(given[0]) in named]
    counts, failure = _attempt_with(bare, wanted, some)
    # Where only some values are known, a model that reads others can fail in any way.
    if failure is None or not wanted.values or not (some or failure.asks_for_values):
        return counts, failure, False
    return *_attempt_with(bare, wanted, wanted.values), True


def _attempt_with(
    bare: nn.Module, wanted: Pass, values: Sequence[Value]
) -> tuple[tuple[Counts, Counts | None], _Failure | None]:
    """Count a pass of a model without weights, with some values."""
    # Copies: a pass fills the caches among its arguments. Of both at once, so that tensors with known values stay those
    # of the arguments.
    args, kwargs, tensors = on_meta((wanted.args, dict(wanted.kwargs), [tensor for tensor, _ in values]))
    known = KnownValues() if values else None
    for tensor, (_, value) in zip(tensors, values, strict=True):
        if known is not None:
            known.give(tensor, value)
    return _attempt(bare, args, kwargs, wanted, known)


def _attempt(
    model: nn.Module, args: Any, kwargs: Any, wanted: Pass, known: KnownValues | None = None
) -> tuple[tuple[Counts, Counts | None], _Failure | None]:
    counter = CostCounter(model, rules=wanted.rules)
    empty = (Counts(), None)
    try:
        # Compiled code runs as it was written: kernels of a compiler cannot be counted.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.set_grad_enabled(wanted.train),
            warnings.catch_warnings(),
            meta_tensors_are_symbols(),
            flex_attention_on_any_device(),
        ):
            # Hooks see a compiled module twice, once as its wrapper: the wrapper has no work of its own.
            warnings.filterwarnings("ignore", message=".*there are global hooks on modules")
            set_training(model, wanted.train)
            with counter, known or nullcontext():
                part = model.get_submodule(wanted.part) if wanted.part else model  # TorchScript has no parts by name.
                out = (getattr(part, wanted.method) if wanted.method else part)(*args, **kwargs)
                forward = counter.counts()
                if not wanted.train:
                    return (forward, None), None
                counter.restart()
                torch.autograd.backward(_loss_of(out, wanted.loss))
                return (forward, counter.counts()), None
    except StagemeterError:
        raise
    except Exception as error:
        place = _place(model, error.__traceback__)
        error.add_note(f"in {place}")
        return empty, _Failure(error, str(counter.last_operator), place)


def obstacle(model: nn.Module, tensors: list[torch.Tensor]) -> str | None:
    """Return why a model cannot be counted from shapes alone; None where it is worth trying."""
    if is_sharded(model):
        return "FSDP's wrapper cannot be copied"
    own = [*model.parameters(), *model.buffers()]
    if any(map(is_script, model.modules())) and not (own and all(tensor.device.type == "meta" for tensor in own)):
        return "weights of TorchScript stay where they are"
    if any(is_sparse(tensor) for tensor in tensors):
        return "places of the elements of a sparse tensor are values"
    plain = (torch.Tensor, nn.Parameter, NestedTensor)
    kinds = {type(tensor).__name__ for tensor in tensors if type(tensor) not in plain}
    return f"it holds tensors of other classes ({', '.join(sorted(kinds))})" if kinds else None


def _loss_of(out: Any, loss: Loss | None) -> torch.Tensor:
    if loss is not None:
        made = loss(out)
        if not isinstance(made, torch.Tensor) or made.numel() != 1 or not made.requires_grad:
            raise StagemeterError("loss: it returned no tensor of one element with a gradient. Return one")
        return made
    own = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(own, torch.Tensor) and own.numel() == 1 and own.requires_grad:
        return own
    parts = [tensor.sum() for tensor in tensors_of(out) if tensor.requires_grad]
    if not parts:
        raise StagemeterError(
            "mode: no output of the model has a gradient, so there is no backward pass. Use mode='inference' for the "
            "forward pass, or loss= to compute a loss from the output"
        )
    return torch.stack([part.to(parts[0].dtype) for part in parts]).sum()


def _have_values(tensors: list[torch.Tensor]) -> bool:
    return all(tensor.device.type != "meta" for tensor in tensors)


def _place(model: nn.Module, trace: TracebackType | None) -> str:
    """Name the innermost module of the model that an error passed through."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    while trace is not None:
        running = trace.tb_frame.f_locals.get("self")
        found = names.get(id(running), found)
        trace = trace.tb_next
    return f"module {plain_name(found)!r}" if found else "the model itself"


def _require_memory(tensors: list[torch.Tensor], train: bool, reason: str, advice: str) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * _MEMORY_FACTORS[train]
    available = psutil.virtual_memory().available
    if needed > available:
        raise StagemeterError(
            f"model: shapes alone are not enough, since {reason}, and made-up weights take {needed / 1e9:.0f} GB: "
            f"{available / 1e9:.0f} GB are free. Count a smaller one. {advice}"
        )
