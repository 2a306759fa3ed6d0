"""Rows of a sweep: the closed forms of a model for many workloads at once, exact to the integer.

Closed forms only add and multiply whole numbers, so they take arrays as they take single numbers. The arrays hold
integers of 64 bits. If `wide_columns` finds that a column could overflow, it holds Python's integers, which are slower
and have no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.requests import make_workload
from stagemeter.core.cost import ITEM_SIZES, Cost, total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import STATIC, values_of
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, aggregates
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak
from stagemeter.models.blocks import larger, most
from stagemeter.models.closed_form import evaluate_both
from stagemeter.models.family import bytes_read_of_weights, weight_bytes
from stagemeter.models.page_views import RequestPages
from stagemeter.sweeping.grid import AXES, Grid
from stagemeter.utilization.bounds import request_parts, stage_bounds, throughput
from stagemeter.utilization.memory import held_by_stage
from stagemeter.utilization.work import Work, spared_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

NEEDED = "memory/needed"
#: Columns that depend on a device, which hold floats.
_OF_DEVICES = ("roofline_ms/", "at_roofline/")
#: Largest number of 64 bits, with a bit to spare for a sum that is halved.
_LIMIT = 2**62
#: Largest number of a table: a decimal of 128 bits.
_MOST = 10**38
#: Settings of how a prompt is computed.
_PARTS = ("cached_tokens", "chunk_tokens")


def evaluate_rows(grid: Grid, start: int, stop: int) -> Columns:
    """Evaluate the rows from `start` to `stop` of a grid, as arrays by column.

    Columns are fields of the workload, metrics by their names in MLflow such as ``flops/<stage>``, and with devices
    ``roofline_ms/<stage>``.
    """
    import numpy as np

    indices = dict(zip(AXES, np.unravel_index(np.arange(start, stop), grid.shape), strict=True))
    taken = {
        "batch_size": np.asarray(grid.batch_sizes, np.int64)[indices["batch_sizes"]],
        "text_tokens": np.asarray(grid.text_tokens, np.int64)[indices["text_tokens"]],
        "new_tokens": np.asarray(grid.new_tokens, np.int64)[indices["new_tokens"]],
        **{
            name: np.asarray(getattr(grid, name), np.int64)[indices[name]]
            for name in _PARTS
            if any(getattr(grid, name))
        },
    }
    columns = _settings(grid, indices, taken)
    kind: Any = object if grid.wide else np.int64
    taken = {name: values.astype(kind) for name, values in taken.items()}
    item_sizes = np.asarray([ITEM_SIZES[dtype] for dtype in grid.dtypes], kind)[indices["dtypes"]]
    distinct, which = _distinct_pages(grid, indices["pages"])
    if "cached_tokens" in taken:
        # Pages that the cache holds are not encoded, so each number of cached tokens is evaluated apart.
        used, which = np.unique(which * len(grid.cached_tokens) + indices["cached_tokens"], return_inverse=True)
        distinct = [distinct[number // len(grid.cached_tokens)] for number in used.tolist()]
    costs: Columns = {}
    for number, pages in enumerate(distinct):
        rows = np.flatnonzero(which == number)
        peaks = _peaks(grid, indices, rows)
        part = _costs(grid, pages, {name: values[rows] for name, values in taken.items()}, item_sizes[rows], peaks)
        for name, values in part.items():
            if name not in costs:
                exact = kind if name in grid.wide else np.int64
                costs[name] = np.empty(stop - start, np.float64 if name.startswith(_OF_DEVICES) else exact)
            costs[name][rows] = values
    return {**columns, **costs}


def wide_columns(grid: Grid) -> list[str]:
    """Return the columns of a grid whose numbers may not fit into 64 bits; refuse a grid that no table can hold."""
    largest = {
        "batch_size": max(grid.batch_sizes),
        "text_tokens": max(grid.text_tokens),
        "new_tokens": max(grid.new_tokens),
        "cached_tokens": min(grid.cached_tokens),
    }
    item_size = max(ITEM_SIZES[dtype] for dtype in grid.dtypes)
    found = set()
    # Short chunks move the most bytes, and long ones have the most pairs.
    for pages, chunk in product(
        {page.request for page in grid.pages}, {min(grid.chunk_tokens), max(grid.chunk_tokens)}
    ):
        # Closed forms have no negative coefficients, so that the largest variables give the largest value.
        taken = {**largest, "chunk_tokens": chunk}
        values = _costs(grid, pages, taken, item_size, None)
        values[NEEDED] = _needed(grid, workload_of(grid, pages, taken), item_size)
        name = max(values, key=lambda name: values[name])
        if values[name] >= _MOST:
            raise StagemeterError(
                f"{name}: reaches {values[name]} at the largest batch and the most tokens, more than a table holds "
                "exactly. Give a smaller --batch-size or fewer --new-tokens"
            )
        found |= {name for name in values if values[name] >= _LIMIT}
    return sorted(found)


def _settings(grid: Grid, indices: Mapping[str, Any], taken: Mapping[str, Any]) -> Columns:
    """Return the columns that tell the workload of a row."""
    import numpy as np

    def of_pages(value: Callable[[Any], Any]) -> NDArray[Any]:
        values = np.asarray([value(page) for page in grid.pages])
        column: NDArray[Any] = values[indices["pages"]]
        return column

    columns = {
        "mode": of_pages(lambda page: page.views.mode),
        "image_width": of_pages(lambda page: page.width),
        "image_height": of_pages(lambda page: page.height),
        "view_width": of_pages(lambda page: page.views.width),
        "view_height": of_pages(lambda page: page.views.height),
        "base_size": of_pages(lambda page: page.views.base_size),
        "image_size": of_pages(lambda page: page.views.image_size),
        "global_views": of_pages(lambda page: page.views.global_views),
        "local_views": of_pages(lambda page: page.views.local_views),
        "tile_grid": of_pages(lambda page: "x".join(map(str, page.views.tile_grid))),
        "image_tokens": of_pages(lambda page: page.views.image_tokens),
        **{name: values for name, values in taken.items() if name != "text_tokens"},
        "dtype": np.asarray(grid.dtypes)[indices["dtypes"]],
    }
    if any(page.more for page in grid.pages):
        columns["images_per_request"] = of_pages(lambda page: 1 + page.more)
    if any(page.name is not None for page in grid.pages):
        columns["page"] = of_pages(lambda page: page.name or "")
    if grid.devices:
        names = [next(iter(device.values())).name for device in grid.devices]
        columns["device"] = np.asarray(names)[indices["devices"]]
    return columns


def _distinct_pages(grid: Grid, pages: NDArray[Any]) -> tuple[list[RequestPages], NDArray[Any]]:
    """Return the different pages of some requests, and the index of those of each request."""
    import numpy as np

    numbers: dict[RequestPages, int] = {}
    used, inverse = np.unique(pages, return_inverse=True)
    which = np.asarray([numbers.setdefault(grid.pages[page].request, len(numbers)) for page in used.tolist()])
    return list(numbers), which[inverse]


def _peaks(grid: Grid, indices: Mapping[str, Any], rows: NDArray[Any]) -> tuple[Any, Any, Any] | None:
    """Return peak rates of arithmetic and of memory, and bytes of memory, by row; None without devices."""
    import numpy as np

    if not grid.devices:
        return None
    peaks = [[device[dtype] for dtype in grid.dtypes] for device in grid.devices]
    place = indices["devices"][rows], indices["dtypes"][rows]
    flops = np.asarray([[peak.flops_per_second for peak in row] for row in peaks])
    moved = np.asarray([[peak.bytes_per_second for peak in row] for row in peaks], np.float64)
    memory = np.asarray([[peak.memory_bytes for peak in row] for row in peaks], np.float64)
    return flops[place], moved[place], memory[place]


def _costs(
    grid: Grid, pages: RequestPages, taken: Mapping[str, Any], item_size: Any, peaks: tuple[Any, Any, Any] | None
) -> dict[str, Any]:
    """Return the values of some workloads whose pages have equal views, as arrays or single numbers."""
    workload = workload_of(grid, pages, taken)
    costs, runs = evaluate_both(grid.closed_form, grid.family, workload)
    steps, steps_run = costs.pop(DECODE_TOTAL), runs.pop(DECODE_TOTAL)
    request = {**costs, DECODE: steps}
    stages = {name: {**cost.quantities(item_size), "flops_executed": runs[name].flops} for name, cost in costs.items()}
    stages[DECODE] |= {**steps.quantities(item_size, suffix="_total"), "flops_executed_total": steps_run.flops}
    longest = workload.prompt_tokens + workload.decode_steps
    # The part of a report that metrics read.
    counts = {
        "stages": stages,
        "total": {
            **total(request.values()).quantities(item_size),
            "flops_executed": total({**runs, DECODE: steps_run}.values()).flops,
            "flops_forward": sum(stages[name]["flops"] for name in aggregates(stages)[FORWARD]),
            "weight_bytes": weight_bytes(grid.family, grid.architecture, item_size),
            "kv_cache_bytes": grid.family.decoder(grid.architecture).kv_cache_elements(workload, longest) * item_size,
        },
        "roofline": None if peaks is None else _roofline(grid, workload, request, item_size, peaks),
    }
    context = {name: getattr(workload, name) for name in ("text_tokens", "prompt_tokens", "decode_context")}
    return {**context, **values_of(STATIC, counts, swept=True)}


def workload_of(grid: Grid, pages: RequestPages, taken: Mapping[str, Any]) -> Workload:
    """Return the workloads of some rows as one whose fields are arrays."""
    workload = make_workload(
        grid.family,
        grid.architecture,
        (0, 0),
        pages.views,
        [replace(pages, times=pages.times - 1)] if pages.times > 1 else [],
        seq_len=grid.seq_len,
        decode_context=grid.decode_context,
        dtype="",
        **{name: value for name, value in taken.items() if name not in _PARTS},
    )
    parts = {name: taken[name] for name in _PARTS if name in taken and most(taken[name])}
    if "chunk_tokens" in parts:
        # A chunk as long as the prompt is the whole.
        chunk = parts["chunk_tokens"]
        parts["chunk_tokens"] = chunk + workload.prompt_tokens * (chunk == 0)
    return replace(workload, **parts)


def _needed(grid: Grid, workload: Workload, item_size: Any) -> Any:
    """Return a lower bound on the bytes of memory, see `stagemeter.utilization.memory.memory_need`."""
    held = held_by_stage(grid.family, grid.architecture, workload, item_size, item_size)
    most = reduce(larger, (memory.most for memory in held.values()))
    return bytes_read_of_weights(grid.family, grid.architecture, item_size) + most


def _roofline(
    grid: Grid, workload: Workload, request: Mapping[str, Cost], item_size: Any, peaks: tuple[Any, Any, Any]
) -> dict[str, Any]:
    """Return the bounds of every stage and sum, and the throughput at them."""
    import numpy as np

    peak_flops, peak_bytes, memory = peaks
    peak, steps = Peak("", "", peak_flops, peak_bytes, ""), workload.decode_steps
    times: dict[str, Any] = {}
    for stage in grid.family.stages:
        spared: Any = 0
        if stage.experts is not None:
            spared = spared_bytes(stage, grid.architecture, grid.closed_form, workload, item_size)
        work = Work.of_cost(request[stage.name], (item_size, item_size), spared)
        times[stage.name] = stage_bounds(_in_floats(work), peak)[0].ms
    bounds = {name: sum(times[part] for part in parts) for name, parts in request_parts(times).items()}
    # A request without a decode step has no bound of one, rather than a bound of zero.
    some = np.where(_floats(steps) > 0, 1.0, np.nan)
    bounds[DECODE_TOTAL] = bounds[DECODE] * some
    bounds[DECODE] = bounds[DECODE] / np.maximum(_floats(steps), 1) * some
    needed = _needed(grid, workload, item_size)
    # A request that does not fit has no throughput. Unknown memory is NaN, and no number is larger than that.
    fits = np.where(_floats(needed) > memory, np.nan, 1.0)
    rates = {name: rate for name, rate in throughput(bounds, workload).items() if rate is not None}
    return {
        "bounds": {name: {"roofline_ms": milliseconds} for name, milliseconds in bounds.items()},
        "throughput": {name: rate * fits for name, rate in rates.items()},
        "memory": {"needed_bytes": needed, "largest_batch_size": None},
    }


def _in_floats(work: Work) -> Work:
    """Return the work that bounds follow from, of any size, in floats."""
    bounding = ("flops_causal", "moved_bytes", "least_bytes")
    floats: dict[str, Any] = {name: _floats(getattr(work, name)) for name in bounding}
    return replace(work, **floats)


def _floats(values: Any) -> NDArray[Any]:
    """Return whole numbers of any size as the nearest floats."""
    import numpy as np

    return np.asarray(values, np.float64)
