"""Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token, a decoder like Qwen 2's.

Qwen 2.5-VL attends within windows in most layers of its encoder. Source: transformers, ``modeling_qwen2_vl.py``,
``modeling_qwen2_5_vl.py``, ``image_processing_qwen2_vl.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from stagemeter.errors import StagemeterError
from stagemeter.models.blocks import sum_of, working_set
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder import Decoder
from stagemeter.models.decoder_stages import DecoderModules, decoder_stages, empty, whole_pass
from stagemeter.models.family import CacheRecorder, Family, PageViews, Stage, StageParameters, Variables
from stagemeter.models.native_vision import (
    NativeVision,
    merger_operators,
    merger_parameters,
    native_operators,
    native_parameters,
    patches_of,
    resized,
    window_pairs,
)
from stagemeter.models.settings import Settings
from stagemeter.models.vision_language import part, text_decoder
from stagemeter.workload import Workload, stable_hash

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_WINDOWED = "qwen2_5_vl"
_TYPES = ("qwen2_vl", _WINDOWED)
_EMBEDDING, _BLOCKS, _MERGER = "model.visual.patch_embed", "model.visual.blocks", "model.visual.merger"
#: Pixels between which a page is resized, as the published processors have it (``preprocessor_config.json``).
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 14 * 14 * 4 * 16384


@dataclass(frozen=True, slots=True)
class Qwen2VLArchitecture:
    """Sizes of a model of this family.

    Attributes
    ----------
    vision : NativeVision
        The encoder.
    decoder : Decoder
        The language model.
    """

    vision: NativeVision
    decoder: Decoder

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(asdict(self))


def _read(config: Mapping[str, Any], source: str) -> Qwen2VLArchitecture:
    settings = Settings(config, source)
    # Early configurations hold the language model's settings beside the encoder's.
    text = config.get("text_config") or {key: value for key, value in config.items() if key != "vision_config"}
    decoder = text_decoder(Settings({**config, "text_config": {**text, "model_type": "qwen2"}}, source))
    sizes, windowed = part(settings, "vision_config"), config["model_type"] == _WINDOWED
    width = sizes.whole("hidden_size" if windowed else "embed_dim")
    layers, heads = sizes.whole("depth"), sizes.whole("num_heads")
    outputs = sizes.whole("out_hidden_size" if windowed else "hidden_size")
    if width % heads:
        raise StagemeterError(f"{sizes.source}: a width of {width} cannot be split into num_heads {heads}")
    if outputs != decoder.hidden:
        raise StagemeterError(
            f"{source}: the encoder's tokens are {outputs} wide, and the decoder takes {decoder.hidden}"
        )
    full = sizes.values.get("fullatt_block_indexes", []) if windowed else range(layers)
    vision = NativeVision(
        hidden=width,
        layers=layers,
        heads=heads,
        intermediate=sizes.whole("intermediate_size") if windowed else width * sizes.whole("mlp_ratio"),
        gated=windowed,
        norm_bias=not windowed,
        patch_size=sizes.whole("patch_size"),
        temporal_patch_size=sizes.whole("temporal_patch_size"),
        merge_size=sizes.whole("spatial_merge_size"),
        window_size=sizes.whole("window_size") if windowed else 0,
        full_layers=len({index for index in full if index < layers}),
        outputs=outputs,
        min_pixels=_MIN_PIXELS,
        max_pixels=_MAX_PIXELS,
    )
    return Qwen2VLArchitecture(vision, decoder)


def _page_views(sizes: Qwen2VLArchitecture, width: int, height: int) -> PageViews:
    columns, rows = resized(sizes.vision, width, height)
    return PageViews(1, 0, columns, rows, (1, 1), patches_of(sizes.vision, columns, rows) // sizes.vision.merge_size**2)


def _view_size(workload: Workload) -> tuple[int, int]:
    return workload.view_size or (workload.base_size, workload.base_size)


def _calls(sizes: Qwen2VLArchitecture, workload: Workload) -> list[Variables]:
    size = _view_size(workload)
    return [
        {
            "views": workload.batch_size,
            "patches": patches_of(sizes.vision, *size),
            "window_pairs": window_pairs(sizes.vision, *size),
        }
    ]


def _merger_calls(sizes: Qwen2VLArchitecture, workload: Workload) -> list[Variables]:
    return [{"tokens": workload.batch_size * workload.image_tokens}]


def _vision(sizes: Qwen2VLArchitecture, variables: Variables) -> list[Any]:
    return native_operators(sizes.vision, variables["views"], variables["patches"], variables["window_pairs"])


def _merger(sizes: Qwen2VLArchitecture, variables: Variables) -> list[Any]:
    return merger_operators(sizes.vision, variables["tokens"])


def _page(model: Any, sizes: Qwen2VLArchitecture, workload: Workload) -> dict[str, Any]:
    """What the encoder takes of the pages of a batch; what says where patches are is worked out on the CPU."""
    import torch
    from transformers.vision_utils import get_vision_window_index

    vision = sizes.vision
    width, height = _view_size(workload)
    grid = torch.tensor([[1, height // vision.patch_size, width // vision.patch_size]] * workload.batch_size)
    patches = workload.batch_size * patches_of(vision, width, height)
    page = {
        "pixel_values": empty(model, patches, vision.patch_elements),
        "grid_thw": grid,
        "position_ids": torch.zeros(patches, 2, dtype=torch.long, device=model.device),
    }
    if vision.window_size:
        index, lengths = get_vision_window_index(grid, vision.merge_size, vision.window_size, vision.patch_size)
        page |= {"window_index": index.to(model.device), "cu_window_seqlens": lengths}
    return page


def _run_vision(model: Any, sizes: Qwen2VLArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule("model.visual")(page.pop("pixel_values"), **page)


def _run_merger(model: Any, sizes: Qwen2VLArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    patches = workload.batch_size * workload.image_tokens * sizes.vision.merge_size**2
    model.get_submodule(_MERGER)(empty(model, patches, sizes.vision.hidden))


def _run_forward(model: Any, sizes: Qwen2VLArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over the prompt, as ``generate`` makes it first."""
    found = _page(model, sizes, workload)
    # Given to the whole model, what is the encoder's is named so.
    page = {name if name == "pixel_values" else f"image_{name}": value for name, value in found.items()}
    if workload.prompt_tokens < workload.image_tokens:
        # The length was set by hand, and the image does not fit in: both halves of the pass, one after the other.
        model.model.get_image_features(**page)
        page = {}
    whole_pass(model, sizes.decoder, workload.batch_size, workload.prompt_tokens, 0, recorder, page)


def _run_decode(model: Any, sizes: Qwen2VLArchitecture, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over one new token."""
    whole_pass(model, sizes.decoder, workload.batch_size, 1, workload.decode_context - 1, recorder)


def _all_active(parameters: int) -> StageParameters:
    return StageParameters(total=parameters, active=parameters)


@cache
def _adapter() -> TypeAdapter[Qwen2VLArchitecture]:
    from pydantic import TypeAdapter

    return TypeAdapter(Qwen2VLArchitecture)


_CONFIGS = resources.files("stagemeter.models") / "configs"

FAMILY: Family[Qwen2VLArchitecture] = Family(
    name="qwen2-vl",
    title="Qwen 2-VL and 2.5-VL: a page at its own resolution, four patches to a token",
    reads_pages=True,
    views=_page_views,
    takes=lambda config: config.get("model_type") in _TYPES,
    architecture_from_config=_read,
    build=lambda sizes, config: build_from_settings(config),
    shipped={"qwen2-vl-7b": _CONFIGS / "qwen2_vl_7b.json", "qwen2.5-vl-7b": _CONFIGS / "qwen2_5_vl_7b.json"},
    decoder=lambda sizes: sizes.decoder,
    stages=(
        Stage(
            name="vit",
            title="vision transformer over the patches of the page",
            modules=(_EMBEDDING, _BLOCKS),
            owns=(_EMBEDDING, _BLOCKS),
            parameters=lambda sizes: _all_active(native_parameters(sizes.vision)),
            variables={
                "views": "pages: batch_size",
                "patches": "patches of one page",
                "window_pairs": "pairs of patches within the windows of one page; 0 without windows",
            },
            calls=_calls,
            cost=lambda sizes, variables: sum_of(_vision(sizes, variables)),
            working_set=lambda sizes, variables: working_set(_vision(sizes, variables)),
            run=_run_vision,
        ),
        Stage(
            name="merger",
            title="neighbouring patches merged to tokens of the decoder's width",
            modules=(_MERGER,),
            owns=(_MERGER,),
            parameters=lambda sizes: _all_active(merger_parameters(sizes.vision)),
            variables={"tokens": "batch_size * image_tokens"},
            calls=_merger_calls,
            cost=lambda sizes, variables: sum_of(_merger(sizes, variables)),
            working_set=lambda sizes, variables: working_set(_merger(sizes, variables)),
            run=_run_merger,
        ),
        *decoder_stages(lambda sizes: sizes.decoder, DecoderModules("model.language_model", "lm_head")),
    ),
    other_parameters=lambda sizes: {},
    architecture_from_sizes=lambda sizes: _adapter().validate_python(sizes),
    whole_passes={"forward": _run_forward, "decode": _run_decode},
    notes=(
        f"pages are resized to between {_MIN_PIXELS:,} and {_MAX_PIXELS:,} pixels, as the published processors do",
        "a single picture is doubled to fill the two pictures that a patch spans; videos are not counted",
    ),
)
