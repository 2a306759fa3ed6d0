"""The report as JSON, with exact integers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.export.files import write_whole


def report_json(report: Mapping[str, Any]) -> str:
    """Return the report as indented JSON."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def write_static_compute_json(report: Mapping[str, Any], path: Path | str) -> Path:
    """Write the report as JSON.

    Parameters
    ----------
    report : mapping
        What `DeepseekOCRStaticAnalyzer.generate_report` returned.
    path : Path or str
        The file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    """
    return write_whole(path, report_json(report))
