"""GLM-4.1V, 4.5V and 4.6V: a page at its own resolution, a decoder like GLM-4's, dense or a mixture of experts.

Source: transformers, ``modeling_glm4v.py``, ``modeling_glm4v_moe.py``, ``image_processing_pil_glm4v.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.downsampled_language import DownsampledArchitecture, downsampled_family
from stagemeter.models.builders.text import decoder, dense_then_experts, grouped_query_attention
from stagemeter.models.builders.vision_language import part, text_settings
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.settings import Settings
from stagemeter.models.vision.native_vision import native_vision

_EXPERTS = "glm4v_moe"
#: Pixels between which a page is resized, which is doubled (``preprocessor_config.json`` of the published models).
_PIXELS = (12_544, 9_633_792)


def _read(settings: Settings) -> DownsampledArchitecture:
    sizes, said = part(settings, "vision_config"), text_settings(settings)
    language = _mixture(said) if settings.values["model_type"] == _EXPERTS else _dense(said)
    vision = native_vision(
        sizes,
        language.hidden,
        _PIXELS,
        gated=True,
        norm_bias=False,
        patch_bias=True,
        # The feed-forward network is as wide as the tokens, and `intermediate_size` is the width of the merger's.
        intermediate=sizes.whole("out_hidden_size"),
        positions=(sizes.whole("image_size") // sizes.whole("patch_size")) ** 2,
        bias=sizes.flag("attention_bias"),
        output_bias=False,
        feed_forward_bias=False,
        other_norms=2,
    )
    return DownsampledArchitecture(vision, sizes.whole("intermediate_size"), language)


def _dense(text: Settings) -> Decoder:
    layer = Layer(
        grouped_query_attention(text, bias=True),
        GatedFeedForward(text.whole("intermediate_size"), fused=True),
        text.whole("num_hidden_layers"),
        norms=4,
    )
    return decoder(text, [layer])


def _mixture(text: Settings) -> Decoder:
    attention = grouped_query_attention(text, bias=text.flag("attention_bias"))
    return decoder(text, dense_then_experts(text, attention))


FAMILY = downsampled_family(
    name="glm4v",
    title="GLM-4.1V, 4.5V, 4.6V: a page at its own resolution, a decoder like GLM-4's",
    model_types=("glm4v", "glm46v", _EXPERTS),
    read=_read,
    encoder=("patch_embed", "post_conv_layernorm", "embeddings", "blocks", "post_layernorm"),
    shipped={"glm-4.1v-9b": "glm_4_1v_9b.json", "glm-4.5v": "glm_4_5v.json"},
    notes=(
        "a page is doubled to fill the two pictures that a patch spans, and limits of pixels are of both; videos are "
        "not counted",
    ),
)
