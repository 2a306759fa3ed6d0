"""DeepSeek-OCR 2: SAM, an encoder like Qwen 2's over its feature map and learned queries, DeepSeek-OCR's decoder.

A page is one view as a whole; a page larger than a tile also becomes tiles. Source: transformers,
``modeling_deepseek_ocr2.py``, ``image_processing_pil_deepseek_ocr2.py``, ``processing_deepseek_ocr2.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, gated_feed_forward, linear, repeated, self_attention
from stagemeter.models.builders.encoders import projector_stage
from stagemeter.models.builders.page_stages import page_stage
from stagemeter.models.builders.text import DENSE, SPARSE
from stagemeter.models.builders.vision_language import PROJECTOR, VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.stages import empty
from stagemeter.models.families import text_settings
from stagemeter.models.family import PageRules, PageViews, Variables
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import read_tile_limits, tile_grid
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.sam import (
    VIEW_VARIABLES,
    SamArchitecture,
    ViewGroup,
    sam_architecture,
    sam_operators,
    sam_parameters,
)

_SAM, _ENCODER = f"{VISION}.sam_encoder", f"{VISION}.vision_encoder"
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
    sam = _sam(vision.part("sam_config"))
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
    if sam.downsample_channels[1] != encoder.hidden:
        raise StagemeterError(
            f"{settings.source}: SAM's feature map has {sam.downsample_channels[1]} channels, but the encoder takes "
            f"{encoder.hidden}"
        )
    return DeepseekOcr2Architecture(sam, encoder, _decoder(text_settings(settings)))


def _sam(settings: Settings) -> SamArchitecture:
    channels = settings.values.get("downsample_channels")
    if not isinstance(channels, (list, tuple)) or len(channels) != 2 or not all(isinstance(n, int) for n in channels):
        raise StagemeterError(f"{settings.source}: downsample_channels is {channels!r}; it must hold two numbers")
    return sam_architecture(settings, (channels[0], channels[1]))


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
    image.require("crop_to_patches", needed=True, why="the tokens of a page follow from tiles and page:")
    limits = read_tile_limits(image, most=_MOST_TILES, fewest=_FEWEST_TILES)
    view, tile = (_group(sizes, 1, side).quarter_grid ** 2 for side in (_VIEW, _TILE))

    def page(width: int, height: int) -> PageViews:
        cut = max(width, height) > _TILE
        columns, rows = tile_grid(width, height, _TILE, limits.most, limits.fewest) if cut else (1, 1)
        tiles = columns * rows if cut else 0
        # A separator adds a token.
        return PageViews(1, tiles, _VIEW, _VIEW, (columns, rows), view + tiles * tile + 1, tile_side=_TILE)

    return PageRules(page)


def _group(sizes: DeepseekOcr2Architecture, views: int, side: int) -> ViewGroup:
    return ViewGroup.of(views, side, sizes.sam.patch_size, sizes.sam.window_size)


def _groups(sizes: DeepseekOcr2Architecture, workload: Workload) -> list[ViewGroup]:
    groups = [(workload.global_views, _VIEW), (workload.local_views, _TILE)]
    return [_group(sizes, workload.batch_size * views, side) for views, side in groups if views]


def _calls(sizes: DeepseekOcr2Architecture, workload: Workload) -> list[Variables]:
    return [asdict(group) for group in _groups(sizes, workload)]


def _encoder_operators(sizes: DeepseekOcr2Architecture, values: Variables) -> list[Operator]:
    group, encoder = ViewGroup(**values), sizes.encoder
    # There are as many queries as patches.
    tokens = 2 * group.quarter_grid**2
    rows, hidden, attention = group.views * tokens, encoder.hidden, encoder.attention
    # Keys and values are repeated for the heads that share them.
    attended = self_attention(rows, tokens, attention.heads, attention.head_width)
    layer = [
        linear(rows, hidden, hidden, bias=True),
        *[linear(rows, hidden, attention.key_value_heads * attention.head_width, bias=True)] * 2,
        replace(attended, macs_causal=rows * tokens * hidden),
        linear(rows, hidden, hidden),
        *gated_feed_forward(rows, hidden, encoder.intermediate),
    ]
    return repeated(layer, encoder.layers)


def _encoder_parameters(sizes: DeepseekOcr2Architecture) -> int:
    encoder = sizes.encoder
    layer = encoder.attention.parameters(encoder.hidden) + 3 * encoder.hidden * encoder.intermediate
    return encoder.layers * (layer + 2 * encoder.hidden) + encoder.hidden


def _page(model: Any, sizes: DeepseekOcr2Architecture, workload: Workload) -> dict[str, Any]:
    page: dict[str, Any] = {"pixel_values": empty(model, workload.batch_size, 3, _VIEW, _VIEW)}
    if workload.local_views:
        page["pixel_values_local"] = empty(model, workload.batch_size * workload.local_views, 3, _TILE, _TILE)
        page["num_local_patches"] = [workload.local_views] * workload.batch_size
    return page


def _run_sam(model: Any, sizes: DeepseekOcr2Architecture, workload: Workload) -> None:
    for group in _groups(sizes, workload):
        model.get_submodule(_SAM)(empty(model, group.views, 3, group.side, group.side))


def _run_encoder(model: Any, sizes: DeepseekOcr2Architecture, workload: Workload) -> None:
    for group in _groups(sizes, workload):
        patches = group.quarter_grid**2
        rows = empty(model, group.views, 2 * patches, sizes.encoder.hidden)
        model.get_submodule(_ENCODER)(inputs_embeds=rows, num_patches=patches)


def _run_projector(model: Any, sizes: DeepseekOcr2Architecture, workload: Workload) -> None:
    for group in _groups(sizes, workload):
        model.get_submodule(PROJECTOR)(empty(model, group.views, group.quarter_grid**2, sizes.encoder.hidden))


_VARIABLES = VIEW_VARIABLES | {"side": f"side of a view in pixels: {_VIEW} of the page as a whole, {_TILE} of a tile"}

FAMILY = vision_language_family(
    name="deepseek-ocr-2",
    title="DeepSeek-OCR 2: SAM, an encoder of patches and queries, mixture-of-experts decoder",
    model_types=("deepseek_ocr2",),
    sizes=DeepseekOcr2Architecture,
    read=_read,
    rules=_rules,
    stages=(
        page_stage(
            name="sam",
            title="SAM encoder, every view",
            modules=(_SAM,),
            operators=lambda sizes, values: sam_operators(sizes.sam, ViewGroup(**values)),
            parameters=lambda sizes: sam_parameters(sizes.sam),
            variables=_VARIABLES,
            calls=_calls,
            run=_run_sam,
        ),
        page_stage(
            name="encoder",
            title="encoder over SAM's feature maps and as many queries, every view",
            modules=(_ENCODER,),
            operators=_encoder_operators,
            parameters=_encoder_parameters,
            variables=_VARIABLES,
            calls=_calls,
            run=_run_encoder,
        ),
        projector_stage(
            lambda sizes: [LinearSize(sizes.encoder.hidden, sizes.decoder.hidden, bias=True)],
            title="projection of the queries' results to the decoder's width",
            variables=_VARIABLES,
            calls=_calls,
            rows=lambda sizes, values: values["views"] * values["quarter_grid"] ** 2,
            run=_run_projector,
        ),
    ),
    pages=Pages(_page, values=True),
    shipped=("deepseek-ocr-2",),
    other_parameters=lambda sizes: {
        **{name: number * sizes.encoder.hidden for name, number in _QUERIES.items()},
        "model.view_separator": sizes.decoder.hidden,
    },
    notes=(
        "a page larger than a tile becomes tiles beside the page as a whole; transformers' whole processor limits "
        f"them to {_FEWEST_TILES} and {_MOST_TILES} in each call that does not give others, whatever a file says",
        "the encoder's mask leaves five eighths of its scores; flops_causal halves them like text",
    ),
)
