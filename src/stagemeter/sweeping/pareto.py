"""The Pareto front of a sweep: rows that see most of a page for their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

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
