"""A figure of matplotlib that notebooks show."""

from __future__ import annotations

from typing import Any

# pyplot would look for a window system, and keep global state.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that a notebook shows where a cell ends in it; matplotlib's own needs pyplot for that."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        from stagemeter.export.charts import picture

        return picture(self)
