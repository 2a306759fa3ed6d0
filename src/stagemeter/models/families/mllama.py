"""Llama 3.2 Vision: tiles through two vision transformers, a decoder with layers that attend only to the page.

A page is padded to the most tiles that it may have. One token of the prompt stands for it. Source: transformers,
``modeling_mllama.py``, ``image_processing_pil_mllama.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, product
from stagemeter.models.builders.encoders import VIEWS, projector_stage
from stagemeter.models.builders.page_stages import Calls, Needed, page_stage
from stagemeter.models.builders.vision_language import Pages, vision_language_family
from stagemeter.models.decoder.cross_attention import CrossAttention
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention, refuse_window
from stagemeter.models.decoder.passes import empty
from stagemeter.models.family import Variables
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.tiling import best_fit
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import LinearSize, linears_operators, require_width
from stagemeter.models.vision.vit import (
    TransformerSizes,
    VisionTransformer,
    layer_operators,
    patch_and_view,
    patch_embedding,
    vit_of,
    vit_parameters,
)

_VISION = "model.vision_model"
#: Patches of a tile are padded to a multiple of this.
_MULTIPLE = 8
#: Tokens of the embedding that the output head lacks: ``MllamaTextModel``.
_OTHER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class MllamaArchitecture(Sizes, TransformerSizes):
    """Sizes of Llama 3.2 Vision, whose two vision transformers have the same width.

    Attributes
    ----------
    global_layers : int
        Depth of the second transformer.
    image_size : int
        Side of a tile in pixels.
    tiles, shapes : int
        Tiles that a page is padded to, and shapes that tiles may form.
    kept : int
        Layers of the first transformer whose results join those of the second.
    """

    global_layers: int
    image_size: int
    tiles: int
    shapes: int
    kept: int
    decoder: Decoder

    @property
    def vit(self) -> VisionTransformer:
        """Both vision transformers as one; its attention reads the mask of padding."""
        return vit_of(
            self,
            layers=self.layers + self.global_layers,
            class_token=True,
            patch_bias=False,
            attention_bias=False,
            outer_norms=2,
            output_bias=False,
            masked=True,
        )

    @property
    def patches(self) -> int:
        """Tokens of a tile: its patches and the class token."""
        return _patches(self.image_size, self.patch_size)

    @property
    def padded(self) -> int:
        """Tokens of a tile, padded."""
        return -(-self.patches // _MULTIPLE) * _MULTIPLE

    @property
    def outputs(self) -> int:
        """Width of the features that are projected."""
        return self.hidden * (1 + self.kept)


def _read(settings: Settings) -> MllamaArchitecture:
    sizes = settings.part("vision_config")
    sizes.split("hidden_size", "attention_heads")
    tiles = sizes.whole("max_num_tiles")
    shapes = sizes.listed("supported_aspect_ratios", 1)
    if any(not isinstance(shape, list) or len(shape) != 2 or not all(map(_is_side, shape)) for shape in shapes):
        raise StagemeterError(
            f"{sizes.source}: supported_aspect_ratios is {shown(shapes)}. It must list rows and columns of tiles"
        )
    kept = sizes.indices("intermediate_layers_indices", sizes.whole("num_hidden_layers"))
    hidden, joined = sizes.whole("hidden_size"), 1 + len(kept)
    require_width(sizes, "vision_output_dim", hidden * joined, f"{joined} layers side by side")
    patch_size, image_size = patch_and_view(sizes)
    return MllamaArchitecture(
        hidden=hidden,
        heads=sizes.whole("attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        layers=sizes.whole("num_hidden_layers"),
        global_layers=sizes.whole("num_global_layers"),
        patch_size=patch_size,
        image_size=image_size,
        tiles=tiles,
        shapes=len(shapes),
        kept=len(kept),
        decoder=_decoder(settings, tiles * _patches(image_size, patch_size)),
    )


def _is_side(tiles: Any) -> bool:
    return isinstance(tiles, int) and not isinstance(tiles, bool) and tiles > 0


def _patches(image_size: int, patch_size: int) -> int:
    return (image_size // patch_size) ** 2 + 1


def _decoder(settings: Settings, source: int) -> Decoder:
    text = settings.part("text_config")
    number = text.whole("num_hidden_layers")
    to_page = text.indices("cross_attention_layers")
    if 0 in to_page:
        raise StagemeterError(
            f"{text.source}: cross_attention_layers is {to_page!r}. It must leave out layer 0, whose cache tells "
            "transformers how long the text is"
        )
    refuse_window(text)
    own, feed_forward = GroupedQueryAttention.read(text), GatedFeedForward.read(text)
    page = CrossAttention(own.heads, own.key_value_heads, own.head_width, source, norms=2 * own.head_width)
    # Two factors scale the results of a layer that attends to the page.
    kinds = {False: Layer(own, feed_forward, 1), True: Layer(page, feed_forward, 1, numbers=2)}
    made = Decoder.read(text, [kinds[index in to_page] for index in range(number)])
    return replace(made, tied=False, other_tokens=_OTHER_TOKENS)


def _grids(tiles: int) -> list[tuple[int, int]]:
    """Return the columns and rows that tiles may form, in the order of ``get_all_supported_aspect_ratios``."""
    sides = range(1, tiles + 1)
    return [(columns, rows) for rows in sides for columns in sides if columns * rows <= tiles]


def _rules(sizes: MllamaArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page becomes the tiles that it fits best, padded to the most."""
    image, side = settings.image, sizes.image_size
    image.side("size", published=side, default=224, needed=side)
    image.require("max_image_tiles", needed=sizes.tiles, default=4, why="the encoder has positions for so many tiles:")
    for key in ("do_resize", "do_pad"):
        image.require(key, needed=True, why="Llama 3.2's processor takes no other value than")

    def page(width: int, height: int) -> PageViews:
        columns, rows = best_fit(width, height, side, _grids(sizes.tiles), single_precision=False)
        return PageViews(columns * rows, 0, side, side, (columns, rows), 1)

    return PageRules(page)


def _vision_operators(sizes: MllamaArchitecture, values: Variables) -> list[Operator]:
    views, tokens = values["pages"] * sizes.tiles, sizes.tiles * sizes.padded
    return [
        (patch_embedding(sizes.vit, views * (sizes.patches - 1), views), 1),
        # The mask of padding is a product of a column and a row.
        (product(values["pages"], tokens, 1, tokens), 1),
        *layer_operators(sizes.vit, [(values["pages"], tokens)], sizes.vit.layers),
    ]


def _needed_vision(sizes: MllamaArchitecture, values: Variables) -> list[Operator]:
    """Return what the model needs: padding and the page see one another, so that padding changes the features.

    Source: transformers, ``modeling_mllama.py``, ``_prepare_aspect_ratio_attention_mask``; llama-models,
    ``build_encoder_attention_mask``.
    """
    vit, pages, views = replace(sizes.vit, masked=False), values["pages"], values["pages"] * sizes.tiles
    *layers, (attention, times) = layer_operators(vit, [(pages, sizes.tiles * sizes.padded)], vit.layers)
    macs = 2 * pages * values["pairs"] * sizes.hidden
    return [
        (patch_embedding(vit, views * (sizes.patches - 1), views), 1),
        *layers,
        (replace(attention, macs=macs, macs_causal=macs), times),
    ]


def _needed_calls(sizes: MllamaArchitecture, workload: Workload) -> list[Variables]:
    tokens = sizes.tiles * sizes.padded
    padding = tokens - workload.global_views * sizes.patches
    return [{"pages": workload.batch_size, "pairs": tokens**2 - padding**2}]


def _vision_parameters(sizes: MllamaArchitecture) -> int:
    # For each shape and for none: embeddings of tiles, twice, and of all their patches; a factor for each of the three.
    by_shape = (sizes.shapes + 1) * sizes.tiles * (2 + sizes.patches) * sizes.hidden + 3
    # Two factors scale the results of each layer of the second transformer.
    return vit_parameters(sizes.vit) + by_shape + 2 * sizes.global_layers


def _page(model: Any, sizes: MllamaArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the tiles of the pages of a batch, the shape that they form, and the mask of padding."""
    import torch

    pages, side = workload.batch_size, sizes.image_size
    used = [1] * workload.global_views + [0] * (sizes.tiles - workload.global_views)
    return {
        "pixel_values": empty(model, pages, 1, sizes.tiles, CHANNELS, side, side),
        "aspect_ratio_ids": torch.ones(pages, 1, dtype=torch.long, device=model.device),
        "aspect_ratio_mask": torch.tensor([[used]] * pages, device=model.device),
    }


def _seen(model: Any, sizes: MllamaArchitecture, workload: Workload, tokens: int) -> dict[str, Any]:
    """Return the mask of tiles that each token attends to, which ``generate`` passes every time."""
    return {"cross_attention_mask": empty(model, workload.batch_size, tokens, 1, sizes.tiles)}


def _whole_page(model: Any, sizes: MllamaArchitecture, workload: Workload) -> dict[str, Any]:
    return {**_page(model, sizes, workload), **_seen(model, sizes, workload, workload.prompt_tokens)}


def _projection(sizes: MllamaArchitecture) -> list[LinearSize]:
    return [LinearSize(sizes.outputs, sizes.decoder.hidden, bias=True)]


def _projector_inputs(model: Any, sizes: MllamaArchitecture, workload: Workload) -> tuple[Any, ...]:
    return (empty(model, workload.batch_size, 1, sizes.tiles, sizes.patches, sizes.outputs),)


_CALLS = Calls({"pages": "pages: batch_size"}, lambda sizes, workload: [{"pages": workload.batch_size}])

FAMILY = vision_language_family(
    name="mllama",
    title="Llama 3.2 Vision: tiles through two vision transformers, layers that attend to the page",
    model_types=("mllama",),
    sizes=MllamaArchitecture,
    read=_read,
    rules=_rules,
    stages=(
        page_stage(
            name="vit",
            title="both vision transformers over all tiles of the page, padding included",
            modules=(_VISION,),
            operators=_vision_operators,
            parameters=_vision_parameters,
            calls=_CALLS,
            inputs=_page,
            needed=Needed(
                "runs attention among tokens of padding, which a mask hides from one another",
                _needed_vision,
                Calls({**_CALLS.variables, "pairs": "pairs of tokens of a page that see one another"}, _needed_calls),
            ),
        ),
        projector_stage(
            _projection,
            title="projection of the patches to the decoder's width",
            inputs=_projector_inputs,
            calls=_CALLS,
            rows=lambda sizes, values: values["pages"] * sizes.tiles * sizes.patches,
            needed=Needed(
                "projects the padding of pages",
                lambda sizes, values: linears_operators(_projection(sizes), values["views"] * sizes.patches),
                VIEWS,
            ),
        ),
    ),
    pages=Pages(_whole_page, step=lambda model, sizes, workload: _seen(model, sizes, workload, 1)),
    shipped=("llama-3.2-11b-vision",),
    encoder_tokens="tokens of a page without padding",
    encoder_tokens_of=lambda sizes, workload: workload.global_views * sizes.patches,
    notes=(
        "a page is padded to the most tiles that it may have, and its tiles attend to the padding; the text does "
        "not, though transformers executes that, too; one token of the prompt stands for the page",
        "the prefill makes the keys and values of the page once; the cache holds them beside those of the text, and "
        "its bytes include those of padding tiles, which transformers keeps and the model does not need",
    ),
)
