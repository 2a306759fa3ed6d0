"""PaddleOCR-VL: an encoder over pages at their own resolution, and a decoder like ERNIE 4.5's.

Source: transformers, ``modeling_paddleocr_vl.py``, ``image_processing_pil_paddleocr_vl.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from stagemeter.errors import StagemeterError
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder import Decoder, Layer
from stagemeter.models.decoder_stages import DecoderModules, decoder_stages, empty
from stagemeter.models.family import Family, PageViews, Variables
from stagemeter.models.interpolated_vision import (
    InterpolatedVision,
    grid_of,
    interpolated_operators,
    interpolated_parameters,
    interpolated_vision,
    merging_parameters,
    patches_of_page,
    view_of,
)
from stagemeter.models.page_stages import page_passes, page_stage, page_tokens, with_values
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.text import decoder, gated, grouped_query_attention
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision_language import part
from stagemeter.workload import Workload

_VISION, _PROJECTOR, _LANGUAGE = "model.visual", "model.projector", "model.language_model"
#: Pixels between which a page is resized, as the processor has it by default, and how long one may be.
_MIN_PIXELS, _MAX_PIXELS, _LONGEST_PAGE = 384**2, 1536**2, 200


@dataclass(frozen=True, slots=True)
class PaddleOcrArchitecture(Sizes):
    """Sizes of the encoder and the language model.

    Attributes
    ----------
    vision : InterpolatedVision
        The encoder.
    decoder : Decoder
        The language model.
    """

    vision: InterpolatedVision
    decoder: Decoder


def _read(config: Mapping[str, Any], source: str) -> PaddleOcrArchitecture:
    settings = Settings(config, source)
    sizes, text = part(settings, "vision_config"), part(settings, "text_config")
    side = sizes.whole("image_size", 384) // sizes.whole("patch_size", 14)
    vision = interpolated_vision(sizes, sizes.whole("spatial_merge_size", 2), side**2)
    text.refuse("use_bias", True, "the decoder of PaddleOCR-VL has none")
    tied = settings.flag("tie_word_embeddings", default=True)
    said = Settings({"tie_word_embeddings": tied, **text.values}, text.source)
    layer = Layer(grouped_query_attention(said), gated(said), said.whole("num_hidden_layers"))
    return PaddleOcrArchitecture(vision, decoder(said, [layer]))


def resized(vision: InterpolatedVision, width: int, height: int) -> tuple[int, int]:
    """Width and height that a page is resized to: whole tokens, within the limits, its shape kept as well as may be.

    Source: transformers, ``image_processing_pil_paddleocr_vl.py``, ``smart_resize``.

    Raises
    ------
    StagemeterError
        If one side is more than 200 times the other, which the processor refuses.
    """
    block, asked = vision.block, f"{width} x {height}"
    # A side that is shorter than a token is made as long, the other one in proportion.
    if height < block:
        width, height = round(width * block / height), block
    if width < block:
        width, height = block, round(height * block / width)
    if max(width, height) > _LONGEST_PAGE * min(width, height):
        raise StagemeterError(
            f"a page of {asked} pixels: this model takes none with one side more than {_LONGEST_PAGE} times the other"
        )
    columns, rows = (round(side / block) * block for side in (width, height))
    if columns * rows > _MAX_PIXELS:
        shrink = math.sqrt(width * height / _MAX_PIXELS)
        columns, rows = (max(block, math.floor(side / shrink / block) * block) for side in (width, height))
    elif columns * rows < _MIN_PIXELS:
        stretch = math.sqrt(_MIN_PIXELS / (width * height))
        columns, rows = (math.ceil(side * stretch / block) * block for side in (width, height))
    return columns, rows


def _views(sizes: PaddleOcrArchitecture, width: int, height: int) -> PageViews:
    return view_of(sizes.vision, *resized(sizes.vision, width, height))


def _projector_operators(sizes: PaddleOcrArchitecture, values: Variables) -> list[Operator]:
    tokens, merged = values["tokens"], sizes.vision.merged
    # Page by page, so that the weights are read for each.
    return [
        (linear(tokens, merged, merged, bias=True), values["views"]),
        (linear(tokens, merged, sizes.decoder.hidden, bias=True), values["views"]),
    ]


def _page(model: Any, sizes: PaddleOcrArchitecture, workload: Workload) -> dict[str, Any]:
    """Patches of the pages of a batch, how they lie, and the tokens that stand for the page."""
    vision, patches = sizes.vision, workload.batch_size * patches_of_page(sizes.vision, workload)
    page = {
        "pixel_values": empty(model, patches, CHANNELS, vision.patch_size, vision.patch_size),
        "image_grid_thw": grid_of(model, vision, workload),
    }
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


def _run_vision(model: Any, sizes: PaddleOcrArchitecture, workload: Workload) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule(_VISION)(page["pixel_values"].unsqueeze(0), grid_thw=page["image_grid_thw"])


def _run_projector(model: Any, sizes: PaddleOcrArchitecture, workload: Workload) -> None:
    patches = workload.batch_size * patches_of_page(sizes.vision, workload)
    grid = grid_of(model, sizes.vision, workload)
    model.get_submodule(_PROJECTOR)(empty(model, patches, sizes.vision.hidden), grid)


_STAGES = (
    page_stage(
        name="vit",
        title="vision transformer over the patches of the page",
        modules=(_VISION,),
        operators=lambda sizes, values: interpolated_operators(sizes.vision, **values),
        parameters=lambda sizes: interpolated_parameters(sizes.vision),
        variables={"views": "pages: batch_size", "patches": "patches of one page"},
        calls=lambda sizes, workload: [
            {"views": workload.batch_size, "patches": patches_of_page(sizes.vision, workload)}
        ],
        run=_run_vision,
    ),
    page_stage(
        name="projector",
        title="neighbouring patches merged to tokens of the decoder's width",
        modules=(_PROJECTOR,),
        operators=_projector_operators,
        parameters=lambda sizes: merging_parameters(sizes.vision, sizes.decoder.hidden),
        variables={"views": "pages: batch_size", "tokens": "tokens of one page: image_tokens"},
        calls=lambda sizes, workload: [{"views": workload.batch_size, "tokens": workload.image_tokens}],
        run=_run_projector,
    ),
)

FAMILY: Family[PaddleOcrArchitecture] = Family(
    name="paddleocr-vl",
    title="PaddleOCR-VL: a page at its own resolution, a decoder like ERNIE 4.5's",
    reads_pages=True,
    views=_views,
    takes=lambda config: config.get("model_type") == "paddleocr_vl",
    architecture_from_config=_read,
    build=lambda sizes, config: build_from_settings(config),
    shipped={"paddleocr-vl": resources.files("stagemeter.models") / "configs" / "paddleocr_vl.json"},
    decoder=lambda sizes: sizes.decoder,
    stages=(
        *(replace(stage, run=with_values(stage.run)) for stage in _STAGES),
        *decoder_stages(lambda sizes: sizes.decoder, DecoderModules(_LANGUAGE, "lm_head")),
    ),
    other_parameters=lambda sizes: {},
    architecture_from_sizes=sizes_reader(PaddleOcrArchitecture),
    whole_passes={name: with_values(run) for name, run in page_passes(lambda sizes: sizes.decoder, _page).items()},
    notes=(
        f"pages are resized to between {_MIN_PIXELS:,} and {_MAX_PIXELS:,} pixels, as the processor does by default",
        "pages go through the projector one by one, as transformers runs it",
    ),
)
