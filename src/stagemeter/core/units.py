"""Numbers for people: 1.95 T, 3.34 B, 6.7 GB."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

_POWERS = (
    (10**24, "Y"),
    (10**21, "Z"),
    (10**18, "E"),
    (10**15, "P"),
    (10**12, "T"),
    (10**9, "G"),
    (10**6, "M"),
    (10**3, "k"),
)


def with_unit(value: int | None, unit: str = "") -> str:
    """Write a number with three significant digits, a decimal prefix and a unit; None becomes a dash.

    Examples
    --------
    >>> with_unit(976909172736, "FLOPs")
    '977 GFLOPs'
    >>> with_unit(913)
    '913'
    """
    if value is None:
        return "–"
    for power, prefix in _POWERS:
        # 999,600 rounds to 1.00 M, not to 1000 k; below a thousand nothing is rounded.
        if value >= power or (power > 1000 and 2000 * value >= 1999 * power):
            return f"{_three_digits(value / power)} {prefix}{unit}".rstrip()
    return f"{value} {unit}".rstrip()


_PREFIXES = {"": 1} | {prefix: power for power, prefix in _POWERS} | {"K": 1000, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
#: Exponents of three digits would make numbers of a thousand.
_WRITTEN = re.compile(
    r"(?P<number>[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,18})?(?:[eE][+-]?\d{1,2})?)\s?(?P<prefix>[kKMGTPEZY]i?)?"
)
_PAGE_SIZE = re.compile(r"(\d{1,9})[xX×](\d{1,9})")


def number_in(text: str) -> Decimal | None:
    """Read a number as people write it; None if it is none.

    A decimal prefix is a power of 1,000, a binary one (Ki, Mi, Gi) a power of 1,024.

    Examples
    --------
    >>> [int(number_in(text)) for text in ("1,000,000", "1e6", "1M", "0.5k", "8Ki")]
    [1000000, 1000000, 1000000, 500, 8192]
    >>> number_in("1,00"), number_in("one")
    (None, None)
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or (match["prefix"] or "") not in _PREFIXES:
        return None
    return Decimal(match["number"].replace(",", "")) * _PREFIXES[match["prefix"] or ""]


def page_size_in(text: str) -> tuple[int, int] | None:
    """Read a page's width and height in pixels, as ``1654x2339``; None for other text."""
    match = _PAGE_SIZE.fullmatch(text.strip())
    return None if match is None else (int(match[1]), int(match[2]))


def percentage(part: float, whole: float) -> str:
    """Write a share of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def digits_of(factor: float) -> str:
    """Write a factor, with more digits near one."""
    return f"{factor:,.{1 if factor >= 10 else 2 if factor >= 2 else 3}f}"


#: Most groups of equal pages that a line lists.
_LISTED_PAGES = 8


def pages_of(workload: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the pages of a request in order: how many equal ones, and the fields of one."""
    groups: list[tuple[int, Mapping[str, Any]]] = [(1, workload)] if workload["global_views"] else []
    names = ("image_width", "image_height", "image_tokens")
    for page in workload.get("further_pages") or ():
        times, before = groups[-1]
        if all(page[name] == before[name] for name in names):
            groups[-1] = times + page["times"], before
        else:
            groups.append((page["times"], page))
    return groups


def page_count_of(workload: Mapping[str, Any]) -> int:
    """Return the pages of a request."""
    return sum(times for times, _ in pages_of(workload))


def describe_pages(workload: Mapping[str, Any], by: str = "x") -> str:
    """Say how large the pages of a request are, such as ``800x600, 2 x 1654x2339``."""
    return _listed(workload, lambda page: f"{page['image_width']}{by}{page['image_height']}")


def describe_views(workload: Mapping[str, Any]) -> str:
    """Say which views the pages of a request become, such as ``1 x 1024 + 6 x 640 (2x3)``; several between commas."""
    if len(groups := pages_of(workload)) < 2:
        return f"{_views(workload)}{' each' if groups and groups[0][0] > 1 else ''}"
    return _listed(workload, lambda page: f"({_views(page)})")


def _listed(workload: Mapping[str, Any], say: Callable[[Mapping[str, Any]], str]) -> str:
    groups = pages_of(workload)
    if len(groups) == 1:
        return say(groups[0][1])
    said = [f"{times:,} x {say(page)}" if times > 1 else say(page) for times, page in groups[:_LISTED_PAGES]]
    more = sum(times for times, _ in groups[_LISTED_PAGES:])
    return ", ".join([*said, *([f"{more:,} more"] if more else [])])


def _views(workload: Mapping[str, Any]) -> str:
    size = workload.get("view_size")
    side = workload["base_size"] if size is None else f"{size[0]}x{size[1]}"
    views = f"{workload['global_views']} x {side}"
    if workload["local_views"]:
        columns, rows = workload["tile_grid"]
        views += f" + {workload['local_views']} x {workload['image_size']}"
        # The layout of the views is not known for a model without a family.
        views += f" ({columns}x{rows})" if columns * rows == workload["local_views"] else ""
    return views


def describe_dtypes(workload: dict[str, Any]) -> str:
    """Say which data types a request uses, such as ``bfloat16, cache in float8_e5m2``."""
    cache = workload.get("kv_cache_dtype")
    return str(workload["dtype"]) if cache is None else f"{workload['dtype']}, cache in {cache}"


def describe_lengths(workload: dict[str, Any]) -> str:
    """Say how long a request is, such as ``batch 1, views 1 x 512, 83 prompt + 4 new tokens``."""
    views = f"views {describe_views(workload)}, " if workload["global_views"] else ""
    return (
        f"batch {workload['batch_size']}, {views}{workload['prompt_tokens']:,} prompt + "
        f"{workload['new_tokens']:,} new tokens"
    )


def describe_request(workload: dict[str, Any]) -> str:
    """Say what one request is, such as ``1 x page of 1654 x 2339 px, mode base (1 x 1024)``, or ``1 x text``."""
    if not workload["global_views"]:
        return f"{workload['batch_size']} x text"
    pages = page_count_of(workload)
    what, sizes = "page of", describe_pages(workload, " x ")
    if pages > 1:
        what = f"{pages:,} pages of"
    if workload.get("video_frames") is not None:
        what = f"video of {workload['video_frames']:,} frames of"
    return f"{workload['batch_size']} x {what} {sizes} px, mode {workload['mode']} ({describe_views(workload)})"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def milliseconds(value: float | None) -> str:
    """Write a time with three significant digits, in the unit that suits it; None becomes a dash.

    Examples
    --------
    >>> milliseconds(0.0779)
    '77.9 µs'
    >>> milliseconds(1234.5)
    '1.23 s'
    """
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{_three_digits(1000 * value)} µs"
    return f"{_three_digits(value)} ms" if value < 999.5 else f"{_three_digits(value / 1000)} s"


def rate(value: float, digits: int = 4) -> str:
    """Write a number with some significant digits, or whole where it has more before the point.

    Examples
    --------
    >>> rate(3.14159), rate(2.0), rate(46514.2), rate(0.0123456), rate(4.8, digits=3)
    ('3.142', '2.000', '46,514', '0.01235', '4.80')
    """
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"


def describe_peak(peak: Mapping[str, Any]) -> str:
    """Return the peak rates of a device, such as ``bfloat16: 312 TFLOP/s, 2,039 GB/s``."""
    bandwidth = "bandwidth not known" if peak["gbps"] is None else f"{peak['gbps']:,.5g} GB/s"
    return f"{peak['dtype']}: {peak['tflops']:,.5g} TFLOP/s, {bandwidth}"
