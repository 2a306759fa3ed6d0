"""MiniCPM-OCR: a page and its slices, each at its own resolution, in one sequence; a decoder like Qwen 3.5's.

Source: transformers, ``modeling_minicpm_ocr.py``, ``image_processing_minicpm_ocr.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, linear, self_attention
from stagemeter.models.builders.encoders import view_size
from stagemeter.models.builders.page_stages import Calls, batches_of_pages, image_tokens_of, page_stage
from stagemeter.models.builders.vision_language import VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.families.qwen3_next import DELTA_NET_NOTE
from stagemeter.models.family import Variables
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import MOST_TILES, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import LinearSize, linears_operators, linears_parameters
from stagemeter.models.vision.vit import (
    TransformerSizes,
    VisionTransformer,
    layer_operators,
    layer_sizes,
    patch_embedding,
    vit_of,
    vit_parameters,
)

_MERGER = "model.merger"
#: Most slices of a page by default, and the side of a square with the pixels of a view.
_MOST_SLICES, _SIDE = 9, 448
#: Patches per side that one step merges.
_MERGED = 2
#: Patches that become one token, by ``downsample_mode``.
_PATCHES_OF_TOKEN = {"4x": 4, "16x": 16}


@dataclass(frozen=True, slots=True)
class MiniCPMOcrArchitecture(Sizes, TransformerSizes):
    """Sizes of MiniCPM-OCR.

    After `merge_after` layers, attention within windows merges four patches; 0 if it never runs. The model holds its
    weights in both cases.
    """

    positions: int
    patches_of_token: int
    merge_after: int
    decoder: Decoder

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer, without the layers that merge patches within it."""
        return vit_of(self, view_by_view=True)

    @property
    def merger(self) -> list[LinearSize]:
        """Layers that make a token of four patches."""
        merged = 4 * self.hidden
        return [LinearSize(merged, merged, bias=True), LinearSize(merged, self.decoder.hidden, bias=True)]

    @property
    def block(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * math.isqrt(self.patches_of_token)


def _read(settings: Settings) -> MiniCPMOcrArchitecture:
    sizes = settings.part("vision_config")
    if settings.values.get("image_token_id") is None:
        raise StagemeterError(
            f"{settings.source}: image_token_id is missing or null, and without it the model ignores pages. Give the "
            "token that stands for a page"
        )
    for holder, key in ((settings, "merge_kernel_size"), (sizes, "window_kernel_size")):
        if holder.values[key] != [_MERGED] * 2:
            holder.refuse(key, holder.values[key], "this family merges two patches down and two across")
    if settings.whole("merger_times") != 1:
        settings.refuse("merger_times", settings.values["merger_times"], "this family merges tokens once")
    mode = settings.values["downsample_mode"]
    if not isinstance(mode, str) or mode not in _PATCHES_OF_TOKEN:
        settings.refuse("downsample_mode", mode, f"it must be one of {', '.join(_PATCHES_OF_TOKEN)}")
    layers, after = sizes.whole("num_hidden_layers"), settings.whole("insert_layer_id", least=0) + 1
    if mode == "16x" and after > layers:
        raise StagemeterError(f"{settings.source}: insert_layer_id is {after - 1}. It must be less than {layers}")
    return MiniCPMOcrArchitecture(
        **layer_sizes(sizes),
        patch_size=sizes.square("patch_size"),
        positions=(sizes.square("image_size") // sizes.square("patch_size")) ** 2,
        patches_of_token=_PATCHES_OF_TOKEN[mode],
        merge_after=after if mode == "16x" else 0,
        decoder=replace(text_decoder(settings), head_everywhere=True),
    )


@dataclass(frozen=True, slots=True)
class _Slicing:
    """The rule that cuts a page to slices, at most `most`; 1 if pages are not cut.

    A view is resized to as many pixels as a square of `side` pixels; a small page is only if `enlarges` is true.
    """

    most: int
    side: int
    enlarges: bool


def _rules(sizes: MiniCPMOcrArchitecture, settings: ProcessorSettings) -> PageRules:
    image = settings.image
    image.require("patch_size", needed=sizes.patch_size, default=14)
    merging = next(name for name, patches in _PATCHES_OF_TOKEN.items() if patches == sizes.patches_of_token)
    image.require("downsample_mode", needed=merging, default="4x", why="config.json has")
    image.require("do_resize", needed=True, why="MiniCPM-OCR's processor takes no other value than")
    most = image.number("max_slice_nums", published=_MOST_SLICES, most=MOST_TILES, option="max_tiles", name="max_tiles")
    side = image.number("scale_resolution", published=_SIDE, least=sizes.block)
    slices = image.flag("slice_mode", published=True)
    upsize = image.values.get("small_image_upsize") or "always"
    if upsize not in ("always", "never"):
        image.refuse("small_image_upsize", "only 'always' and 'never' do not depend on what is on a page")
    slicing = _Slicing(most if slices else 1, side, upsize == "always")

    def page(width: int, height: int) -> PageViews:
        columns, rows = _grid(slicing, width, height)
        whole = _resized(sizes, slicing, width, height, enlarge=not columns and slicing.enlarges)
        tokens = _tokens(sizes, whole)
        if columns:
            nearest = _nearest(width, columns) / columns, _nearest(height, rows) / rows
            tokens += columns * rows * _tokens(sizes, _resized(sizes, slicing, *nearest, enlarge=True))
        return PageViews(1, columns * rows, *whole, (columns, rows) if columns else (1, 1), tokens)

    return PageRules(page)


def _nearest(length: float, divisor: int) -> int:
    return max(round(length / divisor) * divisor, divisor)


def _resized(
    sizes: MiniCPMOcrArchitecture, slicing: _Slicing, width: float, height: float, enlarge: bool
) -> tuple[int, int]:
    """Return the width and height of a view in whole tokens, near a square in area. Source: ``find_best_resize``."""
    if height * width > slicing.side**2 or enlarge:
        ratio = width / height
        height = int(slicing.side / math.sqrt(ratio))
        width = int(height * ratio)
    return _nearest(width, sizes.block), _nearest(height, sizes.block)


def _grid(slicing: _Slicing, width: int, height: int) -> tuple[int, int]:
    """Return the columns and rows of slices of a page; zeros for a small one. Source: ``get_sliced_grid``."""
    slices = min(math.ceil(width * height / slicing.side**2), slicing.most)
    best, least = (0, 0), math.inf
    if slices <= 1:
        return best
    best = (1, 1)
    for number in range(max(2, slices - 1), min(slices + 1, slicing.most) + 1):
        for rows in range(1, number + 1):
            if number % rows:
                continue
            columns = number // rows
            distance = abs(math.log(width / height) - math.log(columns / rows))
            if distance < least or (distance == least and rows > best[1]):
                best, least = (columns, rows), distance
    return best


def _tokens(sizes: MiniCPMOcrArchitecture, view: tuple[int, int]) -> int:
    return (view[0] // sizes.block) * (view[1] // sizes.block)


def _tokens_of_views(sizes: MiniCPMOcrArchitecture, workload: Workload) -> tuple[int, int]:
    """Return the tokens of the view of a whole page, and of each slice."""
    whole = _tokens(sizes, view_size(workload))
    return whole, (workload.image_tokens - whole) // max(workload.local_views, 1)


def _tags(sizes: MiniCPMOcrArchitecture, views: PageViews) -> int:
    """Return the tokens around the views of a page: its number in tags, two for each view, a break between rows.

    Source: transformers, ``processing_minicpm_ocr.py``, ``replace_image_token``, ``_prepend_local_ids``.
    """
    return 3 + 2 * (1 + views.local_views) + (views.tile_grid[1] - 1)


def _calls(sizes: MiniCPMOcrArchitecture, workload: Workload) -> list[Variables]:
    page, one = _tokens_of_views(sizes, workload)
    return [{"pages": workload.batch_size, "page": page, "slices": workload.local_views, "slice": one}]


def _vision_operators(sizes: MiniCPMOcrArchitecture, values: Variables) -> list[Operator]:
    patches, whole = sizes.patches_of_token, sizes.merge_after or sizes.layers
    tokens = values["pages"] * (values["page"] + values["slices"] * values["slice"])

    def layers(of_token: int, times: int) -> list[Operator]:
        pages = values["pages"], values["page"] * of_token
        slices = values["pages"] * values["slices"], values["slice"] * of_token
        return layer_operators(sizes.vit, [pages, slices], times)

    return [
        (patch_embedding(sizes.vit, tokens * patches), 1),
        *layers(patches, whole),
        *(_window_operators(sizes, tokens * (patches // 4)) if sizes.merge_after else []),
        *layers(patches // 4, sizes.layers - whole),
    ]


def _window_operators(sizes: MiniCPMOcrArchitecture, windows: int) -> list[Operator]:
    """Return the operators of attention within windows of four patches, and of the layers that merge them."""
    width = sizes.hidden
    return [
        (linear(4 * windows, width, width, bias=True), 4),
        (self_attention(4, 4, sizes.heads, width // sizes.heads), windows),
        (linear(windows, 4 * width, 4 * sizes.intermediate, bias=True), 1),
        (linear(windows, 4 * sizes.intermediate, width, bias=True), 1),
    ]


def _window_parameters(sizes: MiniCPMOcrArchitecture) -> int:
    width, between = sizes.hidden, 4 * sizes.intermediate
    return 4 * (width + 1) * width + 2 * width + 2 * 4 * width + (4 * width + 1) * between + (between + 1) * width


def _merger_operators(sizes: MiniCPMOcrArchitecture, values: Variables) -> list[Operator]:
    pages, slices = values["pages"], values["pages"] * values["slices"]
    return [
        *linears_operators(sizes.merger, values["page"], pages),
        *linears_operators(sizes.merger, values["slice"], slices),
    ]


def _page(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the patches of all views of a batch, side by side, and the rows and columns of each view."""
    import torch

    views = []
    for one in batches_of_pages(workload):
        page = [view_size(one)]
        if one.local_views:
            # Any shape with as many tokens works: each patch attends to all others of its view.
            _, tokens = _tokens_of_views(sizes, one)
            across = max(side for side in range(1, math.isqrt(tokens) + 1) if not tokens % side)
            page += [(across * sizes.block, tokens // across * sizes.block)] * one.local_views
        views += page * one.batch_size
    grids = [[height // sizes.patch_size, width // sizes.patch_size] for width, height in views]
    patches = sum(rows * columns for rows, columns in grids)
    return {
        "pixel_values": empty(model, 1, CHANNELS, sizes.patch_size, patches * sizes.patch_size),
        "target_sizes": torch.tensor(grids, dtype=torch.int32, device=model.device),
    }


def _vision_inputs(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> dict[str, Any]:
    return {**_page(model, sizes, workload), "use_vit_merger": sizes.merge_after > 0}


def _merger_inputs(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> tuple[Any, ...]:
    grids = _page(model, sizes, workload)["target_sizes"]
    if sizes.merge_after:
        grids = grids // _MERGED
    patches = image_tokens_of(workload) * _MERGED**2
    return empty(model, 1, patches, sizes.hidden), grids


_CALLS = Calls(
    {
        "pages": "pages: batch_size",
        "page": "tokens of the view of a whole page",
        "slices": "slices of a page",
        "slice": "tokens of one slice",
    },
    _calls,
    page_by_page=True,
)
#: The merger reads its weights for each view.
_MERGER_CALLS = Calls(
    _CALLS.variables,
    lambda sizes, workload: [call for one in batches_of_pages(workload) for call in _calls(sizes, one)],
)

FAMILY = vision_language_family(
    name="minicpm-ocr",
    title="MiniCPM-OCR: a page and its slices at resolutions of their own, a decoder like Qwen 3.5's",
    model_types=("minicpm_ocr",),
    sizes=MiniCPMOcrArchitecture,
    read=_read,
    rules=_rules,
    stages=(
        page_stage(
            name="vit",
            title="vision transformer over the patches of all views, each attending to itself",
            modules=(VISION,),
            operators=_vision_operators,
            parameters=lambda sizes: vit_parameters(sizes.vit) + _window_parameters(sizes),
            calls=_CALLS,
            inputs=_vision_inputs,
            unused=lambda sizes: 0 if sizes.merge_after else _window_parameters(sizes),
        ),
        page_stage(
            name="merger",
            title="four patches to a token of the decoder's width, view by view",
            modules=(_MERGER,),
            operators=_merger_operators,
            parameters=lambda sizes: 8 * sizes.hidden + linears_parameters(sizes.merger),
            calls=_MERGER_CALLS,
            inputs=_merger_inputs,
        ),
    ),
    pages=Pages(_page, values=True),
    tags=_tags,
    shipped=("minicpm-ocr-default",),
    notes=(
        "a page is one view as a whole and, if it is large, several slices; the tokens that the processor writes "
        "around them count as text; around further pages, the number of each counts as one token",
        "transformers executes the output head on every position of a prompt; the model needs it on the last",
        DELTA_NET_NOTE,
        "videos are not counted",
    ),
    prefill_variables=GatedDeltaNet.PREFILL_VARIABLES,
    prefill_title="decoder over the prompt, output head on every position",
)
