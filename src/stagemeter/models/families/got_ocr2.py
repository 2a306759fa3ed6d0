"""GOT-OCR 2.0: SAM's encoder over one view, two strided convolutions and a projection, a decoder like Qwen 2's.

A page is squeezed into the one square view that the encoder takes. transformers runs the encoder's attention as
products with the scores between them, and so it is counted. Source: transformers, ``modeling_got_ocr2.py``,
``processing_got_ocr2.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from stagemeter.errors import StagemeterError
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder import Decoder
from stagemeter.models.decoder_stages import DecoderModules, decoder_stages, empty
from stagemeter.models.family import Family, PageViews, Variables
from stagemeter.models.page_stages import page_passes, page_stage
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision import (
    CHANNELS,
    VIEW_VARIABLES,
    SamArchitecture,
    ViewGroup,
    sam_downsampling,
    sam_downsampling_parameters,
    sam_encoder,
    sam_encoder_parameters,
)
from stagemeter.models.vision_language import part, text_decoder
from stagemeter.workload import Workload

_SAM, _PROJECTOR = "model.vision_tower", "model.multi_modal_projector"


@dataclass(frozen=True, slots=True)
class GotOcr2Architecture(Sizes):
    """Sizes of a model of this family.

    Attributes
    ----------
    sam : SamArchitecture
        The encoder; its two strided convolutions are the projector's here.
    decoder : Decoder
        The language model.
    """

    sam: SamArchitecture
    decoder: Decoder


def _read(config: Mapping[str, Any], source: str) -> GotOcr2Architecture:
    settings = Settings(config, source)
    sizes, decoder = part(settings, "vision_config"), text_decoder(settings)
    for key in ("use_abs_pos", "use_rel_pos", "qkv_bias"):
        sizes.refuse(key, False, "the encoder of GOT-OCR 2.0 has them")
    sizes.split("hidden_size", "num_attention_heads")
    layers, neck = sizes.whole("num_hidden_layers"), sizes.whole("output_channels")
    whole = sizes.values.get("global_attn_indexes")
    if not isinstance(whole, list) or any(index not in range(layers) for index in whole):
        raise StagemeterError(f"{sizes.source}: global_attn_indexes is {whole!r}; it must list some of {layers} layers")
    side, patch = sizes.whole("image_size"), sizes.whole("patch_size")
    if side % patch:
        raise StagemeterError(f"{sizes.source}: image_size {side} cannot be split into patches of patch_size {patch}")
    sam = SamArchitecture(
        hidden=sizes.whole("hidden_size"),
        layers=layers,
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("mlp_dim"),
        patch_size=patch,
        window_size=sizes.whole("window_size"),
        global_layers=tuple(sorted(set(whole))),
        pretrain_size=side,
        neck=neck,
        downsample_channels=(2 * neck, decoder.hidden),
    )
    return GotOcr2Architecture(sam, decoder)


def _group(sizes: GotOcr2Architecture, views: int) -> ViewGroup:
    return ViewGroup.of(views, sizes.sam.pretrain_size, sizes.sam.patch_size, sizes.sam.window_size)


def _views(sizes: GotOcr2Architecture, width: int, height: int) -> PageViews:
    side = sizes.sam.pretrain_size
    return PageViews(1, 0, side, side, (1, 1), _group(sizes, 1).quarter_grid ** 2)


def _projector_operators(sizes: GotOcr2Architecture, variables: Variables) -> list[Operator]:
    group = ViewGroup(**variables)
    hidden = sizes.decoder.hidden
    last = linear(group.views * group.quarter_grid**2, hidden, hidden, bias=True)
    return [*sam_downsampling(sizes.sam, group), (last, 1)]


def _page(model: Any, sizes: GotOcr2Architecture, workload: Workload) -> dict[str, Any]:
    side = sizes.sam.pretrain_size
    return {"pixel_values": empty(model, workload.batch_size, CHANNELS, side, side)}


def _run_projector(model: Any, sizes: GotOcr2Architecture, workload: Workload) -> None:
    grid = _group(sizes, 1).grid
    model.get_submodule(_PROJECTOR)(empty(model, workload.batch_size, sizes.sam.neck, grid, grid))


def _projector_parameters(sizes: GotOcr2Architecture) -> int:
    return sam_downsampling_parameters(sizes.sam) + (sizes.decoder.hidden + 1) * sizes.decoder.hidden


def _calls(sizes: GotOcr2Architecture, workload: Workload) -> list[Variables]:
    return [asdict(_group(sizes, workload.batch_size))]


FAMILY: Family[GotOcr2Architecture] = Family(
    name="got-ocr2",
    title="GOT-OCR 2.0: one view through SAM, a decoder like Qwen 2's",
    reads_pages=True,
    views=_views,
    takes=lambda config: config.get("model_type") == "got_ocr2",
    architecture_from_config=_read,
    build=lambda sizes, config: build_from_settings(config),
    shipped={"got-ocr2": resources.files("stagemeter.models") / "configs" / "got_ocr2.json"},
    decoder=lambda sizes: sizes.decoder,
    stages=(
        page_stage(
            name="sam",
            title="SAM encoder, the page as one view",
            modules=(_SAM,),
            operators=lambda sizes, values: sam_encoder(sizes.sam, ViewGroup(**values), fused=False),
            parameters=lambda sizes: sam_encoder_parameters(sizes.sam),
            variables=VIEW_VARIABLES,
            calls=_calls,
            run=lambda model, sizes, workload: model.get_submodule(_SAM)(**_page(model, sizes, workload)),
        ),
        page_stage(
            name="projector",
            title="two strided convolutions and a projection to the decoder's width",
            modules=(_PROJECTOR,),
            operators=_projector_operators,
            parameters=_projector_parameters,
            variables=VIEW_VARIABLES,
            calls=_calls,
            run=_run_projector,
        ),
        *decoder_stages(lambda sizes: sizes.decoder, DecoderModules("model.language_model", "lm_head")),
    ),
    other_parameters=lambda sizes: {},
    architecture_from_sizes=sizes_reader(GotOcr2Architecture),
    whole_passes=page_passes(lambda sizes: sizes.decoder, _page),
    notes=("a page is one view, as the processor has it by default; its crops are not counted",),
)
