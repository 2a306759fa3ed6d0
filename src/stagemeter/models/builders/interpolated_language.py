"""Families of a vision transformer with interpolated positions, two layers that merge its patches, and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage, page_tokens
from stagemeter.models.builders.vision_language import VisionLanguageModules
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.family import Family, PageRules, PageViews, Variables
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.interpolated_vision import (
    InterpolatedVision,
    interpolated_operators,
    interpolated_parameters,
    merging_parameters,
)
from stagemeter.models.vision.sam import CHANNELS


@dataclass(frozen=True, slots=True)
class InterpolatedArchitecture(Sizes):
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


def interpolated_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], InterpolatedArchitecture],
    resizing: Callable[[InterpolatedVision, PageSettings], Callable[[int, int], tuple[int, int]]],
    modules: VisionLanguageModules,
    shipped: Mapping[str, str],
    page_by_page: bool,
    notes: Sequence[str] = (),
) -> Family[InterpolatedArchitecture]:
    """Make a family of such models.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    read : callable
        Reads the sizes from a configuration.
    resizing : callable
        Reads the settings of the image processor, and returns what brings a width and a height to whole tokens.
    modules : VisionLanguageModules
        Where its models have their parts.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    page_by_page : bool
        Whether pages are merged one after another, so that the weights are read for each, from patches as they come;
        else together, from patches that the encoder put side by side.
    notes : sequence of str
        What one should know about how its numbers come about.
    """

    def rules(sizes: InterpolatedArchitecture, settings: ProcessorSettings) -> PageRules:
        vision, image = sizes.vision, settings.image
        image.require("patch_size", "media_proc_cfg.patch_size", needed=vision.patch_size, default=14)
        image.require("merge_size", "media_proc_cfg.merge_kernel_size", needed=vision.merge_size, default=2)
        resize = resizing(vision, image)

        def page(width: int, height: int) -> PageViews:
            columns, rows = resize(width, height)
            return PageViews(1, 0, columns, rows, (1, 1), (columns // vision.block) * (rows // vision.block))

        return PageRules(page)

    def merging(sizes: InterpolatedArchitecture, values: Variables) -> list[Operator]:
        tokens, merged = values["tokens"], sizes.vision.merged
        layers = (linear(tokens, merged, outputs, bias=True) for outputs in (merged, sizes.decoder.hidden))
        return [(layer, values["calls"]) for layer in layers]

    def merging_calls(sizes: InterpolatedArchitecture, workload: Workload) -> list[Variables]:
        calls, pages = (workload.batch_size, 1) if page_by_page else (1, workload.batch_size)
        return [{"calls": calls, "tokens": pages * workload.image_tokens}]

    def run_vision(model: Any, sizes: InterpolatedArchitecture, workload: Workload) -> None:
        page = _page(model, sizes, workload)
        pixels = page["pixel_values"].unsqueeze(0) if page_by_page else page["pixel_values"]
        model.get_submodule(modules.vision)(pixels, grid_thw=page["image_grid_thw"])

    def run_merging(model: Any, sizes: InterpolatedArchitecture, workload: Workload) -> None:
        vision, patches = sizes.vision, workload.batch_size * _patches(sizes.vision, workload)
        projector = model.get_submodule(modules.projector)
        if page_by_page:
            projector(empty(model, patches, vision.hidden), _grid(model, vision, workload))
        else:
            projector(empty(model, patches // vision.merge_size**2, vision.merge_size**2, vision.hidden))

    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=InterpolatedArchitecture,
        read=read,
        rules=rules,
        stages=(
            page_stage(
                name="vit",
                title="vision transformer over the patches of the page",
                modules=(modules.vision,),
                operators=lambda sizes, values: interpolated_operators(sizes.vision, **values),
                parameters=lambda sizes: interpolated_parameters(sizes.vision),
                variables={"views": "pages: batch_size", "patches": "patches of one page"},
                calls=lambda sizes, workload: [
                    {"views": workload.batch_size, "patches": _patches(sizes.vision, workload)}
                ],
                run=run_vision,
            ),
            page_stage(
                name="projector",
                title="neighbouring patches merged to tokens of the decoder's width",
                modules=(modules.projector,),
                operators=merging,
                parameters=lambda sizes: merging_parameters(sizes.vision, sizes.decoder.hidden),
                variables={"calls": "times that it runs", "tokens": "tokens of one time"},
                calls=merging_calls,
                run=run_merging,
            ),
        ),
        language=modules.language,
        page=_page,
        shipped=shipped,
        notes=notes,
        valued=True,
    )


def _patches(vision: InterpolatedVision, workload: Workload) -> int:
    return workload.image_tokens * vision.merge_size**2


def _grid(model: Any, vision: InterpolatedVision, workload: Workload) -> Any:
    """Pictures, rows and columns of patches of each page, which the code asks for; made where values are known."""
    import torch

    width, height = workload.view_size or (workload.base_size, workload.base_size)
    grid = [1, height // vision.patch_size, width // vision.patch_size]
    return torch.tensor([grid] * workload.batch_size, device=model.device)


def _page(model: Any, sizes: InterpolatedArchitecture, workload: Workload) -> dict[str, Any]:
    """Patches of the pages of a batch, how they lie, and the tokens that stand for the page."""
    vision, patches = sizes.vision, workload.batch_size * _patches(sizes.vision, workload)
    page = {
        "pixel_values": empty(model, patches, CHANNELS, vision.patch_size, vision.patch_size),
        "image_grid_thw": _grid(model, vision, workload),
    }
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page
