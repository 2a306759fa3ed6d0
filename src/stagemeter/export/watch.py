"""The intervals of a watch as lines of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from stagemeter.core.units import rate

#: The metric of a column by its title, and how a value is written.
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "requests": ("requests", lambda value: f"{value:,.0f}"),
    "in tok/s": ("prompt_tokens_per_second", rate),
    "computed": ("computed_tokens_per_second", rate),
    "out tok/s": ("new_tokens_per_second", rate),
    "hits": ("prefix_hit_rate", lambda value: _percent(value)),
    "MFU": ("mfu", lambda value: _percent(value)),
    "causal": ("mfu_causal", lambda value: _percent(value)),
    "MBU ≥": ("mbu_least", lambda value: _percent(value)),
    "engine": ("engine_mfu", lambda value: _percent(value)),
}
#: Lines fit a terminal of 80 columns.
_NARROWEST = 6


def interval_header() -> str:
    """Return the titles of `interval_line`."""
    return "time".ljust(8) + "".join(f" {title:>{_width(title)}}" for title in _COLUMNS)


def interval_line(interval: Mapping[str, Any]) -> str:
    """Return an interval as a line of columns."""
    values = interval["serving"]
    cells = {title: write(values[name]) if name in values else "–" for title, (name, write) in _COLUMNS.items()}
    clock = time.strftime("%H:%M:%S", time.localtime(interval["ended"]))
    waits = f"  {interval['waits']}" if interval["waits"] else ""
    return clock + "".join(f" {cell:>{_width(title)}}" for title, cell in cells.items()) + waits


def _width(title: str) -> int:
    return max(_NARROWEST, len(title))


def _percent(share: float) -> str:
    return f"{rate(100 * share, digits=3)} %"
