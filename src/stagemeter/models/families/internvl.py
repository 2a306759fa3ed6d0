"""InternVL 2.5, 3 and 3.5, and Qianfan-OCR: tiles through InternViT, four patches to a token, and a language model.

Source: transformers, ``modeling_internvl.py``, ``modeling_qianfan_ocr.py``, ``image_processing_got_ocr2.py``.
"""

from __future__ import annotations

from stagemeter.models.family import PageViews
from stagemeter.models.settings import Settings
from stagemeter.models.tiling import tile_grid
from stagemeter.models.vision_language import (
    Projector,
    VisionLanguageArchitecture,
    part,
    text_decoder,
    vision_language_family,
    vision_transformer,
)

#: Tiles that a page becomes at most, as the published processors have it (``max_patches``).
_MOST_TILES = 12
#: Qianfan-OCR, whose encoder's projections add biases where nothing else is said.
_QIANFAN = "qianfan_ocr"
#: Patches per side that become one token (``downsample_ratio`` 0.5).
_SHUFFLE = 2


def _read(settings: Settings) -> VisionLanguageArchitecture:
    sizes, decoder = part(settings, "vision_config"), text_decoder(settings)
    for key, kept in (("downsample_ratio", 0.5), ("vision_feature_layer", -1)):
        if settings.values.get(key, kept) != kept:
            settings.refuse(key, settings.values[key], f"this family is made for {kept}")
    for key, refused in (("use_qk_norm", True), ("use_mask_token", True), ("norm_type", "rms_norm")):
        sizes.refuse(key, refused, "the encoder of 6 billion parameters is not part of this family")
    mean = sizes.flag("use_mean_pooling", default=True)
    vision = vision_transformer(
        sizes,
        class_token=True,
        patch_bias=True,
        attention_bias=sizes.flag("attention_bias", default=settings.values["model_type"] == _QIANFAN),
        layer_scale=True,
        outer_norms=0 if mean else 1,
    )
    width = vision.hidden * _SHUFFLE**2
    tokens = (vision.side // _SHUFFLE) ** 2
    projector = Projector(width, decoder.hidden, tokens, layers=2, bias=True, norm=2 * width)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _views(sizes: VisionLanguageArchitecture, width: int, height: int) -> PageViews:
    columns, rows = tile_grid(width, height, sizes.vision.image_size, _MOST_TILES)
    tiles = columns * rows
    # A page that is cut is also looked at as a whole.
    views = tiles + 1 if tiles > 1 else 1
    side = sizes.vision.image_size
    return PageViews(1, views - 1, side, side, (columns, rows), views * sizes.projector.tokens)


FAMILY = vision_language_family(
    name="internvl",
    title="InternVL and Qianfan-OCR: tiles and the whole page through InternViT, four patches to a token",
    model_types=("internvl", _QIANFAN),
    read=_read,
    views=_views,
    shipped={"internvl3-1b": "internvl3_1b.json", "qianfan-ocr-default": "qianfan_ocr_default.json"},
    notes=(f"a page becomes at most {_MOST_TILES} tiles, as the published processors have it",),
)
