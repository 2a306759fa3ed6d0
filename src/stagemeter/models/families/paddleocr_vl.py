"""PaddleOCR-VL: an encoder over pages at their own resolution, and a decoder like ERNIE 4.5's.

Source: transformers, ``modeling_paddleocr_vl.py``, ``image_processing_pil_paddleocr_vl.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import patch_encoder, patch_grid, projector_stage
from stagemeter.models.builders.text import decoder, gated, grouped_query_attention
from stagemeter.models.builders.vision_language import Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.stages import empty
from stagemeter.models.families import text_settings
from stagemeter.models.family import Family, PageRules, Variables
from stagemeter.models.pages.pixel_limits import read_pixel_limits, resized_between
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.moonvit import MoonViT, moonvit

#: Limits of a page's pixels: of ``preprocessor_config.json`` of PaddlePaddle/PaddleOCR-VL, as
#: candle-examples/examples/paddleocr-vl/main.rs of huggingface/candle quotes it, and of transformers' class.
_PUBLISHED_PIXELS, _PIXELS_OF_CLASS = (147_384, 2_822_400), (384**2, 1536**2)


@dataclass(frozen=True, slots=True)
class MoonViTArchitecture(Sizes):
    """Sizes of the encoder and the language model.

    Attributes
    ----------
    vision : MoonViT
        The encoder.
    decoder : Decoder
        The language model.
    """

    vision: MoonViT
    decoder: Decoder


def moonvit_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], MoonViTArchitecture],
    resizing: Callable[[MoonViT, PageSettings], Callable[[int, int], tuple[int, int]]],
    encoder: str,
    projector: str,
    page_by_page: bool,
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Family[MoonViTArchitecture]:
    """Make a family of an encoder with interpolated positions, two layers that merge its patches, and a decoder.

    Parameters
    ----------
    name, title, model_types, read, shipped, notes
        See `vision_language_family`.
    resizing : callable
        Reads the settings of the image processor, and returns what brings a width and a height to whole tokens.
    encoder, projector : str
        Their modules.
    page_by_page : bool
        Whether the projector runs once for each page, on patches as they come; else once for all, on patches that
        the encoder put side by side.
    """

    def rules(sizes: MoonViTArchitecture, settings: ProcessorSettings) -> PageRules:
        vision, image = sizes.vision, settings.image
        image.require("patch_size", "media_proc_cfg.patch_size", needed=vision.patch_size, default=14)
        image.require("merge_size", "media_proc_cfg.merge_kernel_size", needed=vision.merge_size, default=2)
        resize = resizing(vision, image)
        return PageRules(lambda width, height: vision.patches.views(1, resize(width, height)))

    def merging_calls(sizes: MoonViTArchitecture, workload: Workload) -> list[Variables]:
        calls, pages = (workload.batch_size, 1) if page_by_page else (1, workload.batch_size)
        return [{"calls": calls, "tokens": pages * workload.image_tokens}]

    def run_encoder(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> None:
        page = _page(model, sizes, workload)
        pixels = page["pixel_values"].unsqueeze(0) if page_by_page else page["pixel_values"]
        model.get_submodule(encoder)(pixels, grid_thw=page["image_grid_thw"])

    def merging_inputs(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> tuple[Any, ...]:
        tokens, side_by_side = workload.batch_size * workload.image_tokens, sizes.vision.merge_size**2
        if page_by_page:
            grid = patch_grid(model, sizes.vision.patch_size, workload)
            return empty(model, tokens * side_by_side, sizes.vision.hidden), grid
        return (empty(model, tokens, side_by_side, sizes.vision.hidden),)

    return vision_language_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=MoonViTArchitecture,
        read=read,
        rules=rules,
        stages=(
            patch_encoder((encoder,), run=run_encoder),
            projector_stage(
                lambda sizes: sizes.vision.merger(sizes.decoder.hidden),
                inputs=merging_inputs,
                modules=(projector,),
                title="neighbouring patches merged to tokens of the decoder's width",
                variables={"calls": "times that it runs", "tokens": "tokens of one time"},
                calls=merging_calls,
                norms=lambda sizes: 2 * sizes.vision.hidden,
            ),
        ),
        pages=Pages(_page, values=True),
        shipped=shipped,
        notes=notes,
    )


def _page(model: Any, sizes: MoonViTArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the patches of the pages of a batch, and how they lie."""
    vision = sizes.vision
    patches = workload.batch_size * workload.image_tokens * vision.merge_size**2
    return {
        "pixel_values": empty(model, patches, CHANNELS, vision.patch_size, vision.patch_size),
        "image_grid_thw": patch_grid(model, vision.patch_size, workload),
    }


def _read(settings: Settings) -> MoonViTArchitecture:
    sizes, said = settings.part("vision_config"), text_settings(settings)
    side = sizes.whole("image_size") // sizes.whole("patch_size")
    vision = moonvit(sizes, sizes.whole("spatial_merge_size"), side**2)
    said.refuse("use_bias", True, "the decoder of PaddleOCR-VL has none")
    layer = Layer(grouped_query_attention(said), gated(said), said.whole("num_hidden_layers"))
    return MoonViTArchitecture(vision, decoder(said, [layer]))


def _resizing(vision: MoonViT, image: PageSettings) -> Callable[[int, int], tuple[int, int]]:
    """Read how a page is resized to whole tokens; a side shorter than a token is first enlarged to one.

    Source: transformers, ``image_processing_pil_paddleocr_vl.py``, ``smart_resize``.
    """
    image.require("temporal_patch_size", needed=1)
    limits, block = read_pixel_limits(image, _PUBLISHED_PIXELS, _PIXELS_OF_CLASS), vision.block

    def resized(width: int, height: int) -> tuple[int, int]:
        if limits.resizes and height < block:
            width, height = round(width * block / height), block
        if limits.resizes and width < block:
            width, height = block, round(height * block / width)
        return resized_between(limits, block, width, height)

    return resized


FAMILY = moonvit_family(
    name="paddleocr-vl",
    title="PaddleOCR-VL: a page at its own resolution, a decoder like ERNIE 4.5's",
    model_types=("paddleocr_vl",),
    read=_read,
    resizing=_resizing,
    encoder="model.visual",
    projector="model.projector",
    shipped={"paddleocr-vl": "paddleocr_vl.json"},
    page_by_page=True,
    notes=("transformers runs the projector page by page",),
)
