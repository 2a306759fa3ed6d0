"""Shipped configurations of models without a family, with facts that take a while to find.

``shipped.json`` holds by name: ``source``; ``config``, what ``config.json`` holds; ``preprocessing``, what
``preprocessor_config.json`` holds; ``facts``, see `Facts`. ``docs/models.py`` writes the facts, and a test holds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a shipped model without building it; a request is the default one.

    Attributes
    ----------
    stages : tuple of str
        In the order of a request.
    reads_pages : bool
        Whether it looks at pictures.
    params, params_active : int
        Parameters, and those that one token uses.
    max_positions : int or None
        Longest sequence that it was made for; None where there is no limit.
    flops_forward : int
        FLOPs to the first token.
    flops_decode : int
        FLOPs of a decode step.
    cache_per_token : int
        Elements that one more token of a prompt adds to the cache.
    """

    stages: tuple[str, ...]
    reads_pages: bool
    params: int
    params_active: int
    max_positions: int | None
    flops_forward: int
    flops_decode: int
    cache_per_token: int


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A configuration that is shipped.

    Attributes
    ----------
    source : str
        Where it is from.
    config, preprocessing : mapping
        What ``config.json`` and ``preprocessor_config.json`` hold.
    facts : Facts
        Facts about it.
    """

    source: str
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    facts: Facts


#: The file, beside this module.
FILE = resources.files(__package__) / "shipped.json"


@cache
def shipped_without_family() -> dict[str, ShippedModel]:
    """Return the models by their names."""
    return {
        name: ShippedModel(
            entry["source"],
            entry["config"],
            entry["preprocessing"],
            Facts(**{**entry["facts"], "stages": tuple(entry["facts"]["stages"])}),
        )
        for name, entry in json.loads(FILE.read_text(encoding="utf-8")).items()
    }
