"""The files of a report, together in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.export.fvcore_table import write_static_compute_fvcore_table
from stagemeter.export.json_file import write_static_compute_json
from stagemeter.export.markdown import write_static_compute_markdown

JSON_FILE = "static_compute.json"
MARKDOWN_FILE = "static_compute.md"
FVCORE_FILE = "static_compute_fvcore.md"


def write_report_files(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the files of a report: JSON, Markdown, and fvcore's table where the whole model was run.

    Parameters
    ----------
    report : mapping
        A report.
    folder : Path
        Where to; it is made if it is missing.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    StagemeterError
        If a file cannot be written.
    """
    files = [
        write_static_compute_json(report, folder / JSON_FILE),
        write_static_compute_markdown(report, folder / MARKDOWN_FILE),
    ]
    # A table of an earlier analysis must not stand beside this one's report.
    (folder / FVCORE_FILE).unlink(missing_ok=True)
    if report["modules"]:
        files.append(write_static_compute_fvcore_table(report, folder / FVCORE_FILE))
    return files
