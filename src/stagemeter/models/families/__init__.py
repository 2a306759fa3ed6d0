"""Model families: one module each, found by its ``FAMILY``, and families of installed packages.

A package adds a family by an entry point of the group ``stagemeter.families`` whose value is a `Family`, see
``docs/adding-a-model.md``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.family import Family
from stagemeter.models.settings import BeyondFamilyError, Settings

ENTRY_POINTS = "stagemeter.families"


@cache
def families() -> dict[str, Family[Any]]:
    """Return all families by name, or raise StagemeterError for an unusable or duplicate one of a package."""
    found: dict[str, Family[Any]] = {}
    for module in pkgutil.iter_modules(__path__):
        place = f"{__name__}.{module.name}" + (".family" if module.ispkg else "")
        family = importlib.import_module(place).FAMILY
        found[family.name] = family
    for entry_point in entry_points(group=ENTRY_POINTS):
        package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        try:
            family = entry_point.load()
        except Exception as error:
            raise StagemeterError(
                f"the family {entry_point.name} of the package {package} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(family, Family):
            raise StagemeterError(f"{entry_point.value} of the package {package} is not a stagemeter Family")
        if family.name in found:
            raise StagemeterError(f"the package {package} brings a family {family.name!r}, and there is one already")
        found[family.name] = family
    return found


def family_of(config: Mapping[str, Any], source: str) -> Family[Any] | None:
    """Return the family that takes a configuration, None without one; or raise StagemeterError if several do."""
    takers = [family for family in families().values() if family.takes(config)]
    if len(takers) == 1:
        return takers[0]
    if takers:
        names = ", ".join(family.name for family in takers)
        raise StagemeterError(f"{source} is taken by several families: {names}. Remove one of them")
    return None


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
