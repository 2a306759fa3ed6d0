"""Model families: one module each, with its ``FAMILY``, and families of installed packages.

``index.json`` tells which module has a family, so that a family is found without importing the others.
``python docs/defaults.py`` writes it. A package adds a family by an entry point of the group ``stagemeter.families``
whose value is a `Family`, see ``docs/adding-a-model.md``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.family import Family
from stagemeter.models.settings import BeyondFamilyError, Settings
from stagemeter.models.shipped import shipped_configurations

ENTRY_POINTS = "stagemeter.families"
INDEX = Path(__file__).with_name("index.json")


def families() -> dict[str, Family[Any]]:
    """Return all families by name, or raise StagemeterError for an unusable or duplicate one of a package."""
    return {name: _own(entry["module"]) for name, entry in _index().items()} | _of_packages()


def family_of(config: Mapping[str, Any], source: str) -> Family[Any] | None:
    """Return the family that takes a configuration, None without one; or raise StagemeterError if several do."""
    names = {str(name) for name in (config.get("model_type"), *(config.get("architectures") or []))}
    near = [_own(entry["module"]) for entry in _index().values() if not names.isdisjoint(entry["model_types"])]
    brought = [family for family in _of_packages().values() if not names.isdisjoint(family.model_types or names)]
    takers = [family for family in (*near, *brought) if family.takes(config)]
    if len(takers) > 1:
        several = ", ".join(family.name for family in takers)
        raise StagemeterError(f"{source}: several families take it: {several}. Remove the package of one of them")
    return takers[0] if takers else None


def family_named(name: str) -> Family[Any]:
    """Return a family by its name, or raise StagemeterError."""
    if name in _index():
        return _own(_index()[name]["module"])
    if name not in _of_packages():
        raise StagemeterError(
            f"family: {name!r} is unknown. Install the package that brings it, or take one of {', '.join(families())}"
        )
    return _of_packages()[name]


def shipped_in_families() -> dict[str, Traversable]:
    """Return the configurations that come with families, by the names of their models."""
    own = shipped_configurations(*(model for entry in _index().values() for model in entry["shipped"]))
    return own | {model: file for family in _of_packages().values() for model, file in family.shipped.items()}


@cache
def _index() -> dict[str, Any]:
    index: dict[str, Any] = json.loads(INDEX.read_text(encoding="utf-8"))
    return index


def _own(module: str) -> Family[Any]:
    family: Family[Any] = importlib.import_module(f"{__name__}.{module}").FAMILY
    return family


@cache
def _of_packages() -> dict[str, Family[Any]]:
    found: dict[str, Family[Any]] = {}
    for entry_point in entry_points(group=ENTRY_POINTS):
        package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        try:
            family = entry_point.load()
        except Exception as error:
            raise StagemeterError(
                f"package {package}: its family {entry_point.name} cannot be loaded: {type(error).__name__}: {error}. "
                "Mend or remove the package"
            ) from error
        if not isinstance(family, Family):
            raise StagemeterError(
                f"package {package}: {entry_point.value} is not a stagemeter Family. Mend or remove the package"
            )
        if family.name in found or family.name in _index():
            raise StagemeterError(
                f"package {package}: there is a family {family.name!r} already. Remove the package, or rename its"
            )
        found[family.name] = family
    return found


def text_decoder(settings: Settings, key: str = "text_config", tied_by_part: bool = False) -> Decoder:
    """Read the language model under a key of a configuration, by the family that takes it.

    The whole configuration says if the output head is tied, see `text_settings`; with `tied_by_part`, the part does.
    Raise BeyondFamilyError if no family takes it, or one whose architecture is more than a decoder.
    """
    text = settings.part(key) if tied_by_part else text_settings(settings, key)
    family = family_of(text.values, text.source)
    decoder = None if family is None else family.architecture_from_config(text.values, text.source)
    if not isinstance(decoder, Decoder):
        kind = text.values.get("model_type")
        raise BeyondFamilyError(f"{text.source}: model_type is {kind!r}, a decoder that no family takes")
    return decoder


def text_settings(settings: Settings, key: str = "text_config") -> Settings:
    """Return the language model's part of a configuration, with the output head tied as the whole one says.

    Source: transformers, ``modeling_utils.py``, ``get_expanded_tied_weights_keys``.
    """
    text = settings.part(key)
    tied = settings.flag("tie_word_embeddings", default=False)
    return Settings({**text.values, "tie_word_embeddings": tied}, text.source)
