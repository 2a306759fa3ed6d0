"""Points of a sweep, counted again in full: as `stagemeter analyze` counts a workload, in three ways."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.metrics import report_values
from stagemeter.core.workload import OWN, Workload
from stagemeter.models.families.deepseek_ocr.modes import DEFAULT_MODE
from stagemeter.sweeping.build import limits_of
from stagemeter.sweeping.evaluate import evaluate_rows
from stagemeter.sweeping.grid import Grid
from stagemeter.utilization.memory import roofline_section

Count = Callable[[Grid, AnalysisConfig], Mapping[str, Any]]


def chosen_points(grids: Sequence[Grid], count: int, seed: int) -> list[tuple[int, int]]:
    """Choose points at random, each a grid and a row of it; the same ones for the same seed."""
    sizes = [grid.size for grid in grids]
    rows = random.Random(seed).sample(range(sum(sizes)), min(count, sum(sizes)))
    points = []
    for row in sorted(rows):
        number = 0
        while row >= sizes[number]:
            row -= sizes[number]
            number += 1
        points.append((number, row))
    return points


def differences(grid: Grid, row: int, count: Count) -> list[str]:
    """Count one row again, and say in what the table differs.

    Parameters
    ----------
    grid : Grid
        The grid.
    row : int
        Its row.
    count : callable
        Makes the report of a configuration.
    """
    found = {name: values[:1].tolist()[0] for name, values in evaluate_rows(grid, row, row + 1).items()}
    config = AnalysisConfig(
        model=grid.model,
        mode=DEFAULT_MODE if found["mode"] == OWN else found["mode"],
        image_w=found["image_width"],
        image_h=found["image_height"],
        text_tokens=found["text_tokens"],
        new_tokens=found["new_tokens"],
        batch_size=found["batch_size"],
        dtype=found["dtype"],
        seq_len=grid.seq_len,
        decode_context=grid.decode_context,
        **limits_of(found["mode"], grid.limits, several=True),
    )
    report = count(grid, config)
    if grid.devices:
        peak = next(device[config.dtype] for device in grid.devices if device[config.dtype].name == found["device"])
        report = {**report, "roofline": roofline_section(report, grid.family, grid.architecture, peak)}
    workload = Workload.from_dict(report["metadata"]["workload"])
    expected: dict[str, Any] = {
        **{field.name: getattr(workload, field.name) for field in fields(Workload)},
        "tile_grid": "x".join(map(str, workload.tile_grid)),
        **report_values(report),
    }
    lines = []
    if report["agreement"]["differences"]:
        lines.append(f"the ways of counting disagree: {'; '.join(report['agreement']['differences'])}")
    for name, value in found.items():
        if name in ("page", "device"):
            continue
        # What a report leaves out, such as the bound of a step that there is not, is NaN in a table.
        same = value == expected[name] if name in expected else value != value
        if not same:
            lines.append(f"{name} is {value} in the table, and {expected.get(name)} counted again")
    return [f"row {row}, {workload}: {line}" for line in lines]
