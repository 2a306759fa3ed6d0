"""The report as JSON, with exact integers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.writing import write_whole

_NOT_ASCII = re.compile(r"[^\n\x20-\x7e]")


def json_text(document: Any) -> str:
    """Return a document as indented JSON, in which what a terminal would obey is written as an escape."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _NOT_ASCII.sub(lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text) + "\n"


def print_json(document: Any) -> None:
    """Print a document on stdout, as ASCII where stdout cannot hold all of it."""
    text = json_text(document)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)
    sys.stdout.write(text)


def report_json(report: Mapping[str, Any]) -> str:
    """Return the report as indented JSON."""
    return json_text(report)


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
