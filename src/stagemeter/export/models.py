"""The models that are shipped, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import with_unit


def print_models(models: Sequence[Mapping[str, Any]]) -> None:
    """Print the models on stdout as a table, and what else ``--model`` takes."""
    rows = [["model", "family", "stages", "params", "active", "positions"]]
    rows += [
        [
            model["name"],
            model["family"],
            " ".join(model["stages"]),
            with_unit(model["params"]),
            with_unit(model["params_active"]),
            "no limit" if model["max_positions"] is None else f"{model['max_positions']:,}",
        ]
        for model in models
    ]
    print_table(rows, title="Models")
    print_lines(
        [
            "--model also takes a folder that holds a config.json, such a file, or a hub id such as org/name, of which",
            "the configuration alone is fetched. --json says where each configuration is from.",
        ]
    )
