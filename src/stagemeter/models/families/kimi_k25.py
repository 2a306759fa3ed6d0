"""Kimi K2.5: MoonViT over pages at their own resolution, and a decoder like DeepSeek-V3's.

Source: transformers, ``modeling_kimi_k25.py``, ``image_processing_kimi_k25.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from stagemeter.models.blocks import Operator, linear
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder import Decoder
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
    require_width,
    view_of,
)
from stagemeter.models.page_stages import page_passes, page_stage, page_tokens, with_values
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision_language import part, text_decoder
from stagemeter.workload import Workload

_VISION, _PROJECTOR, _LANGUAGE = "model.vision_tower", "model.mm_projector", "model.language_model"
#: Sizes where the configuration leaves them out, as transformers has them; published ones name them otherwise.
_MOONVIT = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
#: Patches of a page at most, and along one side, as the processor has it by default.
_MOST_PATCHES, _MOST_PER_SIDE = 16_384, 512


@dataclass(frozen=True, slots=True)
class KimiArchitecture(Sizes):
    """Sizes of MoonViT and a language model.

    Attributes
    ----------
    vision : InterpolatedVision
        MoonViT.
    decoder : Decoder
        The language model.
    """

    vision: InterpolatedVision
    decoder: Decoder


def _read(config: Mapping[str, Any], source: str) -> KimiArchitecture:
    settings = Settings(config, source)
    given, text = part(settings, "vision_config"), part(settings, "text_config").values
    sizes = Settings({**_MOONVIT, **given.values}, given.source)
    if text.get("model_type") == "kimi_k2":
        # Published configurations call it so; transformers has one name for both.
        text = {**text, "model_type": "deepseek_v3"}
    decoder = text_decoder(Settings({**config, "text_config": text}, source))
    merging = sizes.values.get("merge_kernel_size", [2, 2])
    if not isinstance(merging, (list, tuple)) or len(merging) != 2 or merging[0] != merging[1]:
        sizes.refuse("merge_kernel_size", merging, "this family merges as many patches down as across")
    merge_size = Settings({"merge_kernel_size": merging[0]}, sizes.source).whole("merge_kernel_size")
    positions = sizes.whole("pos_emb_height", 64) * sizes.whole("pos_emb_width", 64)
    vision = interpolated_vision(sizes, merge_size, positions)
    require_width(settings, "projection_hidden_size", vision.hidden)
    return KimiArchitecture(vision, decoder)


def resized(vision: InterpolatedVision, width: int, height: int) -> tuple[int, int]:
    """Width and height that a page is brought to: shrunk to as many patches as may be, padded to whole tokens.

    Source: transformers, ``image_processing_kimi_k25.py``, ``navit_resize``.
    """
    patch = vision.patch_size
    patches = max(1.0, height // patch) * max(1.0, width // patch)
    longest = _MOST_PER_SIDE * patch
    scale = min(1.0, math.sqrt(_MOST_PATCHES / patches), longest / height, longest / width)
    sides = (min(max(1, int(side * scale)), longest) for side in (width, height))
    columns, rows = (math.ceil(side / vision.block) * vision.block for side in sides)
    return columns, rows


def _views(sizes: KimiArchitecture, width: int, height: int) -> PageViews:
    return view_of(sizes.vision, *resized(sizes.vision, width, height))


def _projector_operators(sizes: KimiArchitecture, values: Variables) -> list[Operator]:
    tokens, merged = values["tokens"], sizes.vision.merged
    return [
        (linear(tokens, merged, merged, bias=True), 1),
        (linear(tokens, merged, sizes.decoder.hidden, bias=True), 1),
    ]


def _page(model: Any, sizes: KimiArchitecture, workload: Workload) -> dict[str, Any]:
    """Patches of the pages of a batch, how they lie, and the tokens that stand for the page."""
    vision, patches = sizes.vision, workload.batch_size * patches_of_page(sizes.vision, workload)
    page = {
        "pixel_values": empty(model, patches, CHANNELS, vision.patch_size, vision.patch_size),
        "image_grid_thw": grid_of(model, vision, workload),
    }
    if workload.prompt_tokens >= workload.image_tokens:
        page["input_ids"] = page_tokens(model, workload)
    return page


def _run_vision(model: Any, sizes: KimiArchitecture, workload: Workload) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule(_VISION)(page["pixel_values"], grid_thw=page["image_grid_thw"])


def _run_projector(model: Any, sizes: KimiArchitecture, workload: Workload) -> None:
    tokens = workload.batch_size * workload.image_tokens
    model.get_submodule(_PROJECTOR)(empty(model, tokens, sizes.vision.merge_size**2, sizes.vision.hidden))


_STAGES = (
    page_stage(
        name="vit",
        title="MoonViT over the patches of the page",
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
        variables={"tokens": "batch_size * image_tokens"},
        calls=lambda sizes, workload: [{"tokens": workload.batch_size * workload.image_tokens}],
        run=_run_projector,
    ),
)

FAMILY: Family[KimiArchitecture] = Family(
    name="kimi-k2.5",
    title="Kimi K2.5: a page at its own resolution through MoonViT, a decoder like DeepSeek-V3's",
    reads_pages=True,
    views=_views,
    takes=lambda config: config.get("model_type") == "kimi_k25",
    architecture_from_config=_read,
    build=lambda sizes, config: build_from_settings(config),
    shipped={"kimi-k2.5": resources.files("stagemeter.models") / "configs" / "kimi_k2_5.json"},
    decoder=lambda sizes: sizes.decoder,
    stages=(
        *(replace(stage, run=with_values(stage.run)) for stage in _STAGES),
        *decoder_stages(lambda sizes: sizes.decoder, DecoderModules(_LANGUAGE, "lm_head")),
    ),
    other_parameters=lambda sizes: {},
    architecture_from_sizes=sizes_reader(KimiArchitecture),
    whole_passes={name: with_values(run) for name, run in page_passes(lambda sizes: sizes.decoder, _page).items()},
    notes=(
        f"a page is shrunk to at most {_MOST_PATCHES:,} patches, as the processor does by default",
        "latent attention is counted as transformers runs it: each pass expands the compressed vectors of the whole "
        "context",
        "videos are not counted",
    ),
)
