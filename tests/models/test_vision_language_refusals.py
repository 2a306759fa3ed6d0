"""Vision-language models whose settings contradict one another, or are beyond the closed forms of their family."""

import json

import pytest
import torch
from small_vision_language_models import describe
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
)

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.errors import StagemeterError
from stagemeter.models.lookup import describe_model


def test_decoder_that_closed_forms_cannot_count_is_left_to_the_generic_family(tmp_path):
    config = describe_model("llava-1.5-7b").config
    text = {**describe_model("qwen3-next-80b-a3b").config, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text}), encoding="utf-8")
    model = describe_model(str(tmp_path))
    assert model.family.name == "generic"
    (note,) = model.notes
    assert "its language model has layers of the kind 'gated_delta', which this family does not know" in note


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            "llava-1.5-7b",
            {"vision_feature_select_strategy": 5},
            "select_strategy is 5. It must be a text",
        ),
        (
            "gemma-3-4b",
            {"vision_config": {"vision_use_head": "no"}},
            "use_head is 'no'. It must be true or false",
        ),
        ("llava-1.5-7b", {"vision_config": 7}, "vision_config: it is 7. An object of settings is needed"),
        (
            "llava-1.5-7b",
            {"text_config": {"model_type": "gpt2"}},
            "model_type is 'gpt2', a decoder that no family takes",
        ),
        ("gemma-3-4b", {"mm_tokens_per_image": 250}, "mm_tokens_per_image is 250. It must be a square"),
        ("internvl3-1b", {"downsample_ratio": 0.25}, "downsample_ratio is 0.25: this family is made for 0.5"),
    ],
)
def test_what_a_family_is_not_made_for_is_refused(model, change, message):
    config = {**describe_model(model).config, **change}
    with pytest.raises(StagemeterError) as refused:
        describe(config)
    assert message in str(refused.value)


def small(kind, **changed):
    """Return the configuration of a small model with some settings changed; ``vision`` holds the encoder's."""
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 32}
    text |= {"intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 512}
    encoder = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    encoder |= {"patch_size": 4, "image_size": 16}
    architecture, language, vision = {
        "llava": ("LlavaForConditionalGeneration", "llama", "clip_vision_model"),
        "llava_next": ("LlavaNextForConditionalGeneration", "llama", "clip_vision_model"),
        "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "qwen2", "siglip_vision_model"),
        "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text", "siglip_vision_model"),
    }[kind]
    extra = {"head_dim": 16, "sliding_window": 8} if kind == "gemma3" else {}
    extra |= changed.pop("text", {})
    vision_config = {"model_type": vision, "vision_use_head": False, **encoder, **changed.pop("vision", {})}
    tiles = {} if kind in ("llava", "gemma3") else {"image_grid_pinpoints": [[16, 32], [32, 16]]}
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": {"model_type": language, **text, **extra},
        "vision_config": vision_config,
        "image_token_index": 50,
        **tiles,
        **({"mm_tokens_per_image": 4} if kind == "gemma3" else {}),
        **changed,
    }


BEYOND = {
    "full": small("llava", vision_feature_select_strategy="full"),
    "SigLIP": small("llava", vision={"model_type": "siglip_vision_model"}, vision_feature_select_strategy="full"),
    "SigLIP with its head": small("llava", vision={"model_type": "siglip_vision_model", "vision_use_head": True}),
    "last layer": small("llava", vision_feature_layer=-1),
    "a layer from the first": small("llava", vision_feature_layer=2),
    "several layers": small("llava", vision_feature_layer=[-2, -1]),
    "several layers, the embedding too": small("llava", vision_feature_layer=[0, 2]),
    "one layer in a list": small("llava", vision_feature_layer=[-2]),
    "tiles, last layer": small("llava_next", vision_feature_layer=-1),
    "tiles, several layers": small("llava_next", vision_feature_layer=[-2, -1]),
    "OneVision with its head": small("llava_onevision", vision={"vision_use_head": True}),
    "OneVision, another layer": small("llava_onevision", vision_feature_layer=-2),
    "a decoder of no family": small("llava", text={"model_type": "phi3", "pad_token_id": None}),
    "tiles, a decoder of no family": small("llava_next", text={"model_type": "olmo2", "pad_token_id": None}),
    "Gemma 3 with its head": small("gemma3", vision={"vision_use_head": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEYOND)
def test_what_closed_forms_do_not_know_is_counted_by_running(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps(BEYOND[kind]), encoding="utf-8")
    model = describe_model(str(tmp_path))
    assert model.family.name == "generic"
    report = analyze_model(model, AnalysisConfig(image_w=30, image_h=20, new_tokens=3))
    assert report["agreement"]["equal"], report["agreement"]
    assert not report["unsupported_ops"]
    read = AutoConfig.from_pretrained(str(tmp_path))
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(read)
    assert report["total"]["params"] == sum(parameter.numel() for parameter in built.parameters())
    assert any("counted without the closed forms of the family" in note for note in report["notes"])
    with pytest.raises(StagemeterError, match=r"no family has closed forms for it.*counted without the closed forms"):
        estimate_model(model, AnalysisConfig())


def test_the_last_layer_runs_where_no_other_is_taken(tmp_path):
    """Count by hand: the layers decide the projector's width, and the strategy its tokens."""
    (tmp_path / "config.json").write_text(json.dumps(BEYOND["several layers, the embedding too"]), encoding="utf-8")
    report = analyze_model(describe_model(str(tmp_path)), AnalysisConfig(image_w=30, image_h=20, new_tokens=1))
    # 16 patches of two layers of 16 each, to 32, and again to 32.
    assert report["stages"]["projector"]["macs"] == 16 * (2 * 16 * 32 + 32 * 32)
