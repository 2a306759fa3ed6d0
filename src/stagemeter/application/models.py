"""The ``models`` command: describe every shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.decoder.decoder import ENDLESS
from stagemeter.models.family import all_parameters
from stagemeter.models.files import hub_id_in, shipped_models
from stagemeter.models.generic.shipped import ShippedModel, shipped_without_family
from stagemeter.models.lookup import ModelDescription, describe_model


def shipped_model_rows(words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Describe each shipped model as plain data, or those whose name, family or Hub id has all of some words.

    Keys are ``name``, ``hub_id`` (None: not published there), ``family``, ``title`` of the family, ``stages`` by name
    in order, ``reads_pages``, ``params``, ``params_active`` (those that one token uses), ``max_positions`` (None: no
    limit), and ``source`` of the configuration. Words that no model has raise StagemeterError.
    """
    without = shipped_without_family()
    rows = [_row(describe_model(name)) for name in shipped_models() if name not in without]
    rows += [_row_of_facts(name, shipped) for name, shipped in without.items()]
    found = [row for row in rows if all(word.lower() in _searched(row) for word in words)]
    if not found:
        raise StagemeterError(f"words: no model has {' and '.join(words)}. `stagemeter models` lists all")
    return found


def _searched(row: dict[str, Any]) -> str:
    return " ".join(str(row[key]) for key in ("name", "hub_id", "family", "title")).lower()


def _row(model: ModelDescription) -> dict[str, Any]:
    family, architecture = model.family, model.architecture
    active = sum(stage.parameters(architecture).active for stage in family.stages)
    longest = family.decoder(architecture).max_positions
    return {
        "name": model.name,
        "hub_id": hub_id_in(model.config["_source"]),
        "family": family.name,
        "title": family.title,
        "stages": [stage.name for stage in family.stages],
        "reads_pages": family.reads_pages,
        "params": all_parameters(family, architecture),
        "params_active": active + sum(family.other_parameters(architecture).values()),
        "max_positions": None if longest == ENDLESS else longest,
        "source": model.config["_source"],
    }


def _row_of_facts(name: str, shipped: ShippedModel) -> dict[str, Any]:
    facts = shipped.facts
    return {
        "name": name,
        "hub_id": hub_id_in(shipped.source),
        "family": "generic",
        "title": f"{shipped.config['architectures'][0]} of transformers, without a family",
        "stages": list(facts.stages),
        "reads_pages": facts.reads_pages,
        "params": facts.params,
        "params_active": facts.params_active,
        "max_positions": facts.max_positions,
        "source": shipped.source,
    }
