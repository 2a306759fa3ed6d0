"""The ``plan`` command from start to end: find the work at each batch size, divide by each device, log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limit_notes
from stagemeter.analysis.requests import plan_request, refuse_adapter, require_runnable
from stagemeter.core.cost import ITEM_SIZES, differing_factor
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.notes import KeyNote
from stagemeter.core.units import describe_dtypes, describe_lengths, rate
from stagemeter.core.workload import Workload
from stagemeter.hardware.devices import Device, known_devices
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.models.closed_form import coefficients
from stagemeter.models.family import bytes_read_of_weights
from stagemeter.models.lookup import ModelDescription, describe_model, require_closed_forms
from stagemeter.sweeping.corpus import Corpus, pages_of_folder, pages_of_table, refuse_resolution
from stagemeter.utilization.fleet import MEASURED, ROOFLINE, UTILIZATION, Choice, Goal, Load, Plan, choices_of
from stagemeter.utilization.memory import largest_batch, memory_need
from stagemeter.utilization.work import Work, work_of_model

if TYPE_CHECKING:
    from stagemeter.tracking.utilization import Utilization

#: Stands for every device that has a rate for the data type.
ALL = "all"
#: Devices that are planned for by default: those that clouds rent out.
DEVICES = ("L4", "L40S", "A100-SXM-80GB", "H100-SXM", "H200-SXM", "B200", "MI300X")
BATCH_SIZES = tuple(2**power for power in range(9))
PAGE, REQUEST = "page", "request"
#: Devices that a message names.
_NAMED = 4


def plan_devices(
    config: AnalysisConfig,
    per_day: float,
    devices: Sequence[str] | None = None,
    *,
    unit: str = PAGE,
    batch_sizes: Sequence[int] | None = None,
    prices: Mapping[str, float] | None = None,
    mfu: float | None = None,
    from_run: str | None = None,
    images: Path | None = None,
    pages: Path | None = None,
    requests: Path | None = None,
    skip_bad: bool = False,
) -> Plan:
    """Return how many devices some pages or requests a day need, for each device and batch size.

    Parameters
    ----------
    config : AnalysisConfig
        The model and the request. Its batch size holds where `batch_sizes` are not given and it is.
    per_day : float
        Pages or, as `unit` says, requests a day. A model that reads text alone, and a log, have requests.
    devices : sequence of str, optional
        Names, or ``all`` for every device that has a rate for the data type. Default: those with a price, or else
        `DEVICES`.
    batch_sizes : sequence of int, optional
        Requests at once. Default: powers of two to 256; with `from_run`, the batch of the run.
    prices : mapping of str to float, optional
        Price of a device for an hour, by its name.
    mfu, from_run : float, str, optional
        The utilization of whole requests, or a paired profiling run to take it from. Without either, the roofline
        bounds the time.
    images, pages : Path, optional
        A folder of pictures, or a CSV of sizes, whose mean page replaces that of the configuration.
    requests : Path, optional
        A log, whose exact sums give the mean request; `skip_bad` leaves out its bad lines.

    Raises
    ------
    StagemeterError
        If the load cannot be planned: nothing fits, or every roofline is below the utilization.
    """
    exclusive(mfu=mfu, from_run=from_run)
    exclusive(images=images, pages=pages, requests=requests)
    # A device that is named twice is looked up once, and warned of once.
    find = cache(find_device)
    peaks, left_out = _peaks(devices or list(prices or ()) or DEVICES, config.dtype, find)
    model = describe_model(config.model, config.trust_remote_code)
    require_closed_forms(model)
    if unit == PAGE and (requests is not None or not model.family.reads_pages):
        what = "a log" if requests is not None else f"{model.name}, which reads text alone,"
        raise StagemeterError(f"--pages-per-day: {what} has requests. Give --requests-per-day")
    run = None if from_run is None else _utilization(from_run, model)
    mfu = mfu if run is None else run.mfu
    if mfu is None and not model.weights_known:
        raise StagemeterError(f"model {config.model}: {model.notes[0]}. Give an `mfu`, or a paired run to take it from")
    goal = Goal(unit, per_day, mfu, None if run is None else run.source, _by_device(prices or {}, peaks, find))
    corpus = _corpus(images, pages, model, config)
    found: dict[Workload, int] = {}
    if requests is None:
        found = _requests(config, model, corpus)
        closed_form = coefficients(model.family, model.architecture)
        loads = [_load(found, size, model, closed_form, unit) for size in _batch_sizes(config, batch_sizes, run)]
        described = _described(config.model, found)
    else:
        _refuse_batch_sizes(batch_sizes)
        load, described = _load_of_log(config, requests, skip_bad, model)
        loads = [load]
    choices = choices_of(goal, loads, peaks)
    if not any(choice.best for choice in choices):
        _refuse_too_large(found, model, peaks, loads, unit)
    if run is not None:
        choices = [_with_differences(choice, run, found) for choice in choices]
    basis = ROOFLINE if mfu is None else UTILIZATION if run is None else MEASURED
    return Plan(
        model=config.model,
        unit=unit,
        per_day=per_day,
        basis=basis,
        mfu=mfu,
        source=goal.source,
        flops=loads[0].flops,
        flops_causal=loads[0].flops_causal,
        peaks=peaks,
        choices=choices,
        request=described,
        notes=(
            _cost(loads[0], unit),
            *left_out,
            *_notes(basis, requests is not None),
            *(_experts(choices) if basis == ROOFLINE else ()),
            *_unused(choices, mfu),
            *(corpus.notes if corpus is not None else ()),
            *limit_notes(config, model),
            *model.notes,
        ),
    )


def _peaks(devices: Sequence[str], dtype: str, find: Callable[[str], Device]) -> tuple[list[Peak], list[str]]:
    """Return the peaks of devices, each once; of a set, those that have one for the data type, and the others."""
    named = [ALL] if ALL in devices else devices
    chosen: Sequence[Device] = known_devices() if named == [ALL] else [find(name) for name in named]
    of_set = named == [ALL] or tuple(named) == DEVICES
    without = [device.name for device in chosen if of_set and dtype not in device.peak_tflops]
    peaks = [device_peak(device, dtype) for device in chosen if device.name not in without]
    left_out = KeyNote(f"left out, since they have no {dtype} rate: {', '.join(without)}")
    return list(dict.fromkeys(peaks)), [left_out] if without else []


def _by_device(prices: Mapping[str, float], peaks: Sequence[Peak], find: Callable[[str], Device]) -> dict[str, float]:
    """Return prices by the names of devices, or refuse one of a device that is not planned for."""
    planned, found = [peak.name for peak in peaks], {}
    for name, price in prices.items():
        device = find(name).name
        if device not in planned:
            raise StagemeterError(f"--price {name}: {device} is not among {', '.join(planned)}. Name it by --device")
        found[device] = price
    return found


def _utilization(from_run: str, model: ModelDescription) -> Utilization:
    from stagemeter.tracking.utilization import utilization_of

    run = utilization_of(from_run)
    run.require_model(model.name, model.architecture.hash)
    return run


def _with_differences(choice: Choice, run: Utilization, found: Iterable[Workload]) -> Choice:
    batches = [replace(workload, batch_size=choice.batch_size or 1) for workload in found]
    return replace(choice, differences=run.differences(choice.device, batches))


def _batch_sizes(config: AnalysisConfig, given: Sequence[int] | None, run: Utilization | None) -> Sequence[int]:
    if given is not None:
        for size in given:
            AnalysisConfig(batch_size=size)
        return given
    if "batch_size" in config.model_fields_set:
        return [config.batch_size]
    return BATCH_SIZES if run is None else [run.workload.batch_size]


def _refuse_batch_sizes(given: Sequence[int] | None) -> None:
    if given is not None:
        raise StagemeterError(f"--batch-size {','.join(map(str, given))}: each request says its own. Leave it out")


def _requests(config: AnalysisConfig, model: ModelDescription, corpus: Corpus | None) -> dict[Workload, int]:
    """Return the different requests of a corpus at batch 1, and how many pages become each."""
    refuse_adapter(config, "plan")
    found: dict[Workload, int] = {}
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
        same = replace(workload, image_width=0, image_height=0, batch_size=1)
        found[same] = found.get(same, 0) + 1
    return found


def _load(
    found: Mapping[Workload, int], batch_size: int, model: ModelDescription, closed_form: Mapping[str, Any], unit: str
) -> Load:
    """Return the mean work of some requests, where a batch of equal ones runs together."""
    family, architecture, whole = model.family, model.architecture, sum(found.values())
    parts, memory, at_once = [], [], 0.0
    for workload, count in found.items():
        batch = replace(workload, batch_size=batch_size)
        units = batch_size * (max(1, workload.pages) if unit == PAGE else 1)
        parts.append((count / whole / units, work_of_model(closed_form, family, batch)))
        memory.append(memory_need(family, architecture, batch))
        at_once += units * count / whole
    most = max(memory, key=lambda need: need.needed)
    return Load(batch_size, at_once, parts, most, most.weights, model.weights_known)


def _load_of_log(config: AnalysisConfig, log: Path, skip_bad: bool, model: ModelDescription) -> tuple[Load, str]:
    """Return the mean work of a log's requests, and the requests in words.

    Stages of different requests overlap in an engine, so arithmetic and KV cache bound the log as a whole.
    """
    from stagemeter.application.requests import costs_of, open_costs

    costs = costs_of(*open_costs(config, log, skip_bad))
    count, total = costs["requests"], costs["total"]
    moved = total["kv_bytes_read"] + total["kv_bytes_written"]
    work = Work(total["flops"], total["flops_causal"], moved, moved)
    prompt, cached, output = (costs[f"{name}_tokens"] / count for name in ("prompt", "cached", "output"))
    described = (
        f"{config.model}, {costs['requests']:,} requests of {log.name}: {prompt:,.1f} prompt tokens ({cached:,.1f} "
        f"cached) and {output:,.1f} output tokens in the mean, {describe_dtypes(costs)}"
    )
    left_out = [f"{costs[how]['lines']:,} {how}" for how in ("failed", "skipped") if costs[how]["lines"]]
    described += f"; left out: {', '.join(left_out)}" if left_out else ""
    weights = bytes_read_of_weights(model.family, model.architecture, ITEM_SIZES[config.dtype])
    return Load(None, None, [(1 / count, {"all stages": work})], None, weights, model.weights_known), described


def _described(model: str, found: Mapping[Workload, int]) -> str:
    """Describe the request that is planned for; of several, the commonest."""
    workload, same = max(found.items(), key=lambda item: item[1])
    values = workload.to_dict()
    lengths = describe_lengths(values).removeprefix("batch 1, ")
    request = f"{model}, {lengths}, {describe_dtypes(values)}"
    if len(found) == 1:
        return request
    whole = sum(found.values())
    return f"pages become {len(found):,} different requests; {same:,} of {whole:,} pages are {request}"


def _corpus(images: Path | None, pages: Path | None, model: ModelDescription, config: AnalysisConfig) -> Corpus | None:
    for option, given in (("images", images), ("pages", pages)):
        if given is None:
            continue
        if not model.family.reads_pages:
            raise StagemeterError(f"{option}: {model.name} reads text alone, and no page of {given}. Leave it out")
        for setting in ("sample_image_path", "image_w", "image_h", "further_pages"):
            if getattr(config, setting) != getattr(AnalysisConfig(), setting):
                raise StagemeterError(f"{setting} {getattr(config, setting)}: the pages of {given} count. Leave it out")
    if images is not None:
        corpus = pages_of_folder(images, config.dpi)
    elif pages is not None:
        corpus = pages_of_table(pages, config.dpi)
    else:
        return None
    refuse_resolution(config.dpi, corpus.pages)
    return corpus


def _refuse_too_large(
    found: Mapping[Workload, int], model: ModelDescription, peaks: Sequence[Peak], loads: Sequence[Load], unit: str
) -> None:
    """Refuse batch sizes of which none fits into a device."""
    names = ", ".join(peak.name for peak in peaks) if len(peaks) <= _NAMED else f"any of {len(peaks)} devices"
    roomiest = max(peak.memory_bytes or 0 for peak in peaks)

    def needed(batch: int) -> int:
        batches = (replace(workload, batch_size=batch) for workload in found)
        return max(memory_need(model.family, model.architecture, batch).needed for batch in batches)

    largest = largest_batch(needed, roomiest) if found else 0
    if largest == 0:
        raise StagemeterError(
            f"--device: one {unit} does not fit into {names}; `analyze --device` says what it needs. Give a device of "
            "more memory"
        )
    least = min(load.batch_size or 0 for load in loads)
    raise StagemeterError(f"--batch-size: {least} of these {unit}s do not fit into {names}. Give at most {largest}")


def _cost(load: Load, unit: str) -> str:
    masked = differing_factor(load.flops_causal, load.flops) is not None
    visible = f", {load.flops_causal:,.0f} by visible pairs" if masked else ""
    return f"a {unit} costs {load.flops:,.0f} FLOPs{visible}"


def _notes(basis: str, of_log: bool) -> list[str]:
    bound = "arithmetic and KV cache run at the roofline, weights cost no time: a lower bound of the devices"
    if not of_log:
        bound = "every stage runs at the roofline, with the fewest experts read: a lower bound of the devices"
    memory = KeyNote("of memory, only the weights are checked: a log does not say which requests run together")
    chosen = (
        "a batch is the one with the fewest devices, then the shortest time; memory is weights, KV cache and the "
        "largest operator, a lower bound"
    )
    return [
        *([KeyNote(bound)] if basis == ROOFLINE else []),
        KeyNote("every device works on this load all day: loading, rendering, waiting and failures come on top"),
        memory if of_log else chosen,
    ]


def _experts(choices: Sequence[Choice]) -> list[str]:
    """Say how many devices it takes where tokens read every expert that they can reach, if that is more."""
    more = [
        f"{choice.devices_with_every_expert:,} x {choice.device}"
        for choice in choices
        if choice.best
        and choice.at_roofline is not None
        and (choice.devices_with_every_expert or 0) > choice.at_roofline.devices
    ]
    return [KeyNote(f"where tokens read every expert that they can reach, at least: {', '.join(more)}")] if more else []


def _unused(choices: Sequence[Choice], mfu: float | None) -> list[str]:
    """Name the batch sizes that do not fit into a device, and those at which the roofline rules out the MFU.

    They matter where a device has no row for them.
    """
    with_row = {choice.device for choice in choices if choice.best}
    large: dict[str, str] = {}
    fast: dict[str, str] = {}
    for choice in sorted(choices, key=lambda choice: choice.batch_size or 0):
        if choice.fits is False:
            what = "the weights" if choice.batch_size is None else f"batch {choice.batch_size:,}"
            needed = f"{rate(choice.needed_bytes / 1e9, 3)} of {rate(choice.device_bytes / 1e9, 3)} GB"
            large.setdefault(choice.device, f"{choice.device} {what}, {needed}")
        elif mfu is not None and choice.at_mfu is None:
            fast[choice.device] = f"{choice.device} to batch {choice.batch_size:,}"
    found = ("too large for the memory: ", "; ", large), ("roofline below that MFU: ", ", ", fast)
    notes = ((words + between.join(named.values()), named) for words, between, named in found if named)
    return [note if named.keys() <= with_row else KeyNote(note) for note, named in notes]


def log_plan(
    plan: Plan, config: AnalysisConfig, *, experiment: str | None = None, run_name: str | None = None
) -> tuple[str, list[str]]:
    """Log a plan as an MLflow run; return its id, and lines for the user."""
    # MLflow prints a link to the run on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr):
        from stagemeter.tracking.labels import PLANS
        from stagemeter.tracking.plan import log_plan as log
        from stagemeter.tracking.run import require_choice, tracked_run
        from stagemeter.tracking.store import run_messages

        require_choice(experiment)
        name = f"{plan.per_day:,.0f} {plan.unit}s a day, {Path(plan.model).name}"
        with tracked_run(run_name, name, experiment, PLANS) as run:
            log(run, plan, config.model_dump(exclude_unset=True))
    return run.run_id, run_messages(run)
