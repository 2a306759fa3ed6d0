"""The config.json of a small model, in the layout of the official one."""

CONFIG = {
    "architectures": ["DeepseekOCRForCausalLM"],
    "model_type": "deepseek_vl_v2",
    "language_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 16,
        "vocab_size": 129280,
        "max_position_embeddings": 8192,
        "use_mla": False,
    },
    "projector_config": {"input_dim": 32, "n_embed": 32, "projector_type": "linear"},
    "vision_config": {
        "image_size": 64,
        "width": {
            "clip-l-14-224": {"heads": 2, "image_size": 28, "layers": 2, "patch_size": 14, "width": 16},
            "sam_vit_b": {
                "downsample_channels": [8, 16],
                "global_attn_indexes": [1],
                "heads": 2,
                "layers": 2,
                "width": 16,
            },
        },
    },
}
