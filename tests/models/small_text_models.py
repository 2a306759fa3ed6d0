"""Random small configurations of the families that read text alone."""

from hypothesis import strategies as st

#: The operator without a formula that gated delta networks run.
SOLVED = "aten.linalg_solve_triangular"
FULL, SLIDING = "full_attention", "sliding_attention"
FEW = st.integers(1, 3)
#: Grouped products want rows of a multiple of 16 bytes.
WIDTH = FEW.map(lambda number: 8 * number)


@st.composite
def _common(draw, model_type, head_dim=True):
    key_value_heads = draw(FEW)
    heads = key_value_heads * draw(st.integers(1, 2))
    head_width = 2 * draw(FEW)
    config = {
        "model_type": model_type,
        "hidden_size": heads * 8 * draw(FEW),
        "num_hidden_layers": draw(FEW),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": draw(WIDTH),
        "vocab_size": draw(st.integers(5, 99)),
        "max_position_embeddings": 256,
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config | ({"head_dim": head_width} if head_dim else {})


def _layer_types(layers):
    return st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers)


@st.composite
def llama(draw):
    return draw(_common("llama")) | {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}


@st.composite
def llama4_text(draw):
    config, experts = draw(_common("llama4_text")), draw(st.integers(2, 4))
    layers = config["num_hidden_layers"]
    kinds = st.sampled_from([FULL, "chunked_attention"])
    return config | {
        "attention_bias": draw(st.booleans()),
        "intermediate_size_mlp": draw(WIDTH),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "interleave_moe_layer_step": draw(st.integers(1, 2)),
        "attention_chunk_size": draw(st.integers(2, 20)),
        "layer_types": draw(st.none() | st.lists(kinds, min_size=layers, max_size=layers)),
    }


@st.composite
def qwen2(draw):
    return draw(_common("qwen2", head_dim=False))


@st.composite
def qwen2_moe(draw):
    config, experts = draw(_common("qwen2_moe", head_dim=False)), draw(st.integers(2, 5))
    return config | {
        "qkv_bias": draw(st.booleans()),
        "use_sliding_window": draw(st.booleans()),
        "sliding_window": draw(st.integers(2, 20)),
        "max_window_layers": draw(st.integers(0, 3)),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(WIDTH),
        "shared_expert_intermediate_size": draw(WIDTH),
        "decoder_sparse_step": draw(st.integers(1, 2)),
        "mlp_only_layers": draw(st.lists(st.integers(0, 2), max_size=1)),
    }


@st.composite
def qwen3(draw):
    return draw(_common("qwen3")) | {"attention_bias": draw(st.booleans())}


@st.composite
def qwen3_moe(draw):
    config, experts = draw(_common("qwen3_moe")), draw(st.integers(2, 5))
    layers = config["num_hidden_layers"]
    return config | {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(WIDTH),
        "decoder_sparse_step": draw(st.integers(1, 2)),
        "mlp_only_layers": draw(st.lists(st.integers(0, layers - 1), max_size=1)),
    }


@st.composite
def qwen3_next(draw, model_type="qwen3_next"):
    config, keys, experts = draw(_common(model_type)), draw(FEW), draw(st.integers(2, 5))
    layers = draw(st.lists(st.sampled_from([FULL, "linear_attention"]), max_size=2))
    kinds = [FULL, "linear_attention", *layers]
    config |= {
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "attention_bias": draw(st.booleans()),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * draw(st.integers(1, 2)),
        "linear_key_head_dim": 2 * draw(FEW),
        "linear_value_head_dim": 2 * draw(FEW),
        "linear_conv_kernel_dim": draw(st.integers(2, 5)),
        # A part of a head turns, of at least two numbers.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    }
    if model_type == "qwen3_5_text":
        return config
    return config | {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(WIDTH),
        "shared_expert_intermediate_size": draw(WIDTH),
        "decoder_sparse_step": draw(st.integers(1, 2)) if model_type == "qwen3_next" else 1,
    }


@st.composite
def mistral(draw):
    return draw(_common("mistral")) | {"sliding_window": draw(st.none() | st.integers(2, 20))}


@st.composite
def mixtral(draw):
    experts = draw(st.integers(2, 5))
    return draw(_common("mixtral")) | {
        "sliding_window": draw(st.none() | st.integers(2, 20)),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
    }


@st.composite
def gemma(draw):
    return draw(_common("gemma")) | {"attention_bias": draw(st.booleans())}


@st.composite
def gemma2(draw):
    config = draw(_common("gemma2"))
    kinds = draw(st.none() | _layer_types(config["num_hidden_layers"]))
    window = {"sliding_window": draw(st.integers(2, 20)), "attn_logit_softcapping": 50.0}
    return config | window | ({} if kinds is None else {"layer_types": kinds})


@st.composite
def gemma4_text(draw):
    config, kinds = draw(_common("gemma4_text")), draw(st.lists(st.sampled_from([FULL, SLIDING]), max_size=2))
    kinds = [*draw(st.permutations([FULL, SLIDING])), *kinds, FULL]
    shared, experts = draw(st.integers(0, len(kinds) - 2)), draw(st.integers(2, 5))
    config |= {
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "sliding_window": draw(st.integers(2, 20)),
        "global_head_dim": 8 * draw(FEW),
        "attention_bias": draw(st.booleans()),
        "attention_k_eq_v": draw(st.booleans()),
        "num_global_key_value_heads": draw(st.sampled_from([None, config["num_attention_heads"]])),
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": draw(st.booleans()),
        "hidden_size_per_layer_input": draw(WIDTH) if shared else draw(st.just(0) | WIDTH),
        "vocab_size_per_layer_input": draw(st.integers(config["vocab_size"], 120)),
    }
    if shared or draw(st.booleans()):
        return config
    return config | {
        "enable_moe_block": True,
        "num_experts": experts,
        "top_k_experts": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(WIDTH),
    }


@st.composite
def gemma3(draw):
    config = draw(_common("gemma3_text"))
    return config | {
        "sliding_window": draw(st.integers(2, 20)),
        "layer_types": draw(_layer_types(config["num_hidden_layers"])),
    }


@st.composite
def minimax(draw):
    config, experts = draw(_common("minimax")), draw(st.integers(2, 5))
    layers = draw(st.lists(st.sampled_from([FULL, "linear_attention"]), max_size=2))
    kinds = [*draw(st.permutations([FULL, "linear_attention"])), *layers]
    return config | {
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "block_size": draw(st.integers(2, 20)),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
    }


@st.composite
def gpt_oss(draw):
    config, experts = draw(_common("gpt_oss")), draw(st.integers(2, 5))
    return config | {
        "sliding_window": draw(st.integers(2, 20)),
        "layer_types": draw(_layer_types(config["num_hidden_layers"])),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    }


@st.composite
def minimax_m2(draw):
    experts = draw(st.integers(2, 5))
    return draw(_common("minimax_m2")) | {
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
    }


@st.composite
def deepseek_v3(draw):
    config, experts = draw(_common("deepseek_v3", head_dim=False)), 2 * draw(st.integers(2, 3))
    return config | {
        "num_key_value_heads": config["num_attention_heads"],
        "first_k_dense_replace": draw(st.integers(0, 3)),
        "n_routed_experts": experts,
        "n_shared_experts": draw(st.integers(1, 2)),
        "num_experts_per_tok": draw(st.integers(1, 2)),
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": draw(WIDTH),
        "q_lora_rank": draw(st.none() | st.integers(1, 9)),
        "kv_lora_rank": draw(st.integers(1, 9)),
        "qk_rope_head_dim": 2 * draw(FEW),
        "qk_nope_head_dim": 2 * draw(FEW),
        "v_head_dim": 2 * draw(FEW),
    }


@st.composite
def mamba2(draw):
    groups, width = draw(st.integers(1, 2)), 2 * draw(FEW)
    heads = groups * draw(st.integers(1, 2))
    return {
        "model_type": "mamba2",
        "hidden_size": heads * width,
        "expand": 1,
        "num_heads": heads,
        "head_dim": width,
        "n_groups": groups,
        "state_size": draw(st.integers(2, 9)),
        "num_hidden_layers": draw(FEW),
        "conv_kernel": draw(st.integers(2, 5)),
        "chunk_size": draw(st.integers(2, 30)),
        "use_bias": draw(st.booleans()),
        "use_conv_bias": draw(st.booleans()),
        "vocab_size": draw(st.integers(5, 99)),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@st.composite
def zamba2(draw):
    config, groups = draw(_common("zamba2", head_dim=False)), draw(st.integers(1, 2))
    kinds = draw(st.lists(st.sampled_from(["linear_attention", "hybrid"]), max_size=3))
    kinds = [*draw(st.permutations(["linear_attention", "hybrid"])), *kinds]
    return config | {
        "tie_word_embeddings": True,
        "num_key_value_heads": config["num_attention_heads"],
        "num_hidden_layers": len(kinds),
        "layers_block_type": kinds,
        "mamba_expand": 2,
        "n_mamba_heads": 2 * groups,
        "mamba_ngroups": groups,
        "mamba_d_state": draw(st.integers(2, 9)),
        "mamba_d_conv": draw(st.integers(2, 5)),
        "chunk_size": draw(st.integers(2, 30)),
        "use_conv_bias": draw(st.booleans()),
        "add_bias_linear": draw(st.booleans()),
        "num_mem_blocks": draw(st.integers(1, 2)),
        "use_shared_attention_adapter": draw(st.booleans()),
        "adapter_rank": draw(FEW),
    }


@st.composite
def deepseek_v32(draw):
    config, rotary = draw(deepseek_v3()), 2 * draw(FEW)
    return config | {
        "model_type": "deepseek_v32",
        "q_lora_rank": draw(st.integers(1, 9)),
        "qk_rope_head_dim": rotary,
        "index_n_heads": draw(FEW),
        "index_head_dim": rotary + draw(FEW),
        "index_topk": draw(st.integers(1, 20)),
    }


KINDS = {
    "llama": llama(),
    "llama4_text": llama4_text(),
    "qwen2": qwen2(),
    "qwen2_moe": qwen2_moe(),
    "qwen3": qwen3(),
    "qwen3_moe": qwen3_moe(),
    "qwen3_next": qwen3_next(),
    "qwen3_5_text": qwen3_next("qwen3_5_text"),
    "qwen3_5_moe_text": qwen3_next("qwen3_5_moe_text"),
    "mistral": mistral(),
    "mixtral": mixtral(),
    "gemma": gemma(),
    "gemma2": gemma2(),
    "gemma3_text": gemma3(),
    "gemma4_text": gemma4_text(),
    "gpt_oss": gpt_oss(),
    "minimax": minimax(),
    "mamba2": mamba2(),
    "zamba2": zamba2(),
    "minimax_m2": minimax_m2(),
    "deepseek_v3": deepseek_v3(),
    "deepseek_v32": deepseek_v32(),
}
