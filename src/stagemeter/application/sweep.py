"""The ``sweep`` command from start to end: check each model once, evaluate the grid, write, log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.progress import doing
from stagemeter.core.shown import Shown
from stagemeter.core.terminal import Section
from stagemeter.core.writing import require_writable
from stagemeter.export.charts import chart_figure
from stagemeter.export.sweep import sweep_charts, sweep_sections
from stagemeter.models.lookup import describe_model
from stagemeter.sweeping.backends import LOCAL, map_parts, require_backend
from stagemeter.sweeping.build import SweepSettings, build_grids
from stagemeter.sweeping.grid import Grid
from stagemeter.sweeping.single import differences
from stagemeter.sweeping.summary import SweepSummary, summarize
from stagemeter.sweeping.table import Part, PartsFolder, require_space, rows_parquet

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_MOST_ROWS = 10_000_000
#: Most parts that are evaluated in this process: starting others takes longer.
_FEW_PARTS = 4


@dataclass(frozen=True)
class Swept(Shown):
    """The result of a sweep: table, number of its rows, MLflow run, and lines for the user.

    `evaluated` rows were evaluated now and written in `seconds`; a resumed sweep has fewer than `rows`. `notes` name
    files that the pages leave out, and the limits that decided their views.
    """

    output: Path
    rows: int
    evaluated: int
    seconds: float
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @cached_property
    def _summary(self) -> SweepSummary:
        return summarize(self.output)

    def _sections(self) -> list[Section]:
        return [*sweep_sections(self._summary), Section(lines=self.notes)]

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the table, a row for each workload. Integers of more than 64 bits are Python's."""
        import pandas

        table = pandas.read_parquet(self.output)
        wide = {name: column.map(int) for name, column in table.items() if isinstance(column.iloc[0], Decimal)}
        return table.assign(**{str(name): column.astype(object) for name, column in wide.items()})

    def figure(self, name: str | None = None) -> Figure:
        """Draw a chart of the sweep, such as ``cost_by_tokens``. Default: the first."""
        charts = sweep_charts(self._summary)
        chosen = next(iter(charts), None) if name is None else name
        if chosen not in charts:
            known = ", ".join(charts) or "no chart. Vary new_tokens, batch_size or pages"
            raise StagemeterError(f"name: the sweep has no chart {chosen}. Known are {known}")
        return chart_figure(charts[chosen])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**asdict(self), "output": str(self.output)}


def sweep(
    settings: SweepSettings | Mapping[str, Any],
    output: Path | str,
    *,
    resume: bool = False,
    estimate: bool = False,
    backend: str = LOCAL,
    jobs: int = -1,
    cluster: str | None = None,
) -> Swept:
    """Evaluate a grid of workloads into a Parquet table.

    Parameters
    ----------
    settings : SweepSettings or mapping
        The settings. A value of a mapping is a text as on the command line, a single value or a list, such as
        ``{"mode": ["tiny", "base"], "batch_size": range(1, 9), "page_size": [(1240, 1754)]}``.
    output : Path or str
        The table. It replaces an older one once all rows are evaluated.
    resume : bool
        Whether to continue an interrupted sweep.
    estimate : bool
        Whether to compare the first row of each model with its closed forms alone, instead of a full count.
    backend, jobs, cluster
        See `stagemeter.sweeping.backends.map_parts`.

    Raises
    ------
    StagemeterError
        If a setting cannot be used, or a count differs from the closed forms.
    """
    require_backend(backend, jobs, cluster)
    wanted = settings if isinstance(settings, SweepSettings) else settings_of(settings)
    return _run(_plan(wanted, Path(output), resume), resume, estimate, backend, jobs, cluster)


@dataclass(frozen=True)
class _Plan:
    target: Path
    grids: list[Grid]
    parts: PartsFolder


def _plan(settings: SweepSettings, output: Path, resume: bool) -> _Plan:
    """Check all settings before anything is written or logged."""
    target = output.expanduser()
    if target.suffix != ".parquet":
        raise StagemeterError(f"output: {target} names no Parquet file. Give a name that ends in .parquet")
    require_writable(target.parent, (target.name,))
    grids = build_grids(settings)
    rows = sum(grid.size for grid in grids)
    if rows > _MOST_ROWS:
        raise StagemeterError(
            f"sweep: {rows:,} workloads are more than the {_MOST_ROWS:,} rows of one table. Give fewer values"
        )
    require_space(target.parent, grids)
    parts = PartsFolder(target, grids)
    parts.require_usable(resume)
    return _Plan(target, grids, parts)


def _run(
    plan: _Plan,
    resume: bool = False,
    estimate: bool = False,
    backend: str = LOCAL,
    jobs: int = -1,
    cluster: str | None = None,
    keep_parts: bool = False,
) -> Swept:
    grids, parts = plan.grids, plan.parts
    # Before anything is written: no table is better than a wrong one.
    for grid in grids:
        _require_agreement(grid, estimate)
    pending = parts.open(resume)
    messages = [f"{plan.target}: the table that was there is replaced"] if plan.target.exists() else []
    start = time.perf_counter()
    try:
        _evaluate(grids, parts, pending, backend, jobs, cluster)
    except BaseException:
        parts.leave()
        raise
    parts.merge()
    if not keep_parts:
        parts.remove()
    seconds = time.perf_counter() - start
    evaluated = sum(part.stop - part.start for part in pending)
    notes = tuple(dict.fromkeys(note for grid in grids for note in grid.notes))
    return Swept(plan.target, sum(grid.size for grid in grids), evaluated, seconds, messages=messages, notes=notes)


def sweep_and_log(
    settings: SweepSettings,
    output: Path | str,
    *,
    child_runs: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    **options: Any,
) -> Swept:
    """Evaluate a grid of workloads as `sweep` does, and log it as one MLflow run.

    `child_runs` are rows that become child runs: ``all``, ``pareto`` (the cheapest of each resolution), a number of
    rows, evenly spread, or None. A store that fails raises TrackingError; the table is written nevertheless.
    """
    from stagemeter.sweeping.chosen_rows import require_children

    require_children(child_runs)
    require_backend(options.get("backend", LOCAL), options.get("jobs", -1), options.get("cluster"))
    plan = _plan(settings, Path(output), options.get("resume", False))
    from stagemeter.tracking.labels import SWEEPS
    from stagemeter.tracking.run import failure_recorded, require_choice, tracked_run
    from stagemeter.tracking.store import run_messages
    from stagemeter.tracking.sweep import log_sweep

    require_choice(experiment)
    # MLflow prints a link to the run on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr):
        # Until the sweep is logged, the parts keep other sweeps off the table, and let an interrupted one resume.
        with failure_recorded(run_name, _name(settings), experiment, SWEEPS):
            swept = _run(plan, **options, keep_parts=True)
        try:
            with tracked_run(run_name, _name(settings), experiment, SWEEPS) as run:
                log_sweep(run, settings, swept.output, child_runs, swept.notes)
        except TrackingError as error:
            raise TrackingError(f"{error}. The table is written: {swept.output}. Repeat the sweep to log it") from error
        finally:
            plan.parts.remove()
    return replace(swept, run_id=run.run_id, messages=[*swept.messages, *run_messages(run)])


def _name(settings: SweepSettings) -> str:
    from stagemeter.tracking.labels import shortened

    varied = [f"{name} {value}" for name, value in asdict(settings).items() if value is not None]
    return shortened(f"{', '.join(varied) or 'one workload'}".replace("_", " "))


def _evaluate(
    grids: list[Grid], parts: PartsFolder, pending: list[Part], backend: str, jobs: int, cluster: str | None
) -> None:
    done, total = 0, sum(part.stop - part.start for part in pending)
    for part, content in _contents(grids, pending, backend, jobs, cluster):
        parts.write(part, content)
        done += part.stop - part.start
        doing(f"sweeping: {done:,} of {total:,} workloads")


def _contents(
    grids: list[Grid], pending: list[Part], backend: str, jobs: int, cluster: str | None
) -> Iterator[tuple[Part, bytes]]:
    if backend == LOCAL and len(pending) <= _FEW_PARTS:
        for part in pending:
            yield part, rows_parquet(grids[part.grid], part.start, part.stop)
        return
    items = [(grids[part.grid], part) for part in pending]
    for (_, part), content in map_parts(_work, items, backend, jobs, cluster):
        yield part, content


def _work(item: tuple[Grid, Part]) -> bytes:
    grid, part = item
    return rows_parquet(grid, part.start, part.stop)


def _require_agreement(grid: Grid, estimate: bool) -> None:
    """Refuse a grid whose first row differs from an analysis of its workload."""
    from stagemeter.analysis.analyze import analyze_model, estimate_model

    model, analyze = describe_model(grid.model), estimate_model if estimate else analyze_model
    first = differences(grid, 0, lambda config: analyze(model, config))
    if first:
        raise StagemeterError(
            f"model {grid.model}: its closed forms are not what counting gives: {first[0]}. Please report it"
        )


def settings_of(values: Mapping[str, Any]) -> SweepSettings:
    """Make settings of Python values, single ones, lists or ranges; refuse unknown names."""
    known = SweepSettings.__dataclass_fields__
    unknown = [name for name in values if name not in known]
    if unknown:
        raise StagemeterError(f"{unknown[0]}: no such setting of a sweep. Known are {', '.join(known)}")
    return SweepSettings(**{name: _written(value) for name, value in values.items() if value is not None})


def _written(value: Any) -> str:
    if isinstance(value, (str, int, Path)):
        return str(value)
    parts = ("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return ",".join(parts)
