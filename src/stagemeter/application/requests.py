"""``analyze --requests`` from start to end: read a log of requests, sum their costs, write, log."""

from __future__ import annotations

import hashlib
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import settings_of, sizes_of_pages
from stagemeter.analysis.request_costs import RequestCosts
from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.analysis.request_logs.reading import RequestLog
from stagemeter.analysis.requests import OF_PAGES, OF_REQUESTS, refuse_adapter, refuse_settings
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.files import shown
from stagemeter.core.versions import package_versions
from stagemeter.core.writing import require_writable, write_whole
from stagemeter.export.requests import REQUEST_FILES, request_files
from stagemeter.models.lookup import describe_model, require_closed_forms

#: Names of unread columns in a note.
_NAMED = 10


@dataclass
class LoggedCosts:
    """The costs of a log and their MLflow run. `tracking_error` says why they could not be logged."""

    costs: dict[str, Any]
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)
    tracking_error: TrackingError | None = None


def analyze_requests(config: AnalysisConfig, log: Path, folder: Path, skip_bad: bool = False) -> dict[str, Any]:
    """Return the costs of a log of requests by stage, and write them to a folder.

    `skip_bad` leaves out lines that cannot be used; without it the first one is an error.
    """
    require_writable(folder, REQUEST_FILES)
    return _written(*open_costs(config, log, skip_bad), folder)


def analyze_requests_and_log(
    config: AnalysisConfig,
    log: Path,
    folder: Path,
    skip_bad: bool = False,
    *,
    experiment: str | None = None,
    run_name: str | None = None,
) -> LoggedCosts:
    """Write the costs of a log of requests to a folder as `analyze_requests` does, and log them as an MLflow run."""
    require_writable(folder, REQUEST_FILES)
    costs, requests = open_costs(config, log, skip_bad)
    # MLflow prints a link to the run on stdout, which belongs to the costs.
    with redirect_stdout(sys.stderr):
        from stagemeter.tracking.labels import experiment_of
        from stagemeter.tracking.request_log import log_requests
        from stagemeter.tracking.run import failure_recorded, require_choice, tracked_run
        from stagemeter.tracking.store import run_messages

        require_choice(experiment)
        name, own = f"{log.name}, {Path(config.model).name}", experiment_of(config.model)
        with failure_recorded(run_name, name, experiment, own):
            outcome = LoggedCosts(_written(costs, requests, folder))
        try:
            with tracked_run(run_name, name, experiment, own) as run:
                log_requests(run.run_id, outcome.costs)
        except TrackingError as error:
            files = ", ".join(str(folder / file) for file in REQUEST_FILES)
            outcome.tracking_error = TrackingError(
                f"{error}, or use --no-track. The files are written: {files}. Repeat the command to log them"
            )
            return outcome
    outcome.run_id = run.run_id
    outcome.messages += run_messages(run)
    return outcome


def _written(costs: RequestCosts, requests: RequestLog, folder: Path) -> dict[str, Any]:
    document = costs_of(costs, requests)
    for name, content in request_files(document).items():
        write_whole(folder / name, content)
    return document


def open_costs(config: AnalysisConfig, log: Path, skip_bad: bool | None = None) -> tuple[RequestCosts, RequestLog]:
    """Open a log, and return the costs of its requests before any is added, or refuse log or settings.

    A `skip_bad` of None refuses bad lines, where the command has no option to leave them out.
    """
    refuse_adapter(config, "a log of requests")
    refuse_settings(config, OF_REQUESTS)
    model = describe_model(config.model, config.trust_remote_code)
    require_closed_forms(model)
    bad = BadLines(log, skip_bad)
    requests = open_log(log, bad)
    pages = size = None
    if model.family.reads_pages:
        page_given = not {"sample_image_path", "image_w", "dpi"}.isdisjoint(config.model_fields_set)
        if requests.sizes_pages:
            refuse_settings(config, OF_PAGES)
        elif page_given and requests.counts_pages:
            size, *further = sizes_of_pages(config)
            if further:
                raise StagemeterError(
                    f"page_size: {log} says how many pictures each request has. Give one size for all of them"
                )
        elif page_given:
            pages = tuple(sizes_of_pages(config))
        elif not requests.counts_pages:
            raise StagemeterError(
                f"{log}: does not say which requests have a picture. Add a column image_sizes, empty where there is "
                "none, or give --page-size for all"
            )
    else:
        settings_of(config).refuse_unused(model.name, model.family.name)
    costs = RequestCosts(model, config, bad, pages, size)
    if size is not None:
        costs.notes.append(f"the log counts pictures without their sizes: each has {size[0]:,} x {size[1]:,} pixels")
    if requests.unread:
        more = f" and {len(requests.unread) - _NAMED} more" if len(requests.unread) > _NAMED else ""
        costs.notes.append(f"columns that are not read: {', '.join(map(shown, requests.unread[:_NAMED]))}{more}")
    if "cached_tokens" not in requests.columns:
        costs.notes.append(f"{requests.format} without cached tokens: each prompt is computed as a whole")
    return costs, requests


def costs_of(costs: RequestCosts, requests: RequestLog) -> dict[str, Any]:
    """Add all requests of a log, and return the document of their costs."""
    for batch in requests.batches:
        costs.add(batch)
    costs.notes += requests.notes
    path = costs.bad.path
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    origin = {"name": path.name, "sha256": checksum, "format": requests.format}
    return {**costs.document(), "log": origin, "versions": package_versions()}
