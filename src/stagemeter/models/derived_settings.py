"""Settings that transformers derives from others when it loads a configuration, by model type.

Source: ``__post_init__`` of the class of each type in transformers 5.23, ``configuration_*.py``. A test compares the
results with transformers for every shipped configuration, whole and with each setting left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stagemeter.models.settings import Settings

#: Derives a setting from the others.
Rule = Callable[[Settings], Any]

_FULL, _SLIDING, _CHUNKED, _LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
_HYBRID = "hybrid"
#: Older names of kinds of layers (``_LEGACY_LAYER_TYPE_REMAP``).
OLDER_KINDS = {
    "mamba": _LINEAR,
    "attention": _FULL,
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}


def _heads(settings: Settings) -> int:
    return settings.whole("num_attention_heads")


def _head_width(settings: Settings) -> int:
    return settings.whole("hidden_size") // settings.whole("num_attention_heads")


def _even_head_width(settings: Settings) -> int:
    """Return the head width of a class that refuses one with a remainder (``validate_architecture``)."""
    return settings.split("hidden_size", "num_attention_heads")


def _every(period: int | str, last: str, others: str, default: int = 1) -> Rule:
    """Return a rule for kinds of layers: the last of every `period` layers differs from the others."""

    def rule(settings: Settings) -> list[str]:
        every = period if isinstance(period, int) else settings.whole(period, default)
        return [others if (index + 1) % every else last for index in range(settings.whole("num_hidden_layers"))]

    return rule


def _windowed_from(settings: Settings) -> list[str]:
    """Return the kinds of layers of Qwen 2 and 3, whose first layers attend to everything."""
    layers = settings.whole("num_hidden_layers")
    if settings.values.get("sliding_window") is None:
        return [_FULL] * layers
    first = settings.whole("max_window_layers", least=0)
    return [_SLIDING if index >= first else _FULL for index in range(layers)]


def _every_other_windowed(settings: Settings) -> list[str]:
    """Return the kinds of layers of Qwen 2's mixtures of experts, of whose first layers every other has a window."""
    first = settings.whole("max_window_layers", least=0) if settings.flag("use_sliding_window") else 0
    layers = range(settings.whole("num_hidden_layers"))
    return [_SLIDING if index < first and index % 2 == 0 else _FULL for index in layers]


def _window_if_used(settings: Settings) -> Any:
    return settings.values.get("sliding_window") if settings.flag("use_sliding_window", default=False) else None


def _all_of(kind: str) -> Rule:
    return lambda settings: [kind] * settings.whole("num_hidden_layers")


def _dense_first(settings: Settings) -> list[str]:
    layers = settings.whole("num_hidden_layers")
    dense = min(settings.whole("first_k_dense_replace", 1, least=0), layers)
    return ["dense"] * dense + ["sparse"] * (layers - dense)


def _rotated(settings: Settings) -> list[int]:
    interval = settings.whole("no_rope_layer_interval")
    return [int((index + 1) % interval != 0) for index in range(settings.whole("num_hidden_layers"))]


def _with_experts(settings: Settings) -> list[int]:
    step = settings.whole("interleave_moe_layer_step")
    return list(range(step - 1, settings.whole("num_hidden_layers"), step))


def _chunked(settings: Settings) -> list[str]:
    return [_CHUNKED if turns else _FULL for turns in settings.listed("no_rope_layers")]


def full_layers_of_gemma4(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the sizes of Gemma 4's layers that attend to everything."""
    sizes: dict[str, Any] = {"head_dim": settings.values.get("global_head_dim", 512)}
    if settings.values.get("attention_k_eq_v") and settings.values.get("num_global_key_value_heads") is not None:
        sizes["num_key_value_heads"] = settings.values["num_global_key_value_heads"]
    kinds = settings.values.get("layer_types")
    return {str(index): sizes for index, kind in enumerate(kinds if isinstance(kinds, list) else []) if kind == _FULL}


#: As many key and value heads as query heads.
_SHARED_BY_NONE: Mapping[str, Rule] = {"num_key_value_heads": _heads}
_USUAL_HEADS: Mapping[str, Rule] = {**_SHARED_BY_NONE, "head_dim": _head_width}
_QWEN: Mapping[str, Rule] = {**_SHARED_BY_NONE, "layer_types": _windowed_from}
_DELTA_NETS: Mapping[str, Rule] = {"layer_types": _every("full_attention_interval", _FULL, _LINEAR, default=4)}

_WINDOW: Mapping[str, Rule] = {"sliding_window": _window_if_used}

#: Rules for settings that are null, in order.
DERIVED: Mapping[str, Mapping[str, Rule]] = {
    "deepseek_ocr2_encoder": _QWEN,
    "deepseek_ocr2_sam_vision_model": {
        "mlp_dim": lambda settings: int(settings.whole("hidden_size") * settings.number("mlp_ratio"))
    },
    "deepseek_ocr2_text": _SHARED_BY_NONE,
    "deepseek_v3": _SHARED_BY_NONE,
    "deepseek_v32": {"mlp_layer_types": _dense_first, "layer_types": _all_of("indexed_attention")},
    "gemma2": {"layer_types": _every(2, _FULL, _SLIDING)},
    "gemma3_text": {"layer_types": _every("sliding_window_pattern", _FULL, _SLIDING, default=6)},
    "gemma4_text": {"layer_types": _every(6, _FULL, _SLIDING)},
    "glm4v_text": _SHARED_BY_NONE,
    "glm_ocr_text": _SHARED_BY_NONE,
    "gpt_oss": {**_USUAL_HEADS, "layer_types": _every(2, _FULL, _SLIDING)},
    "llama": {**_SHARED_BY_NONE, "head_dim": _even_head_width},
    "llama4_text": {
        **_USUAL_HEADS,
        "no_rope_layers": _rotated,
        "moe_layers": _with_experts,
        "layer_types": _chunked,
    },
    "minimax": {**_SHARED_BY_NONE, "layer_types": _every(2, _LINEAR, _FULL)},
    "mistral": _USUAL_HEADS,
    "mixtral": _SHARED_BY_NONE,
    "paddleocr_vl_text": _USUAL_HEADS,
    "qwen2": _QWEN,
    "qwen2_5_vl_text": _QWEN,
    "qwen2_moe": {"layer_types": _every_other_windowed},
    "qwen2_vl_text": _QWEN,
    "qwen3": _QWEN,
    "qwen3_5_moe_text": _DELTA_NETS,
    "qwen3_5_text": _DELTA_NETS,
    "qwen3_next": _DELTA_NETS,
    "qwen3_vl_moe_text": _USUAL_HEADS,
    "qwen3_vl_text": _SHARED_BY_NONE,
    "unlimited_ocr_text": {
        **_SHARED_BY_NONE,
        "layer_types": _all_of("reference_sliding_attention"),
        "mlp_layer_types": _dense_first,
    },
    "vit": {"pooler_output_size": lambda settings: settings.whole("hidden_size")},
    "zamba2": {
        **_SHARED_BY_NONE,
        "intermediate_size": lambda settings: 4 * settings.whole("hidden_size"),
        # A fixed list, even for another number of layers.
        "layers_block_type": lambda settings: [
            _LINEAR,
            *([_LINEAR] * 5 + [_HYBRID]) * 7,
            *[_LINEAR] * 4,
            _HYBRID,
            *[_LINEAR] * 3,
            _HYBRID,
            *[_LINEAR] * 2,
        ],
    },
}

#: Rules that replace any value of a setting.
ALWAYS: Mapping[str, Mapping[str, Rule]] = {
    "deepseek_ocr2_encoder": _WINDOW,
    "deepseek_ocr2_text": {"head_dim": _even_head_width},
    "pixtral": {"head_dim": _head_width},
    "qwen2": _WINDOW,
    "qwen2_5_vl_text": _WINDOW,
    # Zero in place of null.
    "qwen2_moe": {"sliding_window": lambda settings: _window_if_used(settings) or 0},
    "qwen2_vl_text": _WINDOW,
    "qwen3": _WINDOW,
    "qwen3_moe": _WINDOW,
    "qwen3_vl_moe_text": {"sliding_window": lambda settings: None},
    "unlimited_ocr_text": {"head_dim": _even_head_width},
}
