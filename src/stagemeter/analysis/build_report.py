"""Build a report from counts: merge the tiers per stage, compare them, add them up. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.lora_section import adapter_notes, adapter_section
from stagemeter.analysis.pages import limit_notes
from stagemeter.analysis.requests import recorded_settings, workload_notes
from stagemeter.analysis.tiers import ANALYTIC, EXTRACTED, ISOLATED, TIERS, StageCount, Tier
from stagemeter.core.cost import EXECUTED, ZERO, Cost, item_sizes
from stagemeter.core.notes import KeyNote, key_notes
from stagemeter.core.report import EXECUTED_QUANTITIES, SCHEMA_VERSION, Report, StageAnalysisResult, request_total
from stagemeter.core.versions import package_versions
from stagemeter.core.workload import Workload, stable_hash
from stagemeter.models.closed_form import all_steps, coefficients, decode_span, needed_cost, stage_cost
from stagemeter.models.family import Family, Stage, StageParameters, weight_bytes
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.lora import AdapterFound

if TYPE_CHECKING:
    from stagemeter.core.report_types import Agreement, ClosedForm, CurvePoint, ModuleCount, TierName, Total

Tiers = Mapping[str, Tier]

#: Settings that say how to count, not what.
_NOT_HASHED = frozenset({"enabled", "walk_every_layer", "use_analytic_fallback", "output_dir", "trust_remote_code"})
#: Settings of later versions. Without a value, they leave earlier hashes as they were.
_LATER = frozenset({"dpi", "min_pixels", "max_pixels", "max_tiles"})
#: The package whose modules run.
_IMPLEMENTATION = "transformers"
#: Most points of the decode curve.
_CURVE_POINTS = 17
_CONVENTIONS = (
    "flops are what the model's mathematics need, two per multiply-accumulate; attention counts each query with all "
    "keys that it could see, were it not for the order of tokens; flops_causal counts the pairs that it does see; "
    "elementwise work, norms, softmax and gathers are zero by convention"
)
_EXECUTED_ONLY = (
    "no family knows what this model needs: flops are those that {name} executes; they can be more, where masks hide "
    "work or experts idle"
)


def build_report(
    model: ModelDescription,
    config: AnalysisConfig,
    workload: Workload,
    tiers: Tiers,
    modules: Sequence[Mapping[str, Any]] = (),
    found: AdapterFound | None = None,
) -> Report:
    """Build the report, see ``report.schema.json``.

    `tiers` lacks those that did not run. `modules` holds counts of single modules over one forward pass. The model's
    adapter is counted apart; `found` is the adapter in the built model, or None.
    """
    family, architecture, adapter = model.family, model.architecture, model.adapter
    results = stage_results(model, config, workload, tiers)
    other = family.other_parameters(architecture)
    difference = differences(family, tiers)
    counts = {name: tiers[result.source].stages[name] for name, result in results.items() if result.source in tiers}
    unsupported = {name: dict(sorted(count.unsupported.items())) for name, count in counts.items() if count.unsupported}
    settings, versions = recorded_settings(config, family), package_versions()
    notes = [
        _CONVENTIONS,
        *(() if family.has_closed_forms else (KeyNote(_EXECUTED_ONLY.format(name=_IMPLEMENTATION)),)),
        *workload_notes(config, workload, family, architecture),
        *family.notes_on(architecture, workload),
        *limit_notes(config, model),
        *model.notes,
        *(adapter_notes(adapter, found) if adapter is not None else ()),
        *(
            KeyNote(f"the totals lack {name}, which was left out")
            for name, result in results.items()
            if result.source == "none"
        ),
        *_free_stages(model, workload, results),
        *(
            KeyNote(f"there is no formula for {_calls(operators)} of {name}: that work is in no number")
            for name, operators in unsupported.items()
        ),
        *(KeyNote(f"disagreement: {line}") for line in difference),
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": {
            "model": model.name,
            "family": family.name,
            "architecture_hash": architecture.hash,
            "workload": workload.to_dict(),
            "workload_hash": workload.hash,
            "config": settings,
            "config_hash": stable_hash(
                {
                    key: value
                    for key, value in settings.items()
                    if key not in _NOT_HASHED and (value is not None or key not in _LATER)
                }
            ),
            "versions": versions,
        },
        "basis": "model" if family.has_closed_forms else "executed",
        "implementation": {"name": _IMPLEMENTATION, "version": versions[_IMPLEMENTATION]},
        "total": _total(results, other, model, workload),
        "stages": {name: result.to_dict() for name, result in results.items()},
        "other_params": other,
        "adapter": None if adapter is None else adapter_section(model, adapter, found, counts, workload),
        "agreement": _agreement(tiers, difference),
        "unsupported_ops": unsupported,
        "closed_form": cast("ClosedForm", coefficients(family, architecture)) if family.has_closed_forms else None,
        "decode_curve": _decode_curve(family.stage("decode"), architecture, workload, tiers),
        "roofline": None,
        "modules": cast("list[ModuleCount]", [dict(module) for module in modules]),
        "notes": [str(note) for note in notes],
        "key_notes": key_notes(notes),
    }


def _free_stages(
    model: ModelDescription, workload: Workload, results: Mapping[str, StageAnalysisResult]
) -> Iterator[str]:
    """Yield a note on each stage that a request runs at no cost."""
    for stage in model.family.stages:
        result = results[stage.name]
        runs = stage.cost is None or bool(stage.calls(model.architecture, workload))
        if runs and result.source != "none" and not result.flops and not result.flops_executed:
            yield KeyNote(
                f"{stage.name} costs 0 FLOPs: it is called for this request and has no product. If it should have, a "
                "setting of the model or of its pages is missing or makes them vanish"
            )


def stage_results(
    model: ModelDescription, config: AnalysisConfig, workload: Workload, tiers: Tiers
) -> dict[str, StageAnalysisResult]:
    """Merge the tiers: each stage's numbers are from the first of isolated, extracted, analytic that has them."""
    # The closed form is no fallback where it was asked for alone.
    may_report = config.use_analytic_fallback or set(tiers) == {ANALYTIC}
    allowed = [name for name in TIERS if name in tiers and (name != ANALYTIC or may_report)]
    return {stage.name: _result(stage, model.architecture, workload, tiers, allowed) for stage in model.family.stages}


def _result(
    stage: Stage[Any], architecture: Any, workload: Workload, tiers: Tiers, allowed: Sequence[str]
) -> StageAnalysisResult:
    parameters = stage.parameters(architecture)
    counts = {name: tier.stages[stage.name] for name, tier in tiers.items() if stage.name in tier.stages}
    source = next((name for name in allowed if name in counts), None)
    flops = {name: count.cost.flops for name, count in counts.items()}
    result = StageAnalysisResult(
        stage_name=stage.name,
        params=parameters.total,
        params_active=parameters.active,
        params_unused=parameters.unused,
        notes=_stage_notes(stage, parameters, tiers, source),
        flops_isolated=flops.get(ISOLATED),
        flops_extracted=flops.get(EXTRACTED),
        flops_analytic=flops.get(ANALYTIC),
    )
    if source is not None:
        executed = counts[source]
        result = _with_cost(result, executed, _needed(stage, architecture, workload, executed.cost), source, workload)
        result.execution = list(stage.execution(architecture, workload))
    if stage.whole_pass == "decode":
        result = _with_steps(result, stage, architecture, counts, source, workload)
    return result


def _needed(stage: Stage[Any], architecture: Any, workload: Workload, executed: Cost) -> Cost:
    """Return the cost of what the model needs in a pass of a stage; without a closed form what was executed."""
    if stage.cost is None:
        return executed
    needed = needed_cost(stage, architecture, workload)
    # Where both are the same work, the number is the one that was counted.
    return needed if stage.model is not None else replace(executed, macs_causal=needed.macs_causal)


def _with_cost(
    result: StageAnalysisResult, count: StageCount, needed: Cost, source: str, workload: Workload
) -> StageAnalysisResult:
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    return replace(
        result,
        source=source,
        **_quantities(needed, count.cost, workload),
        kv_bytes_read=needed.kv_reads * sizes[1],
        kv_bytes_written=needed.kv_writes * sizes[1],
        operators={name: cost.flops for name, cost in sorted(count.operators.items()) if cost.flops},
    )


def _quantities(needed: Cost, executed: Cost, workload: Workload, suffix: str = "") -> dict[str, Any]:
    """Return the quantities of a report by name: what the model needs, and what is executed."""
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    runs = executed.quantities(*sizes, suffix=f"_executed{suffix}")
    return {
        **needed.quantities(*sizes, suffix=suffix),
        **{f"{name}{suffix}": runs[f"{name}{suffix}"] for name in EXECUTED_QUANTITIES},
    }


def _with_steps(
    result: StageAnalysisResult,
    stage: Stage[Any],
    architecture: Any,
    counts: Mapping[str, StageCount],
    source: str | None,
    workload: Workload,
) -> StageAnalysisResult:
    # A tier that ran one step has no sum of steps; the closed form has.
    tiers = [source, ANALYTIC] if source is not None else []
    request = next((cost for name in tiers if name in counts and (cost := counts[name].request_cost) is not None), ZERO)
    needed = request
    if source is not None and stage.cost is not None:
        cost_at = partial(needed_cost, stage, architecture)
        needed = all_steps(cost_at, workload, stage.needed.bends(architecture, workload))
    return replace(
        result,
        context=workload.decode_context,
        steps=workload.decode_steps,
        **_quantities(needed, request, workload, suffix="_total"),
    )


def _stage_notes(stage: Stage[Any], parameters: StageParameters, tiers: Tiers, source: str | None) -> list[str]:
    notes = [stage.title]
    if parameters.unused:
        notes.append(f"{parameters.unused:,} of its parameters are in the checkpoint and are never used")
    borrowed = [module for module in stage.modules if module not in stage.owns]
    if borrowed:
        notes.append(f"also runs {', '.join(borrowed)}, whose parameters are listed under another stage")
    for name, tier in tiers.items():
        if stage.name in tier.failures:
            notes.append(f"not counted by the {name} tier: {tier.failures[stage.name]}")
        unsupported = tier.stages[stage.name].unsupported if stage.name in tier.stages else {}
        if unsupported:
            notes.append(f"the {name} tier has no formula for {_calls(unsupported)}: its numbers leave them out")
    if source is None:
        notes.append("left out: it could not be counted by running it, and use_analytic_fallback is false")
    elif source == ANALYTIC and len(tiers) > 1:
        notes.append("reported by its closed form, since it could not be counted by running it")
    return notes


def _calls(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{operator} ({count:,} calls)" for operator, count in sorted(operators.items()))


def differences(family: Family[Any], tiers: Tiers) -> list[str]:
    """Describe every quantity in which two tiers of a stage differ."""
    found = []
    for stage in family.stages:
        counts = [(name, tiers[name].stages[stage.name]) for name in TIERS if _counted(tiers, name, stage.name)]
        for (first_name, first), (other_name, other) in pairwise(counts):
            pairs = [("", first.cost, other.cost)]
            if first.request_cost is not None and other.request_cost is not None:
                pairs.append((" of the whole request", first.request_cost, other.request_cost))
            pairs.append((" of the adapter", first.adapter, other.adapter))
            if first.request_adapter is not None and other.request_adapter is not None:
                pairs.append((" of the adapter, whole request", first.request_adapter, other.request_adapter))
            for what, left, right in pairs:
                found += [
                    f"{stage.name} {quantity}{what}: {first_name} {getattr(left, quantity):,}, "
                    f"{other_name} {getattr(right, quantity):,}"
                    for quantity in EXECUTED
                    if getattr(left, quantity) != getattr(right, quantity)
                ]
    for tier in tiers.values():
        for name, counts_of_pass in tier.passes.items():
            stages = [tier.stages[stage.name].cost for stage in family.stages if stage.whole_pass == name]
            outside = counts_of_pass.of("").macs - sum(cost.macs for cost in stages)
            if outside:
                found.append(f"{outside:,} macs of the {name} pass of the whole model belong to no stage")
    return found


def _counted(tiers: Tiers, tier: str, stage: str) -> bool:
    return tier in tiers and stage in tiers[tier].stages


def _agreement(tiers: Tiers, difference: Sequence[str]) -> Agreement:
    compared = [name for name in TIERS if name in tiers and tiers[name].stages]
    incomplete = sorted({stage for tier in tiers.values() for stage in tier.failures})
    status: Literal["equal", "different", "incomplete", "not compared"]
    if difference:
        status = "different"
    elif len(compared) < 2:
        status = "not compared"
    else:
        status = "incomplete" if incomplete else "equal"
    return {
        "status": status,
        "equal": status == "equal",
        "tiers": cast("list[TierName]", compared),
        "incomplete_stages": incomplete,
        "differences": list(difference),
    }


def _total(
    results: Mapping[str, StageAnalysisResult], other: Mapping[str, int], model: ModelDescription, workload: Workload
) -> Total:
    stages, family, architecture = results.values(), model.family, model.architecture
    item_size, cache_item_size = item_sizes(workload.dtype, workload.kv_cache_dtype)
    cached_tokens = workload.prompt_tokens + workload.decode_steps
    plain = {"stages": {name: result.to_dict() for name, result in results.items()}}

    def request(quantity: str) -> int:
        return sum(request_total(plain, quantity).values())

    return {
        "params": sum(stage.params for stage in stages) + sum(other.values()),
        "params_active": sum(stage.params_active for stage in stages) + sum(other.values()),
        "macs": request("macs"),
        "flops": request("flops"),
        "flops_causal": request("flops_causal"),
        "flops_forward": sum(stage.flops for stage in stages if stage.context is None),
        "activations": request("activations"),
        "bytes_read": request("bytes_read"),
        "bytes_written": request("bytes_written"),
        "macs_executed": request("macs_executed"),
        "flops_executed": request("flops_executed"),
        "activations_executed": request("activations_executed"),
        "bytes_read_executed": request("bytes_read_executed"),
        "bytes_written_executed": request("bytes_written_executed"),
        "weight_bytes": weight_bytes(family, architecture, item_size),
        "kv_cache_bytes": family.decoder(architecture).kv_cache_elements(workload, cached_tokens) * cache_item_size,
    }


def _decode_curve(stage: Stage[Any], architecture: Any, workload: Workload, tiers: Tiers) -> list[CurvePoint]:
    """Return the FLOPs of decode steps over the request: by closed form, or from the counted steps."""
    if stage.cost is None:
        counted = tiers[ISOLATED].stages.get(stage.name) if ISOLATED in tiers else None
        steps = {} if counted is None else counted.steps
        return [
            {"context": context, "flops": steps[context].flops, "flops_executed": steps[context].flops}
            for context in sorted(steps)
        ]
    first, last = decode_span(workload)
    points = min(_CURVE_POINTS, last - first + 1)
    contexts = {first + (last - first) * index // max(1, points - 1) for index in range(points)}

    def point(context: int) -> CurvePoint:
        at = replace(workload, decode_context=context)
        needed, executed = needed_cost(stage, architecture, at), stage_cost(stage, architecture, at)
        return {"context": context, "flops": needed.flops, "flops_executed": executed.flops}

    return [point(context) for context in sorted(contexts)]
