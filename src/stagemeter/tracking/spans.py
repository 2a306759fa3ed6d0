"""Spans of MLflow's traces as calls of a served model, and the processor that counts them before their export."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from stagemeter.analysis.calls import Attachments, Call, UncountedError, read_call
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.stage_names import TOTAL
from stagemeter.utilization.calls import (
    FLOPS,
    MISSING,
    CallCost,
    CallMeter,
    Serving,
    gap_attributes,
    outermost,
    trace_tags,
)

logger = logging.getLogger(__name__)

# Names of MLflow's `SpanType`, `SpanAttributeKey` and `CostKey` (mlflow/entities/span.py, mlflow/tracing/constant.py),
# the last of which earlier versions lack.
_CALLS = ("LLM", "CHAT_MODEL")
USAGE, MODEL, MONEY = "mlflow.chat.tokenUsage", "mlflow.llm.model", "mlflow.llm.cost"
_TOTAL_MONEY = "total_cost"
#: Width and height of the pictures of a call, so that the pictures need not be read again.
SIZES = "stagemeter.image_sizes"
_NS = 1e-9
_TOTAL = f"{FLOPS}.{TOTAL}"


def is_call(span: Any) -> bool:
    """Tell whether a span of MLflow's is a call of a language model."""
    return span.span_type in _CALLS


def model_of(span: Any) -> str | None:
    """Return the name of the model that a span called, None where it names none."""
    name = span.get_attribute(MODEL)
    return name if isinstance(name, str) and name.strip() else None


def call_of(span: Any, attachments: Attachments) -> Call:
    """Return the call of a span, or raise `UncountedError`."""
    usage = span.get_attribute(USAGE)
    if usage is None and span.status.status_code == "ERROR":
        raise UncountedError("token usage", "the call failed", "")
    return read_call(usage, span.inputs, lambda: span.outputs, attachments, span.get_attribute(SIZES))


def tokens_of(span: Any) -> Call:
    """Return the call of a span without its inputs, or raise `UncountedError`."""
    return read_call(span.get_attribute(USAGE), None, lambda: None, _nothing_held)


def _nothing_held(name: str) -> bytes:
    raise KeyError(name)


def trace_processor(
    model: str,
    *,
    served_as: str | Collection[str] | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
    devices: int = 1,
    price_per_hour: float | None = None,
    concurrency: float | None = None,
    **settings: Any,
) -> Callable[[Any], None]:
    """Return a span processor for MLflow that counts each call of a served model.

    Parameters
    ----------
    model : str
        The model, as in `describe_model`.
    served_as : str or collection of str, optional
        Names by which the server knows the model. By default `model`, its id on the Hub, or the last part of either.
        Calls of other models are left alone; calls that name no model are counted.
    device, peak_tflops
        Device of the server, as ``stagemeter devices`` lists it, or its dense peak in TFLOP/s. Without one there is no
        MFU.
    devices : int
        Devices that serve a call together, such as those of tensor parallelism.
    price_per_hour : float, optional
        Price of an hour of one device. Without it, MLflow's own price of the tokens stays, if it has one.
    concurrency : float, optional
        Calls that the server answers at a time, on average. Default: one.
    **settings
        Settings of `AnalysisConfig`, such as the ``dtype`` of the server and ``max_pixels`` of its pages.

    Returns
    -------
    callable
        A processor for ``mlflow.tracing.configure(span_processors=[...])``.

    Raises
    ------
    StagemeterError
        If the model has no closed forms, or a setting cannot be used.

    Notes
    -----
    Spans of the types LLM and CHAT_MODEL get these attributes:

    - ``stagemeter.flops.<stage>``, ``stagemeter.flops_causal.<stage>``: FLOPs of each stage and in total, from closed
      forms. ``decode`` is all steps.
    - ``stagemeter.mfu_share``, ``stagemeter.mfu_share_causal``: FLOPs over seconds x devices x peak. The seconds of a
      span include waiting and the work of other calls, so this is the call's share of MFU: shares of calls at the same
      time add up.
    - ``mlflow.llm.cost``: ``price_per_hour`` x devices x hours / concurrency. MLflow adds it up in the trace. By
      Little's law, costs add up to the bill of the hours with calls where `concurrency` is the mean number of open
      calls; with a concurrency of 1 they are the cost of a server that answers one call at a time, and a limit for
      others. ``input_cost`` and ``output_cost`` divide it by FLOPs before and after the first token.
    - ``stagemeter.missing``: a list of what is missing, with reasons. Each kind is also logged once, as a warning.

    The tags of the trace are ``stagemeter`` (for people), ``stagemeter.flops`` and ``stagemeter.missing``. They sum up
    its outermost calls, as MLflow's sums do.

    A processor runs before MLflow sets the end of a span, so seconds last until then, even where ``span.end`` is given
    another time. ``stagemeter traces`` reads the time of the end.

    Examples
    --------
    >>> processor = trace_processor("qwen2.5-vl-7b", device="H100-SXM-80GB", price_per_hour=2.5)
    >>> mlflow.tracing.configure(span_processors=[processor])  # doctest: +SKIP
    """
    serving = Serving(served_as, device, peak_tflops, devices, price_per_hour, concurrency)
    processor = _Processor(CallMeter(AnalysisConfig(model=model, **settings), serving))

    def stagemeter_trace_processor(span: Any) -> None:
        processor.process(span)

    return stagemeter_trace_processor


class _Processor:
    """Counts spans of one model, and says once what it leaves out."""

    def __init__(self, meter: CallMeter) -> None:
        self._meter = meter
        self._said: set[str] = set()

    def process(self, span: Any) -> None:
        """Give a span its attributes, and its trace the tags where it is the first span."""
        if is_call(span):
            self._count(span)
        if span.parent_id is None:
            _tag(span.trace_id)

    def _count(self, span: Any) -> None:
        name = model_of(span)
        if not self._meter.serves(name):
            if self._meter.serving.served_as is None:
                self._say(
                    f"model {name}",
                    f"calls of {name!r} are left alone: {self._meter.model.name} is counted",
                    f"Give served_as={name!r} if they are the same model",
                )
            return
        try:
            call = call_of(span, _held(span))
            cost = self._meter.cost(call, _NS * (time.time_ns() - span.start_time_ns))
        except UncountedError as error:
            if span.get_attribute(USAGE) is None and self._holds_counted(span):
                return
            span.set_attributes(gap_attributes(error))
            if error.remedy:
                self._say(error.kind, str(error), error.remedy)
            return
        span.set_attributes(counted(call, cost, set_price=span.get_attribute(MONEY) is None))
        for gap in cost.gaps:
            self._say(gap.kind, str(gap), gap.remedy)

    def _holds_counted(self, span: Any) -> bool:
        """Tell whether a span without usage is the frame of calls that are counted."""
        spans = _spans_with(span.trace_id)
        counted = [one.span_id for one in spans if one.get_attribute(_TOTAL) is not None]
        return not outermost(parents_of(spans), counted, [span.span_id])[1]

    def _say(self, kind: str, reason: str, remedy: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("trace_processor: %s. %s. The span attribute %s has each case", reason, remedy, MISSING)


def counted(call: Call, cost: CallCost, set_price: bool) -> dict[str, Any]:
    """Return the attributes of a span that is counted."""
    attributes = cost.attributes()
    if call.pictures:
        attributes[SIZES] = [list(size) for size in call.pictures]
    if cost.price_parts is not None and set_price:
        before, after = cost.price_parts
        attributes[MONEY] = {"input_cost": before, "output_cost": after, _TOTAL_MONEY: cost.price}
    return attributes


def _held(span: Any) -> Attachments:
    """Return the attachments that a live span holds; MLflow before 3.12 leaves pictures in the inputs."""
    held: Mapping[str, Any] = getattr(span, "_attachments", {})
    return lambda name: bytes(held[name].content_bytes)


def _spans_with(trace_id: str) -> list[Any]:
    """Return the spans of a trace in memory, none if MLflow has given it up."""
    with _trace(trace_id) as trace:
        return [] if trace is None else list(trace.span_dict.values())


def _tag(trace_id: str) -> None:
    """Give a trace in memory the tags of its calls, as `mlflow.update_current_trace` does for the active one."""
    with _trace(trace_id) as trace:
        if trace is not None:
            trace.info.tags.update(_tags_of(list(trace.span_dict.values())))


def _trace(trace_id: str) -> Any:
    # Late: whoever has a span has imported MLflow, which takes seconds.
    from mlflow.tracing import trace_manager

    mlflows: Any = trace_manager  # Its functions have no annotations.
    return mlflows.InMemoryTraceManager.get_instance().get_trace(trace_id)


def _tags_of(spans: Collection[Any]) -> dict[str, str]:
    counted = {span.span_id: span for span in spans if span.get_attribute(_TOTAL) is not None}
    missing = {
        span.span_id: span for span in spans if span.span_id not in counted and span.get_attribute(MISSING) is not None
    }
    kept = set[str]().union(*outermost(parents_of(spans), counted, missing))
    return trace_tags([span.attributes for name, span in {**counted, **missing}.items() if name in kept])


def parents_of(spans: Collection[Any]) -> dict[str, str | None]:
    """Return the parents of spans by their ids."""
    return {span.span_id: span.parent_id for span in spans}
