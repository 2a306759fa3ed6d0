"""The ``import-profile`` command from start to end: read, settle what was measured, log."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import (
    plan_measured,
    plan_request,
    recorded_settings,
    refuse_adapter,
    refuse_parts,
    require_runnable,
)
from stagemeter.core.addresses import shown_address
from stagemeter.core.errors import StagemeterError, TrackingError, exclusive
from stagemeter.core.files import outside_path
from stagemeter.core.stage_names import VISION, aggregates
from stagemeter.models.lookup import describe_model
from stagemeter.models.served_name import require_served
from stagemeter.profiling.devices import devices_of
from stagemeter.profiling.document import Profiled, profile_document
from stagemeter.profiling.lengths import ESTIMATED
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers import NameMapping, read_profile, read_scrape_files, scrape
from stagemeter.utilization.work import differing_fields

#: Attributes of `Source` that only some sources use.
_OF_SCRAPES = ("interval", "engine_model", "request_count", "requests")
_OF_SUMMARIES = ("prefill_contains_vision",)
#: An address without its scheme: a name and a port.
_ADDRESS = re.compile(r"[\w.-]+:\d+(/|$)")


@dataclass(frozen=True)
class Source:
    """A source of times: files, a server's address, or a run.

    Attributes
    ----------
    files : tuple of str
        A trace, an export or a table; two scrapes of a serving engine; or the address of its metrics.
    from_run : str or None
        MLflow run that holds the times as metrics.
    mapping_file, pairs : Path or None, tuple of str
        Patterns for the names of stages, see `NameMapping`.
    interval, engine_model : float or None, str or None
        Seconds between two scrapes, and the model of a serving engine that has several.
    request_count : int or None
        Requests that finished between two scrapes, for an engine that does not count them.
    requests : Path or None
        Log of the requests that finished between the scrapes.
    prefill_contains_vision : bool or None
        For summaries, which have no timestamps.
    device, devices : str or None, int or None
        Hardware and number of devices; None for what the source shows.
    """

    files: tuple[str, ...] = ()
    from_run: str | None = None
    mapping_file: Path | None = None
    pairs: tuple[str, ...] = ()
    interval: float | None = None
    engine_model: str | None = None
    request_count: int | None = None
    requests: Path | None = None
    prefill_contains_vision: bool | None = None
    device: str | None = None
    devices: int | None = None


def import_profile(
    config: AnalysisConfig, source: Source, *, experiment: str | None = None, run_name: str | None = None
) -> Profiled:
    """Log the times that another tool took as a profiling run.

    `config` says what was measured, as far as `source` does not show it. Both are checked before a run.
    """
    refuse_adapter(config, "import-profile")
    refuse_parts(config, "import-profile")
    model = describe_model(config.model, config.trust_remote_code)
    stages = [stage.name for stage in model.family.stages]
    asked = plan_request(config, model)
    hardware = _hardware(source.device)
    profile = _read(source, config, asked.decode_steps, aggregates(stages).get(VISION, []))
    if "engine/requests" in profile.metrics:
        profile = replace(profile, notes=(*profile.notes, *_require_served(source, config, profile.served_model)))
    hardware |= _devices(source.devices, profile)
    profile = replace(profile, hardware={**profile.hardware, **hardware})
    if source.requests is not None:
        if "engine/requests" not in profile.metrics:
            _refuse(source, "times that are not of a serving engine's requests", "requests")
        profile, config = with_log(profile, config, source.requests)
    workload = plan_measured(config, model, profile.measured) if profile.measured else asked
    require_runnable(
        workload, model, source.files[0] if source.files and profile.measured.get("prompt_tokens") else None
    )
    if not profile.times_ms and "engine/requests" not in profile.metrics:
        raise StagemeterError(
            f"{source.from_run or source.files[0]}: no time of any stage is in it. Map the names that it has, see "
            "docs/profiles.md"
        )
    differing = differing_fields(asked, workload)
    if differing:
        found = ", ".join(f"{name} {measured} (asked for: {given})" for name, (given, measured) in differing.items())
        profile = replace(profile, notes=(*profile.notes, f"what was measured has {found}, and is logged as such"))
    document = profile_document(
        profile,
        workload,
        model=config.model,
        family=model.family.name,
        stages=stages,
        architecture_hash=model.architecture.hash,
        config=recorded_settings(config, model.family),
    )
    from stagemeter.tracking.labels import experiment_of, workload_name
    from stagemeter.tracking.profile import log_profile
    from stagemeter.tracking.run import require_choice, tracked_run
    from stagemeter.tracking.store import run_messages

    require_choice(experiment)
    default_name = workload_name(config.model, workload.to_dict(), profile.hardware.get("device", "unknown device"))
    # MLflow prints a link to the run on stdout, which belongs to the result.
    try:
        with (
            redirect_stdout(sys.stderr),
            tracked_run(run_name, default_name, experiment, experiment_of(config.model)) as run,
        ):
            log_profile(run.run_id, document)
    except TrackingError as error:
        # The times are printed anyway: the server that was scraped may not show them again.
        return Profiled(document, None, [], error)
    return Profiled(document, run.run_id, run_messages(run))


def with_log(profile: Profile, config: AnalysisConfig, log: Path) -> tuple[Profile, AnalysisConfig]:
    """Add the exact work of the requests of a log, which are those of the profile, and a page of them."""
    from stagemeter.application.requests import open_costs
    from stagemeter.utilization.served import served_requests

    costs, requests = open_costs(config, log)
    served = served_requests(costs, requests.batches, profile)
    costs.notes += requests.notes
    said = f"FLOPs are exact, those of the {served.requests:,} requests of {log.name}"
    notes = [note for note in profile.notes if not note.startswith(ESTIMATED)]
    page = costs.pages.largest_within(profile.measured.get("prompt_tokens", 0)) if costs.given is None else None
    if page is not None:
        settings = {**config.model_dump(exclude_unset=True), "image_w": page[0], "image_h": page[1]}
        config = AnalysisConfig(**settings)
    return replace(profile, notes=(*notes, said, *costs.notes), served=served.to_dict()), config


def _require_served(source: Source, config: AnalysisConfig, served: str) -> tuple[str, ...]:
    """Refuse a page of another model, and return notes on its name."""
    return require_served(config.model, served, shown_address(source.files[-1]), "model" in config.model_fields_set)


def _read(source: Source, config: AnalysisConfig, steps: int, vision: Sequence[str]) -> Profile:
    """Choose the reader by the kind of source, and refuse options that it does not use."""
    exclusive(True, source=", ".join(source.files) or None, from_run=source.from_run)
    if source.from_run is not None:
        _refuse(source, "the metrics of a run", "mapping_file", *_OF_SCRAPES, *_OF_SUMMARIES)
        from stagemeter.tracking.profile import read_metrics

        return read_metrics(source.from_run, _metrics_by_stage(source.pairs), steps, vision)
    address = source.files[0].startswith(("http://", "https://"))
    if address or len(source.files) == 2:
        _refuse(source, "scrapes", "mapping_file", "pairs", *_OF_SUMMARIES)
        if address:
            return _scrape(source, config)
        return read_scrape_files(
            *(outside_path(file, "SOURCE") for file in source.files),
            seconds=source.interval,
            engine_model=source.engine_model,
            request_count=source.request_count,
        )
    if len(source.files) > 2:
        raise StagemeterError(f"source: {len(source.files)} files are given. Give one, or two scrapes of an engine")
    path = outside_path(source.files[0], "SOURCE")
    if not path.exists() and _ADDRESS.match(source.files[0]):
        raise StagemeterError(f"{source.files[0]}: no such file. For a server, write http://{source.files[0]}")
    if source.interval is not None:
        raise StagemeterError(
            "interval: one file is given, and the interval is between two. Give the pages before and after, or leave "
            "it out"
        )
    _refuse(source, "a file", *(name for name in _OF_SCRAPES if name != "requests"))
    mapping = NameMapping.load(vision, source.mapping_file, source.pairs)
    return read_profile(path, steps=steps, mapping=mapping, prefill_contains_vision=source.prefill_contains_vision)


def _refuse(source: Source, what: str, *attributes: str) -> None:
    """Refuse attributes without meaning for a kind of source."""
    for name in attributes:
        if getattr(source, name) not in (None, ()):
            raise StagemeterError(f"{name}: means nothing with {what}. Leave it out")


def _scrape(source: Source, config: AnalysisConfig) -> Profile:
    if len(source.files) > 1:
        raise StagemeterError("source: an address is scraped twice, and needs no second source. Leave it out")
    if source.interval is None:
        raise StagemeterError(f"interval: missing. Give the seconds between two scrapes of {source.files[0]}")
    return scrape(
        source.files[0],
        source.interval,
        engine_model=source.engine_model,
        request_count=source.request_count,
        require=lambda served: _require_served(source, config, served),
    )


def _metrics_by_stage(pairs: Sequence[str]) -> dict[str, str]:
    metrics: dict[str, str] = {}
    for pair in pairs:
        stage, equals, metric = pair.partition("=")
        if not equals or not metric:
            raise StagemeterError(f"pairs: {pair!r} is no pair. Write stage=metric, such as prefill=my/metric")
        if stage in metrics:
            raise StagemeterError(f"pairs: {stage} is {metrics[stage]} already. Give one metric for a stage")
        metrics[stage] = metric
    return metrics


def _devices(given: int | None, profile: Profile) -> dict[str, str]:
    if given is None:
        return {}
    engines = profile.metrics.get("engine/engines")
    found = devices_of(given, None if engines is None else int(engines))
    return {"devices": str(found.count), "devices_source": found.source}


def _hardware(device: str | None) -> dict[str, str]:
    if device is None:
        return {}
    from stagemeter.hardware.lookup import find_device

    way_out = "or leave it out, and give the peak to `stagemeter mfu`"
    return {"device": find_device(device, way_out).name}
