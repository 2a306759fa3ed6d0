"""Rows of a sweep: the closed forms of a model, evaluated for many workloads at a time, to the integer.

The closed forms only add and multiply whole numbers, and so does what leads from a workload to their variables. Arrays
of 64 bits go through both as single numbers do; `require_exact` makes sure beforehand that none overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stagemeter.cost import ITEM_SIZES, Cost, sum_of_steps, total
from stagemeter.errors import StagemeterError
from stagemeter.models.closed_form import bytes_of_an_expert, evaluate
from stagemeter.models.families.deepseek_ocr import FAMILY, language_model
from stagemeter.models.family import all_parameters
from stagemeter.profiling.profile import AGGREGATES, DECODE, DECODE_TOTAL, FORWARD, TOTAL, VISION
from stagemeter.sweeping.grid import AXES, Grid, Views
from stagemeter.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

_STAGES = tuple(stage.name for stage in FAMILY.stages)
_FORWARD_STAGES = AGGREGATES[FORWARD]
#: What 64 bits hold, with a bit to spare for a sum that is halved.
_LIMIT = 2**62


def evaluate_rows(grid: Grid, start: int, stop: int) -> Columns:
    """Evaluate some rows of a grid.

    Parameters
    ----------
    grid : Grid
        The grid.
    start, stop : int
        Rows, as in a slice.

    Returns
    -------
    dict
        Arrays of as many values by column: the fields of the workload, ``flops/<stage>`` and so on as MLflow's metrics
        are called, and with devices ``roofline_ms/<stage>``.
    """
    import numpy as np

    indices = dict(zip(AXES, np.unravel_index(np.arange(start, stop), grid.shape), strict=True))
    taken = {
        "batch_size": np.asarray(grid.batch_sizes, np.int64)[indices["batch_sizes"]],
        "text_tokens": np.asarray(grid.text_tokens, np.int64)[indices["text_tokens"]],
        "new_tokens": np.asarray(grid.new_tokens, np.int64)[indices["new_tokens"]],
    }
    item_sizes = np.asarray([ITEM_SIZES[dtype] for dtype in grid.dtypes], np.int64)[indices["dtypes"]]
    columns = _settings(grid, indices, taken)
    distinct, which = _distinct_views(grid, indices["pages"])
    costs: Columns = {}
    for number, views in enumerate(distinct):
        rows = np.flatnonzero(which == number)
        peaks = _peaks(grid, indices, rows)
        part = _costs(grid, views, {name: values[rows] for name, values in taken.items()}, item_sizes[rows], peaks)
        for name, values in part.items():
            if name not in costs:
                costs[name] = np.empty(stop - start, values.dtype if hasattr(values, "dtype") else np.int64)
            costs[name][rows] = values
    return {**columns, **costs}


def require_exact(grid: Grid) -> None:
    """Make sure that no number of a grid is too large for 64 bits.

    Raises
    ------
    StagemeterError
        If one could be.
    """
    largest = {
        "batch_size": max(grid.batch_sizes),
        "text_tokens": max(grid.text_tokens),
        "new_tokens": max(grid.new_tokens),
    }
    item_size = max(ITEM_SIZES[dtype] for dtype in grid.dtypes)
    for views in {page.views for page in grid.pages}:
        # Closed forms have no negative coefficients, so that the largest variables give the largest value.
        values = _costs(grid, views, largest, item_size, None)
        name = max(values, key=lambda name: values[name])
        if values[name] >= _LIMIT:
            raise StagemeterError(
                f"{name} reaches {float(values[name]):.3g} at the largest batch and the most tokens, more than a table "
                "of 64-bit numbers holds exactly: give a smaller --batch-size or fewer --new-tokens"
            )


def _settings(grid: Grid, indices: Mapping[str, Any], taken: Mapping[str, Any]) -> Columns:
    """Columns that say which workload a row is of."""
    import numpy as np

    def of_pages(value: Callable[[Any], Any]) -> NDArray[Any]:
        values = np.asarray([value(page) for page in grid.pages])
        column: NDArray[Any] = values[indices["pages"]]
        return column

    columns = {
        "mode": of_pages(lambda page: page.views.mode),
        "image_width": of_pages(lambda page: page.width),
        "image_height": of_pages(lambda page: page.height),
        "base_size": of_pages(lambda page: page.views.base_size),
        "image_size": of_pages(lambda page: page.views.image_size),
        "global_views": of_pages(lambda page: page.views.global_views),
        "local_views": of_pages(lambda page: page.views.local_views),
        "tile_grid": of_pages(lambda page: "x".join(map(str, page.views.tile_grid))),
        "image_tokens": of_pages(lambda page: page.views.image_tokens),
        **taken,
        "dtype": np.asarray(grid.dtypes)[indices["dtypes"]],
    }
    if any(page.name is not None for page in grid.pages):
        columns["page"] = of_pages(lambda page: page.name or "")
    if grid.devices:
        names = [next(iter(device.values())).name for device in grid.devices]
        columns["device"] = np.asarray(names)[indices["devices"]]
    return columns


def _distinct_views(grid: Grid, pages: NDArray[Any]) -> tuple[list[Views], NDArray[Any]]:
    """The different views that some pages become, and of each page which of them."""
    import numpy as np

    numbers: dict[Views, int] = {}
    used, inverse = np.unique(pages, return_inverse=True)
    which = np.asarray([numbers.setdefault(grid.pages[page].views, len(numbers)) for page in used.tolist()])
    return list(numbers), which[inverse]


def _peaks(grid: Grid, indices: Mapping[str, Any], rows: NDArray[Any]) -> tuple[Any, Any] | None:
    """Peak rates of arithmetic and of memory by row; None without devices."""
    import numpy as np

    if not grid.devices:
        return None
    peaks = [[device[dtype] for dtype in grid.dtypes] for device in grid.devices]
    place = indices["devices"][rows], indices["dtypes"][rows]
    flops = np.asarray([[peak.flops_per_second for peak in row] for row in peaks])
    moved = np.asarray([[peak.bytes_per_second for peak in row] for row in peaks], np.float64)
    return flops[place], moved[place]


def _costs(
    grid: Grid, views: Views, taken: Mapping[str, Any], item_size: Any, peaks: tuple[Any, Any] | None
) -> dict[str, Any]:
    """Values of some workloads whose pages become the same views; of arrays or of single numbers alike."""
    prompt = (
        views.image_tokens + taken["text_tokens"] if grid.seq_len is None else grid.seq_len + 0 * taken["text_tokens"]
    )
    steps = taken["new_tokens"] - 1
    context = _decode_context(grid, prompt, taken["new_tokens"])
    workload = Workload(
        image_width=0,
        image_height=0,
        mode=views.mode,
        base_size=views.base_size,
        image_size=views.image_size,
        global_views=views.global_views,
        local_views=views.local_views,
        tile_grid=views.tile_grid,
        image_tokens=views.image_tokens,
        prompt_tokens=prompt,
        dtype="",
        decode_context=context,
        **taken,
    )
    passes = {name: _stage(grid, name, workload) for name in _STAGES}
    first, last = (
        _stage(grid, DECODE, replace(workload, decode_context=tokens)) for tokens in (prompt + 1, prompt + steps)
    )
    request = {**passes, DECODE: sum_of_steps(first, last, steps)}
    values: dict[str, Any] = {"prompt_tokens": prompt, "decode_context": context}
    quantities: dict[str, Callable[[Cost], Any]] = {
        "flops": lambda cost: cost.flops,
        "macs": lambda cost: cost.macs,
        "activations": lambda cost: cost.activations,
        "bytes": lambda cost: cost.bytes_read(item_size) + cost.bytes_written(item_size),
    }
    for quantity, of in quantities.items():
        whole = {name: of(cost) for name, cost in request.items()}
        values |= {f"{quantity}/{name}": of(passes[name]) for name in _STAGES}
        values[f"{quantity}/{DECODE_TOTAL}"] = whole[DECODE]
        values[f"{quantity}/{TOTAL}"] = sum(whole.values())
    values[f"flops/{FORWARD}"] = sum(passes[name].flops for name in _FORWARD_STAGES)
    elements = language_model(grid.architecture).cached_elements(taken["batch_size"], prompt + steps)
    values["memory/weights"] = all_parameters(FAMILY, grid.architecture) * item_size
    values["memory/kv_cache"] = elements * item_size
    if peaks is not None:
        values |= _bounds(grid, workload, request, steps, item_size, peaks)
    return values


def _stage(grid: Grid, name: str, workload: Workload) -> Cost:
    calls = FAMILY.stage(name).calls(grid.architecture, workload)
    return total(evaluate(grid.closed_form, name, variables) for variables in calls)


def _decode_context(grid: Grid, prompt: Any, new_tokens: Any) -> Any:
    if grid.decode_context == "auto":
        # At least two: a step attends to itself and to what came before. A prompt of one token and one new one is all
        # that falls below.
        auto = prompt + new_tokens // 2
        return auto + (2 - auto) * (auto < 2)
    fixed = grid.architecture.decoder.max_positions if grid.decode_context == "max" else grid.decode_context
    return fixed + 0 * prompt


def _bounds(
    grid: Grid, workload: Workload, request: Mapping[str, Cost], steps: Any, item_size: Any, peaks: tuple[Any, Any]
) -> dict[str, Any]:
    """Bounds of every stage and sum, by the arithmetic of `stagemeter.capacity`, in its order."""
    import numpy as np

    peak_flops, peak_bytes = peaks
    least: dict[str, Any] = {}
    for stage in FAMILY.stages:
        cost = request[stage.name]
        moved = cost.bytes_read(item_size) + cost.bytes_written(item_size)
        if stage.experts is not None:
            possible = stage.experts(grid.architecture, workload)
            of_one = bytes_of_an_expert(grid.closed_form, stage.name, item_size)
            moved = moved - of_one * (steps if stage.name == DECODE else 1) * (possible.most - possible.fewest)
        compute_ms = 1e3 * np.asarray(cost.flops, np.float64) / peak_flops
        least[stage.name] = np.maximum(compute_ms, 1e3 * np.asarray(moved, np.float64) / peak_bytes)
    rows = {**{name: [name] for name in _FORWARD_STAGES}, VISION: AGGREGATES[VISION], FORWARD: _FORWARD_STAGES}
    bounds = {name: sum(least[stage] for stage in stages) for name, stages in rows.items()}
    # Of a request without a step nothing, rather than a step that takes no time.
    some = np.where(steps > 0, 1.0, np.nan)
    bounds[DECODE_TOTAL] = least[DECODE] * some
    bounds[DECODE] = least[DECODE] / np.maximum(steps, 1) * some
    bounds[TOTAL] = sum(least[stage] for stage in _STAGES)
    whole = bounds[TOTAL]
    rates = {
        "at_roofline/first_token_ms": bounds[FORWARD],
        "at_roofline/decode_tokens_per_second": 1e3 * (workload.batch_size * steps) / bounds[DECODE_TOTAL],
        "at_roofline/tokens_per_second": 1e3 * (workload.batch_size * workload.new_tokens) / whole,
        "at_roofline/pages_per_hour": 3600 * (1e3 * workload.batch_size / whole),
    }
    return {f"roofline_ms/{name}": milliseconds for name, milliseconds in bounds.items()} | rates
