"""``sweep --requests`` from start to end: the costs of a log for each combination of settings, written and logged."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.requests import costs_of, open_costs
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.metrics import log_values
from stagemeter.core.writing import require_writable, write_whole
from stagemeter.models.lookup import describe_model
from stagemeter.sweeping.build import SweepSettings
from stagemeter.sweeping.ranges import numbers, sizes, words

#: Settings that a log leaves open, each with the reader of its values.
_AXES: Mapping[str, Callable[[str, str], Sequence[Any]]] = {
    **dict.fromkeys(("model", "mode", "dtype"), words),
    "page_size": sizes,
    **dict.fromkeys(("min_pixels", "max_pixels", "max_tiles"), numbers),
}
_SAME_PROMPTS = (
    "prompt tokens are those of the log in each row: where a page takes fewer tokens, more of the prompt counts as text"
)
_SAME_TOKENS = "prompt and output tokens are those of the log for each model, whatever its tokenizer makes of the texts"
#: What Parquet's whole numbers do not hold, and digits of a decimal of 128 bits.
_LARGEST, _DIGITS = 2**63, 38


@dataclass(frozen=True)
class SweptLog:
    """The table of a log: a row a combination of settings, and the costs of the first."""

    output: Path
    rows: list[dict[str, Any]]
    log: Mapping[str, str]
    notes: tuple[str, ...]
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)


def sweep_requests(settings: SweepSettings, log: Path, output: Path, skip_bad: bool = False) -> SweptLog:
    """Write a Parquet table with the costs of a log for each combination of settings."""
    if output.suffix != ".parquet":
        raise StagemeterError(f"output: {output} names no Parquet file. Give a name that ends in .parquet")
    require_writable(output.parent, (output.name,))
    rows, notes, origin = [], [], {}
    # All settings are checked before the first row is counted.
    for asked, config in [*_combinations(settings)]:
        costs = costs_of(*open_costs(config, log, skip_bad))
        origin = costs["log"]
        rows.append({**asked, **log_values(costs)})
        notes += costs["notes"]
    write_whole(output, _parquet(rows))
    if any(row["log_count/pages"] for row in rows) and len({_of_pages(row) for row in rows}) > 1:
        notes.append(_SAME_PROMPTS)
    if len({row["model"] for row in rows}) > 1:
        notes.append(_SAME_TOKENS)
    return SweptLog(output, rows, origin, tuple(dict.fromkeys(notes)))


def sweep_requests_and_log(
    settings: SweepSettings,
    log: Path,
    output: Path,
    skip_bad: bool = False,
    *,
    experiment: str | None = None,
    run_name: str | None = None,
) -> SweptLog:
    """Write the table of a log as `sweep_requests` does, and log it as one MLflow run."""
    # MLflow prints a link to the run on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr):
        from stagemeter.tracking.labels import SWEEPS
        from stagemeter.tracking.request_log import log_swept
        from stagemeter.tracking.run import failure_recorded, require_choice, tracked_run
        from stagemeter.tracking.store import run_messages

        require_choice(experiment)
        name = f"sweep of {log.name}"
        with failure_recorded(run_name, name, experiment, SWEEPS):
            swept = sweep_requests(settings, log, output, skip_bad)
        given = {name: value for name, value in asdict(settings).items() if value is not None}
        try:
            with tracked_run(run_name, name, experiment, SWEEPS) as run:
                log_swept(run.run_id, given, swept.log, swept.rows, swept.notes, output)
        except TrackingError as error:
            raise TrackingError(f"{error}. The table is written: {output}. Repeat the sweep to log it") from error
    return replace(swept, run_id=run.run_id, messages=run_messages(run))


def _combinations(settings: SweepSettings) -> Iterator[tuple[dict[str, Any], AnalysisConfig]]:
    """Yield each combination of the settings that a log leaves open, as columns and as a configuration."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    for name in given:
        if name == "device":
            raise StagemeterError(f"--device {given[name]}: `plan --requests` bounds a log on a device. Leave it out")
        if name == "chunk_tokens":
            raise StagemeterError(f"--chunk-tokens {given[name]}: `analyze --requests` takes it. Leave it out")
        if name not in _AXES:
            raise StagemeterError(f"--{name.replace('_', '-')} {given[name]}: each request says its own. Leave it out")
    values: dict[str, Sequence[Any]] = {"model": [AnalysisConfig().model], "dtype": [AnalysisConfig().dtype]}
    values |= {name: _AXES[name](text, f"--{name.replace('_', '-')}") for name, text in given.items()}
    modes = values.pop("mode", [])
    models = {model: describe_model(model).family for model in values["model"]}
    if modes and not any(family.modes for family in models.values()):
        raise StagemeterError(f"mode: {', '.join(models)} has no modes. Leave it out, or sweep a model that has some")
    for chosen in product(*values.values()):
        asked = dict(zip(values, chosen, strict=True))
        family = models[asked["model"]]
        for mode in modes if family.modes and modes else [None]:
            fields = {**asked, **({} if mode is None else {"mode": mode})}
            width, height = fields.pop("page_size", None) or (None, None)
            size = {} if width is None else {"image_w": width, "image_h": height}
            config = AnalysisConfig(**fields, **size)
            columns = {"model": asked["model"], "mode": mode, **asked, "dtype": config.dtype}
            if "page_size" in columns:
                columns["page_size"] = f"{width}x{height}"
            yield columns, config


def _of_pages(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the settings of a row that decide how many tokens a page takes."""
    return tuple(value for name, value in row.items() if name != "dtype" and "/" not in name)


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    # Models have different stages: the table has the columns of all.
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        wide = any(isinstance(value, int) and value >= _LARGEST for value in values)
        columns[name] = pa.array(values, pa.decimal128(_DIGITS) if wide else None)
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()
