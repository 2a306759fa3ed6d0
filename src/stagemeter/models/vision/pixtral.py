"""Families of Pixtral's vision transformer: pages at their own resolution, all pages of a batch in one sequence.

Source: transformers, ``modeling_pixtral.py``, ``modeling_mistral3.py``, ``modeling_lighton_ocr.py``,
``image_processing_pil_pixtral.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, convolution, gated_feed_forward, linear, repeated, self_attention
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.builders.vision_language import VisionLanguageModules, part, square, text_decoder
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.family import Family, PageRules, PageViews, Variables
from stagemeter.models.pages.pixel_limits import whole_blocks
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.sam import CHANNELS

#: Longer side of a page and side of a patch that transformers' ``PixtralImageProcessor`` gives a file without them.
_LONGEST_OF_CLASS, _PATCH_OF_CLASS = 1024, 16
_VARIABLES = {"views": "pages that pass through together: the batch", "patches": "patches of each"}


@dataclass(frozen=True, slots=True)
class PixtralArchitecture(Sizes):
    """Sizes of Pixtral's vision transformer, what merges its patches, and a language model.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the gated feed-forward network of the vision transformer.
    patch_size : int
        Side of a patch in pixels.
    longest_side : int
        Longer side in pixels of a page at most.
    merge_size : int
        Patches per side that become one token.
    projector_bias : bool
        Whether the two layers that bring tokens to the decoder's width add a bias.
    decoder : Decoder
        The language model.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    longest_side: int
    merge_size: int
    projector_bias: bool
    decoder: Decoder

    @property
    def block(self) -> int:
        """Side in pixels of what becomes one token."""
        return self.patch_size * self.merge_size


def pixtral_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    modules: VisionLanguageModules,
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
    own_patches: bool = False,
) -> Family[PixtralArchitecture]:
    """Make a family of Pixtral's vision transformer and a decoder.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    modules : VisionLanguageModules
        Where its models have their parts.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    own_patches : bool
        Whether pages are resized to the patches that the image processor names, rather than to whole tokens.
    """

    def run_vision(model: Any, sizes: PixtralArchitecture, workload: Workload) -> None:
        model.get_submodule(modules.vision)(**_page(model, workload))

    def run_projector(model: Any, sizes: PixtralArchitecture, workload: Workload) -> None:
        rows = workload.batch_size * _patches(sizes, workload)
        model.get_submodule(modules.projector)(empty(model, rows, sizes.hidden), _sizes(model, workload))

    stages = (
        page_stage(
            name="vit",
            title="vision transformer, all pages in one sequence",
            modules=(modules.vision,),
            operators=_vision_operators,
            parameters=_vision_parameters,
            variables=_VARIABLES,
            calls=_calls,
            run=run_vision,
        ),
        page_stage(
            name="projector",
            title="patches to tokens of the decoder's width",
            modules=(modules.projector,),
            operators=_projector_operators,
            parameters=_projector_parameters,
            variables={"tokens": "tokens that the pages of the batch become"},
            calls=lambda sizes, workload: [{"tokens": workload.batch_size * workload.image_tokens}],
            run=run_projector,
        ),
    )
    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=PixtralArchitecture,
        read=_read,
        rules=partial(_rules, own_patches),
        stages=stages,
        language=modules.language,
        page=_named_page,
        shipped=shipped,
        notes=(
            "all pages of a batch go through the encoder as one sequence, of which a mask leaves each page to itself, "
            "as transformers runs it: attention is counted dense over all of them",
            *notes,
        ),
        valued=True,
    )


def _read(settings: Settings) -> PixtralArchitecture:
    sizes, decoder = part(settings, "vision_config"), text_decoder(settings)
    settings.require("vision_feature_layer", -1, "what it takes of its encoder")
    sizes.split("hidden_size", "num_attention_heads")
    return PixtralArchitecture(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=square(sizes, "patch_size"),
        longest_side=square(sizes, "image_size"),
        merge_size=settings.whole("spatial_merge_size"),
        # LightOnOCR has no such setting, and no bias.
        projector_bias=settings.flag("multimodal_projector_bias", default=False),
        decoder=decoder,
    )


def _rules(own_patches: bool, sizes: PixtralArchitecture, settings: ProcessorSettings) -> PageRules:
    """No side of a page is longer than the limit, and all of it is whole blocks.

    Source: transformers, ``image_processing_pil_pixtral.py``, ``get_resize_output_image_size``.
    """
    image, whole = settings.image, settings.whole
    whole.require("patch_size", needed=sizes.patch_size, default=None)
    whole.require("spatial_merge_size", needed=sizes.merge_size, default=None)
    published = sizes.longest_side
    if image.has("size.height"):
        longest = image.side("size", published=published)
    else:
        longest = image.number("size.longest_edge", published=published, default=_LONGEST_OF_CLASS)
    if image.flag("do_resize", published=True):
        block = sizes.block
        if own_patches and image.source is not None:
            block = image.side("patch_size", published=block, default=_PATCH_OF_CLASS)
            if block % sizes.patch_size:
                image.refuse("patch_size", f"the encoder's patches of {sizes.patch_size} do not divide it")
        return PageRules(lambda width, height: _page_views(sizes, *_shrunk(longest, block, width, height)))
    return PageRules(lambda width, height: _page_views(sizes, *whole_blocks(sizes.block, width, height)))


def _shrunk(longest: int, block: int, width: int, height: int) -> tuple[int, int]:
    ratio = max(height / longest, width / longest)
    columns, rows = (math.floor(side / ratio) if ratio > 1 else side for side in (width, height))
    if not columns or not rows:
        raise StagemeterError(
            f"a page of {width} x {height} pixels: shrunk to {longest} pixels, as this model takes it, there is "
            "nothing left of its shorter side"
        )
    return math.ceil(columns / block) * block, math.ceil(rows / block) * block


def _page_views(sizes: PixtralArchitecture, width: int, height: int) -> PageViews:
    tokens = (width // sizes.block) * (height // sizes.block)
    if not tokens:
        raise StagemeterError(
            f"a page brought to {width} x {height} pixels is less than one token of {sizes.block} x {sizes.block}: "
            "give a larger page"
        )
    return PageViews(1, 0, width, height, (1, 1), tokens)


def _patches(sizes: PixtralArchitecture, workload: Workload) -> int:
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    return (width // sizes.patch_size) * (height // sizes.patch_size)


def _calls(sizes: PixtralArchitecture, workload: Workload) -> list[Variables]:
    return [{"views": workload.batch_size, "patches": _patches(sizes, workload)}]


def _vision_operators(sizes: PixtralArchitecture, values: Variables) -> list[Operator]:
    rows, width = values["views"] * values["patches"], sizes.hidden
    elements = CHANNELS * sizes.patch_size**2
    embedding = convolution(
        positions=rows,
        input_elements=rows * elements,
        inputs=CHANNELS,
        outputs=width,
        kernel_area=sizes.patch_size**2,
    )
    layer = [
        *[linear(rows, width, width)] * 4,
        # The mask that keeps pages apart is read like any other operand.
        self_attention(rows, rows, sizes.heads, width // sizes.heads) + Cost(activation_reads=rows**2),
        *gated_feed_forward(rows, width, sizes.intermediate),
    ]
    return [(embedding, 1), *repeated(layer, sizes.layers)]


def _vision_parameters(sizes: PixtralArchitecture) -> int:
    width = sizes.hidden
    embedding = CHANNELS * sizes.patch_size**2 * width + width
    return embedding + sizes.layers * (4 * width**2 + 3 * width * sizes.intermediate + 2 * width)


def _projector_operators(sizes: PixtralArchitecture, values: Variables) -> list[Operator]:
    tokens, width, outputs = values["tokens"], sizes.hidden, sizes.decoder.hidden
    return [
        (linear(tokens, width * sizes.merge_size**2, width), 1),
        (linear(tokens, width, outputs, sizes.projector_bias), 1),
        (linear(tokens, outputs, outputs, sizes.projector_bias), 1),
    ]


def _projector_parameters(sizes: PixtralArchitecture) -> int:
    width, outputs = sizes.hidden, sizes.decoder.hidden
    merging = width + width**2 * sizes.merge_size**2
    return merging + (width + outputs) * outputs + 2 * outputs * sizes.projector_bias


def _sizes(model: Any, workload: Workload) -> Any:
    """Heights and widths of the views of a batch, which the code asks for; made where values are known."""
    import torch

    width, height = workload.view_size or (workload.base_size, workload.base_size)
    return torch.tensor([[height, width]] * workload.batch_size, device=model.device)


def _page(model: Any, workload: Workload) -> dict[str, Any]:
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    return {
        "pixel_values": empty(model, workload.batch_size, CHANNELS, height, width),
        "image_sizes": _sizes(model, workload),
    }


def _named_page(model: Any, sizes: PixtralArchitecture, workload: Workload) -> dict[str, Any]:
    """The same for the whole model, with the tokens that stand for the page."""
    page = _page(model, workload)
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page
