"""``stagemeter.autolog``: models of transformers log what they cost and reach, wherever they run."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stagemeter.errors import StagemeterError
from stagemeter.integrations.peaks import check_peak, training_peak
from stagemeter.modules.calls import call_signature
from stagemeter.modules.requests import (
    DECODE,
    DECODE_TOTAL,
    PREFILL,
    TOTAL,
    Request,
    RequestCost,
    RequestRecorder,
    request_cost,
    request_shapes,
)
from stagemeter.modules.shapes import without_weights
from stagemeter.modules.stages import resolve_stages
from stagemeter.tracking.training import log_to_active_run, run_is_active

logger = logging.getLogger(__name__)

#: How often what is the same again is timed, unless it is said.
LOG_EVERY_N = 500


@dataclass(frozen=True)
class _Options:
    log_every_n: int
    silent: bool
    stages: Mapping[str, str | Sequence[str]] | None
    device: str | None
    peak_tflops: float | None


@dataclass
class _Model:
    """What is known of a model that was seen."""

    place: torch.device
    peak: float | None
    bare: nn.Module | None = None
    #: Calls that had the same arguments, by their shapes.
    seen: Counter[Hashable] = field(default_factory=Counter)
    #: Costs of requests, by the shapes of all their calls.
    costs: dict[Hashable, RequestCost] = field(default_factory=dict)
    logged: int = 0


class _State(threading.local):
    """What runs in this thread: nothing, or a request, whose calls are recorded where it is known by whom."""

    inside = False
    recorder: RequestRecorder | None = None
    model: nn.Module | None = None


_options: _Options | None = None
_models: weakref.WeakKeyDictionary[nn.Module, _Model] = weakref.WeakKeyDictionary()
_state = _State()
_said: set[str] = set()
#: What was put in place of which method, and what was there, or None for what was inherited.
_patched: list[tuple[type, str, Any]] = []


def autolog(
    disable: bool = False,
    silent: bool = False,
    log_every_n: int = LOG_EVERY_N,
    stages: Mapping[str, str | Sequence[str]] | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
) -> None:
    """Log what models of transformers cost and reach, from now on, under an active MLflow run.

    Parameters
    ----------
    disable : bool
        Whether to stop, and leave transformers as it was.
    silent : bool
        Whether to keep warnings back.
    log_every_n : int
        Of calls of one shape the first is counted, and every n-th from the second on is timed; others cost next to
        nothing.
    stages : mapping, optional
        Name of a stage to the name of its module, or several, as in `analyze`. By default, of a forward pass the
        children of the model; of ``generate`` no stages but ``prefill`` and ``decode``.
    device, peak_tflops
        Peak for MFU, as in `StagemeterCallback`.

    Raises
    ------
    StagemeterError
        If an option cannot be meant.

    Notes
    -----
    Metrics are ``flops/<stage>`` and, of calls that were timed, ``time_ms/<stage>``, ``tflops_per_second/<stage>`` and
    ``mfu/<stage>``; of ``generate`` the stages are those that were given, ``prefill`` without them, ``decode`` (the
    mean step), ``decode_total`` and ``total``. Steps number what was logged of a model. Training is for
    `StagemeterCallback`: calls with gradients in training mode are left alone. An error in here is a warning, never one
    of the model's.

    Examples
    --------
    >>> autolog()  # doctest: +SKIP
    >>> with mlflow.start_run():  # doctest: +SKIP
    ...     model.generate(**inputs, max_new_tokens=64)
    """
    global _options
    if log_every_n < 1:
        raise StagemeterError(f"log_every_n={log_every_n}: give 1 or more")
    check_peak(device, peak_tflops)
    _models.clear()
    _said.clear()
    if disable:
        _options = None
        _unpatch()
        return
    _options = _Options(log_every_n, silent, stages, device, peak_tflops)
    if not _patched:
        from transformers import PreTrainedModel
        from transformers.generation.utils import GenerationMixin

        _patch(PreTrainedModel, "__call__", generation=False)
        _patch(GenerationMixin, "generate", generation=True)


def _patch(owner: type, name: str, generation: bool) -> None:
    found = getattr(owner, name)
    _patched.append((owner, name, vars(owner).get(name)))

    @functools.wraps(found)
    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return found(model, *args, **kwargs)
        call = functools.partial(found, model)
        if _state.inside:
            recorder = _state.recorder
            if recorder is None or generation or model is not _state.model:
                return call(*args, **kwargs)
            return recorder.run(call, args, kwargs)
        if _options is None or not _is_wanted(model, generation):
            return call(*args, **kwargs)
        return _observe(_options, call, model, args, kwargs, generation)

    setattr(owner, name, watched)


def _unpatch() -> None:
    while _patched:
        owner, name, found = _patched.pop()
        if found is None:
            delattr(owner, name)
        else:
            setattr(owner, name, found)


def _is_wanted(model: Any, generation: bool) -> bool:
    training = not generation and torch.is_grad_enabled() and model.training
    return not training and run_is_active()


def _observe(
    options: _Options,
    call: Callable[..., Any],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    generation: bool,
) -> Any:
    """Run a request; count it if it is the first of its shapes, time it if it is due."""
    recorder = names = None
    timed = False
    try:
        known = _known(options, model)
        signature = (generation, call_signature(args, kwargs))
        number = known.seen[signature]
        known.seen[signature] += 1
        timed = number > 0 and (number - 1) % options.log_every_n == 0
        if number == 0 or timed:
            names = {} if generation and options.stages is None else resolve_stages(model, options.stages)[0]
            stages = {name: [model.get_submodule(place) for place in places] for name, places in names.items()}
            recorder = RequestRecorder(stages, times=timed, place=known.place)
    except Exception as error:
        _warn(options, error)
    with _inside(recorder, model):
        out = call(*args, **kwargs) if recorder is None or generation else recorder.run(call, args, kwargs)
    if recorder is not None and names is not None:
        try:
            with _inside(None, None):  # Counting calls a copy of the model.
                _log(options, known, model, names, recorder.request, generation, timed)
        except Exception as error:
            _warn(options, error)
    return out


@contextmanager
def _inside(recorder: RequestRecorder | None, model: nn.Module | None) -> Iterator[None]:
    """Let calls of models be, but for those of one that is recorded."""
    _state.inside, _state.recorder, _state.model = True, recorder, model
    try:
        yield
    finally:
        _state.inside, _state.recorder, _state.model = False, None, None


def _known(options: _Options, model: nn.Module) -> _Model:
    known = _models.get(model)
    if known is None:
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        place = torch.device("cpu") if parameter is None else parameter.device
        dtype = "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")
        known = _models[model] = _Model(place, training_peak(options.device, options.peak_tflops, place, dtype))
    return known


def _log(
    options: _Options,
    known: _Model,
    model: nn.Module,
    names: Mapping[str, Sequence[str]],
    request: Request,
    generation: bool,
    timed: bool,
) -> None:
    if request.error is not None:
        raise request.error
    key = (generation, tuple(names), request_shapes(request))
    cost = known.costs.get(key)
    if cost is None:
        if known.bare is None:
            known.bare = without_weights(model)
        cost = known.costs[key] = request_cost(known.bare, names, request, generation)
        if cost.unsupported:
            _say(options, f"without a formula, and in no number: {', '.join(sorted(cost.unsupported))}")
    flops = {name: float(stage.flops) for name, stage in cost.stages.items()} | {TOTAL: float(cost.total.flops)}
    if cost.steps:
        flops[DECODE] = flops[DECODE_TOTAL] / cost.steps
    metrics = {f"flops/{name}": value for name, value in flops.items()}
    if timed:
        seconds = _seconds(request, generation)
        metrics |= {f"time_ms/{name}": 1000 * value for name, value in seconds.items()}
        rates = {name: flops[name] / value for name, value in seconds.items() if name in flops and value > 0}
        metrics |= {f"tflops_per_second/{name}": rate / 1e12 for name, rate in rates.items()}
        if known.peak is not None:
            metrics |= {f"mfu/{name}": rate / known.peak for name, rate in rates.items()}
    log_to_active_run(metrics, known.logged)
    known.logged += 1


def _seconds(request: Request, generation: bool) -> dict[str, float]:
    seconds = dict(request.stage_seconds) | {TOTAL: sum(request.seconds)}
    if not generation:
        return seconds
    seconds[PREFILL] = request.seconds[0] - sum(request.stage_seconds.values())
    steps = request.seconds[1:]
    return seconds | ({DECODE_TOTAL: sum(steps), DECODE: sum(steps) / len(steps)} if steps else {})


def _warn(options: _Options, error: Exception) -> None:
    """Say what went wrong; whatever it was, the model's work is worth more."""
    _say(options, f"not logged: {type(error).__name__}: {error}")


def _say(options: _Options, message: str) -> None:
    """Warn of something once."""
    if not options.silent and message not in _said:
        _said.add(message)
        logger.warning("autolog: %s", message)
