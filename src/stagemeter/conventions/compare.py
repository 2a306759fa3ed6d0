"""A report beside what other projects would count for the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stagemeter.conventions.formulas import CONVENTIONS, FACTORS, SERVED, Convention
from stagemeter.conventions.sizes import DecoderSizes, NoFormulaError, read_sizes
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.models.blocks import repeated, sum_of
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.mixer import DecoderPass, Reach
from stagemeter.models.decoder.visibility import causal_pairs
from stagemeter.models.lookup import ModelDescription, describe_model


@dataclass(frozen=True)
class Row:
    """One convention.

    Attributes
    ----------
    convention, source, counts : str
        The project, the place of its formula, and what it counts: a training step, a forward pass or a served prompt.
    flops_per_token : Fraction or None
        Forward FLOPs per token of the prompt; a third of those of a training step. None where it has no formula.
    dense, causal : Fraction or None
        Its ratio to ours at the same scope, with all pairs of attention and with visible ones.
    notes : tuple of str
        What it leaves out or counts otherwise, or why there is no number.
    request : int or None
        FLOPs of all of the report's requests with their new tokens, where the project counts requests.
    request_to_ours : Fraction or None
        Its ratio to ours.
    """

    convention: str
    source: str
    counts: str
    flops_per_token: Fraction | None
    dense: Fraction | None
    causal: Fraction | None
    notes: tuple[str, ...]
    request: int | None = None
    request_to_ours: Fraction | None = None


@dataclass(frozen=True)
class Comparison:
    """Ours and the others.

    Attributes
    ----------
    tokens : int
        Tokens of the prompt.
    trained, trained_causal : Fraction
        Ours in forward FLOPs per token with the output head on every position, as in a training step.
    served, served_causal : Fraction
        Ours with the output head where the prompt needs it.
    rows : tuple of Row
        One row a convention.
    """

    tokens: int
    trained: Fraction
    trained_causal: Fraction
    served: Fraction
    served_causal: Fraction
    rows: tuple[Row, ...]


def compare(report: Mapping[str, Any], model: ModelDescription | None = None) -> Comparison:
    """Put the FLOPs per token of a report's prompt beside those that other projects count.

    Parameters
    ----------
    report : mapping
        A report of `stagemeter.analyze_model`, `stagemeter.estimate_model` or ``report.json``.
    model : ModelDescription or None
        The model; by default the one that the report names.

    Raises
    ------
    StagemeterError
        If the model has no sizes to read: those of a family without closed forms. If the report is of schema 1.x.

    Examples
    --------
    >>> from stagemeter import AnalysisConfig, describe_model, estimate_model
    >>> from stagemeter.conventions import compare
    >>> report = estimate_model(describe_model("llama-3.1-8b"), AnalysisConfig(seq_len=8192))
    >>> row = compare(report).rows[0]
    >>> row.convention, int(row.flops_per_token)
    ('PaLM', 20355489792)
    """
    metadata = report["metadata"]
    model = model or describe_model(metadata["model"], metadata["config"]["trust_remote_code"])
    decoder = decoder_of(model)
    if getattr(model.architecture, "both_ways", False) and any(x.attention.last_token_only for x in decoder.layers):
        raise StagemeterError(
            f"conventions: {model.name} shares keys and values in layers that see pages both ways, whose training has "
            "no closed form here. Choose another model"
        )
    if report["basis"] == "executed":
        raise StagemeterError(
            "conventions: the report has executed FLOPs alone, and other projects count the model's. Analyze the model "
            "anew"
        )
    workload = metadata["workload"]
    for setting in ("cached_tokens", "chunk_tokens"):
        if workload[setting] is not None:
            raise StagemeterError(f"{setting} {workload[setting]}: other projects count whole prompts. Leave it out")
    tokens, batch = workload["prompt_tokens"], workload["batch_size"]
    served = [Fraction(_forward(report, name), batch * tokens) for name in ("flops", "flops_causal")]
    more = _of_training(decoder, tokens)
    trained = [flops + Fraction(added, tokens) for flops, added in zip(served, more, strict=True)]
    sizes = read_sizes(decoder, model.config, _pictures(workload, model.config))
    rows = [
        _row(convention, sizes, report, served if convention.counts == SERVED else trained)
        for convention in CONVENTIONS
    ]
    return Comparison(tokens, trained[0], trained[1], served[0], served[1], tuple(rows))


def decoder_of(model: ModelDescription) -> Decoder:
    """Return a model's decoder, or raise StagemeterError if it has none whose sizes formulas can read."""
    decoder = model.family.decoder(model.architecture) if model.family.has_closed_forms else None
    if not isinstance(decoder, Decoder):
        raise StagemeterError(
            f"conventions: {model.name} has no decoder whose sizes formulas can read. Leave it out, or choose another "
            "model"
        )
    return decoder


def _of_training(decoder: Decoder, tokens: int) -> tuple[int, int]:
    """Return the FLOPs that a training step adds to a prompt of one sequence, all pairs counted and visible ones.

    They are those of positions which a prompt does not need: the output head on all but the last, and layers that run
    on the last token alone.
    """
    head = 2 * (tokens - 1) * decoder.hidden * decoder.vocabulary
    dense = causal = head
    for layer in decoder.layers:
        if layer.attention.last_token_only:
            limit = layer.attention.limit
            pairs = Reach(tokens, limit.pairs(tokens), limit.visible(tokens), limit.last_keys(tokens, tokens))
            full = Reach(tokens, tokens * tokens, causal_pairs(tokens), tokens)
            every = DecoderPass(1, tokens, tokens, full, pairs, 0, prefill=True, model=True)
            all_tokens, last = layer.operators_of(decoder.hidden, every), layer.operators(decoder.hidden, every)
            more = sum_of([*repeated(all_tokens, layer.times), *repeated(last, -layer.times)])
            dense, causal = dense + 2 * more.macs, causal + 2 * more.macs_causal
    return dense, causal


def _forward(report: Mapping[str, Any], name: str) -> int:
    """Return the FLOPs of everything up to the first token."""
    stages = report["stages"]
    if PREFILL not in stages:
        raise StagemeterError("conventions: the report has no prefill. Analyze a model that reads a prompt")
    return sum(int(stage[name]) for stage_name, stage in stages.items() if stage_name != DECODE)


def _pictures(workload: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the patches of each picture, where one size serves all; none are known where tiles differ."""
    if not workload["global_views"]:
        return None
    size, view = config.get("vision_config", {}).get("patch_size"), workload["view_size"]
    if not size or not view or workload["local_views"] or workload["video_frames"]:
        return ()
    return (int(view[0] // size) * int(view[1] // size),) * int(workload["global_views"])


def _row(convention: Convention, sizes: DecoderSizes, report: Mapping[str, Any], ours: list[Fraction]) -> Row:
    workload = report["metadata"]["workload"]
    tokens, request = workload["prompt_tokens"], None
    try:
        notes = convention.notes(sizes)
        flops = Fraction(convention.flops(sizes, tokens), FACTORS[convention.counts])
        if convention.request is not None:
            request = workload["batch_size"] * convention.request(sizes, tokens, workload["new_tokens"])
    except NoFormulaError as error:
        return _without(convention, str(error))
    dense, causal = (flops / own for own in ours)
    of_ours = None if request is None else Fraction(request, report["total"]["flops"])
    kind = (convention.name, convention.source, convention.counts)
    return Row(*kind, flops, dense, causal, tuple(notes), request, of_ours)


def _without(convention: Convention, reason: str) -> Row:
    return Row(convention.name, convention.source, convention.counts, None, None, None, (reason,))
