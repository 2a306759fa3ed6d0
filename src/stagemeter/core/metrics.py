"""The table of metrics: every number that is logged, compared or swept, with its unit and meaning.

A metric is named ``<quantity>/<part>``, and the part is mostly a stage. A new quantity is a line of `METRICS`.
Its reader takes a document as plain data, whose numbers can be arrays, as in a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core import metric_readers as read
from stagemeter.core.metric_readers import Reader, Values
from stagemeter.core.stage_names import ENGINE, TOTAL

#: Kinds of documents, which are also kinds of runs.
STATIC, MODULE, PROFILE, PAIRING, COMPARISON = "static", "module", "profile", "pairing", "comparison"
#: The costs of a log of requests, whose metrics are apart from those of one request.
LOG = "request_log"
#: The steps of a training that a callback watches. Their run is the trainer's own, of no kind.
TRAINING = "training"
#: The intervals of a watch. Their run becomes one of a profile when the watch ends.
WATCH = "watch"


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
    in_runs : tuple of str or None
        The parts that become metrics of MLflow runs. Default: all. Documents have the others: what follows from other
        metrics, and what two runs are seldom compared by.
    """

    name: str
    unit: str
    meaning: str
    readers: Mapping[str, Reader]
    compared: bool = False
    swept: bool = False
    in_runs: tuple[str, ...] | None = None

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


def in_runs(values: Values) -> Values:
    """Return the values that become metrics of a run, what is compared first at the front.

    MLflow's page of a run lists metrics as they were logged, and its page of a comparison opens with the first.
    """
    kept: Values = {}
    for name, value in values.items():
        quantity, _, part = name.partition("/")
        parts = _IN_RUNS.get(quantity)
        if parts is None or part in parts:
            kept[name] = value
    places = {quantity: place for place, quantity in enumerate(dict.fromkeys(name.partition("/")[0] for name in kept))}
    return dict(
        sorted(kept.items(), key=lambda item: (places[item[0].partition("/")[0]], not item[0].endswith(f"/{TOTAL}")))
    )


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


#: Every metric. The order of compared ones is that of the help of ``compare``.
METRICS: tuple[Metric, ...] = (
    Metric(
        "flops",
        "FLOPs",
        "Model FLOPs, two per multiply-accumulate, attention counted dense. Modules count latent attention as it runs.",
        {STATIC: read.flops, MODULE: read.module("flops"), TRAINING: read.trained("flops")},
        compared=True,
        swept=True,
    ),
    Metric(
        "flops_causal",
        "FLOPs",
        "The model's FLOPs by visible pairs.",
        {
            STATIC: read.stages("flops_causal"),
            MODULE: read.module("flops_causal"),
            TRAINING: read.trained("flops_causal"),
        },
        compared=True,
        swept=True,
        in_runs=(TOTAL,),
    ),
    Metric(
        "flops_executed",
        "FLOPs",
        "FLOPs of all that is executed.",
        {
            STATIC: read.stages("flops_executed", adapter=True),
            MODULE: read.module("flops_executed"),
            TRAINING: read.trained("flops_executed"),
        },
        compared=True,
        swept=True,
        in_runs=(TOTAL,),
    ),
    Metric(
        "macs",
        "MACs",
        "Multiply-accumulates.",
        {STATIC: read.stages("macs"), MODULE: read.module("macs")},
        compared=True,
        swept=True,
        in_runs=(),
    ),
    Metric("params", "", "Parameters.", {STATIC: read.params, MODULE: read.module("params")}, compared=True),
    Metric(
        "activations",
        "",
        "Elements that the counted operators write.",
        {STATIC: read.stages("activations"), MODULE: read.module("activations")},
        compared=True,
        swept=True,
        in_runs=(),
    ),
    Metric(
        "bytes",
        "B",
        "Bytes that the counted operators read and write.",
        {
            STATIC: read.stages("bytes_read", "bytes_written", adapter=True),
            MODULE: read.module("bytes_read", "bytes_written"),
        },
        compared=True,
        swept=True,
    ),
    Metric(
        "time_ms",
        "ms",
        "A stage's own time. Repeats are steps, and the last step is their median.",
        {PROFILE: read.times},
        compared=True,
    ),
    Metric(
        "roofline_ms",
        "ms",
        "The least time that the work can take on a device, by visible pairs.",
        {STATIC: read.bounds, PAIRING: read.paired("roofline_ms")},
        compared=True,
        swept=True,
    ),
    Metric(
        "mfu",
        "",
        "Model FLOPs utilization, attention counted dense.",
        {PAIRING: read.paired("mfu"), TRAINING: read.trained("mfu")},
        compared=True,
    ),
    Metric(
        "mfu_causal",
        "",
        "The same with attention by its visible pairs.",
        {PAIRING: read.paired("mfu_causal"), TRAINING: read.trained("mfu_causal")},
        compared=True,
        in_runs=(TOTAL, ENGINE),
    ),
    Metric(
        "hfu",
        "",
        "Hardware FLOPs utilization, of all that is executed, where that is known.",
        {PAIRING: read.paired("hfu"), TRAINING: read.trained("hfu")},
        compared=True,
        in_runs=(TOTAL, ENGINE),
    ),
    Metric("mfu_least", "", "Lower bound of mfu, for a serving engine.", {PAIRING: read.paired("mfu_least")}),
    Metric("mfu_most", "", "Upper bound of mfu, for a serving engine.", {PAIRING: read.paired("mfu_most")}),
    Metric(
        "mfu_causal_least", "", "Lower bound of mfu_causal.", {PAIRING: read.paired("mfu_causal_least")}, in_runs=()
    ),
    Metric("mfu_causal_most", "", "Upper bound of mfu_causal.", {PAIRING: read.paired("mfu_causal_most")}, in_runs=()),
    Metric("mbu", "", "Memory bandwidth utilization.", {PAIRING: read.paired("mbu")}),
    Metric(
        "mbu_least",
        "",
        "Lower bound of the memory bandwidth utilization of a serving engine.",
        {PAIRING: read.paired("mbu_least")},
    ),
    Metric(
        "tflops", "TFLOP/s", "The rate of arithmetic that was reached.", {PAIRING: read.paired("tflops")}, in_runs=()
    ),
    Metric("gbps", "GB/s", "The rate of memory that was reached.", {PAIRING: read.paired("gbps")}, in_runs=()),
    Metric(
        "roofline_fraction",
        "",
        "roofline_ms over the measured time.",
        {PAIRING: read.paired("roofline_fraction")},
        in_runs=(TOTAL,),
    ),
    Metric(
        "memory",
        "B",
        "Memory that the request needs; also the largest batch.",
        {STATIC: read.memory, PROFILE: read.measured("memory")},
        swept=True,
    ),
    Metric("tokens", "", "Tokens of the request.", {STATIC: read.tokens}, in_runs=()),
    Metric(
        "decode_curve",
        "FLOPs",
        "FLOPs of a decode step. The step of the metric is the context.",
        # The log of a run adds the points, which are no single values.
        {STATIC: lambda report: {}},
    ),
    Metric(
        "at_roofline",
        "",
        "Throughput at the roofline.",
        {STATIC: read.at_roofline},
        swept=True,
        in_runs=("pages_per_hour",),
    ),
    Metric(
        "load",
        "",
        "Devices that a rate of pages keeps busy, at the bounds and at an MFU.",
        {STATIC: read.load},
    ),
    Metric(
        "speculation",
        "",
        "Speculative decoding: tokens of a step; FLOPs, bytes and least time for a token, over plain decoding's.",
        {STATIC: read.speculation},
    ),
    Metric(
        "params_trainable",
        "",
        "Parameters that have a gradient.",
        {MODULE: read.module("params_trainable")},
        in_runs=(TOTAL,),
    ),
    Metric(
        "flops_forward", "FLOPs", "FLOPs of the forward pass.", {MODULE: read.module("flops_forward")}, in_runs=(TOTAL,)
    ),
    Metric(
        "flops_backward",
        "FLOPs",
        "FLOPs of the backward pass.",
        {MODULE: read.module("flops_backward")},
        in_runs=(TOTAL,),
    ),
    Metric(
        "flops_recomputed",
        "FLOPs",
        "Executed FLOPs beyond the model's: what a backward pass computes again, and pairs outside of windows.",
        {MODULE: read.module("flops_recomputed")},
        in_runs=(TOTAL,),
    ),
    Metric(
        "unsupported_calls", "", "Calls of operators without a formula.", {MODULE: read.unsupported}, in_runs=(TOTAL,)
    ),
    Metric("time_ms_p10", "ms", "10th percentile of the repeats.", {PROFILE: read.decile("p10")}, in_runs=()),
    Metric("time_ms_p90", "ms", "90th percentile of the repeats.", {PROFILE: read.decile("p90")}, in_runs=()),
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
        {PROFILE: read.measured("tokens_per_second"), TRAINING: read.trained("tokens_per_second")},
    ),
    Metric(
        "samples_per_second",
        "",
        "Sequences, or rows of other input than text, per second.",
        {TRAINING: read.trained("samples_per_second")},
    ),
    Metric(
        "tflops_per_second",
        "TFLOP/s",
        "Model FLOPs per second on one device.",
        {TRAINING: read.trained("tflops_per_second")},
    ),
    Metric("step_ms", "ms", "Time of a training step, with data loading.", {TRAINING: read.trained("step_ms")}),
    Metric("padding", "", "The share of tokens that are padding.", {TRAINING: read.trained("padding")}),
    Metric("pages_per_hour", "", "Pages per hour of whole requests.", {PROFILE: read.measured("pages_per_hour")}),
    Metric(
        "experts_read",
        "",
        "Experts of a layer that a pass read, the mean over layers and passes.",
        {PROFILE: read.measured("experts_read")},
    ),
    Metric(
        "harness_overhead",
        "",
        "The share of a stage's time that measuring took.",
        {PROFILE: read.measured("harness_overhead")},
        in_runs=(),
    ),
    Metric("engine", "", "What a serving engine reports of its requests.", {PROFILE: read.measured("engine")}),
    Metric(
        "log_flops",
        "FLOPs",
        "Model FLOPs of all requests of a log, attention counted dense.",
        {LOG: read.of_log("flops")},
    ),
    Metric("log_flops_causal", "FLOPs", "The same by visible pairs.", {LOG: read.of_log("flops_causal")}),
    Metric("log_flops_executed", "FLOPs", "FLOPs that are executed for a log.", {LOG: read.of_log("flops_executed")}),
    Metric("log_kv_bytes_read", "B", "Bytes of the KV cache that a log reads.", {LOG: read.of_log("kv_bytes_read")}),
    Metric(
        "log_kv_bytes_written", "B", "Bytes of the KV cache that it writes.", {LOG: read.of_log("kv_bytes_written")}
    ),
    Metric("log_tokens", "", "Tokens of all requests of a log.", {LOG: read.log_tokens}),
    Metric("log_count", "", "Requests and pages of a log, and lines that are left out.", {LOG: read.log_counts}),
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
    Metric("ratio", "", "A value over the baseline's. Each other subject is a step.", {COMPARISON: read.ratios}),
)
#: The quantities that `compare` takes, with their units.
COMPARED = {metric.name: metric.unit for metric in METRICS if metric.compared}
#: The parts of each quantity that become metrics of runs; None for all.
_IN_RUNS = {metric.name: metric.in_runs for metric in METRICS}
