"""Reduced configurations of the model types of transformers: a few layers of small sizes, for all that mix kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

#: Sizes by the names that configurations give them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff"), 96),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "top_k", "moe_topk", "n_group", "num_decoder_layers"), 2),
    **dict.fromkeys(("head_dim", "qk_head_dim", "v_head_dim", "kv_lora_rank", "d_kv"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "sliding_window"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank"), 32),
    **dict.fromkeys(("topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 128),
    "num_key_value_heads": 2, "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: The same of vision towers.
VISION_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "encoder_embed_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 96),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "text_hidden_size"), 64),
}
#: Sizes that every type can be told, where it refuses the others.
PLAIN = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
#: What some types need besides: layers of each kind they mix, sizes that have to fit one another.
OTHERWISE: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen3_5": {"num_hidden_layers": 4},
    "qwen3_5_moe": {"num_hidden_layers": 4},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
}


def reduced_configs(model_type: str) -> Iterator[Callable[[], Any]]:
    """Yield what makes reduced configurations of a type, the best first: layers of every kind, and small sizes.

    Parameters
    ----------
    model_type : str
        A model type of transformers. What it refuses, it refuses when it is made, or when a model is made of it.
    """
    plain = {key: value for key, value in SIZES.items() if key in PLAIN}
    for sizes, mixed in ((SIZES, True), (SIZES, False), (plain, True), (plain, False), ({"num_hidden_layers": 2}, True)):
        yield partial(_make, model_type, sizes, mixed)


def _make(model_type: str, sizes: Mapping[str, Any], mixed: bool) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    return kind(**_reduced(kind(), sizes, mixed, _free_tokens()))


def _free_tokens() -> Iterator[int]:
    """Tokens of the reduced vocabulary that stand for something else than text."""
    return iter(range(100, 128))


def _reduced(default: Any, sizes: Mapping[str, Any], mixed: bool, tokens: Iterator[int]) -> dict[str, Any]:
    known = vars(default)
    changed = {key: value for key, value in sizes.items() if key in known and not isinstance(known[key], (list, dict))}
    if "qk_rope_head_dim" in changed:
        changed.pop("head_dim", None)
        changed.pop("qk_head_dim", None)
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if mixed and len(kinds) > 1 and "num_hidden_layers" in changed:
        changed |= {"num_hidden_layers": len(kinds), "layer_types": kinds}
    for name, value in known.items():
        if "vocab_size" in sizes and "token" in name and isinstance(value, int) and value >= sizes["vocab_size"]:
            changed[name] = next(tokens)
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if part is not None:
            is_text = "text" in name or "decoder" in name or "language" in name or "llm" in name
            inner = sizes if is_text else VISION_SIZES
            changed[name] = {"model_type": part.model_type, **_reduced(part, inner, mixed, tokens)}
    return {**changed, **OTHERWISE.get(default.model_type, {})}


#: What ``preprocessor_config.json`` would hold, of types whose pages have to be small, too.
PAGES: dict[str, dict[str, Any]] = {}


def page_settings(model_type: str) -> dict[str, Any]:
    """How pages are prepared for a type; empty where it follows from the configuration."""
    return PAGES.get(model_type, {})
