"""Sizes of DeepSeek-OCR, read from a configuration in the layout of the official checkpoint or of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.architecture import (
    ClipArchitecture,
    DecoderArchitecture,
    DeepseekOCRArchitecture,
)
from stagemeter.models.settings import Settings
from stagemeter.models.shipped import shipped_configurations
from stagemeter.models.sizes import sizes_reader
from stagemeter.models.vision.sam import (
    SAM_NAMES,
    SamArchitecture,
    downsample_channels,
    global_layers,
    sam_architecture,
)
from stagemeter.models.vision.vit import LAYER_NAMES, layer_sizes, patch_and_view

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Name of the published model.
NAME = "deepseek-ocr"
#: Name of a reduced model of the same architecture, which runs anywhere in seconds.
SMALL_NAME = "deepseek-ocr-small"
SHIPPED = shipped_configurations(NAME, SMALL_NAME)
_OFFICIAL, _TRANSFORMERS = "DeepseekOCRForCausalLM", "UnlimitedOcrForConditionalGeneration"
_TRANSFORMERS_TYPE = "unlimited_ocr"
#: What a configuration of either layout has as its type, or as one of its classes.
NAMES = (_OFFICIAL, _TRANSFORMERS_TYPE)
#: Sizes that the authors' code fixes and the published configuration lacks: ``build_sam_vit_b`` and
#: ``build_clip_l`` in deepencoder.py of the checkpoint.
_SAM_SIZES = {"patch_size": 16, "window_size": 14, "neck": 256}
_FEED_FORWARD_RATIO = 4
#: Names of sizes in configurations: of both encoders in the official layout, and in transformers' layout.
_OFFICIAL_NAMES = {"hidden": "width", "layers": "layers", "heads": "heads"}
_CLIP_NAMES = {**LAYER_NAMES, "patch_size": "patch_size", "pretrain_size": "image_size"}
_TEXT_NAMES = {
    **LAYER_NAMES,
    "key_value_heads": "num_key_value_heads",
    "experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "expert_intermediate": "moe_intermediate_size",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
}


@cache
def published_architecture() -> DeepseekOCRArchitecture:
    """Return the sizes of the published DeepSeek-OCR, from the shipped configuration."""
    config = json.loads(SHIPPED[NAME].read_text(encoding="utf-8"))
    return architecture_from_config(config, f"the shipped configuration of {NAME}")


def is_deepseek_ocr(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is DeepSeek-OCR's, in either layout."""
    return _OFFICIAL in (config.get("architectures") or []) or (is_unlimited(config) and not has_window(config))


def is_unlimited(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is in transformers' layout, which has one class for both families."""
    return config.get("model_type") == _TRANSFORMERS_TYPE


def has_window(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration of transformers limits attention to generated tokens, as Unlimited-OCR does."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return False
    window, longest = text.get("sliding_window"), text.get("max_position_embeddings")
    if window is None or longest is None:
        return False
    # Reading the sizes refuses a window that is not a number, by name.
    return not isinstance(window, int) or not isinstance(longest, int) or window < longest


def architecture_from_config(config: Mapping[str, Any], source: str, window: bool = False) -> DeepseekOCRArchitecture:
    """Read sizes from a ``config.json`` of the official checkpoint or of transformers, or raise StagemeterError.

    `window` allows a window over generated tokens; `source` names the file in errors.
    """
    names = config.get("architectures") or []
    if not (_OFFICIAL in names or is_unlimited(config)):
        found = ", ".join(map(str, names)) or config.get("model_type", "no architecture")
        raise StagemeterError(f"{source}: it describes {found}. Give a configuration of {_OFFICIAL}")
    settings = Settings(config, source)
    if settings.flag("tie_word_embeddings", default=False):
        raise StagemeterError(
            f"{source}: tie_word_embeddings is true, but DeepSeek-OCR has an output head of its own. Leave it out"
        )
    if _OFFICIAL in names:
        architecture = _from_official(settings)
    else:
        architecture = _from_transformers(settings)
        if not window:
            require_no_window(architecture, source)
    return architecture


def require_no_window(architecture: DeepseekOCRArchitecture, source: str) -> None:
    """Refuse sizes of Unlimited-OCR, which have the same class as DeepSeek-OCR's."""
    if architecture.decoder.generated_window:
        raise StagemeterError(
            f"{source}: a sliding window of {architecture.decoder.generated_window} tokens makes it Unlimited-OCR, not "
            "DeepSeek-OCR. Give sizes without a window"
        )


#: Builds an architecture from its sizes as plain data.
architecture_from_sizes = sizes_reader(DeepseekOCRArchitecture)


def _from_official(settings: Settings) -> DeepseekOCRArchitecture:
    text, vision = settings.part("language_config"), settings.part("vision_config")
    text.refuse("use_mla", True, "multi-head latent attention is not part of DeepSeek-OCR")
    widths = vision.part("width")
    sam, clip = widths.part("sam_vit_b"), widths.part("clip-l-14-224")
    for encoder in (sam, clip):
        encoder.split("width", "heads")
    sam_sizes, clip_sizes = _read(sam, _OFFICIAL_NAMES), _read(clip, _OFFICIAL_NAMES)
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(
            **sam_sizes,
            **_SAM_SIZES,
            intermediate=_FEED_FORWARD_RATIO * sam_sizes["hidden"],
            global_layers=global_layers(sam, sam_sizes["layers"]),
            pretrain_size=vision.whole("image_size", least=_SAM_SIZES["patch_size"]),
            downsample_channels=downsample_channels(sam, clip_sizes["hidden"]),
        ),
        clip=ClipArchitecture(**clip_sizes, **_view(clip), intermediate=_FEED_FORWARD_RATIO * clip_sizes["hidden"]),
        decoder=_decoder_from(text, text.whole("first_k_dense_replace", least=0)),
    )


def _from_transformers(settings: Settings) -> DeepseekOCRArchitecture:
    text, vision = settings.part("text_config"), settings.part("vision_config")
    sam, clip, window = vision.part("sam_config"), vision.part("encoder_config"), text.whole("sliding_window", 0)
    dense = text.listed("mlp_layer_types").count("dense")
    return DeepseekOCRArchitecture(
        sam=sam_architecture(sam, downsample_channels(sam, clip.whole("hidden_size"))),
        clip=ClipArchitecture(**layer_sizes(clip), **_view(clip)),
        decoder=_decoder_from(text, dense, window if has_window(settings.values) else 0),
    )


def _view(clip: Settings) -> dict[str, int]:
    return dict(zip(("patch_size", "pretrain_size"), patch_and_view(clip), strict=True))


def _read(settings: Settings, names: Mapping[str, str]) -> dict[str, Any]:
    return {size: settings.whole(name) for size, name in names.items()}


def _decoder_from(text: Settings, dense_layers: int, generated_window: int = 0) -> DecoderArchitecture:
    text.split("num_attention_heads", "num_key_value_heads")
    sizes = _read(text, _TEXT_NAMES)
    if sizes["experts_per_token"] > sizes["experts"]:
        raise StagemeterError(
            f"{text.source}: num_experts_per_tok is {sizes['experts_per_token']}, but n_routed_experts is "
            f"{sizes['experts']}. A token can use at most as many"
        )
    return DecoderArchitecture(
        **sizes,
        head_width=text.split("hidden_size", "num_attention_heads"),
        dense_layers=min(dense_layers, sizes["layers"]),
        generated_window=generated_window,
    )


def transformers_config(architecture: DeepseekOCRArchitecture, attention: str = "sdpa") -> PretrainedConfig:
    """Build the configuration of transformers' model; `attention` is ``sdpa`` or ``eager``."""
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

    sam, decoder = architecture.sam, architecture.decoder
    kind = "reference_sliding_attention" if decoder.generated_window else "full_attention"
    config_class: Any = UnlimitedOcrConfig
    config: PretrainedConfig = config_class(
        architectures=[_TRANSFORMERS],
        attn_implementation=attention,
        vision_config={
            "sam_config": {
                **_written(sam, SAM_NAMES),
                "global_attn_indexes": list(sam.global_layers),
                "downsample_channels": list(sam.downsample_channels),
            },
            "encoder_config": _written(architecture.clip, _CLIP_NAMES),
        },
        text_config={
            **_written(decoder, _TEXT_NAMES),
            "mlp_layer_types": ["dense"] * decoder.dense_layers + ["sparse"] * decoder.expert_layers,
            # DeepSeek-OCR attends to everything. transformers demands a window, which Unlimited-OCR adds.
            "sliding_window": decoder.generated_window or decoder.max_positions,
            "layer_types": [kind] * decoder.layers,
        },
    )
    return config


def _written(sizes: Any, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: getattr(sizes, size) for size, name in names.items()}
