"""Reduced configurations of the model types of transformers: small sizes, and every kind of layer of a type."""

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
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: Sizes of vision towers.
VISION_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "encoder_embed_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 96),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "text_hidden_size"), 64),
}
#: Sizes that every type takes, for those that refuse the others.
PLAIN = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)


def _alike(types: tuple[str, ...], changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(types, changes)


#: Rotary embeddings over three axes, for heads of this width.
_THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_BY_LAYER = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}
_GEMMA = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 128, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
#: Tokens for entries of an image codebook, by each model's own names.
_CODEBOOK = {"<image>": 100, "<|extra_200|>": 101, "<|image start|>": 102, "<|image end|>": 103,
             **{f"IMGIMG{letter}Z": 104 + index for index, letter in enumerate("ABCDEFGH")},
             **{f"<|visual token {index:06}|>": 112 + index for index in range(8)}}  # fmt: skip
_BLIP = {
    "image_token_index": 100, "num_query_tokens": 8,
    "vision_config": {"image_size": 56, "patch_size": 14},
    "text_config": {"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "ffn_dim": 96, "vocab_size": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 128},
    "qformer_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "intermediate_size": 96, "encoder_hidden_size": 64, "vocab_size": 128},
}  # fmt: skip
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
            "indexer_compress_ratio": 4}  # fmt: skip
#: What some types need besides: layers of each kind that they mix, sizes that must fit one another.
OTHERWISE: dict[str, dict[str, Any]] = {
    **_alike(("axk2", "deepseek_v32", "glm_moe_dsa", "dots3_note_text"), {"num_key_value_heads": 4}),
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid"]},
    "cpmant": {"dim_head": 16, "prompt_length": 4},
    **_alike(("musicgen", "musicgen_melody"), {"decoder": {"num_codebooks": 1}}),
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 16},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid"] * 3, "num_mem_blocks": 1},
    "xmod": {"default_language": "en_XX"},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "reformer": {"axial_pos_embds_dim": [32, 32], "is_decoder": True},
    # Image-text-to-text.
    **_alike(("glm46v", "glm4v", "qwen2_vl", "qwen2_5_vl"), {"text_config": {"rope_parameters": _THREE_AXES}}),
    **_alike(("glm4v_moe", "glmga", "glm_ocr"),
                    {"text_config": {"rope_parameters": {**_THREE_AXES, "partial_rotary_factor": 1.0}}}),
    "hunyuan_vl": {"text_config": {"rope_parameters": _THREE_AXES, "head_dim": 16}},
    "cohere_compass_text": {"rope_parameters": _BY_LAYER},
    "cohere_compass": {"text_config": {"rope_parameters": _BY_LAYER}},
    "longcat_flash": {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4},
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [64, 64]}},
                      "text_config": {"num_key_value_heads": 4}},
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": {"downsample_channels": [64, 64]},
            "encoder_config": {"num_key_value_heads": 4},
        },
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    },
    "exaone4_5": {"vision_config": {"num_key_value_heads": 2}},
    "gemma4": {"vision_config": {"model_type": "gemma4_vision", "hidden_size": 64, "num_hidden_layers": 2,
                                 "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
                                 "intermediate_size": 96}},
    **_alike(("llava_next", "llava_next_video"), {"vision_config": {"image_size": 336, "patch_size": 56}}),
    "llava_onevision": {"vision_config": {"image_size": 384, "patch_size": 64}},
    "florence2": {"vision_config": {"embed_dim": [8, 8, 8, 16], "num_heads": [2] * 4, "num_groups": [2] * 4,
                                    "depths": [1] * 4}},
    # Otherwise it leaves places for the tokens of six pictures before a text that it is trained on.
    "git": {"num_image_with_embedding": None},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_THREE_AXES, "mrope_section": [3, 3, 2]},
                                        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": [32, 32]}},
    # Released configurations name the token before a picture, which training asks for; the defaults do not.
    **_alike(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), {
        "vision_start_token_id": 126, "audio_start_token_id": 127,
        "text_config": {"rope_parameters": _THREE_AXES},
        "audio_config": {"num_mel_bins": 32, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4,
                         "encoder_ffn_dim": 96, "output_dim": 64, "n_window": 4},
    }),
    "t5gemma2": {
        "encoder": {"text_config": {**_GEMMA, "model_type": "t5gemma2_text"},
                    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "num_hidden_layers": 2,
                                      "num_attention_heads": 4, "intermediate_size": 96, "image_size": 64,
                                      "patch_size": 8},
                    "mm_tokens_per_image": 16, "image_token_index": 101, "model_type": "t5gemma2_encoder"},
        "decoder": {**_GEMMA, "model_type": "t5gemma2_decoder"}, "image_token_index": 101, "vocab_size": 128,
        "eoi_token_index": 102,
    },
    "llama4": {"vision_config": {"intermediate_size": 256, "projector_input_dim": 64, "projector_output_dim": 64,
                                 "vision_output_dim": 64, "image_size": 56, "patch_size": 14}},
    "kimi_k25": {"projection_hidden_size": 64, "text_config": {"num_key_value_heads": 4},
                 "vision_config": {"merge_kernel_size": [2, 2]}},
    "muse_glimmer": {"out_hidden_size": 256, "projector_hidden_size": 64},
    "muse_spark": {"out_hidden_size": 256, "projector_hidden_size": 64,
                   "vision_config": {"num_hidden_layers": 2, "layer_types": ["window_attention", "full_attention"]},
                   "audio_config": {"num_hidden_layers": 4}},
    # By default no token stands for a page, and the model then ignores the page.
    "minicpmv4_6": {"image_token_id": 100},
    **_alike(("minicpm_ocr", "minicpmv4_7"),
             {"image_token_id": 100, "insert_layer_id": 0, "vision_config": {"insert_layer_id": 0}}),
    **_alike(("instructblip", "instructblipvideo"), {**_BLIP, "video_token_index": 101}),
    "lfm3_vl": {"vision_config": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "nemotron_h_omni": {"vision_hidden_size": 64, "image_token_id": 100,
                        "vision_config": {"video_temporal_patch_size": 2}},
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision", "mm_embed_dim": 64,
                                         "output_proj_dims": 64}},
    "perception_lm": {"vision_config": {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "do_pooling": True,
        "model_args": {"embed_dim": 64, "num_heads": 4, "depth": 2, "img_size": [56, 56], "global_pool": "",
                       "use_post_transformer_norm": False, "ref_feat_shape": [4, 4]}}},
    "gemma3n": {"vision_soft_tokens_per_image": 256, "vision_config": {"hidden_size": 2048},
                "text_config": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 128,
                                "hidden_size_per_layer_input": 8},
                "audio_config": {"conf_num_hidden_layers": 1}},
    "fast_vlm": {"vision_config": {"hidden_size": 2048}},
    "inkling_mm_model": {"vision_config": {"n_layers": 4}},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": {**_INDEXER, "rope_parameters": _THREE_AXES}},
    "molmo2": {
        "vision_config": {"num_key_value_heads": 4, "head_dim": 16},
        "adapter_config": {"vision_feature_layer": [0, 1], "num_key_value_heads": 4, "head_dim": 16},
        "text_config": {"additional_vocab_size": 8},
        "image_patch_id": 110,
    },
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [1],
                        "qformer_config": {"encoder_hidden_size": 64, "num_attention_heads": 4},
                        "vision_config": {"image_size": 56, "patch_size": 14},
                        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
    "kosmos-2": {"text_config": {"layers": 2, "embed_dim": 64, "attention_heads": 4, "ffn_dim": 96}},
    "kosmos-2.5": {"latent_query_num": 16,
                   "text_config": {"layers": 2, "embed_dim": 64, "attention_heads": 4, "ffn_dim": 96}},
    "chameleon": {"vocabulary_map": _CODEBOOK, "vq_config": {"num_embeddings": 8, "base_channels": 32}},
    "emu3": {"vocabulary_map": _CODEBOOK, "vq_config": {"codebook_size": 8, "base_channels": 32, "hidden_size": 128}},
    "blip-2": _BLIP,
    "step3p7": {"vision_config": {"image_size": 56, "max_position_embeddings": 16}},
    "lfm2_vl": {"vision_config": {"num_patches": 64}},
    "dots3_note": {"text_config": {"num_key_value_heads": 4},
                   "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
                   "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 64, "adapter_out_dim": 64}},
    **_alike(("idefics3", "smolvlm"), {"vision_config": {"image_size": 128, "patch_size": 16}}),
    "aria": {"vision_config": {"image_size": 490, "patch_size": 14}},
    "paligemma": {"vision_config": {"projection_dim": 64}, "projection_dim": 64},
    "mllama": {"vision_config": {"num_hidden_layers": 3, "intermediate_layers_indices": [0, 1],
                                 "vision_output_dim": 192, "image_size": 56, "patch_size": 14},
               "text_config": {"cross_attention_layers": [1]}},
    "vipllava": {"vision_config": {"num_hidden_layers": 12}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [1]}},
    "mistral4": {"num_key_value_heads": 4},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "intermediate_size": 96, "image_size": 64, "patch_size": 16},
        "decoder": {"model_type": "trocr", "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4,
                    "decoder_ffn_dim": 96, "vocab_size": 128, "max_position_embeddings": 128, "is_decoder": True,
                    "add_cross_attention": True, "cross_attention_hidden_size": 64},
    },
}  # fmt: skip


#: Types whose kinds of layers go by other names than ``layer_types``.
OWN_LAYERS = frozenset({"jamba", "recurrent_gemma", "zamba", "zamba2"})
#: Types whose defaults make no model; their whole configuration stands above.
WHOLE = frozenset({"t5gemma2", "vision-encoder-decoder"})


def reduced_configs(model_type: str) -> Iterator[Callable[[], Any]]:
    """Yield functions that make reduced configurations of a type, the one with most kinds of layers first.

    Parameters
    ----------
    model_type : str
        A model type of transformers. It may refuse a configuration when that is made or when a model is built.
    """
    plain = {key: value for key, value in SIZES.items() if key in PLAIN}
    for sizes in (SIZES, plain, {"num_hidden_layers": 2}):
        for mixed in (True, False):
            yield partial(_make, model_type, sizes, mixed)


def _make(model_type: str, sizes: Mapping[str, Any], mixed: bool) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    if model_type in WHOLE:
        return kind(**OTHERWISE[model_type])
    return kind(**_merged(_reduced(kind(), sizes, mixed, _free_tokens()), OTHERWISE.get(model_type, {})))


def _merged(sizes: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(sizes)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _free_tokens() -> Iterator[int]:
    """Return tokens of the reduced vocabulary that stand for something other than text."""
    return iter(range(100, 128))


def _reduced(default: Any, sizes: Mapping[str, Any], mixed: bool, tokens: Iterator[int]) -> dict[str, Any]:
    known = vars(default)
    # A model that may also be an encoder keeps a cache only as a decoder.
    sizes = {**sizes, "is_decoder": True}
    changed = {
        key: value for key, value in sizes.items() if key in known and not isinstance(known[key], (list, tuple, dict))
    }
    if "qk_rope_head_dim" in changed:
        changed.pop("head_dim", None)
        changed.pop("qk_head_dim", None)
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    mixed = mixed and default.model_type not in OWN_LAYERS
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
    return changed


#: The part that generates text, for types whose `generate` hands over to it after the page.
WRITERS = {
    "kosmos-2": "text_model",
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), "language_model"),
}
#: Contents of ``preprocessor_config.json`` for types whose pages must be small.
PAGES: dict[str, dict[str, Any]] = {
    "aria": {"image_processor_type": "AriaImageProcessor", "max_image_size": 490, "min_image_size": 336},
    "glm_ocr": {"image_processor_type": "Glm46VImageProcessor"},
    "qwen2_5_omni_thinker": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14},
    "qwen3_omni_moe_thinker": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16},
    "dots3_note": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 1},
    "fast_vlm": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 256, "width": 256},
    },
    "emu3": {"image_processor_type": "Emu3ImageProcessor", "min_pixels": 64 * 64, "max_pixels": 64 * 64},
    "gemma3n": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}},
    "perception_lm": {"image_processor_type": "PerceptionLMImageProcessor", "tile_size": 56, "max_num_tiles": 4},
    "kosmos-2.5": {"image_processor_type": "Kosmos2_5ImageProcessor", "max_patches": 32},
    "vision-encoder-decoder": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
}


def page_settings(model_type: str) -> dict[str, Any]:
    """Return the settings of the image processor of a type; empty where the configuration decides them."""
    return PAGES.get(model_type, {})
