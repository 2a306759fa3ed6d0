"""Sizes of DeepSeek-OCR, read from a configuration in the layout of the official checkpoint or of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.models.families.deepseek_ocr.decoder import DecoderArchitecture
from stagemeter.models.settings import Settings
from stagemeter.models.shipped import shipped_configurations
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision.clip import ClipArchitecture
from stagemeter.models.vision.sam import SamArchitecture

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
_SAM_PATCH_SIZE = 16
_SAM_WINDOW_SIZE = 14
_SAM_NECK = 256
_FEED_FORWARD_RATIO = 4


@dataclass(frozen=True, slots=True)
class DeepseekOCRArchitecture(Sizes):
    """Sizes of a model of this family."""

    sam: SamArchitecture
    clip: ClipArchitecture
    decoder: DecoderArchitecture

    @property
    def projector_inputs(self) -> int:
        """Width of the projector's input: CLIP's features beside SAM's."""
        return self.clip.hidden + self.sam.downsample_channels[-1]

    @property
    def downsample_ratio(self) -> int:
        """Patches per side that become one token: two convolutions of stride two."""
        return 4


def published_architecture() -> DeepseekOCRArchitecture:
    """Return the sizes of the published DeepSeek-OCR, from the shipped configuration."""
    return _shipped_architecture(NAME)


@cache
def _shipped_architecture(name: str) -> DeepseekOCRArchitecture:
    return architecture_from_config(
        json.loads(SHIPPED[name].read_text(encoding="utf-8")), f"the shipped configuration of {name}"
    )


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
        raise StagemeterError(
            f"{source} describes {', '.join(map(str, names)) or config.get('model_type', 'no architecture')}; "
            f"this is for {_OFFICIAL}"
        )
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
    _check(architecture, source)
    return architecture


def require_no_window(architecture: DeepseekOCRArchitecture, source: str) -> None:
    """Refuse sizes of Unlimited-OCR, which have the same class as DeepSeek-OCR's."""
    if architecture.decoder.generated_window:
        raise StagemeterError(
            f"{source} has a sliding window of {architecture.decoder.generated_window} tokens: that is "
            "Unlimited-OCR, not DeepSeek-OCR"
        )


#: Builds an architecture from its sizes as plain data.
architecture_from_sizes = sizes_reader(DeepseekOCRArchitecture)


def _from_official(settings: Settings) -> DeepseekOCRArchitecture:
    text, vision = settings.part("language_config"), settings.part("vision_config")
    text.refuse("use_mla", True, "multi-head latent attention is not part of DeepSeek-OCR")
    widths = vision.part("width")
    sam, clip = widths.part("sam_vit_b"), widths.part("clip-l-14-224")
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(
            hidden=sam.whole("width"),
            layers=sam.whole("layers"),
            heads=sam.whole("heads"),
            intermediate=_FEED_FORWARD_RATIO * sam.whole("width"),
            patch_size=_SAM_PATCH_SIZE,
            window_size=_SAM_WINDOW_SIZE,
            global_layers=tuple(sam.indices("global_attn_indexes")),
            pretrain_size=vision.whole("image_size"),
            neck=_SAM_NECK,
            downsample_channels=_channels(sam),
        ),
        clip=ClipArchitecture(
            hidden=clip.whole("width"),
            layers=clip.whole("layers"),
            heads=clip.whole("heads"),
            intermediate=_FEED_FORWARD_RATIO * clip.whole("width"),
            patch_size=clip.whole("patch_size"),
            pretrain_size=clip.whole("image_size"),
        ),
        decoder=_decoder_from(text, text.whole("first_k_dense_replace", least=0)),
    )


def _from_transformers(settings: Settings) -> DeepseekOCRArchitecture:
    text, vision = settings.part("text_config"), settings.part("vision_config")
    sam, clip = vision.part("sam_config"), vision.part("encoder_config")
    lengths = {key: text.whole(key, 0) for key in ("sliding_window", "max_position_embeddings")}
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(
            hidden=sam.whole("hidden_size"),
            layers=sam.whole("num_hidden_layers"),
            heads=sam.whole("num_attention_heads"),
            intermediate=sam.whole("mlp_dim"),
            patch_size=sam.whole("patch_size"),
            window_size=sam.whole("window_size"),
            global_layers=tuple(sam.indices("global_attn_indexes")),
            pretrain_size=sam.whole("image_size"),
            neck=sam.whole("output_channels"),
            downsample_channels=_channels(sam),
        ),
        clip=ClipArchitecture(
            hidden=clip.whole("hidden_size"),
            layers=clip.whole("num_hidden_layers"),
            heads=clip.whole("num_attention_heads"),
            intermediate=clip.whole("intermediate_size"),
            patch_size=clip.whole("patch_size"),
            pretrain_size=clip.whole("image_size"),
        ),
        decoder=_decoder_from(
            text,
            dense_layers=text.listed("mlp_layer_types").count("dense"),
            generated_window=lengths["sliding_window"] if has_window(settings.values) else 0,
        ),
    )


def _channels(sam: Settings) -> tuple[int, int]:
    channels = sam.wholes("downsample_channels")
    if len(channels) != 2:
        raise StagemeterError(f"{sam.source}: downsample_channels is {shown(list(channels))}; it must hold two numbers")
    return channels[0], channels[1]


def _decoder_from(text: Settings, dense_layers: int, generated_window: int = 0) -> DecoderArchitecture:
    layers = text.whole("num_hidden_layers")
    return DecoderArchitecture(
        hidden=text.whole("hidden_size"),
        layers=layers,
        heads=text.whole("num_attention_heads"),
        key_value_heads=text.whole("num_key_value_heads"),
        head_width=text.whole("hidden_size") // text.whole("num_attention_heads"),
        intermediate=text.whole("intermediate_size"),
        dense_layers=min(dense_layers, layers),
        experts=text.whole("n_routed_experts"),
        experts_per_token=text.whole("num_experts_per_tok"),
        shared_experts=text.whole("n_shared_experts"),
        expert_intermediate=text.whole("moe_intermediate_size"),
        vocabulary=text.whole("vocab_size"),
        max_positions=text.whole("max_position_embeddings"),
        generated_window=generated_window,
    )


def _check(architecture: DeepseekOCRArchitecture, source: str) -> None:
    sam, clip, decoder = architecture.sam, architecture.clip, architecture.decoder
    for name, hidden, heads in (
        ("sam", sam.hidden, sam.heads),
        ("clip", clip.hidden, clip.heads),
        ("decoder", decoder.hidden, decoder.heads),
        ("decoder attention", decoder.heads, decoder.key_value_heads),
    ):
        if hidden % heads:
            raise StagemeterError(f"{source}: {name} of width {hidden} cannot be split into {heads} heads")
    if decoder.experts_per_token > decoder.experts:
        raise StagemeterError(
            f"{source}: {decoder.experts_per_token} experts per token, but only {decoder.experts} experts"
        )
    for name, tower in (("sam", sam), ("clip", clip)):
        if tower.patch_size > tower.pretrain_size:
            raise StagemeterError(
                f"{source}: {name} patch_size is {tower.patch_size}, and {tower.pretrain_size} pixels hold none"
            )
    if sam.downsample_channels[-1] != clip.hidden:
        raise StagemeterError(
            f"{source}: SAM's feature map has {sam.downsample_channels[-1]} channels, but CLIP takes {clip.hidden}"
        )


def transformers_config(architecture: DeepseekOCRArchitecture, attention: str = "sdpa") -> PretrainedConfig:
    """Build the configuration of transformers' model; `attention` is ``sdpa`` or ``eager``."""
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

    sam, clip, decoder = architecture.sam, architecture.clip, architecture.decoder
    kind = "reference_sliding_attention" if decoder.generated_window else "full_attention"
    config_class: Any = UnlimitedOcrConfig
    config: PretrainedConfig = config_class(
        architectures=[_TRANSFORMERS],
        attn_implementation=attention,
        vision_config={
            "sam_config": {
                "hidden_size": sam.hidden,
                "num_hidden_layers": sam.layers,
                "num_attention_heads": sam.heads,
                "mlp_dim": sam.intermediate,
                "patch_size": sam.patch_size,
                "window_size": sam.window_size,
                "global_attn_indexes": list(sam.global_layers),
                "image_size": sam.pretrain_size,
                "output_channels": sam.neck,
                "downsample_channels": list(sam.downsample_channels),
            },
            "encoder_config": {
                "hidden_size": clip.hidden,
                "num_hidden_layers": clip.layers,
                "num_attention_heads": clip.heads,
                "intermediate_size": clip.intermediate,
                "patch_size": clip.patch_size,
                "image_size": clip.pretrain_size,
            },
        },
        text_config={
            "hidden_size": decoder.hidden,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.key_value_heads,
            "intermediate_size": decoder.intermediate,
            "mlp_layer_types": ["dense"] * decoder.dense_layers + ["sparse"] * decoder.expert_layers,
            "n_routed_experts": decoder.experts,
            "num_experts_per_tok": decoder.experts_per_token,
            "n_shared_experts": decoder.shared_experts,
            "moe_intermediate_size": decoder.expert_intermediate,
            "vocab_size": decoder.vocabulary,
            "max_position_embeddings": decoder.max_positions,
            # DeepSeek-OCR attends to everything. transformers demands a window, which Unlimited-OCR adds.
            "sliding_window": decoder.generated_window or decoder.max_positions,
            "layer_types": [kind] * decoder.layers,
        },
    )
    return config
