"""Pair profiling runs with their counts, and log the utilization."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Run, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stagemeter.core.errors import StagemeterError
from stagemeter.core.escape import markdown_link
from stagemeter.core.metrics import METRICS, PAIRING, in_runs, pairing_values
from stagemeter.core.stage_names import REQUEST, TOTAL
from stagemeter.core.workload import stable_hash
from stagemeter.export.pairing import FIGURES, mfu_description, pairing_files
from stagemeter.export.roofline import roofline_chart
from stagemeter.profiling.profile import LONGEST_MS, Profile
from stagemeter.profiling.readers.engines.known import engine_with
from stagemeter.tracking.document import log_files, metrics_now
from stagemeter.tracking.labels import (
    BASIS,
    COUNTED_FOR,
    DEVICES,
    KIND,
    MODEL,
    PAIRING_SCHEMA,
    PEAK,
    PROFILE,
    SERVED,
    SOURCE,
    STATIC,
    STATIC_RUN,
)
from stagemeter.tracking.matching import Count, StaticRuns
from stagemeter.tracking.peaks import GivenHardware, find_peak, peak_flags
from stagemeter.tracking.runs import (
    architecture_of,
    devices_of_run,
    find_experiment,
    find_run,
    hold_json,
    lengths_of_run,
    require_kind,
    search_runs,
    served_of_run,
)
from stagemeter.tracking.store import require_reachable, run_link, store_errors
from stagemeter.utilization.mixed_lengths import requests_work
from stagemeter.utilization.pairing import Pairing, pair, why_no_hfu
from stagemeter.utilization.served import ServedRequests
from stagemeter.utilization.serving import engine_section
from stagemeter.utilization.traffic import least_bytes
from stagemeter.utilization.work import counted_experts

#: Tags of a paired run.
PAIRING_HASH = "stagemeter.pairing_hash"
#: What follows the hash where the figures are drawn.
_DRAWN = " drawn"
#: Tag of earlier versions for that.
_FIGURES_HASH = "stagemeter.figures_hash"
#: The file with the work of a profile's requests.
SERVED_FILE = "served_requests.json"
#: The part of a description that a pairing wrote: whole lines between two comments, which Markdown hides.
_BEGIN, _END = "<!-- pairing -->", "<!-- end of pairing -->"
_WRITTEN = re.compile(rf"^.*{re.escape(_BEGIN)}.*$[\s\S]*?^{re.escape(_END)}$", re.MULTILINE)
#: Tag of a static run with its profiles.
PROFILE_RUNS = "stagemeter.profile_runs"
#: The metrics of a pairing.
_PAIRED = {metric.name for metric in METRICS if PAIRING in metric.readers}
#: Prefix of the names of times.
_TIME = "time_ms/"
#: Profiles that a static run lists at most.
_LISTED = 100
_AS_THE_RUN_SAYS = GivenHardware()


def pair_profile(
    profile_run: str,
    count: Count,
    static_run: str | None = None,
    hardware: GivenHardware = _AS_THE_RUN_SAYS,
) -> Pairing:
    """Pair a profiling run, see `stagemeter.application.mfu.pair_runs`. `count` makes a report that is missing."""
    require_reachable()
    with store_errors():
        profile = find_run(profile_run)
        require_profile(profile)
        statics = StaticRuns(many=False, count=count)
        static = find_run(static_run) if static_run is not None else statics.matching(profile)
        pairing = pair_run(profile, static, statics, hardware)
        link_back(static, [profile.info.run_id])
    return pairing


def keep_requests(profile_run: str, sum_up: Callable[[Run, Profile], ServedRequests]) -> None:
    """Tag a profiling run with the work of its requests by their log, which pairings credit from then on.

    `sum_up` gets the run, and what its server's page says.
    """
    require_reachable()
    with store_errors():
        run = find_run(profile_run)
        require_profile(run)
        if "engine/requests" not in run.data.metrics:
            raise StagemeterError(f"run {run.info.run_id}: is not of a serving engine. Leave --requests out")
        source = run.data.tags.get(SOURCE, "")
        page = Profile({}, source, clock="", metrics=run.data.metrics, lengths=lengths_of_run(run))
        hold_json(run.info.run_id, SERVED, SERVED_FILE, sum_up(run, page).to_dict())


def require_profile(run: Run) -> None:
    """Refuse a run that is no profile or has no times."""
    require_kind(run, [PROFILE], "Give a run of `stagemeter profile` or `stagemeter import-profile`")
    if not _times(run) and "engine/requests" not in run.data.metrics:
        raise StagemeterError(
            f"run {run.info.run_id}: holds no time of any stage, since it ended before one was measured. Give another"
        )


def pair_run(profile: Run, static: Run, statics: StaticRuns, hardware: GivenHardware, figures: bool = True) -> Pairing:
    """Pair two runs of one model and log the pairing, unless the run holds it already."""
    run_id, tags = profile.info.run_id, profile.data.tags
    require_kind(static, [STATIC], "Give a run of `stagemeter analyze` as --static-run")
    if architecture_of(static) != architecture_of(profile):
        raise StagemeterError(
            f"run {static.info.run_id}: is not a static run of the same model: it is of {static.data.tags.get(MODEL)}, "
            f"and {run_id} of {tags.get(MODEL)}, or their sizes differ. Give another --static-run"
        )
    workload, report = statics.workload(profile), statics.report(static)
    peak, used = find_peak(profile, hardware, workload.dtype), devices_of_run(profile, hardware.devices)
    served = served_of_run(profile)
    lengths = lengths_of_run(profile)
    requests = served.work if served else requests_work(report, workload, lengths)
    experts = counted_experts(profile.data.metrics)
    no_hfu = why_no_hfu(tags.get(SOURCE, ""))
    pairing = pair(report, _times(profile), workload, peak, experts, used, requests, no_hfu)
    pairing["flags"] += peak_flags(profile, peak)
    served_by = engine_with(tags.get(SOURCE, ""))
    measured = profile.data.metrics
    moved = least_bytes(report, workload, lengths, measured.get("engine/passes"), measured.get("engine/engines", 1))
    engine = engine_section(pairing, measured, used, requests, served_by, served, moved)
    if engine is not None:
        pairing["engine"] = engine
        if engine["mfu"] > 1:
            pairing["flags"].append(
                f"engine: mfu is {engine['mfu']:.3f}, above 1: it is held against the peak of {used.words}, and there "
                "were more, or the workload is not that of the requests"
            )
    pairing["profile_run_id"], pairing["static_run_id"] = run_id, static.info.run_id
    pairing["counts"]["made_for_pairing"] = COUNTED_FOR in static.data.tags
    fingerprint = stable_hash(pairing)
    held, drawn, _ = tags.get(PAIRING_HASH, "").partition(_DRAWN)
    # A missing picture is drawn where it is asked for.
    changed = held != fingerprint or (figures and not drawn and roofline_chart(pairing) is not None)
    if changed:
        _log(profile, static, pairing, fingerprint, figures)
    pairing["profile_run_name"], pairing["changed"] = profile.info.run_name, changed
    return pairing


def link_back(static: Run, profiles: Sequence[str]) -> None:
    """Tag a static run with the profiles that were paired with it, the newest last."""
    listed = [name for name in static.data.tags.get(PROFILE_RUNS, "").split(",") if name]
    together = [name for name in listed if name not in profiles] + list(profiles)
    if set(profiles) <= set(listed):
        return
    mlflow.MlflowClient().set_tag(static.info.run_id, PROFILE_RUNS, ",".join(together[-_LISTED:]))


def _times(run: Run) -> dict[str, float]:
    """Return the median milliseconds by stage. MLflow gives the last value of a metric, which is the median."""
    logged = {name.removeprefix(_TIME): value for name, value in run.data.metrics.items() if name.startswith(_TIME)}
    times = {stage: value for stage, value in logged.items() if stage not in (REQUEST, TOTAL)}
    for stage, value in times.items():
        if not 0 < value <= LONGEST_MS:
            raise StagemeterError(
                f"run {run.info.run_id}: time_ms/{stage} is {value:g}, which is no time. Import it again"
            )
    return times


def _log(profile: Run, static: Run, pairing: Pairing, fingerprint: str, figures: bool) -> None:
    client = mlflow.MlflowClient()
    run_id = profile.info.run_id
    files = pairing_files(pairing, figures)
    drawn = FIGURES[0] in files
    log_files(run_id, files)
    if not drawn:
        _remove_figures(profile)
    # Last, and in one call, so an interrupted pairing is repeated.
    metrics = _metrics(pairing, profile.data.metrics)
    client.log_batch(run_id, metrics=metrics, tags=_tags(profile, static, pairing, fingerprint, drawn))


def _remove_figures(profile: Run) -> None:
    """Remove the roofline of an earlier pairing with another peak, where tags say that there is one."""
    tags = profile.data.tags
    if _DRAWN not in tags.get(PAIRING_HASH, "") and tags.get(_FIGURES_HASH, "none") == "none":
        return
    artifacts: Any = get_artifact_repository(profile.info.artifact_uri)
    for file in artifacts.list_artifacts():
        if file.path in FIGURES:
            artifacts.delete_artifacts(file.path)


def _metrics(pairing: Pairing, logged: Mapping[str, float]) -> list[Metric]:
    values = in_runs(pairing_values(pairing))
    # Values of an earlier pairing must not stand beside those of this one. A metric cannot be deleted.
    stale = [key for key in logged if key.partition("/")[0] in _PAIRED and key not in values]
    values |= dict.fromkeys(stale, math.nan)
    return metrics_now(values)


def _tags(profile: Run, static: Run, pairing: Pairing, fingerprint: str, drawn: bool) -> list[RunTag]:
    peak = pairing["peak"]
    written = mfu_description(pairing, markdown_link(static.info.run_name, run_link(static.info)))
    tags = {
        STATIC_RUN: static.info.run_id,
        PEAK: peak["name"],
        DEVICES: f"{pairing['devices']['count']}, {pairing['devices']['source']}",
        "stagemeter.flags": "; ".join(pairing["flags"]) or "none",
        MLFLOW_RUN_NOTE: _described(profile, written),
        BASIS: pairing["counts"]["basis"],
        PAIRING_SCHEMA: pairing["schema_version"],
        PAIRING_HASH: f"{fingerprint}{_DRAWN if drawn else ''}",
    }
    return [RunTag(key, value) for key, value in tags.items()]


def _described(profile: Run, written: str) -> str:
    """Put a pairing into a run's description in place of an earlier one. What people wrote stays."""
    first, _, rest = written.rstrip().partition("\n")
    # After the first line: lists of runs show the beginning as it is written.
    block = f"{first} {_BEGIN}\n{rest}\n\n{_END}"
    note = profile.data.tags.get(MLFLOW_RUN_NOTE, "")
    replaced, earlier = _WRITTEN.subn(lambda match: block, note, count=1)
    return replaced if earlier else f"{block}\n\n{note}"


def pair_profiles(
    experiment: str,
    count: Count,
    hardware: GivenHardware = _AS_THE_RUN_SAYS,
    figures: bool = False,
    on_run: Callable[[int, int], None] = lambda done, runs: None,
) -> tuple[list[Pairing], dict[str, str]]:
    """Pair all profiling runs of an experiment, see `stagemeter.application.mfu.pair_experiment`.

    `count` makes the reports that are missing.
    """
    require_reachable()
    with store_errors():
        profiles = list(search_runs([find_experiment(experiment)], f"tags.`{KIND}` = '{PROFILE}'"))
        if not profiles:
            raise StagemeterError(f"experiment {experiment!r}: holds no profiling run. Run `stagemeter profile`")
        statics, pairings, failures = StaticRuns(many=True, count=count), [], dict[str, str]()
        linked: dict[str, tuple[Run, list[str]]] = {}
        for done, profile in enumerate(profiles, start=1):
            run_id = profile.info.run_id
            try:
                require_profile(profile)
                static = statics.matching(profile)
                pairings.append(pair_run(profile, static, statics, hardware, figures))
                linked.setdefault(static.info.run_id, (static, []))[1].append(run_id)
            except StagemeterError as error:
                failures[run_id] = str(error)
            on_run(done, len(profiles))
        for static, ids in linked.values():
            link_back(static, ids)
    return pairings, failures
