"""Write docs/models.md from the shipped configurations: ``python docs/models.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagemeter.analyzer import estimate_model
from stagemeter.config import AnalysisConfig
from stagemeter.export.units import with_unit
from stagemeter.models.description import ModelDescription, describe_model, shipped_models
from stagemeter.models.registry import families

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Models

The models whose configurations are shipped, written by `python docs/models.py`; a test holds the page to what it
prints. `--model` also takes a folder that holds a `config.json`, such a file, or a hub id: any size of a family below.
Families that packages bring along are taken like these, see [Adding a model](adding-a-model.md).

Every number is exact in the sense of [What the numbers mean](static_analysis.md). The request is the default one: an A4
page at 200 dpi and 10 tokens of text for a model that reads pages, a prompt of 1,024 tokens for one that reads text
alone; a step is that of the middle of 512 new tokens.

"""
SOURCES = """
## Where the configurations are from

"""


def page() -> str:
    """Return the page."""
    models = [describe_model(name) for name in shipped_models()]
    rows = [
        ["model", "family", "stages", "parameters", "one token uses", "FLOPs to the first token", "FLOPs of a step",
         "cache per token"],
        [":---", ":---", ":---", *["---:"] * 5],
        *map(row, models),
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return HEAD + table + "\n" + "".join(map(family_text, families().values())) + SOURCES + "".join(map(source, models))


def row(model: ModelDescription) -> list[str]:
    """Return the cells of one model."""
    report = estimate_model(model, AnalysisConfig(model=model.name))
    total = report["total"]
    per_token = model.family.decoder(model.architecture).cached_elements(1, 1)
    return [
        f"`{model.name}`",
        model.family.name,
        ", ".join(report["stages"]),
        f"{total['params']:,}",
        f"{total['params_active']:,}",
        with_unit(total["flops_forward"]),
        with_unit(report["stages"]["decode"]["flops"]),
        f"{per_token:,} elements",
    ]


def family_text(family: Any) -> str:
    """Return what there is to know about a family."""
    notes = "".join(f"\n- {note}" for note in family.notes)
    return f"\n## {family.name}\n\n{family.title}.\n" + (f"{notes}\n" if notes else "")


def source(model: ModelDescription) -> str:
    """Return where a configuration is from."""
    return f"- `{model.name}`: {model.config['_source']}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
