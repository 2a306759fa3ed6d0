"""InternVL 2.5, 3 and 3.5, and Qianfan-OCR: tiles through InternViT, four patches to a token, and a language model.

Source: transformers, ``modeling_internvl.py``, ``modeling_qianfan_ocr.py``, ``image_processing_got_ocr2.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.encoders import square_encoder, square_pixels, square_projector
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.families import text_decoder
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits, tiles_and_page
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import vision_transformer

#: Most tiles of a page in the published processors (``max_patches``).
_MOST_TILES = 12
#: Patches per side that become one token (``downsample_ratio`` 0.5).
_SHUFFLE = 2


def _read(settings: Settings) -> VisionLanguageArchitecture:
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    if settings.values["downsample_ratio"] != 0.5:
        settings.refuse("downsample_ratio", settings.values["downsample_ratio"], "this family is made for 0.5")
    settings.require("vision_feature_layer", -1, "what it takes of its encoder")
    # The encoder of 6 billion parameters differs here.
    for key, known in (("use_qk_norm", False), ("use_mask_token", False), ("norm_type", "layer_norm")):
        sizes.require(key, known, "its encoder")
    mean = sizes.flag("use_mean_pooling")
    vision = vision_transformer(
        sizes,
        class_token=True,
        attention_bias=sizes.flag("attention_bias"),
        layer_scale=True,
        outer_norms=0 if mean else 1,
    )
    width = vision.hidden * _SHUFFLE**2
    tokens = (vision.side // _SHUFFLE) ** 2
    projector = Projector(width, decoder.hidden, tokens, layers=2, bias=True, norm=2 * width)
    return VisionLanguageArchitecture(vision, projector, decoder)


def _rules(sizes: VisionLanguageArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is cut to tiles, since the whole processor overrides the file's ``crop_to_patches``."""
    settings.whole.require("image_seq_length", needed=sizes.projector.tokens, why="a view becomes")
    limits = read_tile_limits(settings.image, most=_MOST_TILES, fewest=1)
    return tiles_and_page(settings.image, limits, sizes.vision.image_size, sizes.projector.tokens)


FAMILY = vision_language_family(
    name="internvl",
    title="InternVL and Qianfan-OCR: tiles and the whole page through InternViT, four patches to a token",
    model_types=("internvl", "qianfan_ocr"),
    sizes=VisionLanguageArchitecture,
    read=_read,
    rules=_rules,
    stages=(square_encoder(), square_projector()),
    pages=Pages(square_pixels),
    # ``<img>`` and ``</img>``. Source: ``processing_internvl.py``.
    tags=lambda sizes, views: 2,
    shipped=("internvl3-1b", "qianfan-ocr-default"),
)
