"""Mistral Small 3.1 and later, and other vision models of Mistral AI: Pixtral's encoder, a decoder like Mistral's.

All pages of a batch go through the encoder as one sequence. Source: transformers, ``modeling_pixtral.py``,
``modeling_mistral3.py``, ``processing_pixtral.py``, ``image_processing_pil_pixtral.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import padded_size, patch_encoder, patches_of_view, projector_stage, view_size
from stagemeter.models.builders.page_stages import batches_of_pages
from stagemeter.models.builders.vision_language import PROJECTOR, VISION, Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.family import Family, Note
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.pixel_limits import whole_blocks
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.merging import MergingEncoder
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.vit import LLAMA_LAYERS, VisionTransformer, layer_sizes, vit_of

#: Longer side of a page and side of a patch that transformers' ``PixtralImageProcessor`` gives a file without them.
_LONGEST_OF_CLASS, _PATCH_OF_CLASS = 1024, 16


@dataclass(frozen=True, slots=True)
class PixtralArchitecture(Sizes, MergingEncoder):
    """Sizes of Pixtral's vision transformer, of its merger and projector, and of a language model.

    `longest_side` limits a page in pixels.
    """

    longest_side: int
    projector_bias: bool
    decoder: Decoder

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer; its attention reads the mask that keeps pages apart."""
        return vit_of(self, **LLAMA_LAYERS, positions=0, masked=True)

    @property
    def projector(self) -> list[LinearSize]:
        """Layers that merge patches and bring tokens to the decoder's width."""
        width, outputs, bias = self.hidden, self.decoder.hidden, self.projector_bias
        return [
            LinearSize(self.merged, width),
            LinearSize(width, outputs, bias),
            LinearSize(outputs, outputs, bias),
        ]


def pixtral_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    shipped: Sequence[str],
    encoder: str = VISION,
    projector: str = PROJECTOR,
    notes: Sequence[str] = (),
    own_patches: bool = False,
    tags: Callable[[PixtralArchitecture, PageViews], int] = lambda sizes, views: 0,
) -> Family[PixtralArchitecture]:
    """Make a family of Pixtral's vision transformer and a decoder.

    With `own_patches`, pages are resized to the image processor's patches rather than to whole tokens. For the other
    arguments, see `vision_language_family` and `Family`.
    """

    def projector_inputs(model: Any, sizes: PixtralArchitecture, workload: Workload) -> tuple[Any, ...]:
        # A page can have patches that make no whole token.
        rows = sum(one.batch_size * patches_of_view(sizes.patch_size, one) for one in batches_of_pages(workload))
        return empty(model, rows, sizes.hidden), _image_sizes(model, workload)

    return vision_language_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=PixtralArchitecture,
        read=_read,
        rules=partial(_rules, own_patches),
        stages=(
            patch_encoder(
                (encoder,),
                inputs=_page,
                vit_of=lambda sizes: sizes.vit,
                title="vision transformer, all pages in one sequence",
                one_sequence=True,
            ),
            projector_stage(
                lambda sizes: sizes.projector,
                inputs=projector_inputs,
                modules=(projector,),
                title="patches to tokens of the decoder's width",
                norms=lambda sizes: sizes.hidden,
            ),
        ),
        pages=Pages(_page, values=True),
        tags=tags,
        shipped=shipped,
        notes=(
            Note(
                "transformers runs all pages of a batch through the encoder as one sequence, with a mask that keeps "
                "pages apart: what is executed has attention among all of them, what the model needs within each",
                applies=lambda decoder, workload: workload.batch_size * workload.pages > 1,
            ),
            *notes,
        ),
    )


def _read(settings: Settings) -> PixtralArchitecture:
    sizes, decoder = settings.part("vision_config"), text_decoder(settings)
    settings.require("vision_feature_layer", -1, "what it takes of its encoder")
    return PixtralArchitecture(
        **layer_sizes(sizes),
        patch_size=sizes.square("patch_size"),
        longest_side=sizes.square("image_size"),
        merge_size=settings.whole("spatial_merge_size"),
        # LightOnOCR has no such setting, and no bias.
        projector_bias=settings.flag("multimodal_projector_bias", default=False),
        decoder=decoder,
    )


def _rules(own_patches: bool, sizes: PixtralArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: no side is longer than the limit, and both are whole blocks.

    Source: transformers, ``image_processing_pil_pixtral.py``, ``get_resize_output_image_size``.
    """
    image, whole, patches = settings.image, settings.whole, sizes.patches
    whole.require("patch_size", needed=sizes.patch_size, default=None)
    whole.require("spatial_merge_size", needed=sizes.merge_size, default=None)
    published = sizes.longest_side
    if image.has("size.height"):
        longest = image.side("size", published=published)
    else:
        longest = image.number("size.longest_edge", published=published, default=_LONGEST_OF_CLASS)
    resizes, block = image.flag("do_resize", published=True), patches.block
    if resizes and own_patches and image.source is not None:
        block = image.side("patch_size", published=block, default=_PATCH_OF_CLASS)
        if block % sizes.patch_size:
            image.refuse("patch_size", f"the encoder's patches of {sizes.patch_size} do not divide it")

    def page(width: int, height: int) -> PageViews:
        size = _shrunk(longest, block, width, height) if resizes else whole_blocks(block, width, height)
        views = patches.views(1, size)
        if not views.image_tokens:
            raise StagemeterError(
                f"a page of {width} x {height} pixels: resized to {size[0]} x {size[1]}, it is less than one token of "
                f"{patches.block} x {patches.block}. Give a larger page"
            )
        return views

    return PageRules(page)


def _shrunk(longest: int, block: int, width: int, height: int) -> tuple[int, int]:
    ratio = max(height / longest, width / longest)
    columns, rows = (math.floor(side / ratio) if ratio > 1 else side for side in (width, height))
    if not columns or not rows:
        raise StagemeterError(
            f"a page of {width} x {height} pixels: shrunk to {longest} pixels, as this model takes it, there is "
            "nothing left of its shorter side. Cut the page"
        )
    return math.ceil(columns / block) * block, math.ceil(rows / block) * block


def _image_sizes(model: Any, workload: Workload) -> Any:
    """Return heights and widths of the views of a batch, which the model's code reads."""
    import torch

    pages = [(view_size(one), one.batch_size) for one in batches_of_pages(workload)]
    return torch.tensor([size[::-1] for size, number in pages for _ in range(number)], device=model.device)


def _page(model: Any, sizes: PixtralArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the pages of a batch, padded to one size, and the size of each."""
    (width, height), image_sizes = padded_size(workload), _image_sizes(model, workload)
    return {"pixel_values": empty(model, len(image_sizes), CHANNELS, height, width), "image_sizes": image_sizes}


FAMILY = pixtral_family(
    name="mistral3",
    title="Mistral Small 3.1 and later: a page at its own resolution through Pixtral's encoder",
    model_types=("mistral3",),
    shipped=("mistral-small-3.1-24b",),
    # A token ends each row. Source: ``processing_pixtral.py``, ``replace_image_token``.
    tags=lambda sizes, views: views.height // sizes.block,
    notes=("the token that a processor writes after each row of a page's tokens counts as text",),
)
