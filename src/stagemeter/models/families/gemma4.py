"""Gemma 4: a page at its own shape, patches pooled to tokens, and Gemma 4's language model.

The processor pads the patches of a page to a fixed number. Pooling is a product with a matrix that assigns patches to
tokens. Source: transformers, ``modeling_gemma4.py``, ``image_processing_gemma4.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, product
from stagemeter.models.builders.encoders import projector_stage, view_size
from stagemeter.models.builders.page_stages import Calls, Needed, batches_of_pages, image_tokens_of, page_stage
from stagemeter.models.builders.vision_language import VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.decoder.visibility import later_pairs
from stagemeter.models.families import text_decoder
from stagemeter.models.families.gemma4_text import SHARED_NOTE
from stagemeter.models.family import Variables
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.pixel_limits import whole_blocks
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, later
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.vit import (
    LLAMA_LAYERS,
    TransformerSizes,
    VisionTransformer,
    vit_of,
    vit_operators,
    vit_parameters,
)

#: Most tokens of a page, by default and as the processor allows.
_MOST_TOKENS, _POSSIBLE_TOKENS = 280, (70, 140, 280, 560, 1120)
#: Numbers with which a linear layer clips its inputs and results.
_LIMITS = 4


@dataclass(frozen=True, slots=True)
class Gemma4Architecture(Sizes, TransformerSizes):
    """Sizes of Gemma 4.

    Attributes
    ----------
    pooled, positions : int
        Patches per side that become one token, and learned positions along each side.
    limits : bool
        Whether the linear layers of both encoders clip their inputs and results.
    standardized : bool
        Whether the checkpoint holds a shift and a scale for tokens.
    audio : int
        Parameters of the audio encoder and its projection, which no page needs; 0 without one.
    both_ways : bool
        Whether the tokens of a page attend to one another both ways in layers with a window.
    """

    head_width: int
    pooled: int
    positions: int
    limits: bool
    standardized: bool
    audio: int
    decoder: Decoder
    both_ways: bool = later(False)

    @property
    def block(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * self.pooled

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer, whose patch embedding is a linear layer."""
        return vit_of(self, **LLAMA_LAYERS, outer_norms=0, positions=2 * self.positions, norms=4, head_norms=True)


def _read(settings: Settings) -> Gemma4Architecture:
    if settings.values["vision_config"] is None:
        raise StagemeterError(
            f"{settings.source}: vision_config is null or missing, so the model reads only text. Give its text_config "
            "as a configuration of its own"
        )
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    heads = sizes.whole("num_attention_heads")
    if sizes.whole("num_key_value_heads") != heads:
        sizes.refuse("num_key_value_heads", sizes.values["num_key_value_heads"], f"this family has {heads}, as queries")
    return Gemma4Architecture(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=heads,
        head_width=sizes.whole("head_dim"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=sizes.whole("patch_size"),
        # Without pooling, transformers would confuse padding and page.
        pooled=sizes.whole("pooling_kernel_size", least=2),
        positions=sizes.whole("position_embedding_size"),
        limits=sizes.flag("use_clipped_linears"),
        standardized=sizes.flag("standardize"),
        audio=0 if settings.values.get("audio_config") is None else _audio(settings.part("audio_config"), decoder),
        decoder=decoder,
        both_ways=settings.part("text_config").values["use_bidirectional_attention"] == "vision",
    )


def _audio(sizes: Settings, decoder: Decoder) -> int:
    """Return the parameters of the audio encoder and of the projection to the decoder's width."""
    width, outputs = sizes.whole("hidden_size"), sizes.whole("output_proj_dims")
    head_width = sizes.split("hidden_size", "num_attention_heads")
    channels = sizes.values["subsampling_conv_channels"]
    if not isinstance(channels, (list, tuple)) or len(channels) != 2:
        sizes.refuse("subsampling_conv_channels", channels, "there are two convolutions")
    first, second = map(int, channels)
    # Nine weights for each pair of channels, and a norm.
    convolutions = 9 * first + first + 9 * first * second + second + (first // 4) * second * width
    attention = 5 * width**2 + head_width
    feed_forward = 8 * width**2 + 2 * width
    convolution = 3 * width**2 + (sizes.whole("conv_kernel_size") + 2) * width
    # Four of attention, two of each feed-forward network, two of the convolution.
    limits = 10 * _LIMITS * sizes.flag("use_clipped_linears")
    layer = attention + 2 * feed_forward + convolution + 3 * width + limits
    projections = (width + 1) * outputs + outputs * decoder.hidden
    return convolutions + sizes.whole("num_hidden_layers") * layer + projections


def resized(sizes: Gemma4Architecture, width: int, height: int, tokens: int = _MOST_TOKENS) -> tuple[int, int]:
    """Return the largest width and height of a page's shape with at most so many tokens, or raise StagemeterError.

    Source: transformers, ``image_processing_gemma4.py``, ``get_aspect_ratio_preserving_size``.
    """
    block = sizes.block
    most = tokens * block**2
    factor = math.sqrt(most / (width * height))
    columns, rows = (math.floor(factor * side / block) * block for side in (width, height))
    if not rows:
        columns, rows = min(width // height, tokens) * block, block
    elif not columns:
        columns, rows = block, min(height // width, tokens) * block
    if columns * rows > most:
        raise StagemeterError(
            f"a page of {width} x {height} pixels: resized to {columns} x {rows}, it has more than {tokens} tokens, "
            "and this model's processor refuses it. Cut the page"
        )
    return columns, rows


def _rules(sizes: Gemma4Architecture, settings: ProcessorSettings) -> PageRules:
    image, block = settings.image, sizes.block
    image.require("patch_size", needed=sizes.patch_size, default=16)
    image.require("pooling_kernel_size", needed=sizes.pooled, default=3)
    tokens = image.number("max_soft_tokens", published=_MOST_TOKENS, most=_POSSIBLE_TOKENS[-1])
    if tokens not in _POSSIBLE_TOKENS:
        image.refuse("max_soft_tokens", f"it must be one of {', '.join(map(str, _POSSIBLE_TOKENS))}")
    resizes = image.flag("do_resize", published=True)

    def page(width: int, height: int) -> PageViews:
        columns, rows = resized(sizes, width, height, tokens) if resizes else whole_blocks(block, width, height)
        found = (columns // block) * (rows // block)
        if found > tokens:
            raise StagemeterError(
                f"a page of {width} x {height} pixels: do_resize is false, and it has {found:,} tokens, more than the "
                f"{tokens:,} of max_soft_tokens. Resize the page, or set do_resize to true"
            )
        padded = None if tokens == _MOST_TOKENS else tokens
        return PageViews(1, 0, columns, rows, (1, 1), found, padded_tokens=padded)

    return PageRules(page)


def _padded(workload: Workload) -> int:
    return workload.padded_tokens or _MOST_TOKENS


def _vision_operators(sizes: Gemma4Architecture, values: Variables) -> list[Operator]:
    views, tokens = values["views"], values["tokens"]
    patches = tokens * sizes.pooled**2
    return [*vit_operators(sizes.vit, views, patches), (product(views, tokens, patches, sizes.hidden), 1)]


def _needed_vision(sizes: Gemma4Architecture, values: Variables) -> list[Operator]:
    # Padding is masked and cut off; pooling is an average.
    return vit_operators(sizes.vit, values["views"], values["tokens"] * sizes.pooled**2)


def _both_ways(sizes: Gemma4Architecture, workload: Workload) -> tuple[int, int]:
    """Return the pairs of a token of the page and a later one, which layers with a window alone show.

    Source: transformers, ``modeling_gemma4.py``, ``create_masks_for_vision_model``.
    """
    in_prompt = (workload.prompt_tokens >= workload.image_tokens) * sizes.both_ways
    return 0, in_prompt * later_pairs(workload.image_tokens)


def _vision_parameters(sizes: Gemma4Architecture) -> int:
    limits = sizes.layers * 7 * _LIMITS * sizes.limits
    return vit_parameters(sizes.vit) + limits + 2 * sizes.hidden * sizes.standardized


def _page(model: Any, sizes: Gemma4Architecture, workload: Workload) -> dict[str, Any]:
    """Return the patches of the pages of a batch, and the position of each in its page; padding has none."""
    import torch

    patches = _padded(workload) * sizes.pooled**2
    places = []
    for one in batches_of_pages(workload):
        columns, rows = (side // sizes.patch_size for side in view_size(one))
        page = [[index % columns, index // columns] for index in range(columns * rows)]
        places += [page + [[-1, -1]] * (patches - len(page))] * one.batch_size
    return {
        "pixel_values": empty(model, len(places), patches, sizes.vit.patch_elements),
        "image_position_ids": torch.tensor(places, device=model.device),
    }


def _vision_inputs(model: Any, sizes: Gemma4Architecture, workload: Workload) -> dict[str, Any]:
    page = _page(model, sizes, workload)
    return {"pixel_values": page["pixel_values"], "pixel_position_ids": page["image_position_ids"]}


FAMILY = vision_language_family(
    name="gemma4",
    title="Gemma 4: a page at its own shape, pooled; embeddings for each layer, shared keys and values",
    model_types=("gemma4",),
    sizes=Gemma4Architecture,
    read=_read,
    rules=_rules,
    stages=(
        page_stage(
            name="vit",
            title="vision transformer over the patches of the page, padding included, and pooling",
            modules=(VISION,),
            operators=_vision_operators,
            parameters=_vision_parameters,
            calls=Calls(
                {"views": "pages: batch_size", "tokens": "tokens that a page is padded to"},
                lambda sizes, workload: [{"views": workload.batch_size, "tokens": _padded(workload)}],
                page_by_page=True,
            ),
            inputs=_vision_inputs,
            needed=Needed(
                "runs the padding of pages through the encoder, and pools by a product with a matrix",
                _needed_vision,
                Calls(
                    {"views": "pages: batch_size", "tokens": "tokens of a page"},
                    lambda sizes, workload: [{"views": workload.batch_size, "tokens": workload.image_tokens}],
                    page_by_page=True,
                ),
            ),
        ),
        projector_stage(
            lambda sizes: [LinearSize(sizes.hidden, sizes.decoder.hidden)],
            modules=("model.embed_vision",),
            inputs=lambda model, sizes, workload: (empty(model, image_tokens_of(workload), sizes.hidden),),
            title="projection of the tokens to the decoder's width",
        ),
    ),
    pages=Pages(_page, values=True),
    # Its begin and its end. Source: ``processing_gemma4.py``, ``replace_image_token``.
    tags=lambda sizes, views: 2,
    shipped=("gemma-4-e2b",),
    notes=(
        "transformers pads a page to the most tokens that it may have, and executes the padding like the page; the "
        "model needs the page alone, and pooling is an average, which costs nothing by convention",
        SHARED_NOTE,
        "videos and sound are not counted; the parameters of the audio encoder are listed apart",
    ),
    other_parameters=lambda sizes: {"audio": sizes.audio} if sizes.audio else {},
    later=_both_ways,
)
