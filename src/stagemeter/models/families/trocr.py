"""TrOCR: a vision transformer over a line of text, and a decoder with cross-attention to its features.

Source: TrOCR, arXiv 2109.10282; transformers, ``modeling_vit.py``, ``modeling_trocr.py``,
``modeling_vision_encoder_decoder.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.blocks import Operator, linear
from stagemeter.models.builders.encoder_decoder import EncoderDecoderArchitecture, page_reader_family
from stagemeter.models.builders.page_stages import Needed
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.family import Variables
from stagemeter.models.pages.settings import PageSettings
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import require_width
from stagemeter.models.vision.vit import VisionTransformer, vision_transformer, vit_operators, vit_parameters


@dataclass(frozen=True, slots=True)
class TrOCRArchitecture(EncoderDecoderArchitecture):
    """Sizes of TrOCR."""

    encoder: VisionTransformer


def _read(settings: Settings) -> TrOCRArchitecture:
    sizes, text = settings.part("encoder"), settings.part("decoder")
    encoder = vision_transformer(sizes, class_token=True, attention_bias=sizes.flag("qkv_bias"))
    text.refuse("use_learned_position_embeddings", False, "only learned positions are counted")
    key = "cross_attention_hidden_size"
    require_width(text, key if text.values.get(key) else "d_model", encoder.hidden, "the encoder's tokens")
    decoder = SequenceDecoder.read(
        text,
        encoder.hidden,
        norms=int(text.flag("layernorm_embedding")),
        fused=False,
    )
    return TrOCRArchitecture(decoder, encoder)


def _operators(sizes: TrOCRArchitecture, views: int) -> list[Operator]:
    # The class token also passes through a pooler, whose result goes unused.
    pooler = linear(views, sizes.encoder.hidden, sizes.encoder.hidden, bias=True)
    return [*vit_operators(sizes.encoder, views), (pooler, 1)]


def _needed_operators(sizes: TrOCRArchitecture, values: Variables) -> list[Operator]:
    return vit_operators(sizes.encoder, values["views"])


def _check(sizes: TrOCRArchitecture, image: PageSettings) -> None:
    image.side("size", published=sizes.encoder.image_size, default=224, needed=sizes.encoder.image_size)
    image.require("do_resize", needed=True, why="pages of one size need")


FAMILY = page_reader_family(
    name="trocr",
    title="TrOCR: a vision transformer, and a decoder that attends to its features",
    kinds=("vit", "trocr"),
    sizes=TrOCRArchitecture,
    read=_read,
    operators=_operators,
    parameters=lambda sizes: vit_parameters(sizes.encoder) + (sizes.encoder.hidden + 1) * sizes.encoder.hidden,
    picture=lambda sizes: (sizes.encoder.image_size, sizes.encoder.image_size),
    tokens=lambda sizes: sizes.encoder.tokens,
    check=_check,
    head="decoder.output_projection",
    shipped=("trocr-base",),
    needed=Needed(
        "runs a pooler over the class token whose output is never used",
        _needed_operators,
    ),
    notes=("the model reads one line of text: a page is resized to the size of a line",),
)
