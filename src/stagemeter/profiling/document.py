"""A profile and its workload as one plain document, for files and MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypedDict

from stagemeter.core.errors import TrackingError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, TOTAL, VISION, aggregates
from stagemeter.core.versions import package_versions
from stagemeter.core.workload import Workload
from stagemeter.profiling.profile import Profile, spread

#: Changes with the document's keys and their meaning.
SCHEMA_VERSION = "1.3"


class ProfileMetadata(TypedDict):
    """The model, the workload, the configuration and the versions."""

    model: str
    family: str
    architecture_hash: str
    workload: dict[str, Any]
    workload_hash: str
    config: dict[str, Any]
    versions: dict[str, str]


class ProfileDocument(TypedDict):
    """A profile and its workload, see `profile_document`."""

    schema_version: str
    metadata: ProfileMetadata
    source: str
    clock: str
    time_ms: dict[str, float]
    spread_ms: dict[str, dict[str, float]]
    times_ms: dict[str, list[float]]
    request_ms: list[float]
    request_median_ms: float | None
    stages_of_request: float | None
    throughput: dict[str, float]
    metrics: dict[str, float]
    lengths: dict[str, Any] | None
    served: dict[str, Any] | None
    served_model: str
    hardware: dict[str, str]
    notes: list[str]


@dataclass
class Profiled:
    """The result of a profile: its document, the MLflow run that holds it, and messages for the user at the end.

    `tracking_error` says why MLflow could not log it. The document still holds the measurement.
    """

    document: ProfileDocument
    run_id: str | None
    messages: list[str]
    tracking_error: TrackingError | None = None


def profile_document(
    profile: Profile,
    workload: Workload,
    *,
    model: str,
    family: str,
    stages: Iterable[str],
    architecture_hash: str,
    config: Mapping[str, Any],
) -> ProfileDocument:
    """Return the document of a measured workload.

    ``time_ms`` holds the median by stage, with ``vision`` and ``total`` where all of their stages have a time;
    ``spread_ms``, median and deciles; ``times_ms``, every repeat; ``stages_of_request``, the median share of a
    request's wall time that its stages take. ``metadata`` is as in a report, and the other fields are as in `Profile`.
    """
    values = profile.to_dict()
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": {
            "model": model,
            "family": family,
            "architecture_hash": architecture_hash,
            "workload": workload.to_dict(),
            "workload_hash": workload.hash,
            "config": dict(config),
            "versions": package_versions(),
        },
        "source": profile.source,
        "clock": profile.clock,
        "time_ms": with_sums(profile.medians, workload.decode_steps, stages),
        "spread_ms": {stage: asdict(spread(times)) for stage, times in profile.times_ms.items()},
        "times_ms": values["times_ms"],
        "request_ms": values["request_ms"],
        "request_median_ms": median(profile.request_ms) if profile.request_ms else None,
        "stages_of_request": _stages_of_request(profile),
        "throughput": _throughput(profile, workload),
        "metrics": values["metrics"],
        "lengths": values["lengths"],
        "served": values["served"],
        "served_model": values["served_model"],
        "hardware": values["hardware"],
        "notes": values["notes"],
    }


def with_sums(times: Mapping[str, float], decode_steps: int, stages: Iterable[str]) -> dict[str, float]:
    """Add the sums over the vision stages and over all stages, where no part of a sum is missing.

    Without decode steps, a sum needs no decode time.
    """
    complete = dict(times)
    vision = aggregates(stages).get(VISION, [])
    if vision and VISION not in complete and all(stage in times for stage in vision):
        complete[VISION] = sum(times[stage] for stage in vision)
    parts = [FORWARD] if FORWARD in complete else [*([VISION] if vision else []), PREFILL]
    if decode_steps:
        parts.append(DECODE_TOTAL)
    if TOTAL not in complete and all(part in complete for part in parts):
        complete[TOTAL] = sum(complete[part] for part in parts)
    return complete


def _stages_of_request(profile: Profile) -> float | None:
    """Return the median share over the repeats; medians of stages are of different repeats, and can add up to more."""
    stages = [times for stage, times in profile.times_ms.items() if stage != DECODE]
    if not profile.request_ms or not stages or any(len(times) != len(profile.request_ms) for times in stages):
        return None
    share: float = median(sum(times) / wall for *times, wall in zip(*stages, profile.request_ms, strict=True))
    return share


def _throughput(profile: Profile, workload: Workload) -> dict[str, float]:
    times = profile.medians
    batch = workload.batch_size
    throughput = {}
    if "prefill" in times:
        throughput["tokens_per_second/prefill"] = 1e3 * batch * workload.prompt_tokens / times["prefill"]
    if DECODE in times:
        throughput["tokens_per_second/decode"] = 1e3 * batch / times[DECODE]
    if profile.request_ms:
        request = median(profile.request_ms)
        throughput["tokens_per_second/request"] = 1e3 * batch * workload.new_tokens / request
        if workload.global_views:
            throughput["pages_per_hour/request"] = 3.6e6 * batch * workload.pages / request
    return throughput
