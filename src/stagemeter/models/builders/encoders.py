"""Stages of encoders and projectors, over square views or over patches of pages at their own resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.builders.page_stages import (
    Calls,
    Inputs,
    Needed,
    batches_of_pages,
    image_tokens_of,
    page_stage,
)
from stagemeter.models.builders.vision_language import PROJECTOR, VISION
from stagemeter.models.decoder.passes import empty
from stagemeter.models.family import Stage, Variables
from stagemeter.models.page_views import PageRules
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.square_views import one_view
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import LinearSize, linears_operators, linears_parameters
from stagemeter.models.vision.vit import VisionTransformer, patch_embedding, vit_operators, vit_parameters


def views_of(workload: Workload) -> int:
    """Return the views of all pages of a batch on which an encoder runs."""
    return sum(one.batch_size * (one.global_views + one.local_views) for one in batches_of_pages(workload))


#: One call over all views of a batch, and one over the tokens of all its pages.
VIEWS = Calls(
    {"views": "views that pass through together: batch times views of a page"},
    lambda sizes, workload: [{"views": views_of(workload)}],
)
TOKENS = Calls(
    {"tokens": "tokens that the pages of the batch become"},
    lambda sizes, workload: [{"tokens": image_tokens_of(workload)}],
)


#: Variable of an encoder over pages in one tensor.
_PADDING = "patches by which smaller pages of a request are padded, which are embedded and then cut off"


def square_pixels(model: Any, sizes: Any, workload: Workload) -> dict[str, Any]:
    """Return the pixels of all views of a batch."""
    side = sizes.vision.image_size
    return {"pixel_values": empty(model, views_of(workload), CHANNELS, side, side)}


def square_rules(default: int, crops: bool) -> Callable[[Any, ProcessorSettings], PageRules]:
    """Return a reader of rules that turn every page into one square view, see `one_view`."""
    return lambda sizes, settings: one_view(
        settings, sizes.vision.image_size, sizes.projector.tokens, default=default, crops=crops
    )


def square_encoder(module: str = VISION, unused_layers: Callable[[Any], int] | None = None) -> Stage[Any]:
    """Make the stage of a vision transformer over square views.

    `unused_layers` gives the number of last layers whose output is never used.
    """

    def needed(sizes: Any, values: Variables) -> list[Operator]:
        last = unused_layers(sizes) if unused_layers else 0
        return vit_operators(replace(sizes.vision, layers=sizes.vision.layers - last), values["views"])

    return page_stage(
        name="vit",
        title="vision transformer, every view",
        modules=(module,),
        operators=lambda sizes, values: vit_operators(sizes.vision, values["views"]),
        parameters=lambda sizes: vit_parameters(sizes.vision),
        calls=VIEWS,
        inputs=square_pixels,
        needed=Needed("runs layers of the encoder whose output is never used", needed) if unused_layers else None,
    )


def patch_encoder(
    modules: tuple[str, ...],
    inputs: Inputs | None = None,
    run: Callable[[Any, Any, Workload], None] | None = None,
    vit_of: Callable[[Any], VisionTransformer] = lambda sizes: sizes.vision.vit,
    title: str = "vision transformer over the patches of the page",
    one_sequence: bool = False,
    calls: Calls | None = None,
) -> Stage[Any]:
    """Make the stage of a vision transformer over the patches of pages at their own resolution.

    `vit_of` gets the vision transformer from the sizes of a model. With `one_sequence`, transformers runs all pages of
    a batch as one sequence, with a mask; the model needs each page on its own. The variables of `calls` are arguments
    of `vit_operators`. For the others, see `page_stage`.
    """

    def operators(sizes: Any, values: Variables) -> list[Operator]:
        if not one_sequence:
            return vit_operators(vit_of(sizes), **values)
        patches = values["views"] * values["patches"]
        (_, times), *layers = vit_operators(vit_of(sizes), 1, patches)
        return [(patch_embedding(vit_of(sizes), patches + values["padding"], 1), times), *layers]

    def page_by_page(sizes: Any, values: Variables) -> list[Operator]:
        return vit_operators(replace(vit_of(sizes), masked=False), **values)

    each = calls or Calls(
        {"views": "pages: batch_size", "patches": "patches of one page"},
        lambda sizes, workload: [
            {"views": workload.batch_size, "patches": patches_of_view(vit_of(sizes).patch_size, workload)}
        ],
        page_by_page=True,
    )

    def together(sizes: Any, workload: Workload) -> list[Variables]:
        if workload.further_pages is None:
            return [{**values, "padding": 0} for values in each.of(sizes, workload)]
        patches = image_tokens_of(workload) * sizes.merge_size**2
        number = sum(one.batch_size for one in batches_of_pages(workload))
        width, height = padded_size(workload)
        padded = number * (width // sizes.patch_size) * (height // sizes.patch_size)
        return [{"views": 1, "patches": patches, "padding": padded - patches}]

    because = "runs the pages of a batch as one sequence"
    return page_stage(
        name="vit",
        title=title,
        modules=modules,
        operators=operators,
        parameters=lambda sizes: vit_parameters(vit_of(sizes)),
        calls=Calls({**each.variables, "padding": _PADDING}, together) if one_sequence else each,
        inputs=inputs,
        run=run,
        needed=Needed(because, page_by_page, each) if one_sequence else None,
    )


def projector_stage(
    layers: Callable[[Any], Sequence[LinearSize]],
    inputs: Inputs | None = None,
    modules: tuple[str, ...] = (PROJECTOR,),
    name: str = "projector",
    title: str = "projection of the features to the decoder's width",
    calls: Calls = TOKENS,
    rows: Callable[[Any, Variables], int] = lambda sizes, values: values["tokens"],
    norms: Callable[[Any], int] = lambda sizes: 0,
    run: Callable[[Any, Any, Workload], None] | None = None,
    needed: Needed[Any] | None = None,
) -> Stage[Any]:
    """Make the stage of linear layers between encoder and decoder.

    `norms` gives the parameters besides those of `layers`. `rows` gives the rows of one pass, from sizes and variables;
    a variable ``calls`` gives the number of passes. For the other arguments, see `page_stage`.
    """
    return page_stage(
        name=name,
        title=title,
        modules=modules,
        operators=lambda sizes, values: linears_operators(layers(sizes), rows(sizes, values), values.get("calls", 1)),
        parameters=lambda sizes: linears_parameters(layers(sizes)) + norms(sizes),
        calls=calls,
        inputs=inputs,
        run=run,
        needed=needed,
    )


def square_projector(module: str = PROJECTOR, shape: Callable[[Any], tuple[int, ...]] | None = None) -> Stage[Any]:
    """Make the stage of a `Projector` over the features of square views.

    `shape` gives the shape of one view's features if the projector itself puts those of a token side by side.
    """
    shape_of = shape or (lambda sizes: (sizes.projector.tokens, sizes.projector.inputs))
    return projector_stage(
        lambda sizes: sizes.projector.linears,
        inputs=lambda model, sizes, workload: (empty(model, views_of(workload), *shape_of(sizes)),),
        modules=(module,),
        calls=VIEWS,
        rows=lambda sizes, values: values["views"] * sizes.projector.tokens,
        norms=lambda sizes: sizes.projector.norm,
    )


def view_size(workload: Workload) -> tuple[int, int]:
    """Return the width and height in pixels of the view of a page."""
    return workload.view_size or (workload.base_size, workload.base_size)


def padded_size(workload: Workload) -> tuple[int, int]:
    """Return the width and height in pixels to which the pages of a batch are padded for one tensor."""
    widths, heights = zip(*map(view_size, batches_of_pages(workload)), strict=True)
    return max(widths), max(heights)


def patches_of_view(patch_size: int, workload: Workload) -> int:
    """Return the patches of the view of a page."""
    width, height = view_size(workload)
    return (width // patch_size) * (height // patch_size)


def patch_grid(model: Any, patch_size: int, workload: Workload) -> Any:
    """Return frames, rows and columns of patches of each page of a batch on which an encoder runs."""
    import torch

    grids = []
    for one in batches_of_pages(workload):
        width, height = view_size(one)
        grids += [[1, height // patch_size, width // patch_size]] * one.batch_size
    return torch.tensor(grids, device=model.device)
