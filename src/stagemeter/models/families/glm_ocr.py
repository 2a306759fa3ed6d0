"""GLM-OCR: a page at its own resolution, a small decoder like GLM-4's.

Source: transformers, ``modeling_glm_ocr.py``, ``image_processing_pil_glm46v.py``.
"""

from __future__ import annotations

from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.predictor import MTP_NOTE, Predictor
from stagemeter.models.families import text_settings
from stagemeter.models.families.glm4v import GlmVArchitecture, glm_v_family, glm_vision
from stagemeter.models.settings import Settings
from stagemeter.models.vision import CHANNELS


def _decoder(text: Settings) -> Decoder:
    feed_forward = GatedFeedForward(text.whole("intermediate_size"), fused=True)
    layer = Layer(GroupedQueryAttention.read(text), feed_forward, text.whole("num_hidden_layers"), norms=4)
    return Decoder.read(text, [layer])


def _read(settings: Settings) -> GlmVArchitecture:
    sizes, language = settings.part("vision_config"), _decoder(text_settings(settings))
    bias = sizes.flag("attention_bias")
    vision = glm_vision(
        sizes,
        language,
        intermediate=sizes.whole("intermediate_size"),
        bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
        head_norms=True,
        other_norms=1,
    )
    return GlmVArchitecture(vision, CHANNELS * vision.outputs, language)


def _read_predictor(settings: Settings) -> Predictor | None:
    """Source: vLLM, ``model_executor/models/glm_ocr_mtp.py``: a layer like the model's."""
    text = text_settings(settings)
    decoder = _decoder(text)
    return Predictor.of(decoder, decoder.layers[-1], text.whole("num_nextn_predict_layers", 0, least=0))


FAMILY = glm_v_family(
    name="glm-ocr",
    title="GLM-OCR: a page at its own resolution, a small decoder like GLM-4's",
    model_types=("glm_ocr",),
    read=_read,
    encoder=("patch_embed", "blocks", "post_layernorm"),
    shipped=("glm-ocr",),
    notes=(MTP_NOTE,),
    predictor=_read_predictor,
)
