"""Write docs/models.md from the shipped configurations: ``python docs/models.py``.

``python docs/models.py --facts`` first counts the models without a family again, which takes some minutes, and writes
what it finds into src/stagemeter/models/generic/shipped.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limit_notes, page_views
from stagemeter.core.stage_names import DECODE
from stagemeter.core.units import with_unit
from stagemeter.core.workload import Workload
from stagemeter.export.execution import differing_factor, digits_of
from stagemeter.models.families import families
from stagemeter.models.files import shipped_models
from stagemeter.models.generic.family import ENDLESS, make_family
from stagemeter.models.generic.shipped import FILE, Facts, shipped_without_family
from stagemeter.models.lookup import ModelDescription, describe_model

PAGE = Path(__file__).with_name("models.md")
#: The request for which a family says where executed FLOPs differ.
BATCH, LONGEST, NEW_TOKENS = 2, 32_768, 512
HEAD = """# Models

The models whose configurations are shipped, written by `python docs/models.py`; a test holds the page to what it
prints. `--model` also takes a folder that holds a `config.json`, such a file, or a hub id: any size of a family below.
A configuration that transformers saved, as every fine-tune's is, describes the same model as the published one.
Settings are read under their older and newer names, and one that is left out has the default of its class in
transformers 5.23.0, the version that the tests run. `model_type` is enough: `architectures` may be missing.
Families that packages bring along are taken like these, see [Adding a model](adding-a-model.md). Models of the family
`generic` have none: their parts are found and run, see [Models without a family](other-models.md). Those whose names
end with `-default` are what transformers' own defaults make, since no published configuration could be had.

Every number is exact in the sense of [What the numbers mean](static_analysis.md). The request is the default one: an A4
page at 200 dpi and 10 tokens of text for a model that reads pages, a prompt of 1,024 tokens for one that reads text
alone; a step is that of the middle of 512 new tokens. The cache is what one token more takes, beside states and what is
kept of a page. FLOPs are the model's; a factor in brackets says how many times as many transformers executes, where
both differ by more than 0.1 %. Those of the family `generic` are executed ones. Other requests have other factors. So
each family below says where the two differ for a batch of two with a prompt of 32,768 tokens, or as long as a model
takes, and gives the largest factor of its models.

"""
SOURCES = """
## Where the configurations are from

"""


def page() -> str:
    """Return the page."""
    without = shipped_without_family()
    models = [describe_model(name) for name in shipped_models() if name not in without]
    rows = [
        ["model", "family", "stages", "parameters", "one token uses", "FLOPs to the first token", "FLOPs of a step",
         "cache per token"],
        [":---", ":---", ":---", *["---:"] * 5],
        *map(row, models),
        *(row_of_facts(name, shipped.facts) for name, shipped in without.items()),
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    sources = [source(model.name, model.config["_source"]) for model in models]
    sources += [source(name, shipped.source) for name, shipped in without.items()]
    return HEAD + table + "\n" + "".join(map(family_text, families().values())) + SOURCES + "".join(sources)


def row(model: ModelDescription) -> list[str]:
    """Return the cells of one model."""
    report = estimate_model(model, AnalysisConfig(model=model.name))
    total = report["total"]
    decoder = model.family.decoder(model.architecture)
    # States, and what is kept of a source, are there with the first token, and do not grow.
    workload = Workload.from_dict(report["metadata"]["workload"])
    per_token = decoder.kv_cache_elements(workload, 2) - decoder.kv_cache_elements(workload, 1)
    first_token = sum(stage["flops_executed"] for name, stage in report["stages"].items() if name != DECODE)
    return [
        f"`{model.name}`",
        model.family.name,
        ", ".join(report["stages"]),
        f"{total['params']:,}",
        f"{total['params_active']:,}",
        marked(total["flops_forward"], first_token),
        marked(report["stages"]["decode"]["flops"], report["stages"]["decode"]["flops_executed"]),
        f"{per_token:,} elements",
    ]


def marked(needed: int, executed: int) -> str:
    """Return the model's FLOPs, with the factor of the executed ones where these differ."""
    factor = differing_factor(executed, needed)
    return with_unit(needed) + ("" if factor is None else f" (x{digits_of(factor)})")


def family_text(family: Any) -> str:
    """Return what there is to know about a family."""
    shipped = (describe_model(name) for name in family.shipped)
    # Models of a family that are of different limits each have theirs.
    limits = dict.fromkeys(note for model in shipped for note in limit_notes(AnalysisConfig(), model))
    notes = "".join(f"\n- {note}" for note in (*limits, *several_pages(family), *family.notes, *executed_notes(family)))
    return f"\n## {family.name}\n\n{family.title}.\n" + (f"{notes}\n" if notes else "")


def several_pages(family: Any) -> list[str]:
    """Return whether a request may have several pages, and what the prompt has around each further one."""
    if not family.reads_pages:
        return []
    if family.tags is None:
        return ["a request has one page"]
    tags = set()
    for model in map(describe_model, family.shipped):
        views, _ = page_views(AnalysisConfig(), model, 1654, 2339, among=True)
        tags.add(family.tags(model.architecture, views))
    around = " or ".join(f"{number:,}" for number in sorted(tags))
    return [f"a request may have several pages; a further one of 1654 x 2339 pixels has {around} tokens around it"]


def executed_notes(family: Any) -> list[str]:
    """Return where transformers executes other FLOPs than a family's models need: a line a stage."""
    found: dict[str, tuple[float, str, list[str]]] = {}
    for model in map(describe_model, family.shipped):
        longest = min(model.family.decoder(model.architecture).max_positions - NEW_TOKENS, LONGEST)
        length = {"seq_len": longest} if longest > 4 * NEW_TOKENS else {}
        config = AnalysisConfig(model=model.name, batch_size=BATCH, new_tokens=NEW_TOKENS, **length)
        for name, stage in estimate_model(model, config)["stages"].items():
            factor = differing_factor(stage["flops_executed"], stage["flops"])
            if factor is not None and abs(factor - 1) > abs(found.get(name, (1,))[0] - 1):
                found[name] = (factor, model.name, stage["execution"])
    if not found and family.shipped:
        return ["transformers executes the model's FLOPs in every stage"]
    return [
        f"`{name}`: transformers executes {digits_of(factor)} times the model's FLOPs for `{model}`: it "
        + "; it ".join(clauses)
        for name, (factor, model, clauses) in found.items()
    ]


def row_of_facts(name: str, facts: Facts) -> list[str]:
    """Return the cells of a model without a family."""
    return [
        f"`{name}`",
        "generic",
        ", ".join(facts.stages),
        f"{facts.params:,}",
        f"{facts.params_active:,}",
        with_unit(facts.flops_forward),
        with_unit(facts.flops_decode),
        f"{facts.cache_per_token:,} elements",
    ]


def source(name: str, of: str) -> str:
    """Return where a configuration is from."""
    return f"- `{name}`: {of}\n"


def counted_facts(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Count a model without a family and return the facts about it."""
    family, found = make_family(entry["config"], entry["preprocessing"], name)
    report = analyze_model(ModelDescription(name, family, found, entry["config"], name), AnalysisConfig(model=name))
    if not report["agreement"]["equal"]:
        raise SystemExit(f"{name}: {report['agreement']}")
    workload, language = Workload.from_dict(report["metadata"]["workload"]), family.decoder(found)
    tokens = workload.prompt_tokens
    held, more = (language.kv_cache_elements(workload, number) for number in (tokens, tokens + 1))
    return {
        "stages": list(report["stages"]),
        "reads_pages": family.reads_pages,
        "params": report["total"]["params"],
        "params_active": report["total"]["params_active"],
        "max_positions": None if language.max_positions == ENDLESS else language.max_positions,
        "flops_forward": report["total"]["flops_forward"],
        "flops_decode": report["stages"]["decode"]["flops"],
        "cache_per_token": more - held,
    }


def write_facts() -> None:
    """Count every shipped model without a family."""
    file = Path(str(FILE))
    entries = json.loads(file.read_text(encoding="utf-8"))
    for name, entry in entries.items():
        entry["facts"] = counted_facts(name, entry)
        print(name, entry["facts"], flush=True)
        file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--facts" in sys.argv[1:]:
        write_facts()
    PAGE.write_text(page(), encoding="utf-8")
