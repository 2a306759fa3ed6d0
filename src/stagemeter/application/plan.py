"""The ``plan`` command from start to end: find cost, peak and utilization, and divide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limit_notes
from stagemeter.analysis.requests import plan_request, refuse_adapter, require_runnable
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.units import describe_dtypes, describe_lengths
from stagemeter.core.workload import Workload
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import ModelDescription, describe_model, require_closed_forms
from stagemeter.sweeping.corpus import Corpus, pages_of_folder, pages_of_table, refuse_resolution
from stagemeter.utilization.fleet import FleetSize, PageCost, devices_needed
from stagemeter.utilization.memory import roofline_section


def plan_devices(
    config: AnalysisConfig,
    pages_per_day: float,
    device: str,
    *,
    mfu: float | None = None,
    from_run: str | None = None,
    images: Path | None = None,
    pages: Path | None = None,
    requests: Path | None = None,
    skip_bad: bool = False,
) -> FleetSize:
    """Return how many devices some pages a day need; of a model that reads text alone, some requests.

    `mfu` is the utilization of whole requests; `from_run`, a paired profiling run, can give it instead. Without either,
    the roofline bounds the time. The mean page of `images`, a folder, or `pages`, a CSV of sizes, replaces that of
    `config`. `requests`, a log, gives the mean request by its exact sums; `skip_bad` leaves out its bad lines.
    """
    exclusive(mfu=mfu, from_run=from_run)
    exclusive(images=images, pages=pages, requests=requests)
    peak = device_peak(find_device(device), config.dtype)
    model = describe_model(config.model, config.trust_remote_code)
    require_closed_forms(model)
    corpus = _corpus(images, pages, model, config.dpi)
    found: dict[Workload, _Pages] = {}
    if requests is None:
        found = _pages(config, model, corpus)
        cost, described = _mean_cost(model, found, peak), _request(config.model, found)
    else:
        cost, described = _cost_of_log(config, requests, skip_bad, peak)
    source: str | None = None
    differences: Sequence[str] = ()
    if from_run is not None:
        from stagemeter.tracking.utilization import utilization_of

        run = utilization_of(from_run)
        if run.architecture_hash != model.architecture.hash:
            raise StagemeterError(
                f"from_run: {run.source} is of {run.model}, which is not the model {config.model} that is planned "
                f"for. Give a run of {config.model}, or the run's model"
            )
        mfu, source, differences = run.mfu, run.source, run.differences(peak.name, found)
    if mfu is None and not model.weights_known:
        raise StagemeterError(f"model {config.model}: {model.notes[0]}. Give an `mfu`, or a paired run to take it from")
    sizing = devices_needed(pages_per_day, cost, peak, mfu, source, config.batch_size, differences)
    of_pages = (*(corpus.notes if corpus is not None else ()), *limit_notes(config, model))
    return replace(sizing, assumptions=[*sizing.assumptions, described, *of_pages, *model.notes])


def _cost_of_log(config: AnalysisConfig, log: Path, skip_bad: bool, peak: Peak) -> tuple[PageCost, str]:
    """Return the mean cost of a log's requests, and the requests in words.

    Stages of different requests overlap in an engine, so arithmetic and memory bound the log as a whole.
    """
    from stagemeter.application.requests import costs_of, open_costs

    costs = costs_of(*open_costs(config, log, skip_bad))
    count, total = costs["requests"], costs["total"]
    seconds = None
    if peak.bytes_per_second is not None:
        moved = total["kv_bytes_read"] + total["kv_bytes_written"]
        seconds = max(total["flops_causal"] / peak.flops_per_second, moved / peak.bytes_per_second) / count
    prompt, cached, output = (costs[f"{name}_tokens"] / count for name in ("prompt", "cached", "output"))
    described = (
        f"requests are those of {log.name}: {config.model}, {prompt:,.1f} prompt tokens ({cached:,.1f} cached) and "
        f"{output:,.1f} output tokens each in the mean, {describe_dtypes(costs)}"
    )
    left_out = [f"{costs[how]['lines']:,} {how}" for how in ("failed", "skipped") if costs[how]["lines"]]
    described += f"; left out: {', '.join(left_out)}" if left_out else ""
    cost = PageCost(count, total["flops"] / count, total["flops_causal"] / count, seconds, None, "request", of_log=True)
    return cost, described


def _request(model: str, pages: Mapping[Workload, _Pages]) -> str:
    """Describe the request that is planned for; of several, the commonest."""
    workload, same = max(pages.items(), key=lambda item: item[1].count)
    values = workload.to_dict()
    request = f"{model}, {describe_lengths(values)}, {describe_dtypes(values)}"
    if len(pages) == 1:
        return f"each request is {request}"
    whole = sum(one.count for one in pages.values())
    return f"pages become {len(pages):,} different requests; {same.count:,} of {whole:,} pages are {request}"


def _corpus(images: Path | None, pages: Path | None, model: ModelDescription, dpi: int | None) -> Corpus | None:
    for option, given in (("images", images), ("pages", pages)):
        if given is not None and not model.family.reads_pages:
            raise StagemeterError(f"{option}: {model.name} reads text alone, and no page of {given}. Leave it out")
    if images is not None:
        corpus = pages_of_folder(images, dpi)
    elif pages is not None:
        corpus = pages_of_table(pages, dpi)
    else:
        return None
    refuse_resolution(dpi, corpus.pages)
    return corpus


@dataclass
class _Pages:
    """Pages of equal work: the configuration of one of them, and their number."""

    config: AnalysisConfig
    count: int = 0


def _pages(config: AnalysisConfig, model: ModelDescription, corpus: Corpus | None) -> dict[Workload, _Pages]:
    """Return the different workloads of a corpus, with the pages of each."""
    refuse_adapter(config, "plan")
    found: dict[Workload, _Pages] = {}
    for size in [None] if corpus is None else corpus.pages:
        settings = config
        if size is not None:
            given = {"image_w": size.width, "image_h": size.height, "sample_image_path": None, "dpi": None}
            settings = AnalysisConfig(
                **{**config.model_dump(exclude_unset=True), **given, "use_synthetic_inputs": True}
            )
        workload = plan_request(settings, model)
        require_runnable(workload, model)
        # Pages that become the same views cost the same, whatever their size.
        same = replace(workload, image_width=0, image_height=0)
        found.setdefault(same, _Pages(settings)).count += 1
    return found


def _mean_cost(model: ModelDescription, pages: Mapping[Workload, _Pages], peak: Peak) -> PageCost:
    from stagemeter.analysis.analyze import estimate_model

    whole = sum(same.count for same in pages.values())
    flops = causal = seconds = 0.0
    batches = []
    for workload, same in pages.items():
        report = estimate_model(model, same.config)
        share = same.count / (workload.batch_size * max(1, workload.pages))
        flops += share * report["total"]["flops"]
        causal += share * report["total"]["flops_causal"]
        section = roofline_section(report, model.family, model.architecture, peak, model.weights_known)
        bound = section["bounds"]["total"]["roofline_ms"]
        # Without a known bandwidth or stored bytes, the bound is unknown, and a utilization is needed.
        seconds += math.nan if bound is None or not model.weights_known else share * bound / 1e3
        largest = section["memory"]["largest_batch_size"]
        if largest is not None:
            batches.append(largest)
    roofline = None if math.isnan(seconds) else seconds / whole
    unit = "page" if model.family.reads_pages else "request"
    return PageCost(whole, flops / whole, causal / whole, roofline, min(batches, default=None), unit)
