"""Numbers for people: 1.95 T, 3.34 B, 6.7 GB."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
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


def percentage(part: float, whole: float) -> str:
    """Write a share of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def digits_of(factor: float) -> str:
    """Write a factor, with more digits near one."""
    return f"{factor:,.{1 if factor >= 10 else 2 if factor >= 2 else 3}f}"


def describe_views(workload: dict[str, Any]) -> str:
    """Say which views a page becomes, such as ``1 x 1024 + 6 x 640 (2x3)``."""
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
    what = "page" if workload.get("video_frames") is None else f"video of {workload['video_frames']:,} frames"
    return (
        f"{workload['batch_size']} x {what} of {workload['image_width']} x {workload['image_height']} px, "
        f"mode {workload['mode']} ({describe_views(workload)})"
    )


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
