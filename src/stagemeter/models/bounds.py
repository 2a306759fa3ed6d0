"""Bounds on the numbers of a configuration, so that a mistake does not keep a machine busy for hours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

#: Layers of one kind. DeepNet, the deepest published, has 1,000 (Wang et al. 2022, arXiv:2203.00555).
MOST_LAYERS = 10_000
#: Experts of a layer. PEER has 1,048,576 (He 2024, arXiv:2407.04153).
MOST_EXPERTS = 2**20
#: Any size: a width, a vocabulary, a length. The largest published is a context of 10,485,760 tokens (Llama 4 Scout).
LARGEST_SIZE = 2**31
#: Largest values of settings, by the ends of their names.
_BOUNDS = {
    re.compile(r"(?:^|_)(?:layers?|depths?|blocks)$"): MOST_LAYERS,
    re.compile(r"(?:^|_)experts?(?:_per_tok(?:en)?|_used)?$"): MOST_EXPERTS,
    re.compile(r"(?:^|_)(?:size|dim|heads|groups|rank|width|channels|embeddings)$"): LARGEST_SIZE,
}


def require_bounded(config: Mapping[str, Any], source: str) -> None:
    """Refuse numbers far beyond published ones, and wrong types of names or parts, in a ``config.json``."""
    parts: list[tuple[str, Any]] = [("", config)]
    while parts:
        key, value = parts.pop()
        if isinstance(value, Mapping):
            for name, inner in value.items():
                _require_kind(name, inner, source)
            parts += value.items()
        elif isinstance(value, list):
            parts += [(key, part) for part in value]
        elif isinstance(value, int) and abs(value) > (most := _most(key)):
            raise StagemeterError(f"{source}: {shown(key)[1:-1]} is {shown(value)}. It must be at most {most}")


def _require_kind(key: str, value: Any, source: str) -> None:
    """Refuse the wrong type in a setting that chooses a family or describes a part."""
    if key == "model_type" and not (value is None or isinstance(value, str)):
        raise StagemeterError(f"{source}: model_type is {shown(value)}. It must be one name as text")
    names = [] if value is None else value
    if key == "architectures" and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise StagemeterError(f"{source}: architectures is {shown(value)}. It must be a list of names of classes")
    if key.endswith("_config") and not (value is None or isinstance(value, Mapping)):
        raise StagemeterError(f"{source}: {key} is {shown(value)}. It must be an object of settings, or left out")


def _most(key: str) -> float:
    return next((most for names, most in _BOUNDS.items() if names.search(key)), math.inf)
