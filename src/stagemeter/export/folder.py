"""The files of a report, together in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.scratch import locked_folder
from stagemeter.core.writing import write_whole
from stagemeter.export.fvcore_table import fvcore_table
from stagemeter.export.json_file import report_json
from stagemeter.export.markdown import report_markdown

JSON_FILE = "static_compute.json"
MARKDOWN_FILE = "static_compute.md"
FVCORE_FILE = "static_compute_fvcore.md"


def report_files(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of a report's files by name: JSON, Markdown, and fvcore's table of a model that was run."""
    files = {JSON_FILE: report_json(report), MARKDOWN_FILE: report_markdown(report)}
    if report["modules"]:
        files[FVCORE_FILE] = fvcore_table(report)
    return files


def write_report_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files of a report into a folder, in which those of an earlier report are replaced.

    Whenever this is cut short, and whoever else writes there, the files in the folder are of one report.

    Parameters
    ----------
    files : mapping
        See `report_files`.
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
    try:
        with locked_folder(folder):
            for name in (MARKDOWN_FILE, FVCORE_FILE):
                (folder / name).unlink(missing_ok=True)
            return [write_whole(folder / name, content) for name, content in files.items()]
    except OSError as error:
        raise StagemeterError(
            f"{folder} cannot be written to: {error.strerror or error}; give another folder"
        ) from error
