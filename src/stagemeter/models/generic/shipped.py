"""Shipped configurations of models without a family, with facts that are slow to compute.

``shipped.json`` holds by name: ``source``; ``config`` and ``preprocessing``, the contents of ``config.json`` and
``preprocessor_config.json``; ``facts``, see `Facts`. ``docs/models.py`` writes the facts, and a test checks them.
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
    """Facts of a shipped model, known without building it, for the default request.

    `params_active` are the parameters that one token uses. `max_positions` is None without a limit. `flops_forward` are
    FLOPs to the first token, `flops_decode` those of one decode step. `cache_per_token` is the elements that one more
    token of a prompt adds to the cache.
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
    """A shipped configuration, the source that it is from, and its facts."""

    source: str
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    facts: Facts


FILE = resources.files(__package__) / "shipped.json"


@cache
def shipped_without_family() -> dict[str, ShippedModel]:
    """Return the models by name."""
    return {
        name: ShippedModel(
            entry["source"],
            entry["config"],
            entry["preprocessing"],
            Facts(**{**entry["facts"], "stages": tuple(entry["facts"]["stages"])}),
        )
        for name, entry in json.loads(FILE.read_text(encoding="utf-8")).items()
    }
