"""Summary of a sweep: a table of any length, read batch by batch, as a few small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.workload import OWN, TEXT
from stagemeter.sweeping.chosen_rows import VIEW_COLUMNS, on_front, pixels_seen

if TYPE_CHECKING:
    import pandas

#: Columns whose range the summary shows.
_RANGED = ("flops/total", "flops/forward", "bytes/total", "memory/kv_cache", "prompt_tokens", "image_tokens")
#: Axes of a heat map, the most common first.
_HEAT_AXES = ("new_tokens", "batch_size", "text_tokens", "image_tokens")
#: Columns of a page and its views.
_OF_PAGES = ("image_width", "image_height", *VIEW_COLUMNS)
_TOTAL = "flops/total"
_PAGES_PER_HOUR = "at_roofline/pages_per_hour"


@dataclass(frozen=True)
class SweepSummary:
    """Small tables of a sweep. A table over an axis that the sweep does not vary is None.

    Attributes
    ----------
    ranges : DataFrame
        Least, mean and largest value of some columns.
    by_new_tokens, by_batch : DataFrame or None
        Mean FLOPs per page, by mode and that axis; by batch also bytes per page.
    heat : DataFrame or None
        Mean FLOPs per request, by the two axes that have the most values.
    pages : DataFrame
        Pixels that the model sees and mean FLOPs per page, by page and mode; ``pareto`` marks the Pareto front.
    devices : DataFrame or None
        Most pages per hour at the roofline, by device and mode.
    """

    rows: int
    ranges: pandas.DataFrame
    by_new_tokens: pandas.DataFrame | None
    by_batch: pandas.DataFrame | None
    heat: pandas.DataFrame | None
    pages: pandas.DataFrame
    devices: pandas.DataFrame | None


class _Groups:
    """Sums, counts and extremes by group, over all batches."""

    def __init__(self, keys: Sequence[str], values: Sequence[str]) -> None:
        self._keys, self._values = list(keys), list(values)
        self._found: pandas.DataFrame | None = None

    def add(self, batch: pandas.DataFrame) -> None:
        import pandas

        # A sum of many whole numbers may not fit into 64 bits; a float has enough digits for a mean.
        keys, values = batch[self._keys], batch[self._values].astype("float64")
        sums = keys.join(values).groupby(self._keys, observed=True, sort=False).agg(["sum", "count"])
        extremes = batch.groupby(self._keys, observed=True, sort=False)[self._values].agg(["min", "max"])
        grouped = sums.join(extremes)
        both = grouped if self._found is None else pandas.concat([self._found, grouped])
        how = {column: column[1] if column[1] in ("min", "max") else "sum" for column in both.columns}
        self._found = both.groupby(level=self._keys, observed=True, sort=False).agg(how)

    def table(self, what: str) -> pandas.DataFrame:
        """Return ``mean``, ``min`` or ``max`` of the values by group."""
        import pandas

        found: Any = self._found
        columns = {
            value: found[value, "sum"] / found[value, "count"] if what == "mean" else found[value, what]
            for value in self._values
        }
        return pandas.DataFrame(columns).reset_index()


def summarize(path: Path) -> SweepSummary:
    """Summarize a sweep's table, batch by batch."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = set(file.schema_arrow.names)
    varied = _varied(file)
    groups = {
        "by_new_tokens": _Groups(["mode", "new_tokens"], ["flops_per_page"]),
        "by_batch": _Groups(["mode", "batch_size"], ["flops_per_page", "bytes_per_page"]),
        "pages": _Groups(["mode", "image_width", "image_height"], ["pixels_seen", "flops_per_page"]),
        "ranges": _Groups(["model"], [name for name in _RANGED if name in names]),
    }
    axes = [name for name in _HEAT_AXES if name in varied][:2]
    if len(axes) == 2:
        groups["heat"] = _Groups(axes, [_TOTAL])
    if {"device", _PAGES_PER_HOUR} <= names:
        groups["devices"] = _Groups(["device", "mode"], [_PAGES_PER_HOUR])
    for batch in _batches(file, names, "model" in varied):
        for group in groups.values():
            group.add(batch)
    return SweepSummary(
        rows=file.metadata.num_rows,
        ranges=_ranges(groups["ranges"]),
        by_new_tokens=groups["by_new_tokens"].table("mean") if "new_tokens" in varied else None,
        by_batch=groups["by_batch"].table("mean") if "batch_size" in varied else None,
        heat=groups["heat"].table("mean") if "heat" in groups else None,
        pages=_with_pareto(groups["pages"].table("mean")),
        devices=groups["devices"].table("max") if "devices" in groups else None,
    )


def _batches(file: Any, names: set[str], several: bool) -> Iterator[pandas.DataFrame]:
    """Yield batches of the summarized columns. Of several models, the name of a mode includes the model."""
    wanted = {*_RANGED, *_HEAT_AXES, *_OF_PAGES, "model", "mode", "device", _PAGES_PER_HOUR}
    for batch in file.iter_batches(batch_size=100_000, columns=sorted(wanted & names)):
        frame: pandas.DataFrame = batch.to_pandas()
        frame["flops_per_page"] = frame[_TOTAL].astype("float64") / frame["batch_size"]
        frame["bytes_per_page"] = frame["bytes/total"].astype("float64") / frame["batch_size"]
        frame["pixels_seen"] = pixels_seen(frame)
        if several:
            own = {OWN: "", TEXT: ""}
            shown = {mode: own.get(mode, f" {mode}") for mode in frame["mode"].unique()}
            frame["mode"] = frame["model"].astype(str) + frame["mode"].astype(str).map(shown)
        yield frame


def _varied(file: Any) -> list[str]:
    """Return the columns of which a table has more than one value, by its statistics."""
    metadata = file.metadata
    varied = []
    for name in ("model", *_HEAT_AXES):
        index = file.schema_arrow.get_field_index(name)
        found = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        if min(part.min for part in found) != max(part.max for part in found):
            varied.append(name)
    return varied


def _ranges(groups: _Groups) -> pandas.DataFrame:
    import pandas

    tables = {what: groups.table(what).set_index("model") for what in ("min", "mean", "max")}
    return pandas.concat(tables, axis=1).stack(level=1, future_stack=True).reset_index(names=["model", "column"])


def _with_pareto(pages: pandas.DataFrame) -> pandas.DataFrame:
    marked = pages.assign(pareto=on_front(pages["pixels_seen"], pages["flops_per_page"]))
    return marked.sort_values(["pixels_seen", "flops_per_page"]).reset_index(drop=True)
