"""Random small configurations of the families of a vision transformer, a projector and a language model."""

from hypothesis import strategies as st
from small_text_models import FEW, gemma3, llama, qwen2

#: The id of the token that stands for a picture's; small vocabularies hold it.
IMAGE_TOKEN = 3


@st.composite
def _vision(draw, model_type, patches):
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
def llava(draw):
    text = draw(llama())
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        # The layer before the last is where the features are from, so there have to be two.
        "vision_config": draw(_vision("clip_vision_model", draw(st.integers(1, 5)))) | {"num_hidden_layers": 3},
        "image_token_index": IMAGE_TOKEN,
        "multimodal_projector_bias": draw(st.booleans()),
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


@st.composite
def gemma3_pages(draw):
    side = draw(st.integers(1, 3))
    text = draw(gemma3())
    vision = draw(_vision("siglip_vision_model", side * draw(st.integers(1, 3))))
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision | {"vision_use_head": False},
        "mm_tokens_per_image": side**2,
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


@st.composite
def internvl(draw):
    text = draw(qwen2())
    vision = draw(_vision("internvl_vision", 2 * draw(st.integers(1, 3))))
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
        "tie_word_embeddings": text["tie_word_embeddings"],
    }  # fmt: skip


KINDS = {"llava": llava(), "gemma3": gemma3_pages(), "internvl": internvl()}
