"""Read reports and profiles from files, as subjects of a comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from stagemeter.comparing.subject import Subject, subject_of_profile, subject_of_report
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.json_text import read_json
from stagemeter.core.report import SCHEMA_VERSION, Report, report_fault
from stagemeter.core.report_upgrade import EARLIER_SCHEMA, earlier_note, is_earlier, upgraded_report
from stagemeter.profiling.document import SCHEMA_VERSION as PROFILE_SCHEMA_VERSION

_WAY_OUT = "Give the static_compute.json of `stagemeter analyze`, or the profile.json of a profiling run"


def read_subject(path: Path) -> Subject:
    """Read a report (``static_compute.json``) or a profile (``profile.json``) from a file, or raise StagemeterError."""
    document = _read(path)
    # The folder says more than the name that Stagemeter gave the file.
    name = path.absolute().parent.name if path.stem in ("static_compute", "profile") else path.stem
    return subject_of(document, name, str(path))


def subject_of(document: dict[str, Any], name: str, source: str) -> Subject:
    """Make a subject of a report or a profile, or raise StagemeterError. `source` names its origin."""
    if "times_ms" in document and "time_ms" in document:
        require_schema(source, document, PROFILE_SCHEMA_VERSION)
        try:
            return _sound(source, subject_of_profile(document, name, source))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, StagemeterError):
                raise
            raise StagemeterError(f"{source}: is a damaged profile ({error!r}). {_WAY_OUT}") from None
    subject = subject_of_report(_require_report(source, document), name, source)
    version = document["schema_version"]
    if is_earlier(version):
        subject = replace(subject, notes=(f"{name}: {earlier_note(version)}",))
    return _sound(source, subject)


def _sound(source: str, subject: Subject) -> Subject:
    """Refuse numbers that cannot be compared, and settings that are no text."""
    for name, value in subject.values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise StagemeterError(f"{source}: {shown(name)} is {shown(value)}, which cannot be. {_WAY_OUT}")
    for name, text in {**subject.configuration, **subject.environment}.items():
        if not isinstance(text, str):
            raise StagemeterError(f"{source}: {shown(name)} is {shown(text)}, which is no text. {_WAY_OUT}")
    return subject


def read_report(path: Path) -> Report:
    """Read a report from a file, or raise StagemeterError."""
    return _require_report(str(path), _read(path))


def _require_report(source: str, document: dict[str, Any]) -> Report:
    if "closed_form" not in document or "stages" not in document:
        raise StagemeterError(f"{source}: is neither a report nor a profile. {_WAY_OUT}")
    require_schema(source, document, SCHEMA_VERSION, EARLIER_SCHEMA)
    report = upgraded_report(document)
    fault = report_fault(report)
    if fault is not None:
        raise StagemeterError(f"{source}: is a damaged report ({fault}). Analyze again")
    return cast(Report, report)


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise StagemeterError(f"{path}: is neither a report nor a profile. {_WAY_OUT}")
    return document


def require_schema(where: object, document: Any, known: str, *earlier: str) -> None:
    """Refuse a document whose schema has another major version than the known one and `earlier` ones."""
    version = str(document.get("schema_version")) if isinstance(document, dict) else "none"
    if version.partition(".")[0] not in (known.partition(".")[0], *earlier):
        raise StagemeterError(
            f"{where}: has schema {version}, and this version of Stagemeter reads {known}. Analyze or profile again"
        )
