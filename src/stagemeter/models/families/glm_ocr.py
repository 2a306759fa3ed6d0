"""GLM-OCR: a page at its own resolution, a small decoder like GLM-4's.

Source: transformers, ``modeling_glm_ocr.py``, ``image_processing_pil_glm46v.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.downsampled_language import DownsampledArchitecture, downsampled_family
from stagemeter.models.builders.text import decoder, grouped_query_attention
from stagemeter.models.builders.vision_language import part, text_settings
from stagemeter.models.decoder.decoder import Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.settings import Settings
from stagemeter.models.vision.native_vision import native_vision
from stagemeter.models.vision.sam import CHANNELS

#: Pixels between which a page is resized, which is doubled (``preprocessor_config.json`` of the published model).
_PIXELS = (12_544, 9_633_792)


def _read(settings: Settings) -> DownsampledArchitecture:
    sizes, said = part(settings, "vision_config"), text_settings(settings)
    feed_forward = GatedFeedForward(said.whole("intermediate_size"), fused=True)
    layer = Layer(grouped_query_attention(said), feed_forward, said.whole("num_hidden_layers"), norms=4)
    language = decoder(said, [layer])
    bias = sizes.flag("attention_bias")
    vision = native_vision(
        sizes,
        language.hidden,
        _PIXELS,
        gated=True,
        norm_bias=False,
        patch_bias=True,
        intermediate=sizes.whole("intermediate_size"),
        bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
        head_norms=True,
        other_norms=1,
    )
    return DownsampledArchitecture(vision, CHANNELS * vision.outputs, language)


FAMILY = downsampled_family(
    name="glm-ocr",
    title="GLM-OCR: a page at its own resolution, a small decoder like GLM-4's",
    model_types=("glm_ocr",),
    read=_read,
    encoder=("patch_embed", "blocks", "post_layernorm"),
    shipped={"glm-ocr": "glm_ocr.json"},
    notes=(
        "a page is doubled to fill the two pictures that a patch spans, and limits of pixels are of both; videos are "
        "not counted",
        "the layer for predicting several tokens at once, which the checkpoint holds beside the model, is left out",
    ),
)
