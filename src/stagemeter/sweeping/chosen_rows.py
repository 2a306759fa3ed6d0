"""Chosen rows of a sweep: its Pareto front, which sees most of a page for its cost, and rows that become child runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import pandas

ALL = "all"
PARETO = "pareto"
#: Columns of a sweep's table that say how many pixels the model sees.
VIEW_COLUMNS = ("global_views", "local_views", "view_width", "view_height", "base_size", "image_size")


def pixels_seen(table: pandas.DataFrame) -> pandas.Series:
    """Return the pixels of all views of a page, for each row of a sweep's table."""
    view = table["view_width"] * table["view_height"]
    # Tiles of the size of the whole view have its shape, others are squares.
    tile = view.where(table["image_size"] == table["base_size"], table["image_size"] ** 2)
    seen: pandas.Series = table["global_views"] * view + table["local_views"] * tile
    return seen


def on_front(seen: pandas.Series, cost: pandas.Series) -> pandas.Series:
    """Return whether each row is on the Pareto front: no other sees as many pixels for as little.

    Of rows that see and cost the same, one is on the front.
    """
    import pandas

    ordered = pandas.DataFrame({"seen": seen, "cost": cost}).sort_values(["seen", "cost"], ascending=[False, True])
    cheapest = ordered["cost"].cummin()
    return (cheapest != cheapest.shift()).reindex(seen.index)


def require_children(chosen: str | None) -> None:
    """Refuse a choice that is neither ``all``, ``pareto`` nor a number above zero."""
    if chosen not in (None, ALL, PARETO) and not re.fullmatch(r"0*[1-9]\d{0,17}", str(chosen)):
        raise StagemeterError(f"--child-runs {chosen}: no such choice. Give all, pareto, or a number of rows")


def child_rows(path: Path, chosen: str) -> pandas.DataFrame:
    """Choose rows of a sweep's table: ``all``, ``pareto``, or a number of rows, evenly spread.

    For each row on the Pareto front, no other sees as many pixels for fewer FLOPs per page.
    """
    import pandas

    table = pandas.read_parquet(path)
    if chosen == ALL:
        return table
    if chosen == PARETO:
        return table[on_front(pixels_seen(table), table["flops/total"].astype("float64") / table["batch_size"])]
    count = min(int(chosen), len(table))
    return table.iloc[[number * len(table) // count for number in range(count)]]
