"""``analyze --requests`` from start to end: read a log of requests, sum their costs, write the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import size_of_page
from stagemeter.analysis.request_costs import RequestCosts
from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.analysis.requests import OF_PAGES, OF_REQUESTS, refuse_adapter, refuse_settings
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.writing import require_writable, write_whole
from stagemeter.export.requests import REQUEST_FILES, request_files
from stagemeter.models.lookup import describe_model, require_closed_forms

#: Names of unread columns in a note.
_NAMED = 10


def analyze_requests(config: AnalysisConfig, log: Path, folder: Path, skip_bad: bool = False) -> dict[str, Any]:
    """Return the costs of a log of requests by stage, and write them to a folder.

    `skip_bad` leaves out lines that cannot be used; without it the first one is an error.
    """
    refuse_adapter(config, "a log of requests")
    refuse_settings(config, OF_REQUESTS)
    require_writable(folder, REQUEST_FILES)
    model = describe_model(config.model, config.trust_remote_code)
    require_closed_forms(model)
    bad = BadLines(log, skip_bad)
    requests = open_log(log, bad)
    page_given = any(setting in config.model_fields_set for setting in OF_PAGES)
    page = None
    if model.family.reads_pages:
        if requests.has_pages and page_given:
            raise StagemeterError(f"page_size: {log} says the pages of its requests. Leave it out")
        if not requests.has_pages and not page_given:
            raise StagemeterError(
                f"{log}: does not say which requests have a picture. Add a column image_sizes, empty where there is "
                "none, or give --page-size for all"
            )
        page = None if requests.has_pages else size_of_page(config)
    costs = RequestCosts(model, config, bad, page)
    if requests.unread:
        more = f" and {len(requests.unread) - _NAMED} more" if len(requests.unread) > _NAMED else ""
        costs.notes.append(f"columns that are not read: {', '.join(map(shown, requests.unread[:_NAMED]))}{more}")
    if "cached_tokens" not in requests.columns:
        costs.notes.append(f"{requests.format} without cached tokens: each prompt is computed as a whole")
    for batch in requests.batches:
        costs.add(batch)
    costs.notes += requests.notes
    document = costs.document()
    for name, content in request_files(document).items():
        write_whole(folder / name, content)
    return document
