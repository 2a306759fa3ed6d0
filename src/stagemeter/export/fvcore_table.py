"""The report as fvcore's own table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.writing import write_whole

_INTRODUCTION = """# One forward pass, by module

Printed by fvcore's `flop_count_table`. What fvcore calls flops are multiply-accumulates: **the `#flops` column shows
MACs**, half of the report's executed FLOPs. One pass over the page and its prompt; decode steps are not in it.

"""


def write_static_compute_fvcore_table(report_or_counts: Any, path: Path | str) -> Path:
    """Write fvcore's table of parameters, multiply-accumulates and activations per module.

    Parameters
    ----------
    report_or_counts : mapping or fvcore.nn.FlopCountAnalysis
        A report, or an analysis of fvcore, such as `stagemeter.counting.fvcore_view.CountedFlops`.
    path : Path or str
        The file, in Markdown.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    ValueError
        If the report lists no modules, because the whole model was not run.
    """
    return write_whole(path, fvcore_table(report_or_counts))


def fvcore_table(report_or_counts: Any) -> str:
    """Return the table as Markdown, see `write_static_compute_fvcore_table`."""
    from fvcore.nn import flop_count_table

    if isinstance(report_or_counts, Mapping):
        table = _table_of_report(report_or_counts)
    else:
        table = flop_count_table(report_or_counts)
    return f"{_INTRODUCTION}{table}\n"


def _table_of_report(report: Mapping[str, Any]) -> str:
    """Have fvcore print a hollow model, whose modules have the names and sizes of the report."""
    from stagemeter.core.cost import Cost
    from stagemeter.counting.events import Counts
    from stagemeter.counting.fvcore_view import module_table

    modules = {module["name"]: module for module in report["modules"]}
    if not modules:
        raise ValueError("modules: the report lists none, since the whole model was not run. Analyze by running it")
    counts = Counts(called=set(modules))
    for name, module in modules.items():
        counts.by_module[name] = {"": Cost(macs=module["macs"], activations=module["activations"])}
        counts.unsupported[name] = Counter()
    depth = max(name.count(".") + 1 for name in modules)
    # One parameter stands for all of a module's own, so shapes mean nothing.
    return module_table(_hollow_model(modules), counts, max_depth=depth, show_param_shapes=False)


def _hollow_model(modules: Mapping[str, Mapping[str, Any]]) -> Any:
    import torch
    from torch import nn

    hollow = {name: nn.Module() for name in modules}
    own = {name: module["params"] for name, module in modules.items()}
    for name, module in hollow.items():
        if name:
            parent, _, child = name.rpartition(".")
            hollow[parent].add_module(child, module)
            own[parent] -= modules[name]["params"]
    for name, module in hollow.items():
        if own[name]:
            module.register_parameter("own", nn.Parameter(torch.empty(own[name], device="meta")))
    return hollow[""]
