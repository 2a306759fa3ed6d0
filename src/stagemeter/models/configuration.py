"""Configurations as transformers loads them, with renamed settings, defaults and derived settings.

Published configurations leave out defaults, and so do those that transformers saved, under other names. `complete`
makes them alike, so that later code finds every setting. ``defaults.json`` holds the defaults by model type:
``python docs/defaults.py`` writes it from transformers' classes, so that nothing here imports them.

Source: transformers 5.23, ``configuration_utils.py`` (``PreTrainedConfig``, ``SubConfigSpec``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.derived_settings import ALWAYS, DERIVED, OLDER_KINDS, full_layers_of_gemma4
from stagemeter.models.settings import Settings

FILE = Path(__file__).with_name("defaults.json")
#: How transformers writes numbers that JSON lacks (``_FLOAT_TAG_VALUES``).
_NUMBER, _NUMBERS = "__float__", {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_TEXT, _TIED, _BY_LAYER = "text_config", "tie_word_embeddings", "per_layer_config"
#: Types whose older configurations keep the language model's settings beside the others.
_FLAT = ("paddleocr_vl", "qwen2_5_vl", "qwen2_vl")
#: Types whose output head is tied even if only the language model's part says so.
_TIED_BY_PART = (*_FLAT, "glm4v", "glm4v_moe", "glm_ocr", "llava", "llava_onevision")
#: The type whose language model attends both ways by default, and the setting for it.
_BOTH_WAYS, _BIDIRECTIONAL = "paligemma", "use_bidirectional_attention"
#: The type whose layers may have different sizes.
_LAYERS_DIFFER = "gemma4_text"
#: Its layer numbers.
_NUMBER_OF_LAYER = re.compile(r"[0-9]{1,9}")
#: Types whose attention reads no head_dim. Source: transformers, ``modeling_*.py`` of each.
_PLAIN_HEADS = ("glm4v_text", "mllama_text_model", "qwen2_5_vl_text", "qwen2_vl_text")


def complete(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration with transformers' name for every setting, and defaults for missing ones.

    If the table lacks its ``model_type``, complete only parts that the table has. `source` is for errors. Raise
    StagemeterError if a part is no object, or a setting is null where transformers takes no null.
    """
    kind = config.get("model_type")
    values = with_infinities(config)
    if isinstance(kind, str) and kind in _types():
        return _complete(kind, values, source)
    # In an unknown whole, complete the known parts.
    return {key: complete(value, f"{source}, {key}") if _is_known(value) else value for key, value in values.items()}


def with_infinities(value: Any) -> Any:
    """Return a copy with the numbers that transformers writes as ``{"__float__": "Infinity"}``."""
    if isinstance(value, Mapping):
        if value.keys() == {_NUMBER} and isinstance(value[_NUMBER], str):
            return _NUMBERS.get(value[_NUMBER], value)
        return {key: with_infinities(inner) for key, inner in value.items()}
    return [with_infinities(inner) for inner in value] if isinstance(value, list) else value


@cache
def _types() -> dict[str, Any]:
    types: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["types"]
    return types


def _complete(kind: str, given: Mapping[str, Any], source: str) -> dict[str, Any]:
    known = _types()[kind]
    before = _BEFORE.get(kind)
    given = before(given) if before is not None else given
    _check_nulls(known, given, source)
    values = _renamed(known, {**known["settings"], **given}) | {"model_type": kind}
    for key, part in known["parts"].items():
        values[key] = _part(part, given.get(key), f"{source}, {key}")
    settings = Settings(values, source)
    # transformers first derives settings regardless of their values.
    for key, rule in ALWAYS.get(kind, {}).items():
        if key in known["settings"] or key not in given:
            values[key] = rule(settings)
    for key, value in known["instead_of_null"].items():
        if values[key] is None:
            values[key] = value
    for key, rule in DERIVED.get(kind, {}).items():
        if values[key] is None:
            values[key] = rule(settings)
    for key in ("layer_types", "layers_block_type"):
        if isinstance(values.get(key), list):
            values[key] = [OLDER_KINDS.get(name, name) if isinstance(name, str) else name for name in values[key]]
    if kind in _PLAIN_HEADS:
        values.pop("head_dim", None)
    if kind in _TIED_BY_PART and not values[_TIED] and isinstance(values[_TEXT], Mapping):
        of_part = values[_TEXT].get(_TIED)
        values[_TIED] = values[_TIED] if of_part is None else of_part
    if kind == _BOTH_WAYS and values[_TEXT].get(_BIDIRECTIONAL) is None:
        values[_TEXT] = {**values[_TEXT], _BIDIRECTIONAL: True}
    _layers(kind, values, given, source)
    return values


def _check_nulls(known: Mapping[str, Any], given: Mapping[str, Any], source: str) -> None:
    for key, default in known["settings"].items():
        if default is not None and key in given and given[key] is None and key not in known["nullable"]:
            raise StagemeterError(
                f"{source}: {key} is null, which transformers' {known['class']} refuses. Leave it out for "
                f"{json.dumps(default)}, or give a value"
            )


def _renamed(known: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename settings to transformers' names; one without a field in transformers comes last."""
    names = known["renamed"]
    ordered = sorted(values, key=lambda key: key not in known["settings"])
    return {names.get(key, key): values[key] for key in ordered}


def _part(part: Mapping[str, Any], given: Any, source: str) -> Any:
    """Complete a part of a configuration; a missing or null one has the settings of the class around it."""
    if given is None:
        return None if part["optional"] else _complete(part["type"], part["settings"], source)
    if not isinstance(given, Mapping):
        raise StagemeterError(f"{source}: it is {given!r:.40}. An object of settings is needed")
    kind = given.get("model_type", part["type"]) if part["any"] else part["type"]
    return _complete(kind, given, source) if isinstance(kind, str) and kind in _types() else dict(given)


def _is_known(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("model_type"), str) and value["model_type"] in _types()


def _layers(kind: str, values: dict[str, Any], given: Mapping[str, Any], source: str) -> None:
    """Put settings of single layers under plain numbers, or refuse them if they cannot be counted."""
    settings = Settings(values, source)
    if kind == _LAYERS_DIFFER:
        if isinstance(values["layer_types"], list) and values["layer_types"]:
            # The last layer always attends to everything.
            values["layer_types"] = [*values["layer_types"][:-1], "full_attention"]
        if _BY_LAYER not in given:
            values[_BY_LAYER] = full_layers_of_gemma4(settings)
    layers = values.get(_BY_LAYER) or {}
    if not isinstance(layers, Mapping) or not all(isinstance(sizes, Mapping) for sizes in layers.values()):
        raise StagemeterError(f"{source}: {_BY_LAYER} is {layers!r:.40}. Settings by numbers of layers are needed")
    if kind != _LAYERS_DIFFER:
        own = sorted({key for sizes in layers.values() for key in sizes if sizes[key] != values.get(key)})
        if own:
            raise StagemeterError(
                f"{source}: {_BY_LAYER} gives single layers their own {own[0]}, which is not counted for {kind}. "
                "Leave it out to count all layers alike"
            )
        return
    number = settings.whole("num_hidden_layers")
    wrong = next(
        (index for index in layers if not _NUMBER_OF_LAYER.fullmatch(str(index)) or int(index) >= number), None
    )
    if wrong is not None:
        raise StagemeterError(
            f"{source}: {_BY_LAYER} has {wrong!r:.40}. Numbers below num_hidden_layers, {number}, are needed"
        )
    values[_BY_LAYER] = {str(int(index)): dict(sizes) for index, sizes in layers.items()}


def _split_flat(kind: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Return a change that moves settings of the language model beside the others into a part of their own."""

    def split(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if given.get(_TEXT) is not None:
            return given
        known = _types()[kind]
        part = _types()[known["parts"][_TEXT]["type"]]
        own = {key for key in part["settings"] if key in given and key not in known["settings"]}
        text = {key: given[key] for key in own}
        return {**{key: value for key, value in given.items() if key not in own}, _TEXT: text}

    return split


def _split_unlimited(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Move Unlimited-OCR's language model, which its first checkpoint names differently, into its part."""
    if given.get(_TEXT) is not None:
        return given
    own = {key: given[key] for key in ("sliding_window",) if key in given}
    text = given.get("language_config", {})
    rest = {key: value for key, value in given.items() if key not in ("sliding_window", "language_config")}
    return {**rest, _TEXT: {**text, **own} if isinstance(text, Mapping) else text}


def _name_kimi(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give Kimi K2's language model its type in transformers."""
    text = given.get(_TEXT)
    if not isinstance(text, Mapping) or text.get("model_type") != "kimi_k2":
        return given
    return {**given, _TEXT: {**text, "model_type": "deepseek_v3"}}


def _count_experts(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read DeepSeek-V3.2's other name for its number of experts."""
    return given if given.get("num_experts") is None else {**given, "n_routed_experts": given["num_experts"]}


#: Changes to settings before defaults are filled in.
_BEFORE: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    **{kind: _split_flat(kind) for kind in _FLAT},
    "deepseek_v32": _count_experts,
    "kimi_k25": _name_kimi,
    "unlimited_ocr": _split_unlimited,
}
