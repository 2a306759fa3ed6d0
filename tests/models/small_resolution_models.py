"""Random small configurations of families that read pages at their own resolution."""

from hypothesis import strategies as st
from small_text_models import (
    FEW,
    WIDTH,
    deepseek_v3,
    gemma4_text,
    mistral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
)

#: The id of the token that stands for a picture's; small vocabularies hold it.
IMAGE_TOKEN = 3


@st.composite
def encoder(draw, model_type, patches):
    heads, patch = draw(FEW), draw(st.sampled_from([4, 6]))
    return {
        "model_type": model_type,
        "hidden_size": heads * 4 * draw(FEW),
        "num_hidden_layers": draw(FEW),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 30)),
        "patch_size": patch,
        "image_size": patch * patches,
    }


@st.composite
def _pixtral(draw, kind, architecture, text):
    vision = draw(encoder("pixtral", draw(st.integers(1, 6))))
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": text,
        "vision_config": vision | {"head_dim": vision["hidden_size"] // vision["num_attention_heads"]},
        "spatial_merge_size": draw(FEW),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def mistral3(draw):
    config = draw(_pixtral("mistral3", "Mistral3ForConditionalGeneration", draw(mistral())))
    return config | {"image_token_index": IMAGE_TOKEN, "multimodal_projector_bias": draw(st.booleans())}


@st.composite
def lighton_ocr(draw):
    config = draw(_pixtral("lighton_ocr", "LightOnOcrForConditionalGeneration", draw(qwen3())))
    return config | {"image_token_id": IMAGE_TOKEN}


@st.composite
def _qwen_text(draw, model_type):
    text = draw(qwen2())
    # The parts of a head that turn with time, height and width: half of it in all.
    heads, half = text["num_attention_heads"], 4 * draw(FEW)
    sections = [half // 4, half // 4, half // 2]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, "partial_rotary_factor": 1.0}
    return text | {"model_type": model_type, "hidden_size": heads * 2 * half, "rope_parameters": rope}


@st.composite
def _qwen(draw, model_type, architecture, text, vision):
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": text,
        "vision_config": vision,
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def _qwen_vision(draw):
    heads = draw(FEW)
    return {"depth": draw(FEW), "num_heads": heads, "patch_size": 14, "spatial_merge_size": 2}, heads * 8 * draw(FEW)


@st.composite
def qwen2_vl(draw):
    text = draw(_qwen_text("qwen2_vl_text"))
    vision, width = draw(_qwen_vision())
    vision |= {"embed_dim": width, "hidden_size": text["hidden_size"], "mlp_ratio": draw(FEW)}
    vision["temporal_patch_size"] = 2
    return draw(_qwen("qwen2_vl", "Qwen2VLForConditionalGeneration", text, vision))


@st.composite
def qwen2_5_vl(draw):
    text = draw(_qwen_text("qwen2_5_vl_text"))
    vision, width = draw(_qwen_vision())
    vision |= {"hidden_size": width, "out_hidden_size": text["hidden_size"], "intermediate_size": draw(WIDTH)}
    vision |= {"window_size": draw(st.sampled_from([56, 112])), "temporal_patch_size": 2}
    vision["fullatt_block_indexes"] = draw(st.lists(st.integers(0, vision["depth"] - 1), unique=True))
    return draw(_qwen("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", text, vision))


@st.composite
def qwen3_vl(draw, experts=False):
    text = draw(_qwen_text("qwen3_vl_moe_text" if experts else "qwen3_vl_text"))
    if experts:
        routed = draw(qwen3_moe())
        names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
        text |= {name: routed[name] for name in names} | {"mlp_only_layers": []}
    vision, width = draw(_qwen_vision())
    # What is not said: biases of queries, keys and values, which Qwen 3 has not.
    text |= {"head_dim": text["hidden_size"] // text["num_attention_heads"], "attention_bias": draw(st.booleans())}
    vision |= {"hidden_size": width, "out_hidden_size": text["hidden_size"], "intermediate_size": draw(WIDTH)}
    vision |= {"num_position_embeddings": draw(st.integers(2, 5)) ** 2, "temporal_patch_size": 2}
    layers = min(vision["depth"], text["num_hidden_layers"])
    vision["deepstack_visual_indexes"] = draw(st.lists(st.integers(0, layers - 1), unique=True, max_size=layers))
    if experts:
        return draw(_qwen("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", text, vision))
    return draw(_qwen("qwen3_vl", "Qwen3VLForConditionalGeneration", text, vision))


@st.composite
def qwen3_5(draw, experts=False):
    kind = "qwen3_5_moe" if experts else "qwen3_5"
    text, (vision, width) = draw(qwen3_next(f"{kind}_text")), draw(_qwen_vision())
    sections = {"mrope_section": [text["head_dim"] // 2, 0, 0], "mrope_interleaved": True}
    text["rope_parameters"] = text["rope_parameters"] | sections
    vision |= {"hidden_size": width, "out_hidden_size": text["hidden_size"], "intermediate_size": draw(WIDTH)}
    vision |= {"num_position_embeddings": draw(st.integers(2, 5)) ** 2, "temporal_patch_size": 2}
    architecture = "Qwen3_5MoeForConditionalGeneration" if experts else "Qwen3_5ForConditionalGeneration"
    return draw(_qwen(kind, architecture, text, vision))


@st.composite
def _glm_vision(draw, text):
    heads = draw(FEW)
    return {
        "depth": draw(FEW),
        "num_heads": heads,
        "hidden_size": heads * 8 * draw(FEW),
        "intermediate_size": draw(WIDTH),
        "out_hidden_size": text["hidden_size"],
        "attention_bias": draw(st.booleans()),
        "image_size": 14 * draw(st.integers(2, 5)),
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


@st.composite
def glm4v(draw):
    text = draw(_qwen_text("glm4v_text"))
    return draw(_qwen("glm4v", "Glm4vForConditionalGeneration", text, draw(_glm_vision(text))))


@st.composite
def glm4v_moe(draw):
    text, known = draw(_qwen_text("glm4v_moe_text")), draw(st.integers(2, 5))
    text |= {
        "head_dim": text["hidden_size"] // text["num_attention_heads"],
        "attention_bias": draw(st.booleans()),
        "n_routed_experts": known,
        "num_experts_per_tok": draw(st.integers(1, known)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "moe_intermediate_size": draw(WIDTH),
        "first_k_dense_replace": draw(st.integers(0, 2)),
    }
    return draw(_qwen("glm4v_moe", "Glm4vMoeForConditionalGeneration", text, draw(_glm_vision(text))))


@st.composite
def glm_ocr(draw):
    text = draw(_qwen_text("glm_ocr_text"))
    return draw(_qwen("glm_ocr", "GlmOcrForConditionalGeneration", text, draw(_glm_vision(text))))


@st.composite
def kimi_k25(draw):
    text, heads = draw(deepseek_v3()), draw(FEW)
    vision = {
        "num_attention_heads": heads,
        "hidden_size": heads * 8 * draw(FEW),
        "num_hidden_layers": draw(FEW),
        "intermediate_size": draw(WIDTH),
        "patch_size": 14,
        "merge_kernel_size": [draw(FEW)] * 2,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
    }
    return {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "text_config": text | {"model_type": draw(st.sampled_from(["kimi_k2", "deepseek_v3"]))},
        "vision_config": vision,
        "projection_hidden_size": vision["hidden_size"],
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def paddleocr_vl(draw):
    text, heads = draw(_qwen_text("paddleocr_vl_text")), draw(FEW)
    vision = {
        "num_attention_heads": heads,
        "hidden_size": heads * 8 * draw(FEW),
        "num_hidden_layers": draw(FEW),
        "intermediate_size": draw(WIDTH),
        "patch_size": 14,
        "image_size": 14 * draw(st.integers(2, 4)),
        "spatial_merge_size": draw(st.integers(1, 2)),
    }
    config = draw(_qwen("paddleocr_vl", "PaddleOCRVLForConditionalGeneration", text, vision))
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    return config


@st.composite
def gemma4(draw):
    text, heads, width = draw(gemma4_text()), draw(FEW), 4 * draw(FEW)
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": text | {"use_bidirectional_attention": draw(st.sampled_from([None, "vision"]))},
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": heads * width,
            "num_hidden_layers": draw(FEW),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": width,
            "intermediate_size": draw(st.integers(1, 30)),
            "patch_size": draw(st.sampled_from([2, 4])),
            "pooling_kernel_size": draw(st.integers(2, 3)),
            "position_embedding_size": 900,
            "use_clipped_linears": draw(st.booleans()),
            "standardize": draw(st.booleans()),
        },
        "audio_config": draw(
            st.none()
            | st.just(
                {
                    "model_type": "gemma4_audio",
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "subsampling_conv_channels": [8, 4],
                    "output_proj_dims": 12,
                }
            )
        ),
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "audio_token_id": IMAGE_TOKEN + 2,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def minicpm_ocr(draw):
    text, heads, layers = draw(qwen3_next("qwen3_5_text")), draw(FEW), draw(st.integers(1, 3))
    del text["tie_word_embeddings"]
    return {
        "architectures": ["MiniCPMOcrForConditionalGeneration"],
        "model_type": "minicpm_ocr",
        "text_config": text,
        "vision_config": {
            "model_type": "minicpm_ocr_vision",
            "hidden_size": heads * 4 * draw(FEW),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": draw(st.integers(1, 30)),
            "image_size": 64,
            "patch_size": draw(st.sampled_from([28, 56])),
        },
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "tie_word_embeddings": draw(st.booleans()),
        "downsample_mode": draw(st.sampled_from(["4x", "16x"])),
        "insert_layer_id": draw(st.integers(0, layers - 1)),
    }


#: Strategies by kind of model.
OWN_RESOLUTION = {
    "minicpm_ocr": minicpm_ocr(),
    "gemma4": gemma4(),
    "mistral3": mistral3(),
    "lighton_ocr": lighton_ocr(),
    "qwen2_vl": qwen2_vl(),
    "qwen2_5_vl": qwen2_5_vl(),
    "qwen3_vl": qwen3_vl(),
    "qwen3_vl_moe": qwen3_vl(experts=True),
    "qwen3_5": qwen3_5(),
    "qwen3_5_moe": qwen3_5(experts=True),
    "paddleocr_vl": paddleocr_vl(),
    "kimi_k25": kimi_k25(),
    "glm4v": glm4v(),
    "glm4v_moe": glm4v_moe(),
    "glm_ocr": glm_ocr(),
}
