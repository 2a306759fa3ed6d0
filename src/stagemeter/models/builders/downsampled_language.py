"""Families whose encoder takes a page at its own resolution and makes tokens of its patches by a convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, convolution, gated_feed_forward, linear
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.family import Family, PageRules, PageViews, Variables
from stagemeter.models.pages.pixel_limits import read_pixel_limits
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.native_vision import (
    NativeVision,
    native_operators,
    native_parameters,
    patches_of,
    require_encoder,
    resized_together,
)

_VISION = "model.visual"
_DOWNSAMPLE, _MERGER = f"{_VISION}.downsample", f"{_VISION}.merger"
#: Sizes and pixels that transformers' ``Glm4vImageProcessor`` and ``Glm46VImageProcessor`` give a file that leaves them
#: out.
_OF_CLASS = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_PIXELS_OF_CLASS = 112 * 112, 28 * 28 * 15_000


@dataclass(frozen=True, slots=True)
class DownsampledArchitecture(Sizes):
    """Sizes of the encoder, of what makes tokens of its patches, and of the language model.

    Attributes
    ----------
    vision : NativeVision
        The encoder.
    merger_width : int
        Width of the gated network that tokens pass through.
    decoder : Decoder
        The language model.
    """

    vision: NativeVision
    merger_width: int
    decoder: Decoder


def downsampled_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], DownsampledArchitecture],
    encoder: Sequence[str],
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Family[DownsampledArchitecture]:
    """Make a family of such models.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    read : callable
        Reads the sizes from a configuration.
    encoder : sequence of str
        Modules of the encoder, within that of all that sees.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    """
    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=DownsampledArchitecture,
        read=read,
        rules=_rules,
        stages=(
            page_stage(
                name="vit",
                title="vision transformer over the patches of the page",
                modules=tuple(f"{_VISION}.{module}" for module in encoder),
                operators=lambda sizes, values: native_operators(sizes.vision, **values, pairs=0),
                parameters=lambda sizes: native_parameters(sizes.vision),
                variables={"views": "pages: batch_size", "patches": "patches of one page"},
                calls=lambda sizes, workload: [
                    {"views": workload.batch_size, "patches": _patches(sizes.vision, workload)}
                ],
                run=_run_vision,
            ),
            page_stage(
                name="merger",
                title="neighbouring patches made a token by a convolution and a gated network",
                modules=(_DOWNSAMPLE, _MERGER),
                operators=_merger_operators,
                parameters=_merger_parameters,
                variables={"tokens": "batch_size * image_tokens"},
                calls=lambda sizes, workload: [{"tokens": workload.batch_size * workload.image_tokens}],
                run=_run_merger,
            ),
        ),
        language="model.language_model",
        page=_page,
        shipped=shipped,
        notes=notes,
        valued=True,
    )


def _rules(sizes: DownsampledArchitecture, settings: ProcessorSettings) -> PageRules:
    """Views of pages, which are doubled: their limits are of both pictures together."""
    vision, image = sizes.vision, settings.image
    require_encoder(vision, image, _OF_CLASS)
    limits = read_pixel_limits(image, (vision.min_pixels, vision.max_pixels), _PIXELS_OF_CLASS, top_level=False)

    def page(width: int, height: int) -> PageViews:
        columns, rows = resized_together(vision, vision.temporal_patch_size, width, height, limits)
        return PageViews(1, 0, columns, rows, (1, 1), patches_of(vision, columns, rows) // vision.merge_size**2)

    return PageRules(page)


def _patches(vision: NativeVision, workload: Workload) -> int:
    return workload.image_tokens * vision.merge_size**2


def _merger_operators(sizes: DownsampledArchitecture, values: Variables) -> list[Operator]:
    vision, tokens, width = sizes.vision, values["tokens"], sizes.vision.outputs
    downsampling = convolution(
        positions=tokens,
        input_elements=tokens * vision.merged,
        inputs=vision.hidden,
        outputs=width,
        kernel_area=vision.merge_size**2,
        bias=True,
    )
    gated = gated_feed_forward(tokens, width, sizes.merger_width)
    return [(operator, 1) for operator in (downsampling, linear(tokens, width, width), *gated)]


def _merger_parameters(sizes: DownsampledArchitecture) -> int:
    width = sizes.vision.outputs
    downsampling = (sizes.vision.merged + 1) * width
    # A norm with weight and bias is between the two.
    return downsampling + width**2 + 2 * width + 3 * width * sizes.merger_width


def _page(model: Any, sizes: DownsampledArchitecture, workload: Workload) -> dict[str, Any]:
    """Patches of the pages of a batch, how they lie, and the tokens that stand for the page."""
    import torch

    vision, patches = sizes.vision, workload.batch_size * _patches(sizes.vision, workload)
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    grid = [1, height // vision.patch_size, width // vision.patch_size]
    page = {
        "pixel_values": empty(model, patches, vision.patch_elements),
        "image_grid_thw": torch.tensor([grid] * workload.batch_size, device=model.device),
    }
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


def _run_vision(model: Any, sizes: DownsampledArchitecture, workload: Workload) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule(_VISION)(page["pixel_values"], grid_thw=page["image_grid_thw"])


def _run_merger(model: Any, sizes: DownsampledArchitecture, workload: Workload) -> None:
    vision, tokens = sizes.vision, workload.batch_size * workload.image_tokens
    patches = empty(model, tokens, vision.hidden, vision.merge_size, vision.merge_size)
    model.get_submodule(_MERGER)(model.get_submodule(_DOWNSAMPLE)(patches).view(tokens, vision.outputs))
