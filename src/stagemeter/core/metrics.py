"""The table of metrics: every number that is logged, compared or swept, with its unit and meaning.

A metric is named ``<quantity>/<part>``, and the part is mostly a stage. A new quantity is a line of `METRICS`.
Its reader takes a document as plain data, whose numbers can be arrays, as in a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, OTHER, REQUEST, TOTAL

#: Kinds of documents, which are also kinds of runs.
STATIC, MODULE, PROFILE, PAIRING, COMPARISON = "static", "module", "profile", "pairing", "comparison"
#: The costs of a log of requests, whose metrics are apart from those of one request.
LOG = "request_log"
#: The steps of a training that a callback watches. Their run is the trainer's own, of no kind.
TRAINING = "training"
#: The intervals of a watch. Their run becomes one of a profile when the watch ends.
WATCH = "watch"

Values = dict[str, Any]
Reader = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity, and where its values are.

    Attributes
    ----------
    name, unit, meaning : str
        The part of a metric's name before the slash; the unit of its values, empty for numbers of things and for
        shares; and their meaning in one sentence.
    readers : mapping
        For each kind of document that has it: a function that returns the values by the part of the name behind the
        slash. None stands for an unknown value, which is left out.
    compared, swept : bool
        Whether ``compare`` takes it, and whether it is a column of a sweep.
    """

    name: str
    unit: str
    meaning: str
    readers: Mapping[str, Reader]
    compared: bool = False
    swept: bool = False

    def values(self, kind: str, document: Mapping[str, Any]) -> Values:
        """Return the values in a document by full name."""
        found = self.readers[kind](document) if kind in self.readers else {}
        return {f"{self.name}/{part}": value for part, value in found.items() if value is not None}


def values_of(kind: str, document: Mapping[str, Any], swept: bool = False) -> Values:
    """Return the numbers of a document by name, such as ``flops/sam``; of a sweep only its columns.

    ``decode`` is one step, ``decode_total`` all steps of a request.
    """
    values: Values = {}
    for metric in METRICS:
        if metric.swept or not swept:
            values |= metric.values(kind, document)
    return values


def report_values(report: Mapping[str, Any]) -> Values:
    """Return the numbers of a static report by name."""
    return values_of(STATIC, report)


def module_values(document: Mapping[str, Any]) -> Values:
    """Return the numbers of a module's report by name."""
    return values_of(MODULE, document)


def profile_values(document: Mapping[str, Any]) -> Values:
    """Return the numbers of a profile by name, those that its source named included."""
    return {**values_of(PROFILE, document), **document["metrics"]}


def pairing_values(pairing: Mapping[str, Any]) -> Values:
    """Return the numbers of a pairing by name."""
    return values_of(PAIRING, pairing)


def comparison_values(comparison: Mapping[str, Any], number: int) -> Values:
    """Return the ratios of one subject to the baseline by name."""
    return values_of(COMPARISON, {**comparison, "number": number})


def training_values(steps: Mapping[str, Any]) -> Values:
    """Return the numbers of a training's steps by name; those of a stage are named ``mfu/train/vision``."""
    return values_of(TRAINING, steps)


def log_values(costs: Mapping[str, Any]) -> Values:
    """Return the numbers of a log of requests by name."""
    return values_of(LOG, costs)


def interval_values(interval: Mapping[str, Any]) -> Values:
    """Return the numbers of an interval of a watch by name."""
    return values_of(WATCH, interval)


# Readers


def _stages(*quantities: str, adapter: bool = False) -> Reader:
    """Read quantities of a report's stages, and add them up."""

    def read(report: Mapping[str, Any]) -> Values:
        stages, total, beside = report["stages"], report["total"], report.get("adapter")
        return {
            **{name: sum(stage[quantity] for quantity in quantities) for name, stage in stages.items()},
            DECODE_TOTAL: sum(stages[DECODE][f"{quantity}_total"] for quantity in quantities),
            TOTAL: sum(total[quantity] for quantity in quantities),
            "adapter": sum(beside["total"][quantity] for quantity in quantities) if adapter and beside else None,
        }

    return read


def _flops(report: Mapping[str, Any]) -> Values:
    return {**_stages("flops", adapter=True)(report), FORWARD: report["total"]["flops_forward"]}


def _params(report: Mapping[str, Any]) -> Values:
    total, adapter = report["total"], report.get("adapter")
    return {
        **{name: stage["params"] for name, stage in report["stages"].items()},
        OTHER: sum(report["other_params"].values()),
        TOTAL: total["params"],
        "active": total["params_active"],
        "adapter": None if adapter is None else adapter["params"],
    }


def _memory(report: Mapping[str, Any]) -> Values:
    total, roofline = report["total"], report["roofline"]
    values = {"weights": total["weight_bytes"], "kv_cache": total["kv_cache_bytes"]}
    if roofline is not None:
        memory = roofline["memory"]
        values |= {"needed": memory["needed_bytes"], "largest_batch_size": memory["largest_batch_size"]}
    return values


def _tokens(report: Mapping[str, Any]) -> Values:
    workload = report["metadata"]["workload"]
    return {name: workload[f"{name}_tokens"] for name in ("image", "prompt", "new")}


def _bounds(report: Mapping[str, Any]) -> Values:
    roofline = report["roofline"]
    return {} if roofline is None else {name: row["roofline_ms"] for name, row in roofline["bounds"].items()}


def _at_roofline(report: Mapping[str, Any]) -> Values:
    roofline = report["roofline"]
    return {} if roofline is None else dict(roofline["throughput"])


def _speculation(report: Mapping[str, Any]) -> Values:
    found = report.get("speculation")
    shares = {} if found is None else found["of_plain"]
    return {**({"tokens_per_step": found["tokens_per_step"]} if found else {}), **shares}


def _module(*quantities: str) -> Reader:
    """Read quantities of the parts of a module's report, and add them up; None where one is unknown."""

    def read(document: Mapping[str, Any]) -> Values:
        parts = {**document["stages"], OTHER: document["other"], TOTAL: document["total"]}
        found = {name: [part[quantity] for quantity in quantities] for name, part in parts.items()}
        return {name: None if None in values else sum(values) for name, values in found.items()}

    return read


def _unsupported(document: Mapping[str, Any]) -> Values:
    parts = {**document["stages"], OTHER: document["other"], TOTAL: document["total"]}
    return {name: sum(part["unsupported"].values()) for name, part in parts.items()}


def _times(document: Mapping[str, Any]) -> Values:
    request = document["request_median_ms"] if document["request_ms"] else None
    return {**document["time_ms"], REQUEST: request}


def _decile(name: str) -> Reader:
    return lambda document: {stage: spread[name] for stage, spread in document["spread_ms"].items()}


def _measured(quantity: str) -> Reader:
    """Read a profile's own values, which it keeps under names of metrics."""

    def read(document: Mapping[str, Any]) -> Values:
        prefix, found = f"{quantity}/", {**document["throughput"], **document["metrics"]}
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    return read


def _paired(quantity: str) -> Reader:
    """Read a quantity of a pairing's stages, and of its serving engine."""

    def read(pairing: Mapping[str, Any]) -> Values:
        engine = pairing.get("engine", {})
        values = {stage: row.get(quantity) for stage, row in pairing["stages"].items()}
        return {**values, "engine": engine.get(quantity)} if quantity.startswith("mfu") else values

    return read


def _trained(quantity: str) -> Reader:
    """Read a quantity of a training's steps, and of their stages."""
    return lambda steps: {part: row.get(quantity) for part, row in steps["parts"].items()}


def _of_log(quantity: str) -> Reader:
    """Read a quantity of a log's stages."""
    return lambda costs: {name: stage[quantity] for name, stage in [*costs["stages"].items(), (TOTAL, costs[TOTAL])]}


def _log_counts(costs: Mapping[str, Any]) -> Values:
    left_out = {how: costs[how]["lines"] for how in ("skipped", "failed")}
    return {"requests": costs["requests"], "pages": costs["pages"], **left_out}


def _log_tokens(costs: Mapping[str, Any]) -> Values:
    return {name: costs[f"{name}_tokens"] for name in ("prompt", "cached", "computed", "output")}


def _ratios(comparison: Mapping[str, Any]) -> Values:
    return {
        f"{quantity}/{row['stage']}": row["ratios"][comparison["number"]]
        for quantity, compared in comparison["quantities"].items()
        for row in compared["rows"]
    }


#: Every metric. The order of compared ones is that of the help of ``compare``.
METRICS: tuple[Metric, ...] = (
    Metric(
        "flops",
        "FLOPs",
        "Model FLOPs, two per multiply-accumulate, attention counted dense. Modules count latent attention as it runs.",
        {STATIC: _flops, MODULE: _module("flops"), TRAINING: _trained("flops")},
        compared=True,
        swept=True,
    ),
    Metric(
        "flops_causal",
        "FLOPs",
        "The model's FLOPs by visible pairs.",
        {STATIC: _stages("flops_causal"), MODULE: _module("flops_causal"), TRAINING: _trained("flops_causal")},
        compared=True,
        swept=True,
    ),
    Metric(
        "flops_executed",
        "FLOPs",
        "FLOPs of all that is executed.",
        {
            STATIC: _stages("flops_executed", adapter=True),
            MODULE: _module("flops_executed"),
            TRAINING: _trained("flops_executed"),
        },
        compared=True,
        swept=True,
    ),
    Metric(
        "macs",
        "MACs",
        "Multiply-accumulates.",
        {STATIC: _stages("macs"), MODULE: _module("macs")},
        compared=True,
        swept=True,
    ),
    Metric("params", "", "Parameters.", {STATIC: _params, MODULE: _module("params")}, compared=True),
    Metric(
        "activations",
        "",
        "Elements that the counted operators write.",
        {STATIC: _stages("activations"), MODULE: _module("activations")},
        compared=True,
        swept=True,
    ),
    Metric(
        "bytes",
        "B",
        "Bytes that the counted operators read and write.",
        {STATIC: _stages("bytes_read", "bytes_written", adapter=True), MODULE: _module("bytes_read", "bytes_written")},
        compared=True,
        swept=True,
    ),
    Metric(
        "time_ms",
        "ms",
        "A stage's own time. Repeats are steps, and the last step is their median.",
        {PROFILE: _times},
        compared=True,
    ),
    Metric(
        "roofline_ms",
        "ms",
        "The least time that the work can take on a device, by visible pairs.",
        {STATIC: _bounds, PAIRING: _paired("roofline_ms")},
        compared=True,
        swept=True,
    ),
    Metric(
        "mfu",
        "",
        "Model FLOPs utilization, attention counted dense.",
        {PAIRING: _paired("mfu"), TRAINING: _trained("mfu")},
        compared=True,
    ),
    Metric(
        "mfu_causal",
        "",
        "The same with attention by its visible pairs.",
        {PAIRING: _paired("mfu_causal"), TRAINING: _trained("mfu_causal")},
        compared=True,
    ),
    Metric(
        "hfu",
        "",
        "Hardware FLOPs utilization, of all that is executed, where that is known.",
        {PAIRING: _paired("hfu"), TRAINING: _trained("hfu")},
        compared=True,
    ),
    Metric("mfu_least", "", "Lower bound of mfu, for a serving engine.", {PAIRING: _paired("mfu_least")}),
    Metric("mfu_most", "", "Upper bound of mfu, for a serving engine.", {PAIRING: _paired("mfu_most")}),
    Metric("mfu_causal_least", "", "Lower bound of mfu_causal.", {PAIRING: _paired("mfu_causal_least")}),
    Metric("mfu_causal_most", "", "Upper bound of mfu_causal.", {PAIRING: _paired("mfu_causal_most")}),
    Metric("mbu", "", "Memory bandwidth utilization.", {PAIRING: _paired("mbu")}),
    Metric("tflops", "TFLOP/s", "The rate of arithmetic that was reached.", {PAIRING: _paired("tflops")}),
    Metric("gbps", "GB/s", "The rate of memory that was reached.", {PAIRING: _paired("gbps")}),
    Metric(
        "roofline_fraction",
        "",
        "roofline_ms over the measured time.",
        {PAIRING: _paired("roofline_fraction")},
    ),
    Metric(
        "memory",
        "B",
        "Memory that the request needs; also the largest batch.",
        {STATIC: _memory, PROFILE: _measured("memory")},
        swept=True,
    ),
    Metric("tokens", "", "Tokens of the request.", {STATIC: _tokens}),
    Metric(
        "decode_curve",
        "FLOPs",
        "FLOPs of a decode step. The step of the metric is the context.",
        # The log of a run adds the points, which are no single values.
        {STATIC: lambda report: {}},
    ),
    Metric("at_roofline", "", "Throughput at the roofline.", {STATIC: _at_roofline}, swept=True),
    Metric(
        "speculation",
        "",
        "Speculative decoding: tokens of a step; FLOPs, bytes and least time for a token, over plain decoding's.",
        {STATIC: _speculation},
    ),
    Metric("params_trainable", "", "Parameters that have a gradient.", {MODULE: _module("params_trainable")}),
    Metric("flops_forward", "FLOPs", "FLOPs of the forward pass.", {MODULE: _module("flops_forward")}),
    Metric("flops_backward", "FLOPs", "FLOPs of the backward pass.", {MODULE: _module("flops_backward")}),
    Metric(
        "flops_recomputed",
        "FLOPs",
        "Executed FLOPs beyond the model's: what a backward pass computes again, and pairs outside of windows.",
        {MODULE: _module("flops_recomputed")},
    ),
    Metric("unsupported_calls", "", "Calls of operators without a formula.", {MODULE: _unsupported}),
    Metric("time_ms_p10", "ms", "10th percentile of the repeats.", {PROFILE: _decile("p10")}),
    Metric("time_ms_p90", "ms", "90th percentile of the repeats.", {PROFILE: _decile("p90")}),
    Metric(
        "time_share",
        "",
        "The share of a request's wall time that its stages take.",
        {PROFILE: lambda document: {"stages_of_request": document["stages_of_request"]}},
    ),
    Metric(
        "tokens_per_second",
        "",
        "Tokens of a stage per second.",
        {PROFILE: _measured("tokens_per_second"), TRAINING: _trained("tokens_per_second")},
    ),
    Metric(
        "samples_per_second",
        "",
        "Sequences, or rows of other input than text, per second.",
        {TRAINING: _trained("samples_per_second")},
    ),
    Metric(
        "tflops_per_second",
        "TFLOP/s",
        "Model FLOPs per second on one device.",
        {TRAINING: _trained("tflops_per_second")},
    ),
    Metric("step_ms", "ms", "Time of a training step, with data loading.", {TRAINING: _trained("step_ms")}),
    Metric("padding", "", "The share of tokens that are padding.", {TRAINING: _trained("padding")}),
    Metric("pages_per_hour", "", "Pages per hour of whole requests.", {PROFILE: _measured("pages_per_hour")}),
    Metric(
        "experts_read",
        "",
        "Experts of a layer that a pass read, the mean over layers and passes.",
        {PROFILE: _measured("experts_read")},
    ),
    Metric(
        "harness_overhead",
        "",
        "The share of a stage's time that measuring took.",
        {PROFILE: _measured("harness_overhead")},
    ),
    Metric("engine", "", "What a serving engine reports of its requests.", {PROFILE: _measured("engine")}),
    Metric(
        "log_flops", "FLOPs", "Model FLOPs of all requests of a log, attention counted dense.", {LOG: _of_log("flops")}
    ),
    Metric("log_flops_causal", "FLOPs", "The same by visible pairs.", {LOG: _of_log("flops_causal")}),
    Metric("log_flops_executed", "FLOPs", "FLOPs that are executed for a log.", {LOG: _of_log("flops_executed")}),
    Metric("log_kv_bytes_read", "B", "Bytes of the KV cache that a log reads.", {LOG: _of_log("kv_bytes_read")}),
    Metric("log_kv_bytes_written", "B", "Bytes of the KV cache that it writes.", {LOG: _of_log("kv_bytes_written")}),
    Metric("log_tokens", "", "Tokens of all requests of a log.", {LOG: _log_tokens}),
    Metric("log_count", "", "Requests and pages of a log, and lines that are left out.", {LOG: _log_counts}),
    Metric(
        "log_request_flops",
        "FLOPs",
        "Model FLOPs of a request of a log: the mean and quantiles.",
        {LOG: lambda costs: costs["flops_per_request"]},
    ),
    Metric(
        "serving",
        "",
        "What live serving engines did in an interval, see [Watching](watching.md#metrics). An interval is a step.",
        {WATCH: lambda interval: interval["serving"]},
    ),
    Metric(
        "serving_flops",
        "FLOPs",
        "Model FLOPs of the requests that finished in an interval.",
        {WATCH: lambda interval: interval["serving_flops"]},
    ),
    Metric("ratio", "", "A value over the baseline's. Each other subject is a step.", {COMPARISON: _ratios}),
)
#: The quantities that `compare` takes, with their units.
COMPARED = {metric.name: metric.unit for metric in METRICS if metric.compared}
