"""Detect the format of a file by its content, and call its reader.

A reader is a module with ``sniff``, whether a sample is of its format, and ``read``, the profile of a file. A new
format is such a module and its place in `_READERS`.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.setting import table
from stagemeter.core.settings import AnalysisSettings
from stagemeter.core.stage_names import VISION, aggregates
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers import chrome_trace, nsight_csv, nsight_sqlite, plain
from stagemeter.profiling.readers.engines import pages, spans
from stagemeter.profiling.readers.files import Sample, require_filled_file
from stagemeter.profiling.readers.mapping import NameMapping

#: In the order in which they are tried.
_READERS = (nsight_sqlite, spans, chrome_trace, nsight_csv, plain, pages)
_ADVICE = (
    "Give a torch trace (.json, .json.gz), an Nsight Systems export (.sqlite) or summary (.csv), or times as JSON or "
    "CSV, see docs/profiles.md"
)


def read_profile(
    path: Path, *, steps: int, mapping: NameMapping | None = None, prefill_contains_vision: bool | None = None
) -> Profile:
    """Read the times of stages from a file of any known format, which the profile's `source` names.

    Parameters
    ----------
    path : Path
        The file. All formats but the database can be compressed by gzip.
    steps : int
        Decode steps of the measured workload: one less than its new tokens.
    mapping : NameMapping, optional
        The model's stages, and patterns for other names. Default: the stages of the model that commands take.
    prefill_contains_vision : bool, optional
        For summaries, which have no timestamps: whether the vision stages ran inside of the prefill range.
    """
    require_filled_file(path)
    sample = Sample.of(path)
    options: dict[str, Any] = {"steps": steps, "mapping": _default_mapping() if mapping is None else mapping}
    try:
        reader = next((reader for reader in _READERS if reader.sniff(sample)), None)
        if reader is None:
            raise _unknown(sample)
        if reader is nsight_csv:
            options["prefill_contains_vision"] = prefill_contains_vision
        elif prefill_contains_vision is not None:
            raise StagemeterError(
                f"{path}: the file is no summary of nsys, and no other needs --prefill-contains-vision or "
                "--prefill-without-vision. Leave the option out"
            )
        profile: Profile = reader.read(path, **options)
    except csv.Error as error:
        raise StagemeterError(f"{path}: the file is not CSV ({error}). {_ADVICE}") from None
    return profile


def _default_mapping() -> NameMapping:
    from stagemeter.models.lookup import describe_model

    stages = describe_model(table(AnalysisSettings)["model"].default).family.stages
    return NameMapping(aggregates([stage.name for stage in stages]).get(VISION, ()))


def _unknown(sample: Sample) -> StagemeterError:
    lines = sample.lines
    if len(lines) > 1 and any(separator in lines[0] for separator in ",;\t"):
        return StagemeterError(
            f"{sample.path}: the header {shown(lines[0])} is not that of a table of times, stage,time_ms[,repeat]. "
            f"{_ADVICE}"
        )
    return StagemeterError(f"{sample.path}: the file has no known format. {_ADVICE}")
