"""Donut and Nougat: a Swin transformer over a page, and mBART's decoder with cross-attention to its features.

Source: Donut, arXiv 2111.15664; Nougat, arXiv 2308.13418; transformers, ``modeling_donut_swin.py``,
``modeling_mbart.py``, ``modeling_vision_encoder_decoder.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.models.blocks import Operator
from stagemeter.models.builders.encoder_decoder import EncoderDecoderArchitecture, page_reader_family
from stagemeter.models.builders.page_stages import Needed
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.family import Variables
from stagemeter.models.pages.settings import PageSettings
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import require_width
from stagemeter.models.vision.swin import SwinTransformer, swin_operators, swin_parameters


@dataclass(frozen=True, slots=True)
class DonutArchitecture(EncoderDecoderArchitecture):
    """Sizes of Donut and Nougat."""

    encoder: SwinTransformer


def _read(settings: Settings) -> DonutArchitecture:
    encoder, text = _encoder(settings.part("encoder")), settings.part("decoder")
    require_width(text, "d_model", encoder.outputs, "the encoder's tokens")
    decoder = SequenceDecoder.read(text, encoder.outputs, norms=2, fused=True)
    return DonutArchitecture(decoder, encoder)


def _encoder(sizes: Settings) -> SwinTransformer:
    size = sizes.values.get("image_size")
    sides = sizes.wholes("image_size") if isinstance(size, list) else (sizes.whole("image_size"),) * 2
    if len(sides) != 2:
        raise StagemeterError(f"{sizes.source}: image_size is {shown(size)}. It must be a height and a width")
    height, width = sides
    depths, heads = sizes.wholes("depths"), sizes.wholes("num_heads")
    if len(depths) != len(heads):
        raise StagemeterError(
            f"{sizes.source}: depths has {len(depths)} groups of layers, and num_heads {len(heads)}. Give both as many"
        )
    sizes.refuse("use_absolute_embeddings", True, "learned positions of patches are not counted")
    swin = SwinTransformer(
        hidden=sizes.whole("embed_dim"),
        depths=depths,
        heads=heads,
        window_size=sizes.whole("window_size"),
        patch_size=sizes.whole("patch_size"),
        width=width,
        height=height,
        ratio=sizes.number("mlp_ratio"),
        attention_bias=sizes.flag("qkv_bias"),
    )
    for index, (_, number, columns, rows) in enumerate(swin.groups()):
        if min(columns, rows) < swin.window_size:
            raise StagemeterError(
                f"{sizes.source}: window_size is {swin.window_size}. Of {columns} x {rows} patches, it may be at most "
                f"{min(columns, rows)}"
            )
        if swin.hidden * 2**index % number:
            raise StagemeterError(
                f"{sizes.source}: num_heads has {number} for layers of width {swin.hidden * 2**index}. Give a divisor "
                "of the width"
            )
    return swin


def _check(sizes: DonutArchitecture, image: PageSettings) -> None:
    """Refuse pages padded to another size. Source: transformers, ``image_processing_pil_donut.py``, ``_preprocess``."""
    encoder = sizes.encoder
    size = image.values.get("size")
    if isinstance(size, list):
        # A list holds width and height.
        needed = [encoder.width, encoder.height]
        if size != needed:
            image.refuse("size", f"the encoder takes pages of width and height {needed!r}")
    else:
        nougat = str(image.values.get("image_processor_type")).startswith("Nougat")
        height, width = (896, 672) if nougat else (2560, 1920)
        image.require("size.height", needed=encoder.height, default=height)
        image.require("size.width", needed=encoder.width, default=width)
    for key in ("do_resize", "do_thumbnail", "do_pad"):
        image.require(key, needed=True, why="pages of one size need")


def _needed_operators(sizes: DonutArchitecture, values: Variables) -> list[Operator]:
    return swin_operators(sizes.encoder, values["views"], model=True)


FAMILY = page_reader_family(
    name="donut",
    title="Donut, Nougat: a Swin transformer, and a decoder that attends to its features",
    kinds=("donut-swin", "mbart"),
    sizes=DonutArchitecture,
    read=_read,
    operators=lambda sizes, views: swin_operators(sizes.encoder, views),
    needed=Needed(
        "computes the scores of all pairs in a shifted window, of which its mask hides some",
        _needed_operators,
    ),
    parameters=lambda sizes: swin_parameters(sizes.encoder),
    picture=lambda sizes: (sizes.encoder.width, sizes.encoder.height),
    tokens=lambda sizes: sizes.encoder.tokens,
    check=_check,
    head="decoder.lm_head",
    shipped=("donut-base", "nougat-base"),
    notes=("every page is resized to the encoder's input, as the published processors do",),
)
