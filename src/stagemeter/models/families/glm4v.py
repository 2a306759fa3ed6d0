"""GLM-4.1V, 4.5V and 4.6V: a page at its own resolution, a decoder like GLM-4's, dense or a mixture of experts.

Source: transformers, ``modeling_glm4v.py``, ``modeling_glm4v_moe.py``, ``image_processing_pil_glm4v.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import patch_encoder, patch_grid, projector_stage
from stagemeter.models.builders.page_stages import image_tokens_of
from stagemeter.models.builders.text import dense_then_experts
from stagemeter.models.builders.vision_language import Pages, vision_language_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.passes import empty
from stagemeter.models.decoder.predictor import Predictor
from stagemeter.models.families import text_settings
from stagemeter.models.family import Family
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.patches import QWEN_SIZES
from stagemeter.models.pages.pixel_limits import read_pixel_limits
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.merging import QwenVision, qwen_vision
from stagemeter.models.vision.projector import LinearSize

_VISION = "model.visual"
_DOWNSAMPLE, _MERGER = f"{_VISION}.downsample", f"{_VISION}.merger"
#: Limits of pixels that transformers' ``Glm4vImageProcessor`` and ``Glm46VImageProcessor`` give a file without them;
#: sizes are Qwen-VL's.
_PIXELS_OF_CLASS = 112 * 112, 28 * 28 * 15_000
_EXPERTS = "glm4v_moe"
#: Limits of the pixels of a page, which is doubled (``preprocessor_config.json`` of the published models).
_PIXELS = (12_544, 9_633_792)


@dataclass(frozen=True, slots=True)
class GlmVArchitecture(Sizes):
    """Sizes of the encoder, of its merger's gated network and of the language model."""

    vision: QwenVision
    merger_width: int
    decoder: Decoder


def glm_v_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], GlmVArchitecture],
    encoder: Sequence[str],
    shipped: Sequence[str],
    notes: Sequence[str] = (),
    predictor: Callable[[Settings], Predictor | None] | None = None,
) -> Family[GlmVArchitecture]:
    """Make a family whose encoder takes a page at its own resolution and merges patches by a convolution.

    `encoder` names its modules within ``model.visual``. For the other arguments, see `vision_language_family`.
    """
    return vision_language_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=GlmVArchitecture,
        read=read,
        rules=_rules,
        stages=(
            patch_encoder(tuple(f"{_VISION}.{module}" for module in encoder), run=_run_vision),
            projector_stage(
                _merger,
                name="merger",
                title="neighbouring patches made a token by a convolution and a gated network",
                modules=(_DOWNSAMPLE, _MERGER),
                # The norm between convolution and network has weight and bias.
                norms=lambda sizes: 2 * sizes.vision.outputs,
                run=_run_merger,
            ),
        ),
        pages=Pages(_page, values=True),
        # ``<|begin_of_image|>`` and ``<|end_of_image|>``, which the chat template writes, and not the processor.
        # Source: vLLM 0.32, ``glm4_1v.py``, line 1769; ``processing_glm4v.py``, ``replace_image_token``.
        tags=lambda sizes, views: 2,
        shipped=shipped,
        notes=(
            "a page is doubled to fill the two pictures that a patch spans, and limits of pixels hold for both "
            "together; videos are not counted",
            *notes,
        ),
        predictor=predictor,
    )


def _rules(sizes: GlmVArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules of pages, which are doubled: limits hold for both pictures together."""
    vision, image = sizes.vision, settings.image
    vision.patches.require(image, QWEN_SIZES)
    limits = read_pixel_limits(image, (vision.min_pixels, vision.max_pixels), _PIXELS_OF_CLASS, top_level=False)

    def page(width: int, height: int) -> PageViews:
        patches = vision.patches
        return patches.views(1, patches.resized_together(patches.frames, width, height, limits))

    return PageRules(page)


def _merger(sizes: GlmVArchitecture) -> list[LinearSize]:
    """Return the layers of the merger; a convolution without overlap is a linear layer."""
    width, between = sizes.vision.outputs, sizes.merger_width
    network = [LinearSize(width, between), LinearSize(width, between), LinearSize(between, width)]
    return [LinearSize(sizes.vision.merged, width, bias=True), LinearSize(width, width), *network]


def _page(model: Any, sizes: GlmVArchitecture, workload: Workload) -> dict[str, Any]:
    patches = image_tokens_of(workload) * sizes.vision.merge_size**2
    return {
        "pixel_values": empty(model, patches, sizes.vision.vit.patch_elements),
        "image_grid_thw": patch_grid(model, sizes.vision.patch_size, workload),
    }


def _run_vision(model: Any, sizes: GlmVArchitecture, workload: Workload) -> None:
    page = _page(model, sizes, workload)
    model.get_submodule(_VISION)(page["pixel_values"], grid_thw=page["image_grid_thw"])


def _run_merger(model: Any, sizes: GlmVArchitecture, workload: Workload) -> None:
    vision, tokens = sizes.vision, image_tokens_of(workload)
    patches = empty(model, tokens, vision.hidden, vision.merge_size, vision.merge_size)
    model.get_submodule(_MERGER)(model.get_submodule(_DOWNSAMPLE)(patches).view(tokens, vision.outputs))


def glm_vision(sizes: Settings, decoder: Decoder, **options: Any) -> QwenVision:
    """Read the encoder; `options` are those of `qwen_vision` that differ."""
    return qwen_vision(sizes, decoder.hidden, _PIXELS, gated=True, norm_bias=False, patch_bias=True, **options)


def _read(settings: Settings) -> GlmVArchitecture:
    sizes, text = settings.part("vision_config"), text_settings(settings)
    language = _mixture(text) if settings.values["model_type"] == _EXPERTS else _dense(text)
    vision = glm_vision(
        sizes,
        language,
        # The feed-forward network is as wide as the tokens; `intermediate_size` is the width of the merger's.
        intermediate=sizes.whole("out_hidden_size"),
        positions=(sizes.whole("image_size") // sizes.whole("patch_size")) ** 2,
        bias=sizes.flag("attention_bias"),
        output_bias=False,
        feed_forward_bias=False,
        other_norms=2,
    )
    return GlmVArchitecture(vision, sizes.whole("intermediate_size"), language)


def _dense(text: Settings) -> Decoder:
    layer = Layer(
        GroupedQueryAttention.read(text, bias=True),
        GatedFeedForward(text.whole("intermediate_size"), fused=True),
        text.whole("num_hidden_layers"),
        norms=4,
    )
    return Decoder.read(text, [layer])


def _mixture(text: Settings) -> Decoder:
    attention = GroupedQueryAttention.read(text, bias=text.flag("attention_bias"))
    return Decoder.read(text, dense_then_experts(text, attention))


FAMILY = glm_v_family(
    name="glm4v",
    title="GLM-4.1V, 4.5V, 4.6V: a page at its own resolution, a decoder like GLM-4's",
    model_types=("glm4v", "glm46v", _EXPERTS),
    read=_read,
    encoder=("patch_embed", "post_conv_layernorm", "embeddings", "blocks", "post_layernorm"),
    shipped=("glm-4.1v-9b", "glm-4.5v"),
)
