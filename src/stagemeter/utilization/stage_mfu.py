"""Closed forms of the language model's work, exact for gated, grouped-query and mixture-of-experts decoders.

Names and leading parameters are those of the system that Stagemeter starts from. Keyword parameters add what it left
out: gates, key and value projections, experts, the output head. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from stagemeter.core.report_upgrade import upgraded_report
from stagemeter.core.stage_names import DECODE, PREFILL, VISION, aggregates
from stagemeter.core.workload import Workload, decode_context_of
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.mixer import executed_pass
from stagemeter.utilization.work import counted_work


class DecoderSizes(TypedDict, total=False):
    """Sizes of a decoder beyond width, feed-forward width and depth. Without them, it is a plain dense decoder."""

    #: Attention heads, the key and value heads that they share, and the width of each. Default: each has its own keys
    #: and values, and all are as wide as the model.
    n_heads: int
    n_key_value_heads: int
    head_width: int
    #: Layers without experts. Default: all, or none if experts are given.
    n_dense_layers: int
    #: Routed experts, those that a token uses, experts that every token uses, and the width of one.
    n_experts: int
    n_experts_per_token: int
    n_shared_experts: int
    d_expert: int
    #: Rows of the output head. Default: no head.
    vocabulary: int


def estimate_prefill_flops_total(
    d_model: int, d_ff: int, n_layers: int, seq_len: int, *, batch_size: int = 1, **sizes: Unpack[DecoderSizes]
) -> int:
    """Return the FLOPs of the prefill: the decoder over a prompt, and the output head on its last position.

    They are exact, with two FLOPs per multiply-accumulate and dense attention. `d_ff` is the width of the gated
    feed-forward network, and `sizes` are those of `DecoderSizes`. Contradictory sizes raise ValueError.

    Examples
    --------
    DeepSeek-OCR's decoder layers over a page of 913 tokens:

    >>> experts = dict(n_dense_layers=1, n_experts=64, n_experts_per_token=6, n_shared_experts=2, d_expert=896)
    >>> estimate_prefill_flops_total(1280, 6848, 12, 913, n_heads=10, **experts)
    797349048320
    """
    decoder = _decoder(d_model, d_ff, n_layers, **sizes)
    _at_least(1, seq_len=seq_len, batch_size=batch_size)
    experts_read = decoder.experts_read(batch_size * seq_len).most
    return decoder.cost(executed_pass(batch_size, seq_len, seq_len, experts_read, prefill=True)).flops


def estimate_decode_flops_per_token(
    d_model: int, d_ff: int, n_layers: int, ctx_len: int, **sizes: Unpack[DecoderSizes]
) -> int:
    """Return the FLOPs of one decode step of one sequence that attends to `ctx_len` tokens, the new one included.

    The other parameters are those of `estimate_prefill_flops_total`.

    Examples
    --------
    >>> experts = dict(n_dense_layers=1, n_experts=64, n_experts_per_token=6, n_shared_experts=2, d_expert=896)
    >>> estimate_decode_flops_per_token(1280, 6848, 12, 914, n_heads=10, **experts)
    873390080
    """
    decoder = _decoder(d_model, d_ff, n_layers, **sizes)
    _at_least(1, ctx_len=ctx_len)
    experts_read = decoder.experts_read(1).most
    return decoder.cost(executed_pass(1, 1, ctx_len, experts_read, prefill=False)).flops


def select_decode_context_len(
    mode: str, fixed: int | None, prefill_len: int, new_tokens: int, model_window: int | None
) -> int:
    """Return the context of the decode step that is reported, at least 2: the new token and one before it.

    `mode` is ``auto``, the middle of the generation (``prefill_len + new_tokens // 2``); ``fixed``, the given context;
    or ``max``, the longest sequence of the model, or without `model_window` the end of the request.
    """
    if mode not in ("auto", "fixed", "max"):
        raise ValueError(f"unknown decode context mode {mode!r}: give auto, fixed or max")
    if mode == "fixed" and (fixed is None or fixed < 2):
        raise ValueError(f"a decode step attends to itself and to what came before: 2 or more, not {fixed!r}")
    setting = fixed if mode == "fixed" and fixed is not None else mode
    return decode_context_of(setting, prefill_len, new_tokens, model_window or prefill_len + new_tokens)


@dataclass(frozen=True, slots=True)
class StageMFU:
    """The model FLOPs utilization of the stages of a request.

    Attributes
    ----------
    decode, prefill, vision : float or None
        FLOPs over those of the device's peak in the stage's time; None where the stage has no work or no time.
    model_level : float
        FLOPs of all timed stages over those of the peak in the sum of their times.
    source : str
        Source of the FLOPs: ``static report``, ``closed form of the static report``, or ``closed forms``. With ``, of
        executed FLOPs`` where the report has no others, such as one of schema 1.x.
    """

    decode: float | None
    prefill: float | None
    vision: float | None
    model_level: float
    source: str


def compute_stage_mfu(
    prefill_ms: float,
    decode_ms: float | None,
    vision_ms: float | None,
    prefill_len: int,
    new_tokens: int,
    d_model: int | None = None,
    d_ff: int | None = None,
    n_layers: int | None = None,
    peak_tflops: float | None = None,
    ctx_len_mode: str = "auto",
    ctx_len_fixed: int | None = None,
    model_window: int | None = None,
    vision_flops: float | None = None,
    *,
    static_report: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    **sizes: Unpack[DecoderSizes],
) -> StageMFU:
    """Return the model FLOPs utilization of a request whose times are known.

    Parameters
    ----------
    prefill_ms, decode_ms, vision_ms : float
        Own milliseconds of the prefill, of all decode steps, and of all vision stages; 0 or None without a time.
    prefill_len, new_tokens : int
        Tokens of the prompt, and generated ones. The prefill yields the first, so there are ``new_tokens - 1`` steps.
    d_model, d_ff, n_layers, **sizes
        Sizes of the decoder without a report, see `estimate_prefill_flops_total`.
    peak_tflops : float
        Dense peak of the device in TFLOP/s.
    ctx_len_mode, ctx_len_fixed, model_window
        Context of a decode step, see `select_decode_context_len`. With ``auto``, each step has its own.
    vision_flops : float, optional
        FLOPs of the vision stages for the whole batch, without a report.
    static_report : mapping, optional
        A static report in place of sizes. For another prompt, number of tokens or batch, its closed form is evaluated.
    batch_size : int, optional
        Requests at once. Default: those of the report, one without a report.

    Raises
    ------
    ValueError
        If a time, the peak or a size is impossible, or unless either a report or sizes are given.
    """
    for name, value in (("prefill_ms", prefill_ms), ("peak_tflops", peak_tflops)):
        if value is None or not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value!r}; it must be a positive number")
    for name, value in (("decode_ms", decode_ms), ("vision_ms", vision_ms)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value!r}; it must be a positive number, or 0 or None if it was not timed")
    if batch_size is None:
        batch_size = static_report["metadata"]["workload"]["batch_size"] if static_report is not None else 1
    _at_least(1, prefill_len=prefill_len, new_tokens=new_tokens, batch_size=batch_size)
    if static_report is not None:
        if sizes or any(value is not None for value in (d_model, d_ff, n_layers, vision_flops)):
            raise ValueError("static_report has the sizes and the vision FLOPs: give it or them, not both")
        work, source = _reported_work(static_report, prefill_len, new_tokens, batch_size)
        if ctx_len_mode != "auto":
            raise ValueError("ctx_len_mode: a report counts every step at the context it has; leave it at 'auto'")
    else:
        if d_model is None or d_ff is None or n_layers is None:
            raise ValueError("give either static_report, or d_model, d_ff and n_layers")
        context = select_decode_context_len(ctx_len_mode, ctx_len_fixed, prefill_len, new_tokens, model_window)
        exact = ctx_len_mode == "auto"
        contexts = (prefill_len + 1, prefill_len + new_tokens - 1) if exact else (context, context)
        # The cost of a step grows evenly with its context, so the mean step is the mean of both ends.
        ends = [estimate_decode_flops_per_token(d_model, d_ff, n_layers, max(1, end), **sizes) for end in contexts]
        prefill = estimate_prefill_flops_total(d_model, d_ff, n_layers, prefill_len, batch_size=batch_size, **sizes)
        decode = batch_size * (new_tokens - 1) * sum(ends) / 2
        work, source = {VISION: vision_flops or 0.0, PREFILL: prefill, DECODE: decode}, "closed forms"
    times = {VISION: vision_ms or 0.0, PREFILL: prefill_ms, DECODE: decode_ms or 0.0}
    # A time without work would lower the utilization, and work without a time would raise it.
    timed = [stage for stage, time in times.items() if time > 0 and work[stage]]
    peak = float(peak_tflops or 0) * 1e12

    def utilization(stage: str) -> float | None:
        return work[stage] / (times[stage] / 1e3 * peak) if work[stage] and stage in timed else None

    return StageMFU(
        decode=utilization(DECODE),
        prefill=utilization(PREFILL),
        vision=utilization(VISION),
        model_level=sum(work[stage] for stage in timed) / (sum(times[stage] for stage in timed) / 1e3 * peak),
        source=source,
    )


def _reported_work(
    report: Mapping[str, Any], prefill_len: int, new_tokens: int, batch_size: int
) -> tuple[dict[str, float], str]:
    """Return the FLOPs of vision, prefill and all decode steps by a report, and their source in it."""
    report = upgraded_report(report)
    counted = Workload.from_dict(report["metadata"]["workload"])
    measured = replace(counted, prompt_tokens=prefill_len, new_tokens=new_tokens, batch_size=batch_size)
    work, source = counted_work(report, measured)
    vision = aggregates(report["stages"]).get(VISION, [])
    source += "" if report["basis"] == "model" else ", of executed FLOPs"
    lacking = [stage for stage in (*vision, PREFILL, DECODE) if stage not in work]
    if lacking:
        raise ValueError(f"the static report has no count of {', '.join(lacking)}")
    return {
        VISION: sum(work[stage].flops for stage in vision),
        PREFILL: work[PREFILL].flops,
        DECODE: work[DECODE].flops,
    }, source


def _decoder(d_model: int, d_ff: int, n_layers: int, **sizes: Unpack[DecoderSizes]) -> Decoder:
    unknown = set(sizes) - set(DecoderSizes.__annotations__)
    if unknown:
        known = ", ".join(DecoderSizes.__annotations__)
        raise TypeError(f"unknown sizes {', '.join(sorted(unknown))}; known are {known}")
    heads = sizes.get("n_heads", 1)
    key_value_heads = sizes.get("n_key_value_heads", heads)
    experts, experts_per_token = sizes.get("n_experts", 0), sizes.get("n_experts_per_token", 0)
    expert_intermediate, shared_experts = sizes.get("d_expert", 0), sizes.get("n_shared_experts", 0)
    vocabulary = sizes.get("vocabulary", 0)
    # A decoder with experts has them in every layer, unless n_dense_layers says otherwise.
    dense_layers = sizes.get("n_dense_layers", 0 if experts else n_layers)
    _at_least(1, d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_heads=heads, n_key_value_heads=key_value_heads)
    _at_least(0, n_dense_layers=dense_layers, n_shared_experts=shared_experts, vocabulary=vocabulary)
    _at_least(1, head_width=sizes.get("head_width", 1))
    if "head_width" not in sizes and d_model % heads:
        raise ValueError(f"a width of {d_model} cannot be split into {heads} heads: give head_width")
    if heads % key_value_heads:
        raise ValueError(f"{heads} heads cannot share {key_value_heads} key and value heads")
    if dense_layers > n_layers:
        raise ValueError(f"{dense_layers} dense layers of {n_layers} layers")
    if dense_layers < n_layers:
        _at_least(1, n_experts=experts, n_experts_per_token=experts_per_token, d_expert=expert_intermediate)
    if experts_per_token > experts:
        raise ValueError(f"{experts_per_token} experts per token, but only {experts} experts")
    attention = GroupedQueryAttention(heads, key_value_heads, sizes.get("head_width", d_model // heads))
    shared = shared_experts * expert_intermediate
    routed = Experts(experts, experts_per_token, expert_intermediate, shared_intermediate=shared)
    return Decoder(
        hidden=d_model,
        vocabulary=vocabulary,
        max_positions=0,
        layers=(
            Layer(attention, GatedFeedForward(d_ff), dense_layers),
            Layer(attention, routed, n_layers - dense_layers),
        ),
    )


def _at_least(smallest: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < smallest:
            raise ValueError(f"{name} is {size!r}; it must be a whole number, {smallest} or more")
