"""The ``upload`` command from start to end: read every report, then log those that the store lacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from stagemeter.comparing.files import read_report
from stagemeter.core.errors import StagemeterError
from stagemeter.export.report import JSON_FILE


@dataclass(frozen=True)
class Uploaded:
    """A report's file, the run that holds it, and whether it was logged now."""

    path: Path
    run_id: str
    new: bool


def upload(paths: Sequence[Path], experiment: str | None = None) -> list[Uploaded]:
    """Log reports that `stagemeter analyze` wrote, each once; a folder holds them at any depth.

    A report that cannot be used is refused before anything is logged. After an error of the store, the next call skips
    what was logged.
    """
    files = _files(paths)
    reports = {path: read_report(path) for path in files}
    from stagemeter.tracking.log import upload_report

    uploaded = []
    # MLflow prints a link to each run on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr):
        for path, report in reports.items():
            run_id, new = upload_report(report, experiment)
            uploaded.append(Uploaded(path, run_id, new))
    return uploaded


def _files(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.rglob(JSON_FILE)) if path.is_dir() else [path]
        if not inside:
            raise StagemeterError(f"{path}: holds no {JSON_FILE}. Give the --output of `stagemeter analyze`")
        found |= dict.fromkeys(inside)
    if not found:
        raise StagemeterError("paths: missing. Give reports, or folders that hold some")
    return list(found)
