"""Rows of a sweep that become child runs: none by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.sweeping.pareto import on_front, pixels_seen

if TYPE_CHECKING:
    import pandas

ALL, PARETO = "all", "pareto"


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
