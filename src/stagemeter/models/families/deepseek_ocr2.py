"""DeepSeek-OCR 2: SAM, an encoder like Qwen 2's over its feature map and learned queries, DeepSeek-OCR's decoder.

A page is one view as a whole; a page larger than a tile also becomes tiles. Source: transformers,
``modeling_deepseek_ocr2.py``, ``image_processing_pil_deepseek_ocr2.py``, ``processing_deepseek_ocr2.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import Operator, gated_feed_forward, linear, repeated, self_attention
from stagemeter.models.builders.page_stages import Needed
from stagemeter.models.builders.text import DENSE, SPARSE
from stagemeter.models.builders.view_groups import group_projector, group_stage, sam_stage, tiled_pages, view_group
from stagemeter.models.builders.vision_language import VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_settings
from stagemeter.models.family import Variables
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits, tile_grid
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.sam import (
    VIEW_VARIABLES,
    SamArchitecture,
    ViewGroup,
    downsample_channels,
    sam_architecture,
)

#: Sides in pixels of the view of a whole page and of a tile, and the number of learned queries by module.
_VIEW, _TILE = 1024, 768
_QUERIES = {f"{VISION}.query_768_resolution": 144, f"{VISION}.query_1024_resolution": 256}
#: Fewest and most tiles of a page by default.
_FEWEST_TILES, _MOST_TILES = 2, 6


@dataclass(frozen=True, slots=True)
class QueryEncoder:
    """A transformer with a gated feed-forward network over patches and learned queries.

    Patches attend to one another, queries to patches and earlier queries.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int

    @property
    def attention(self) -> GroupedQueryAttention:
        """Attention of a layer."""
        return GroupedQueryAttention(self.heads, self.key_value_heads, self.hidden // self.heads, bias=True)


@dataclass(frozen=True, slots=True)
class DeepseekOcr2Architecture(Sizes):
    """Sizes of DeepSeek-OCR 2."""

    sam: SamArchitecture
    encoder: QueryEncoder
    decoder: Decoder


def _read(settings: Settings) -> DeepseekOcr2Architecture:
    vision = settings.part("vision_config")
    sizes = vision.part("encoder_config")
    sizes.split("hidden_size", "num_attention_heads")
    heads = sizes.whole("num_attention_heads")
    encoder = QueryEncoder(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=heads,
        key_value_heads=sizes.whole("num_key_value_heads"),
        intermediate=sizes.whole("intermediate_size"),
    )
    sizes.refuse("use_sliding_window", True, "the encoder of DeepSeek-OCR 2 has no window")
    sam_sizes = vision.part("sam_config")
    sam = sam_architecture(sam_sizes, downsample_channels(sam_sizes, encoder.hidden))
    return DeepseekOcr2Architecture(sam, encoder, _decoder(text_settings(settings)))


def _decoder(text: Settings) -> Decoder:
    text.refuse("mlp_bias", True, "the feed-forward networks of DeepSeek-OCR 2 have no bias")
    bias = text.flag("attention_bias")
    attention = GroupedQueryAttention.read(text, bias=bias, output_bias=bias)
    kinds = text.kinds("mlp_layer_types", (DENSE, SPARSE))
    width = text.whole("moe_intermediate_size")
    routed = Experts.read(
        text,
        "n_routed_experts",
        "moe_intermediate_size",
        shared_intermediate=text.whole("n_shared_experts") * width,
    )
    dense = GatedFeedForward.read(text)
    return Decoder.read(text, [Layer(attention, dense if kind == DENSE else routed, 1) for kind in kinds])


def _rules(sizes: DeepseekOcr2Architecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is one view, and a large one also becomes tiles; both sizes have learned queries."""
    image = settings.image
    image.side("size", published=_VIEW, needed=_VIEW)
    image.side("tile_size", published=_TILE, needed=_TILE)
    image.require("crop_to_patches", needed=True, why="this model's processor takes only")
    limits = read_tile_limits(image, most=_MOST_TILES, fewest=_FEWEST_TILES)
    view, tile = (view_group(sizes.sam, 1, side).tokens for side in (_VIEW, _TILE))

    def page(width: int, height: int) -> PageViews:
        cut = max(width, height) > _TILE
        columns, rows = tile_grid(width, height, _TILE, limits.most, limits.fewest) if cut else (1, 1)
        tiles = columns * rows if cut else 0
        # A separator adds a token.
        return PageViews(1, tiles, _VIEW, _VIEW, (columns, rows), view + tiles * tile + 1, tile_side=_TILE)

    return PageRules(page)


def _encoder_operators(sizes: DeepseekOcr2Architecture, group: ViewGroup) -> list[Operator]:
    return repeated(_encoder_layer(sizes.encoder, group), sizes.encoder.layers)


def _needed_operators(sizes: DeepseekOcr2Architecture, values: Variables) -> list[Operator]:
    """Return the operators that the model needs: of the last layer, the projector reads the queries' rows alone."""
    encoder, group = sizes.encoder, ViewGroup(**values)
    layers = repeated(_encoder_layer(encoder, group), encoder.layers - 1)
    return [*layers, *repeated(_encoder_layer(encoder, group, last=True), 1)]


def _encoder_layer(encoder: QueryEncoder, group: ViewGroup, last: bool = False) -> list[Cost]:
    # There are as many queries as patches. The mask shows a query the patches and the queries up to itself.
    patches = group.quarter_grid**2
    tokens = 2 * patches
    # Twice the pairs of the queries, patches * (patches + 1) / 2 with each other, and those among patches.
    visible = (3 * patches + 1) * patches + (0 if last else 2 * patches**2)
    hidden, attention = encoder.hidden, encoder.attention
    read = group.views * tokens
    rows = group.views * patches if last else read
    # Keys and values are repeated for the heads that share them.
    attended = self_attention(rows, tokens, attention.heads, attention.head_width)
    return [
        linear(rows, hidden, hidden, bias=True),
        *[linear(read, hidden, attention.key_value_heads * attention.head_width, bias=True)] * 2,
        replace(attended, macs_causal=group.views * visible * hidden, activation_reads=(rows + 2 * read) * hidden),
        linear(rows, hidden, hidden),
        *gated_feed_forward(rows, hidden, encoder.intermediate),
    ]


def _encoder_parameters(sizes: DeepseekOcr2Architecture) -> int:
    encoder = sizes.encoder
    layer = encoder.attention.parameters(encoder.hidden) + 3 * encoder.hidden * encoder.intermediate
    return encoder.layers * (layer + 2 * encoder.hidden) + encoder.hidden


def _encoder_inputs(model: Any, sizes: DeepseekOcr2Architecture, group: ViewGroup) -> dict[str, Any]:
    patches = group.quarter_grid**2
    return {"inputs_embeds": empty(model, group.views, 2 * patches, sizes.encoder.hidden), "num_patches": patches}


_VARIABLES = VIEW_VARIABLES | {"side": f"side of a view in pixels: {_VIEW} of the page as a whole, {_TILE} of a tile"}

FAMILY = vision_language_family(
    name="deepseek-ocr-2",
    title="DeepSeek-OCR 2: SAM, an encoder of patches and queries, mixture-of-experts decoder",
    model_types=("deepseek_ocr2",),
    sizes=DeepseekOcr2Architecture,
    read=_read,
    rules=_rules,
    stages=(
        sam_stage(f"{VISION}.sam_encoder", _VARIABLES),
        group_stage(
            name="encoder",
            title="encoder over SAM's feature maps and as many queries, every view",
            module=f"{VISION}.vision_encoder",
            operators=_encoder_operators,
            parameters=_encoder_parameters,
            inputs=_encoder_inputs,
            variables=_VARIABLES,
            needed=Needed("runs the last layer on patches, too, whose results nothing reads", _needed_operators),
        ),
        group_projector(
            lambda sizes: LinearSize(sizes.encoder.hidden, sizes.decoder.hidden, bias=True),
            _VARIABLES,
            title="projection of the queries' results",
        ),
    ),
    pages=Pages(tiled_pages, values=True),
    tags=lambda sizes, views: 0,
    shipped=("deepseek-ocr-2",),
    other_parameters=lambda sizes: {
        **{name: number * sizes.encoder.hidden for name, number in _QUERIES.items()},
        "model.view_separator": sizes.decoder.hidden,
    },
    notes=(
        "a page larger than a tile becomes tiles beside the page as a whole; transformers' whole processor limits "
        f"them to {_FEWEST_TILES} and {_MOST_TILES} in each call that does not give others, whatever a file says",
    ),
)
