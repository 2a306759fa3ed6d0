"""MiniCPM-OCR: a page and slices of it at resolutions of their own through one sequence, a decoder like Qwen 3.5's.

Source: transformers, ``modeling_minicpm_ocr.py``, ``image_processing_minicpm_ocr.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, convolution, feed_forward, linear, repeated, self_attention
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.builders.vision_language import part, square, text_decoder
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import OF_STATES, empty
from stagemeter.models.families.qwen3_next import FAMILY as TEXT
from stagemeter.models.family import PageRules, PageViews, Variables
from stagemeter.models.pages.settings import MOST_TILES, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.sam import CHANNELS

_VISION, _MERGER = "model.vision_tower", "model.merger"
#: Most slices of a page, and the side of a square that has as many pixels as a view is brought to, by default.
_MOST_SLICES, _SIDE = 9, 448
#: Patches per side that are merged at a time.
_MERGED = 2
#: Patches that become one token, by the name of how they are merged.
_PATCHES_OF_TOKEN = {"4x": 4, "16x": 16}


@dataclass(frozen=True, slots=True)
class MiniCPMOcrArchitecture(Sizes):
    """Sizes of a model of this family.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the feed-forward network of the vision transformer.
    patch_size, positions : int
        Side of a patch in pixels, and learned positions.
    patches_of_token : int
        Patches that become one token.
    merge_after : int
        Layers after which four patches are merged by attention within windows; 0 where they are not. What merges them
        is part of the model all the same.
    decoder : Decoder
        The language model.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    positions: int
    patches_of_token: int
    merge_after: int
    decoder: Decoder

    @property
    def block(self) -> int:
        """Side in pixels of what becomes one token."""
        return self.patch_size * math.isqrt(self.patches_of_token)


def _read(settings: Settings) -> MiniCPMOcrArchitecture:
    sizes = part(settings, "vision_config")
    if settings.values.get("image_token_id") is None:
        raise StagemeterError(
            f"{settings.source}: image_token_id is missing or null; without a token that stands for a page, the model "
            "looks at none"
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
        raise StagemeterError(f"{settings.source}: insert_layer_id is {after - 1}, but there are {layers} layers")
    sizes.split("hidden_size", "num_attention_heads")
    return MiniCPMOcrArchitecture(
        hidden=sizes.whole("hidden_size"),
        layers=layers,
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=square(sizes, "patch_size"),
        positions=(square(sizes, "image_size") // square(sizes, "patch_size")) ** 2,
        patches_of_token=_PATCHES_OF_TOKEN[mode],
        merge_after=after if mode == "16x" else 0,
        decoder=replace(text_decoder(settings), head_everywhere=True),
    )


@dataclass(frozen=True, slots=True)
class _Slicing:
    """How a page is cut.

    Attributes
    ----------
    most : int
        Slices at most; 1 where a page is not cut.
    side : int
        Side of a square that has as many pixels as a view is brought to.
    enlarges : bool
        Whether a small page is brought to as many, too.
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
    """Width and height that a view is brought to: whole tokens, about as many pixels as a square of the side has.

    Source: ``find_best_resize``.
    """
    if height * width > slicing.side**2 or enlarge:
        ratio = width / height
        height = int(slicing.side / math.sqrt(ratio))
        width = int(height * ratio)
    return _nearest(width, sizes.block), _nearest(height, sizes.block)


def _grid(slicing: _Slicing, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of slices of a page; none where it is small. Source: ``get_sliced_grid``."""
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
    """Tokens of the view of a whole page, and of each slice."""
    whole = _tokens(sizes, workload.view_size or (workload.base_size, workload.base_size))
    return whole, (workload.image_tokens - whole) // max(workload.local_views, 1)


def _calls(sizes: MiniCPMOcrArchitecture, workload: Workload) -> list[Variables]:
    page, one = _tokens_of_views(sizes, workload)
    return [{"pages": workload.batch_size, "page": page, "slices": workload.local_views, "slice": one}]


def _vision_operators(sizes: MiniCPMOcrArchitecture, values: Variables) -> list[Operator]:
    patches = sizes.patches_of_token
    tokens = values["pages"] * (values["page"] + values["slices"] * values["slice"])
    embedding = convolution(
        positions=tokens * patches,
        input_elements=tokens * patches * CHANNELS * sizes.patch_size**2,
        inputs=CHANNELS,
        outputs=sizes.hidden,
        kernel_area=sizes.patch_size**2,
        bias=True,
    )
    whole = sizes.merge_after or sizes.layers
    return [
        (embedding, 1),
        *_layers(sizes, values, tokens, patches, whole),
        *(_window_operators(sizes, tokens * (patches // 4)) if sizes.merge_after else []),
        *_layers(sizes, values, tokens, patches // 4, sizes.layers - whole),
    ]


def _layers(sizes: MiniCPMOcrArchitecture, values: Variables, tokens: int, patches: int, times: int) -> list[Operator]:
    """Operators of some layers, in which each view attends to itself, over tokens of some patches."""
    if not times:
        return []
    rows, width, heads = tokens * patches, sizes.hidden, sizes.heads
    page, one = values["page"] * patches, values["slice"] * patches
    others = [*[linear(rows, width, width, bias=True)] * 4, *feed_forward(rows, width, sizes.intermediate)]
    return [
        *repeated(others, times),
        (self_attention(page, page, heads, width // heads), values["pages"] * times),
        (self_attention(one, one, heads, width // heads), values["pages"] * values["slices"] * times),
    ]


def _window_operators(sizes: MiniCPMOcrArchitecture, windows: int) -> list[Operator]:
    """Operators of attention within windows of four patches, and of what makes one of them."""
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


def _vision_parameters(sizes: MiniCPMOcrArchitecture) -> int:
    width, between = sizes.hidden, sizes.intermediate
    layer = 4 * (width + 1) * width + 2 * width * between + between + width + 4 * width
    embedding = (CHANNELS * sizes.patch_size**2 + 1 + sizes.positions) * width
    return embedding + sizes.layers * layer + 2 * width + _window_parameters(sizes)


def _merger_operators(sizes: MiniCPMOcrArchitecture, values: Variables) -> list[Operator]:
    """Views are merged one by one."""
    merged = 4 * sizes.hidden
    views = ((values["page"], values["pages"]), (values["slice"], values["pages"] * values["slices"]))
    return [
        (linear(tokens, merged, outputs, bias=True), times)
        for tokens, times in views
        for outputs in (merged, sizes.decoder.hidden)
    ]


def _merger_parameters(sizes: MiniCPMOcrArchitecture) -> int:
    merged = 4 * sizes.hidden
    return 2 * merged + (merged + 1) * (merged + sizes.decoder.hidden)


def _page(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> dict[str, Any]:
    """Patches of all views of the pages of a batch, side by side, and rows and columns of each view."""
    import torch

    width, height = workload.view_size or (workload.base_size, workload.base_size)
    _, tokens = _tokens_of_views(sizes, workload)
    views = [(width, height)]
    if workload.local_views:
        # A slice may have any shape of as many tokens: each patch attends to all others of its view.
        across = max(side for side in range(1, math.isqrt(tokens) + 1) if not tokens % side)
        views += [(across * sizes.block, tokens // across * sizes.block)] * workload.local_views
    views *= workload.batch_size
    grids = [[height // sizes.patch_size, width // sizes.patch_size] for width, height in views]
    patches = sum(rows * columns for rows, columns in grids)
    return {
        "pixel_values": empty(model, 1, CHANNELS, sizes.patch_size, patches * sizes.patch_size),
        "target_sizes": torch.tensor(grids, dtype=torch.int32, device=model.device),
    }


def _named_page(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> dict[str, Any]:
    """The same for the whole model, with the tokens that stand for the page."""
    page = _page(model, sizes, workload)
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


def _run_vision(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> None:
    model.get_submodule(_VISION)(**_page(model, sizes, workload), use_vit_merger=sizes.merge_after > 0)


def _run_merger(model: Any, sizes: MiniCPMOcrArchitecture, workload: Workload) -> None:
    grids = _page(model, sizes, workload)["target_sizes"]
    if sizes.merge_after:
        grids = grids // _MERGED
    patches = workload.batch_size * workload.image_tokens * _MERGED**2
    model.get_submodule(_MERGER)(empty(model, 1, patches, sizes.hidden), grids)


_VARIABLES = {
    "pages": "pages: batch_size",
    "page": "tokens of the view of a whole page",
    "slices": "slices of a page",
    "slice": "tokens of one slice",
}

FAMILY = page_family(
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
            modules=(_VISION,),
            operators=_vision_operators,
            parameters=_vision_parameters,
            variables=_VARIABLES,
            calls=_calls,
            run=_run_vision,
            unused=lambda sizes: 0 if sizes.merge_after else _window_parameters(sizes),
        ),
        page_stage(
            name="merger",
            title="four patches to a token of the decoder's width, view by view",
            modules=(_MERGER,),
            operators=_merger_operators,
            parameters=_merger_parameters,
            variables=_VARIABLES,
            calls=_calls,
            run=_run_merger,
        ),
    ),
    language="model.language_model",
    page=_named_page,
    shipped={"minicpm-ocr-default": "minicpm_ocr_default.json"},
    notes=(
        "a page is seen as a whole and, if it is large, in slices; the tokens that the processor writes around them "
        "count as text",
        "transformers runs the output head on every position of a prompt, and so is it counted",
        *TEXT.notes,
        "videos are not counted",
    ),
    valued=True,
    prefill_variables=OF_STATES,
    prefill_title="decoder over the prompt, output head on every position",
)
