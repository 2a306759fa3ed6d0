"""The work of each stage of a request: what a report counted, or what its closed form gives at another workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.cost import ITEM_SIZES, Cost, item_sizes
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import request_total
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.chunks import sums_over_chunks
from stagemeter.models.closed_form import bytes_of_an_expert, evaluate_both
from stagemeter.models.families import family_named
from stagemeter.models.family import EXPERTS_READ, Family, Stage


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one stage in a request. The numbers can be arrays.

    Attributes
    ----------
    flops, flops_causal : int
        FLOPs with attention counted dense, and by the pairs that masks show.
    moved_bytes, least_bytes : int
        Bytes read and written: the most and the least, where they depend on the experts that the tokens choose.
    flops_executed : int or None
        FLOPs that transformers executes; None where not known.
    """

    flops: int
    flops_causal: int
    moved_bytes: int
    least_bytes: int
    flops_executed: int | None = None

    @classmethod
    def of_cost(cls, cost: Cost, sizes: tuple[Any, Any], spared: Any = 0, executed: Cost | None = None) -> Work:
        """Return the work of a cost. `sizes` are bytes per element, `spared` the bytes that fewer experts spare."""
        moved = cost.bytes_read(*sizes) + cost.bytes_written(*sizes)
        return cls(cost.flops, cost.flops_causal, moved, moved - spared, executed.flops if executed else None)


def work_of_report(report: Mapping[str, Any]) -> dict[str, Work]:
    """Return the work of each stage that a report counted. Decode is all steps of the request."""
    quantities = {
        name: request_total(report, name)
        for name in ("flops", "flops_causal", "flops_executed", "bytes_read", "bytes_written")
    }
    workload = Workload.from_dict(report["metadata"]["workload"])
    if report["closed_form"] is None:
        spared = _spared_without_closed_form(report, workload, quantities["bytes_read"])
    else:
        spared = _spared_by_stage(report["closed_form"], family_named(report["metadata"]["family"]), workload)
    work = {}
    for stage, found in report["stages"].items():
        if found["source"] != "none":
            moved = quantities["bytes_read"][stage] + quantities["bytes_written"][stage]
            flops, causal = quantities["flops"][stage], quantities["flops_causal"][stage]
            executed = quantities["flops_executed"][stage]
            work[stage] = Work(flops, causal, moved, moved - spared.get(stage, 0), executed)
    return work


def work_at(report: Mapping[str, Any], workload: Workload) -> dict[str, Work]:
    """Return the work of each stage at another workload, by the report's closed form. Decode is all steps."""
    if report["closed_form"] is None:
        counted = Workload.from_dict(report["metadata"]["workload"])
        raise StagemeterError(
            f"{report['metadata']['model']}: its static report has no closed form and is of another workload "
            f"({', '.join(differing_fields(counted, workload))} differ). Analyze the workload that was measured"
        )
    return work_of_model(report["closed_form"], family_named(report["metadata"]["family"]), workload)


def work_of_model(closed_form: Mapping[str, Any], family: Family[Any], workload: Workload) -> dict[str, Work]:
    """Return the work of each stage at a workload, by the ``closed_form`` of a report alone. Decode is all steps."""
    costs, runs = evaluate_both(closed_form, family, workload)
    for each in (costs, runs):
        each[DECODE] = each.pop(DECODE_TOTAL)
    sizes = item_sizes(workload.dtype, workload.kv_cache_dtype)
    spared = _spared_by_stage(closed_form, family, workload)
    return {stage: Work.of_cost(cost, sizes, spared.get(stage, 0), runs[stage]) for stage, cost in costs.items()}


def counted_work(report: Mapping[str, Any], workload: Workload) -> tuple[dict[str, Work], str]:
    """Return the work of each stage at a workload, and its source: the report's counts or its closed form."""
    if Workload.from_dict(report["metadata"]["workload"]).hash == workload.hash:
        return work_of_report(report), "static report"
    return work_at(report, workload), "closed form of the static report"


def counts_executed(report: Mapping[str, Any]) -> bool:
    """Whether a report is an earlier one, whose FLOPs are executed ones though its family knows those of the model."""
    return report["basis"] != "model" and report["closed_form"] is not None


def execution_of(report: Mapping[str, Any], workload: Workload) -> dict[str, list[str]]:
    """Return by stage why transformers executes other work at a workload: clauses after its name."""
    if report["closed_form"] is None or report["closed_form"]["executed"] is None:
        return {stage: found["execution"] for stage, found in report["stages"].items()}
    family = family_named(report["metadata"]["family"])
    architecture = family.architecture_from_sizes(report["closed_form"]["architecture"])
    return {stage.name: list(stage.execution(architecture, workload)) for stage in family.stages}


def spared_bytes(
    stage: Stage[Any],
    architecture: Any,
    closed_form: Mapping[str, Any],
    workload: Workload,
    item_size: Any,
    experts_read: float | None = None,
) -> Any:
    """Return the bytes that a stage does not read where fewer experts run than its tokens can reach.

    Parameters
    ----------
    closed_form : mapping
        ``closed_form`` of a report.
    workload : Workload
        The request, which can hold arrays. Decode is all its steps.
    item_size : int or array
        Bytes of a weight that is not packed.
    experts_read : float, optional
        Experts of a layer that a pass read, the mean over layers and passes. Default: the fewest that can run. An
        impossible number raises StagemeterError.
    """
    assert stage.experts is not None
    possible = stage.experts(architecture, workload)
    passes = workload.decode_steps if stage.name == DECODE else 1
    each = bytes_of_an_expert(closed_form, stage.name, item_size) * passes
    if experts_read is None and stage.name == PREFILL and workload.chunk_tokens is not None:
        (spared,) = sums_over_chunks(lambda one, is_last: [_choice(stage, architecture, one)], workload)
        return each * spared
    if experts_read is None:
        return each * _choice(stage, architecture, workload)
    if not possible.fewest <= experts_read <= possible.most:
        raise StagemeterError(
            f"experts_read/{stage.name}: {experts_read:g} is impossible. A pass over so many tokens reads "
            f"{possible.fewest} to {possible.most} experts of a layer"
        )
    # A mean over layers and steps times their number is whole, but for rounding.
    return round(each * (possible.most - experts_read))


def _choice(stage: Stage[Any], architecture: Any, workload: Workload) -> Any:
    """Return how many more experts of a layer a pass can read than it must."""
    assert stage.experts is not None
    possible = stage.experts(architecture, workload)
    return possible.most - possible.fewest


def _spared_by_stage(
    closed_form: Mapping[str, Any],
    family: Family[Any],
    workload: Workload,
    experts_read: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Return `spared_bytes` by stage with experts; only of the stages in `experts_read`, if given."""
    architecture = family.architecture_from_sizes(closed_form["architecture"])
    size = ITEM_SIZES[workload.dtype]
    return {
        stage.name: spared_bytes(stage, architecture, closed_form, workload, size, (experts_read or {}).get(stage.name))
        for stage in family.stages
        if stage.experts is not None and (experts_read is None or stage.name in experts_read)
    }


def _spared_without_closed_form(
    report: Mapping[str, Any], workload: Workload, bytes_read: Mapping[str, int]
) -> dict[str, int]:
    """Bound the bytes that fewer experts spare in a model whose bytes of an expert are not known.

    The report counts as many experts as the tokens of a pass can choose. At the least, all choose those of one token.
    """
    idle = sum(stage["params"] - stage["params_active"] for stage in report["stages"].values())
    batch, most = workload.batch_size, idle * ITEM_SIZES[workload.dtype]
    passes = {PREFILL: (1, batch * workload.computed_tokens), DECODE: (workload.decode_steps, batch)}
    return {
        stage: min(passes * most, bytes_read[stage] - bytes_read[stage] // tokens)
        for stage, (passes, tokens) in passes.items()
        if idle and stage in bytes_read
    }


def counted_experts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the experts of a layer that each stage read, as far as the metrics of a profile say."""
    prefix = f"{EXPERTS_READ}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def with_experts(
    work: Mapping[str, Work], report: Mapping[str, Any], workload: Workload, experts_read: Mapping[str, float]
) -> dict[str, Work]:
    """Settle the bytes of stages whose experts were counted, or raise StagemeterError for an impossible number.

    `experts_read`: by stage, experts of a layer that a pass read, the mean over layers and passes.
    """
    if report["closed_form"] is None:
        return dict(work)
    family = family_named(report["metadata"]["family"])
    spared = _spared_by_stage(report["closed_form"], family, workload, experts_read)
    settled = dict(work)
    for stage in spared.keys() & work.keys():
        moved = work[stage].moved_bytes - spared[stage]
        settled[stage] = replace(work[stage], moved_bytes=moved, least_bytes=moved)
    return settled


def differing_fields(counted: Workload, measured: Workload) -> dict[str, list[Any]]:
    """Return the fields in which two workloads are different work, with both values."""
    # A field that is None is left out of the hash.
    mine, other = counted.hashed_fields(), measured.hashed_fields()
    both = ((name, [mine.get(name), other.get(name)]) for name in {**mine, **other})
    return {name: values for name, values in both if values[0] != values[1]}
