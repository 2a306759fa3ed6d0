"""Comparison of a row of a sweep with the report of its workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.metrics import report_values
from stagemeter.core.report import Report
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.sweeping.build import limits_of
from stagemeter.sweeping.evaluate import evaluate_rows
from stagemeter.sweeping.grid import Grid
from stagemeter.utilization.memory import roofline_section


def differences(grid: Grid, row: int, report_of: Callable[[AnalysisConfig], Report]) -> list[str]:
    """Return the columns in which a row differs from the report of its workload, a line each."""
    found = {name: values[:1].tolist()[0] for name, values in evaluate_rows(grid, row, row + 1).items()}
    asked = {name: found[name] for name in ("text_tokens", "new_tokens", "batch_size", "dtype")}
    parts: dict[str, Any] = {name: found[name] or None for name in ("cached_tokens", "chunk_tokens") if name in found}
    asked |= {**parts, "model": grid.model, "seq_len": grid.seq_len, "decode_context": grid.decode_context}
    if found["mode"] == TEXT:
        asked["seq_len"] = found["prompt_tokens"]
    else:
        asked |= {"image_w": found["image_width"], "image_h": found["image_height"]}
        asked |= limits_of(grid.family, found["mode"], grid.limits, several=True)
        asked |= {} if found["mode"] == OWN else {"mode": found["mode"]}
        asked["images_per_request"] = found.get("images_per_request")
    config = AnalysisConfig(**asked)
    report = report_of(config)
    if grid.devices:
        peak = next(device[config.dtype] for device in grid.devices if device[config.dtype].name == found["device"])
        report = {**report, "roofline": roofline_section(report, grid.family, grid.architecture, peak)}
    workload = Workload.from_dict(report["metadata"]["workload"])
    expected: dict[str, Any] = {
        **{field.name: getattr(workload, field.name) for field in fields(Workload)},
        **dict(zip(("view_width", "view_height"), workload.view_size or (workload.base_size,) * 2, strict=True)),
        "tile_grid": "x".join(map(str, workload.tile_grid)),
        "images_per_request": workload.pages,
        **report_values(report),
        **{name: value or 0 for name, value in parts.items()},
    }
    lines = [f"the ways of counting disagree: {line}" for line in report["agreement"]["differences"]]
    for name, value in found.items():
        if name in ("page", "device"):
            continue
        # A number that a report leaves out, such as the bound of a step that does not run, is NaN in a table.
        same = value == expected[name] if name in expected else value != value
        if not same:
            lines.append(f"{name} is {value} in the table, and {expected.get(name)} on its own")
    return [f"row {row}, {workload}: {line}" for line in lines]
