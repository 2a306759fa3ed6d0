"""``stagemeter.autolog``: models of transformers log their cost and speed."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, OTHER, PREFILL, TOTAL
from stagemeter.integrations.boundaries import Boundaries
from stagemeter.integrations.peaks import check_peak, training_peak
from stagemeter.modules.arguments import reads_more_than_text, values_key
from stagemeter.modules.calls import call_signature
from stagemeter.modules.request_costs import BareModels, RequestCost, request_cost, request_key, rest_of
from stagemeter.modules.requests import DRAFT, Request, RequestRecorder
from stagemeter.modules.stages import resolve_stages
from stagemeter.tracking.autologging import Requests, log_to_active_run, run_is_active

logger = logging.getLogger(__name__)

#: Default interval of timing among calls of one shape.
LOG_EVERY_N = 500
#: Names of utilizations by what they credit.
_UTILIZATION = {"flops": "mfu", "flops_causal": "mfu_causal", "flops_executed": "hfu"}
#: Stages that are logged beside the given ones.
_OWN_STAGES = (PREFILL, DECODE, DECODE_TOTAL, DRAFT, OTHER, TOTAL)


@dataclass(frozen=True)
class _Options:
    log_every_n: int
    stages: Mapping[str, str | Sequence[str]] | None
    device: str | None
    peak_tflops: float | None


@dataclass
class _Model:
    place: torch.device
    peak: float | None
    more_than_text: bool
    bare: BareModels | None = None
    #: Number of calls by the shapes of their arguments.
    seen: Counter[Hashable] = field(default_factory=Counter)
    #: Costs of requests, by the shapes of all their calls.
    costs: dict[Hashable, RequestCost] = field(default_factory=dict)
    logged: int = 0


_models: weakref.WeakKeyDictionary[nn.Module, _Model] = weakref.WeakKeyDictionary()
_said: set[str] = set()


def autolog(
    disable: bool = False,
    silent: bool = False,
    log_every_n: int = LOG_EVERY_N,
    stages: Mapping[str, str | Sequence[str]] | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
    exclusive: bool = False,
) -> None:
    """Log the cost and speed of models of transformers to the active MLflow run, from now on.

    Parameters
    ----------
    disable : bool
        Whether to stop, and leave transformers as it was.
    silent : bool
        Whether to suppress warnings.
    log_every_n : int
        Interval of timing. The first call of a shape is counted; from the second on, every n-th is timed.
    stages : mapping, optional
        Name of a stage to the name of its module, or several, as in `analyze`. By default, the stages of a forward
        pass are the children of the model, and ``generate`` adds none. Encoding that a given ``vision``
        leaves out is in ``prefill``.
    device, peak_tflops
        Peak for MFU, as in `StagemeterCallback`.
    exclusive : bool
        Whether to log nothing to runs that the user started, as in MLflow's own integrations.

    Raises
    ------
    StagemeterError
        If an option has no valid value.

    Notes
    -----
    This is an integration of MLflow's: ``mlflow.autolog(disable=True)`` switches it off, and its ``silent`` and
    ``exclusive`` apply. An explicit call of this function after that takes precedence.

    Metrics are ``flops/<stage>``, ``flops_causal/<stage>`` and ``flops_executed/<stage>``. Timed calls also have
    ``time_ms/<stage>``, ``tflops_per_second/<stage>``, ``mfu/<stage>``, ``mfu_causal/<stage>`` and ``hfu/<stage>``.
    Visible pairs are left out where they are not known. The stages of
    ``generate`` are:

    - the given stages;
    - ``vision``, ``audio`` and ``encoder``: what it encodes before the first forward pass;
    - ``prefill``: all passes that read the prompt, less the given stages;
    - ``decode``, the mean step, and ``decode_total``;
    - ``draft``: the passes of a draft model, or of the first layers alone (assisted generation);
    - ``other``: further modules that it calls;
    - ``total``.

    No number includes what ``generate`` computes outside of modules, such as the choice of a token. The step of a
    metric numbers the logged requests of a model. Calls with gradients in training mode are ignored:
    `StagemeterCallback` is for training. A failure in here is a warning, never an error of the model.

    Examples
    --------
    >>> autolog()  # doctest: +SKIP
    >>> with mlflow.start_run():  # doctest: +SKIP
    ...     model.generate(**inputs, max_new_tokens=64)
    """
    if log_every_n < 1:
        raise StagemeterError(f"log_every_n: {log_every_n} is too small. Give 1 or more")
    for name in stages or ():
        if name in _OWN_STAGES:
            raise StagemeterError(f"stages: {name!r} is a stage of autolog's own. Give yours another name")
    check_peak(device, peak_tflops)
    _models.clear()
    _said.clear()
    options = _Options(log_every_n, stages, device, peak_tflops)
    _requests.switch(partial(_observe, options), disable, exclusive, silent)
    if disable:
        _boundaries.leave()
    else:
        _boundaries.watch()


def _begin(
    model: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], generation: bool
) -> Any:
    training = not generation and torch.is_grad_enabled() and model.training
    if training or not run_is_active() or _requests.setting("disable"):
        return call(*args, **kwargs)
    return _requests.run(call, model, args, kwargs, generation)


_requests = Requests()
_boundaries = Boundaries(_begin)


def _observe(
    options: _Options,
    call: Callable[..., Any],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    generation: bool,
) -> Any:
    """Run a request; count it if its shapes are new, time it if it is due."""
    recorder = names = None
    timed = False
    try:
        known = _known(options, model)
        signature = (generation, call_signature(args, kwargs), _values(known, model, args, kwargs, generation))
        number = known.seen[signature]
        known.seen[signature] += 1
        timed = number > 0 and (number - 1) % options.log_every_n == 0
        if number == 0 or timed:
            names = {} if generation and options.stages is None else resolve_stages(model, options.stages)[0]
            stages = {name: [model.get_submodule(place) for place in places] for name, places in names.items()}
            recorder = RequestRecorder(model, stages, times=timed, place=known.place)
    except Exception as error:
        _warn(error)
    with _boundaries.inside(recorder, generation):
        alone = None if generation else recorder
        out = call(*args, **kwargs) if alone is None else alone.run(model, "", call, args, kwargs)
    if recorder is not None and names is not None:
        try:
            with _boundaries.inside(None):  # Counting calls a copy of the model.
                _log(known, model, names, recorder.request, signature[-1], generation, timed)
        except Exception as error:
            _warn(error)
    return out


def _values(known: _Model, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], generation: bool) -> Hashable:
    if not known.more_than_text:
        return ()
    return values_key(inspect.signature(model.generate if generation else model.forward).parameters, args, kwargs)


def _known(options: _Options, model: nn.Module) -> _Model:
    known = _models.get(model)
    if known is None:
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        place = torch.device("cpu") if parameter is None else parameter.device
        dtype = "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")
        peak = training_peak(options.device, options.peak_tflops, place, dtype)
        known = _models[model] = _Model(place, peak, reads_more_than_text(model))
        _boundaries.watch_encoders(model)
    return known


def _log(
    known: _Model,
    model: nn.Module,
    names: Mapping[str, Sequence[str]],
    request: Request,
    values: Hashable,
    generation: bool,
    timed: bool,
) -> None:
    if request.error is not None:
        raise request.error
    key = (generation, tuple(names), values, request_key(request))
    cost = known.costs.get(key)
    if cost is None:
        if known.bare is None:
            known.bare = BareModels(model)
        cost = request_cost(known.bare, names, request, generation)
        if known.more_than_text or not cost.asked:
            known.costs[key] = cost
        if cost.unsupported:
            _say(f"no number includes operators without a formula: {', '.join(sorted(cost.unsupported))}")
        for what in cost.missing:
            _say(what)
    parts, ran = {**cost.stages, TOTAL: cost.total}, {**cost.executed, TOTAL: cost.total_executed}
    counts = {"flops": {name: float(part.flops) for name, part in parts.items()}}
    if cost.told:
        counts["flops_causal"] = {name: float(part.flops_causal) for name, part in parts.items()}
    counts["flops_executed"] = {name: float(part.flops) for name, part in ran.items()}
    for flops in counts.values():
        if cost.steps:
            flops[DECODE] = flops[DECODE_TOTAL] / cost.steps
    metrics = {f"{kind}/{name}": value for kind, flops in counts.items() for name, value in flops.items()}
    if timed:
        seconds = _seconds(request, cost, names, generation)
        metrics |= {f"time_ms/{name}": 1000 * value for name, value in seconds.items()}
        for kind, flops in counts.items():
            rates = {name: flops[name] / value for name, value in seconds.items() if name in flops and value > 0}
            if kind == "flops":
                metrics |= {f"tflops_per_second/{name}": rate / 1e12 for name, rate in rates.items()}
            if known.peak is not None:
                metrics |= {f"{_UTILIZATION[kind]}/{name}": rate / known.peak for name, rate in rates.items()}
    log_to_active_run(metrics, known.logged)
    known.logged += 1


def _seconds(request: Request, cost: RequestCost, names: Mapping[str, Any], generation: bool) -> dict[str, float]:
    seconds = dict.fromkeys([*names, TOTAL], 0.0)
    for place, call in enumerate(request.calls):
        if place in cost.uncounted:
            continue
        seconds[TOTAL] += call.seconds
        for name, spent in call.stage_seconds.items():
            seconds[name] += spent
        if generation:
            stage = DECODE_TOTAL if call.role == DECODE else rest_of(call, names)
            seconds[stage] = seconds.get(stage, 0.0) + call.seconds - sum(call.stage_seconds.values())
    if cost.steps:
        seconds[DECODE] = seconds[DECODE_TOTAL] / cost.steps
    return {name: value for name, value in seconds.items() if name in (*names, *cost.stages, DECODE, TOTAL)}


def _warn(error: Exception) -> None:
    """Warn of our own error, which must not stop the model."""
    _say(f"a request is not logged: {type(error).__name__}: {error}")


def _say(message: str) -> None:
    if not _requests.setting("silent") and message not in _said:
        _said.add(message)
        logger.warning("autolog: %s", message)
