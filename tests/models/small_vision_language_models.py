"""Random small configurations of families that read pages: in square views here, and all kinds together."""

from hypothesis import strategies as st
from small_resolution_models import IMAGE_TOKEN, OWN_RESOLUTION, encoder
from small_text_models import (
    FEW,
    WIDTH,
    gemma,
    gemma2,
    gemma3,
    llama,
    llama4_text,
    qwen2,
    qwen3,
)

from stagemeter.models.configuration import complete
from stagemeter.models.families import family_of
from stagemeter.models.lookup import ModelDescription


@st.composite
def llava(draw):
    text = draw(llama())
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        # The layer before the last is where the features are from, so there have to be two.
        "vision_config": draw(encoder("clip_vision_model", draw(st.integers(1, 5)))) | {"num_hidden_layers": 3},
        "image_token_index": IMAGE_TOKEN,
        "multimodal_projector_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def _tiled(draw, kind, architecture, text, vision):
    side = vision["image_size"]
    grids = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3, unique=True))
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": text,
        "vision_config": vision,
        "image_grid_pinpoints": [[side * rows, side * columns] for rows, columns in grids],
        "image_token_index": IMAGE_TOKEN,
        "multimodal_projector_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def llava_next(draw):
    vision = draw(encoder("clip_vision_model", draw(st.integers(1, 4)))) | {"num_hidden_layers": 3}
    return draw(_tiled("llava_next", "LlavaNextForConditionalGeneration", draw(llama()), vision))


@st.composite
def llava_onevision(draw):
    vision = draw(encoder("siglip_vision_model", draw(st.integers(1, 4)))) | {"vision_use_head": False}
    return draw(_tiled("llava_onevision", "LlavaOnevisionForConditionalGeneration", draw(qwen2()), vision))


@st.composite
def gemma3_pages(draw):
    side = draw(st.integers(1, 3))
    text = draw(gemma3())
    vision = draw(encoder("siglip_vision_model", side * draw(st.integers(1, 3))))
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision | {"vision_use_head": False},
        "mm_tokens_per_image": side**2,
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def internvl(draw):
    text = draw(qwen2())
    vision = draw(encoder("internvl_vision", 2 * draw(st.integers(1, 3))))
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": text,
        "vision_config": vision | {
            "image_size": [vision["image_size"]] * 2,
            "patch_size": [vision["patch_size"]] * 2,
            "attention_bias": draw(st.booleans()),
            "use_mean_pooling": draw(st.booleans()),
        },
        "downsample_ratio": 0.5,
        "image_token_id": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip


@st.composite
def qianfan_ocr(draw):
    config = draw(internvl())
    text = draw(qwen3())
    return config | {
        "architectures": ["QianfanOCRForConditionalGeneration"],
        "model_type": "qianfan_ocr",
        "text_config": text,
        "vision_config": config["vision_config"] | {"model_type": "qianfan_ocr_vision"},
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def paligemma(draw):
    text = draw(st.one_of(gemma(), gemma2()))
    vision = draw(encoder("siglip_vision_model", draw(st.integers(1, 4))))
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision | {"vision_use_head": False, "projection_dim": text["hidden_size"]},
        "projection_dim": text["hidden_size"],
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def llama4(draw):
    text, heads, merge, patch = draw(llama4_text()), draw(FEW), draw(st.integers(1, 2)), draw(st.sampled_from([4, 6]))
    hidden = heads * 4 * draw(FEW)
    width = merge**2 * hidden
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        "vision_config": {
            "hidden_size": hidden,
            "num_hidden_layers": draw(FEW),
            "num_attention_heads": heads,
            "intermediate_size": width,
            "patch_size": patch,
            "image_size": patch * merge * draw(st.integers(1, 3)),
            "pixel_shuffle_ratio": 1 / merge,
            "projector_input_dim": width,
            "projector_output_dim": width,
            "vision_output_dim": width,
        },
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def _deepseek_text(draw):
    text = draw(llama()) | {"mlp_bias": False, "n_group": 1, "topk_group": 1}
    text |= {
        "num_key_value_heads": text["num_attention_heads"],
        "head_dim": text["hidden_size"] // text["num_attention_heads"],
        "mlp_layer_types": draw(
            st.lists(
                st.sampled_from(["dense", "sparse"]),
                min_size=text["num_hidden_layers"],
                max_size=text["num_hidden_layers"],
            )
        ),
        "n_routed_experts": draw(st.integers(2, 5)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "num_experts_per_tok": draw(st.integers(1, 2)),
        "moe_intermediate_size": draw(WIDTH),
        "max_position_embeddings": 4096,
    }
    return {key: value for key, value in text.items() if key != "model_type"}


@st.composite
def _deepseek_sam(draw, channels):
    layers = draw(FEW)
    return {
        "hidden_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "mlp_dim": draw(WIDTH),
        "output_channels": draw(st.integers(1, 5)),
        "window_size": draw(st.integers(9, 15)),
        "global_attn_indexes": draw(st.lists(st.integers(0, layers - 1), unique=True)),
        "downsample_channels": [draw(st.integers(1, 5)), channels],
    }


@st.composite
def deepseek_ocr2(draw):
    # A single head's keys are not copied for the heads that share them, if there is a single view, too.
    heads, key_values = draw(FEW), draw(st.integers(2, 3))
    hidden = heads * key_values * 4
    text, sam = draw(_deepseek_text()), draw(_deepseek_sam(hidden))
    encoder = {
        "hidden_size": hidden,
        "num_hidden_layers": draw(FEW),
        "num_attention_heads": heads * key_values,
        "num_key_value_heads": key_values,
        "intermediate_size": draw(WIDTH),
        "vocab_size": 8,
    }
    return {
        "architectures": ["DeepseekOcr2ForConditionalGeneration"],
        "model_type": "deepseek_ocr2",
        "text_config": text,
        "vision_config": {"sam_config": sam, "encoder_config": encoder},
        "image_token_id": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def idefics3(draw):
    text, factor = draw(llama()), draw(st.integers(1, 3))
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "text_config": text,
        "vision_config": draw(encoder("idefics3_vision", factor * draw(st.integers(1, 3)))),
        "scale_factor": factor,
        "image_token_id": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def unlimited_ocr(draw):
    heads = draw(FEW)
    hidden = heads * 4 * draw(FEW)
    text = draw(_deepseek_text()) | {"attention_bias": False, "sliding_window": draw(st.integers(2, 12))}
    sam = draw(_deepseek_sam(hidden)) | {"patch_size": 16, "image_size": 1024}
    clip = {
        "hidden_size": hidden,
        "num_hidden_layers": draw(FEW),
        "num_attention_heads": heads,
        "intermediate_size": draw(WIDTH),
        "patch_size": 14,
        "image_size": 14 * draw(st.integers(2, 5)),
    }
    return {
        "architectures": ["UnlimitedOcrForConditionalGeneration"],
        "model_type": "unlimited_ocr",
        "text_config": text | {"tie_word_embeddings": False},
        "vision_config": {"sam_config": sam, "encoder_config": clip},
        "image_token_id": IMAGE_TOKEN,
        "tie_word_embeddings": False,
    }


@st.composite
def got_ocr2(draw):
    text = draw(qwen2())
    heads, patch, layers = draw(FEW), draw(st.sampled_from([4, 6])), draw(FEW)
    return {
        "architectures": ["GotOcr2ForConditionalGeneration"],
        "model_type": "got_ocr2",
        "text_config": text,
        "vision_config": {
            "hidden_size": heads * 4 * draw(FEW),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "mlp_dim": draw(st.integers(1, 30)),
            "output_channels": draw(st.integers(1, 9)),
            "patch_size": patch,
            "image_size": patch * draw(st.integers(1, 9)),
            "window_size": draw(st.integers(2, 5)),
            "global_attn_indexes": draw(st.lists(st.integers(0, layers - 1), unique=True)),
        },
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def mllama(draw):
    text, heads, tiles, kept = draw(llama()), draw(FEW), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    layers = draw(st.integers(2, 4))
    patch, hidden, grids = draw(st.sampled_from([4, 6])), heads * 4 * draw(FEW), range(1, tiles + 1)
    text |= {
        "model_type": "mllama_text_model",
        "num_hidden_layers": layers,
        "cross_attention_layers": draw(st.lists(st.integers(1, layers - 1), min_size=1, unique=True)),
        "tie_word_embeddings": False,
    }
    del text["head_dim"]
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "text_config": text,
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": hidden,
            "num_hidden_layers": draw(st.integers(kept, 3)),
            "num_global_layers": draw(FEW),
            "attention_heads": heads,
            "intermediate_size": draw(st.integers(1, 30)),
            "vision_output_dim": hidden * (1 + kept),
            "image_size": patch * draw(st.integers(1, 4)),
            "patch_size": patch,
            "max_num_tiles": tiles,
            "intermediate_layers_indices": list(range(kept)),
            "supported_aspect_ratios": [[a, b] for a in grids for b in grids if a * b <= tiles],
        },
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": False,
    }


#: Strategies by kind of model.
KINDS = OWN_RESOLUTION | {
    "mllama": mllama(),
    "got_ocr2": got_ocr2(),
    "llava": llava(),
    "llava_next": llava_next(),
    "llava_onevision": llava_onevision(),
    "gemma3": gemma3_pages(),
    "internvl": internvl(),
    "qianfan_ocr": qianfan_ocr(),
    "paligemma": paligemma(),
    "idefics3": idefics3(),
    "deepseek_ocr2": deepseek_ocr2(),
    "unlimited_ocr": unlimited_ocr(),
    "llama4": llama4(),
}


def describe(config):
    """Describe a model by its configuration, without a file."""
    settings = complete(config, "small")
    family = family_of(settings, "small")
    return ModelDescription("small", family, family.architecture_from_config(settings, "small"), config, "small")
