"""Stages over groups of equal views: SAM, the encoder behind it, and a projector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.builders.page_stages import Calls, Needed, batches_of_pages, page_stage, run_module
from stagemeter.models.builders.vision_language import PROJECTOR
from stagemeter.models.decoder.passes import empty
from stagemeter.models.family import Stage
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import LinearSize, linears_operators, linears_parameters
from stagemeter.models.vision.sam import SamArchitecture, ViewGroup, sam_operators, sam_parameters


def page_groups(sizes: Any, workload: Workload) -> list[ViewGroup]:
    """Return the groups of equal views of a batch: views of whole pages, then tiles."""
    pages = batches_of_pages(workload)
    sides = ("global_views", workload.base_size), ("local_views", workload.image_size)
    return [
        view_group(sizes.sam, sum(one.batch_size * getattr(one, views) for one in pages), side)
        for views, side in sides
        # Batch sizes may be arrays; views of a page are numbers.
        if any(getattr(one, views) for one in pages)
    ]


def view_group(sam: SamArchitecture, views: int, side: int) -> ViewGroup:
    """Return a group of views, from their side in pixels."""
    return ViewGroup.of(views, side, sam.patch_size, sam.window_size)


def group_pixels(model: Any, sizes: Any, group: ViewGroup) -> tuple[Any, ...]:
    """Return the pixels of a group of views."""
    return (empty(model, group.views, CHANNELS, group.side, group.side),)


def tiled_pages(model: Any, sizes: Any, workload: Workload) -> dict[str, Any]:
    """Return the arguments of the whole model for the pages of a batch, with their tiles."""
    (whole,), *tiles = [group_pixels(model, sizes, group) for group in page_groups(sizes, workload)]
    if not tiles:
        return {"pixel_values": whole}
    counts = [one.local_views for one in batches_of_pages(workload) for _ in range(one.batch_size)]
    return {"pixel_values": whole, "pixel_values_local": tiles[0][0], "num_local_patches": counts}


def group_stage(
    name: str,
    title: str,
    module: str,
    operators: Callable[[Any, ViewGroup], list[Operator]],
    parameters: Callable[[Any], int],
    inputs: Callable[[Any, Any, ViewGroup], tuple[Any, ...] | Mapping[str, Any]],
    variables: Mapping[str, str],
    groups: Callable[[Any, Workload], list[ViewGroup]] = page_groups,
    unused: Callable[[Any], int] = lambda sizes: 0,
    needed: Needed[Any] | None = None,
) -> Stage[Any]:
    """Make the stage of a module that runs once for each group of views.

    `operators` gives those of one group, `inputs` the module's arguments. For the others, see `page_stage`.
    """

    def run(model: Any, sizes: Any, workload: Workload) -> None:
        for group in groups(sizes, workload):
            run_module(model, module, inputs(model, sizes, group))

    return page_stage(
        name=name,
        title=title,
        modules=(module,),
        operators=lambda sizes, values: operators(sizes, ViewGroup(**values)),
        parameters=parameters,
        calls=Calls(variables, lambda sizes, workload: [asdict(group) for group in groups(sizes, workload)]),
        run=run,
        unused=unused,
        needed=needed,
    )


def sam_stage(module: str, variables: Mapping[str, str]) -> Stage[Any]:
    """Make the stage of SAM's encoder and the two strided convolutions behind it."""
    return group_stage(
        name="sam",
        title="SAM encoder, every view",
        module=module,
        operators=lambda sizes, group: sam_operators(sizes.sam, group),
        parameters=lambda sizes: sam_parameters(sizes.sam),
        inputs=group_pixels,
        variables=variables,
    )


def group_projector(
    linear: Callable[[Any], LinearSize], variables: Mapping[str, str], title: str = "projection of the features"
) -> Stage[Any]:
    """Make the stage of one linear layer from the features of a token to the decoder's width."""
    return group_stage(
        name="projector",
        title=f"{title} to the decoder's width",
        module=PROJECTOR,
        operators=lambda sizes, group: linears_operators([linear(sizes)], group.tokens),
        parameters=lambda sizes: linears_parameters([linear(sizes)]),
        inputs=lambda model, sizes, group: (empty(model, group.views, group.quarter_grid**2, linear(sizes).inputs),),
        variables=variables,
    )
