"""Florence-2: a DaViT, an encoder over its features and the text, and a decoder with cross-attention to both.

Source: Florence-2, arXiv 2311.06242; transformers, ``modeling_florence2.py``, ``modeling_bart.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, feed_forward, linear, repeated, self_attention
from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.encoder_decoder import (
    EncoderDecoderArchitecture,
    sequence_arguments,
    sequence_stages,
)
from stagemeter.models.builders.encoders import projector_stage
from stagemeter.models.builders.page_stages import page_stage
from stagemeter.models.builders.vision_language import VISION
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.decoder.stages import DecoderModules, empty
from stagemeter.models.family import CacheRecorder, Family, PageRules, Variables, with_values
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.pages.square_views import one_view
from stagemeter.models.settings import Settings
from stagemeter.models.shipped import shipped_configurations
from stagemeter.models.sizes import sizes_reader
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.davit import DaViT, DaViTGroup, davit_operators, davit_parameters
from stagemeter.models.vision.projector import LinearSize

_ENCODER, _DECODER = "model.language_model.encoder", "model.language_model.decoder"
#: Side in pixels of every page in the published processors (``preprocessor_config.json``).
_IMAGE_SIZE = 768
#: Settings of the DaViT with a number for each group of layers.
_BY_GROUP = (
    "embed_dim",
    "depths",
    "num_heads",
    "num_groups",
    "patch_size",
    "patch_stride",
    "patch_padding",
)
_NORM_FIRST = "patch_prenorm"


@dataclass(frozen=True, slots=True)
class Florence2Architecture(EncoderDecoderArchitecture):
    """Sizes of Florence-2; its encoder is as wide as the decoder.

    `places` are learned positions along each side of the DaViT's features.
    """

    vision: DaViT
    places: int
    layers: int
    heads: int
    intermediate: int

    @property
    def view_tokens(self) -> int:
        """Tokens of a page: its places, and their mean."""
        return self.vision.side**2 + 1


def _read(settings: Settings) -> Florence2Architecture:
    sizes, text = settings.part("vision_config"), settings.part("text_config")
    if text.values.get("model_type") != "bart":
        text.refuse("model_type", text.values.get("model_type"), "the language model of this family is 'bart'")
    for holder in (settings, text):
        holder.refuse(
            "tie_word_embeddings", False, "encoder, decoder and output head of this family share one embedding"
        )
    decoder = SequenceDecoder.read(
        text, text.whole("d_model"), norms=1, fused=True, text_is_encoded=True, head_on_last=True
    )
    if sizes.whole("projection_dim") != decoder.hidden:
        raise StagemeterError(
            f"{sizes.source}: projection_dim is {sizes.whole('projection_dim')}, and the encoder takes {decoder.hidden}"
        )
    text.split("d_model", "encoder_attention_heads")
    return Florence2Architecture(
        decoder=decoder,
        vision=_davit(sizes),
        places=sizes.whole("max_position_embeddings"),
        layers=text.whole("encoder_layers"),
        heads=text.whole("encoder_attention_heads"),
        intermediate=text.whole("encoder_ffn_dim"),
    )


def _davit(sizes: Settings) -> DaViT:
    lists = {name: sizes.wholes(name, least=0 if name == "patch_padding" else 1) for name in _BY_GROUP}
    lists |= {_NORM_FIRST: sizes.flags(_NORM_FIRST)}
    if len({len(found) for found in lists.values()}) > 1:
        lengths = ", ".join(f"{name} {len(found)}" for name, found in lists.items())
        raise StagemeterError(f"{sizes.source}: settings of groups of layers differ in length: {lengths}")
    groups = tuple(DaViTGroup(*numbers) for numbers in zip(*lists.values(), strict=True))
    for group in groups:
        if group.width % group.heads or group.width % group.channel_groups:
            raise StagemeterError(
                f"{sizes.source}: layers of width {group.width} cannot be split into {group.heads} heads and "
                f"{group.channel_groups} groups of channels"
            )
    return DaViT(groups, sizes.whole("window_size"), sizes.number("mlp_ratio"), sizes.flag("qkv_bias"), _IMAGE_SIZE)


def _encoder_operators(sizes: Florence2Architecture, values: Variables) -> list[Operator]:
    width, rows = sizes.decoder.hidden, values["batch"] * values["encoder_tokens"]
    layer = [
        *[linear(rows, width, width, bias=True)] * 4,
        self_attention(rows, values["encoder_tokens"], sizes.heads, width // sizes.heads),
        *feed_forward(rows, width, sizes.intermediate),
    ]
    return repeated(layer, sizes.layers)


def _encoder_parameters(sizes: Florence2Architecture) -> int:
    """Return the parameters of the encoder, except the embedding, which it shares with the decoder."""
    width, between = sizes.decoder.hidden, sizes.intermediate
    layer = 4 * (width + 1) * width + 2 * width * between + between + width + 4 * width
    return sizes.layers * layer + (sizes.decoder.positions + 2) * width


def _pixels(model: Any, sizes: Florence2Architecture, workload: Workload) -> Any:
    side = sizes.vision.image_size
    return empty(model, workload.batch_size, CHANNELS, side, side)


def _projector_inputs(model: Any, sizes: Florence2Architecture, workload: Workload) -> tuple[Any, ...]:
    vision = sizes.vision
    return (empty(model, workload.batch_size, vision.outputs, vision.side, vision.side),)


def _encoder_inputs(model: Any, sizes: Florence2Architecture, workload: Workload) -> dict[str, Any]:
    source = sizes.decoder.decoder.encoder_tokens(workload)
    return {"inputs_embeds": empty(model, workload.batch_size, source, sizes.decoder.hidden)}


@with_values
def _forward(model: Any, sizes: Florence2Architecture, workload: Workload, recorder: CacheRecorder) -> None:
    import torch

    passed = sequence_arguments(model, sizes.decoder, workload, recorder, workload.prompt_tokens, 0)
    row = [model.config.image_token_id] * workload.image_tokens + [0] * workload.text_tokens
    source = {
        "input_ids": torch.tensor([row] * workload.batch_size, device=model.device),
        "pixel_values": _pixels(model, sizes, workload),
    }
    model(**{**passed, "encoder_outputs": None}, **source, logits_to_keep=1)


@with_values
def _step(model: Any, sizes: Florence2Architecture, workload: Workload, recorder: CacheRecorder) -> None:
    passed = sequence_arguments(model, sizes.decoder, workload, recorder, 1, workload.decode_context - 1)
    model(**passed, logits_to_keep=1)


def _rules(sizes: Florence2Architecture, settings: ProcessorSettings) -> PageRules:
    return one_view(settings, sizes.vision.image_size, sizes.view_tokens, default=224, crops=True)


_PAGES = {"views": "pages: batch_size"}


def _calls(sizes: Florence2Architecture, workload: Workload) -> list[Variables]:
    return [{"views": workload.batch_size}]


FAMILY = Family(
    name="florence2",
    title="Florence-2: a DaViT, an encoder over page and text, a decoder that attends to both",
    rules=_rules,
    model_types=("florence2",),
    architecture_from_config=lambda config, source: _read(Settings(config, source)),
    build=lambda sizes, config: build_from_settings(config),
    shipped=shipped_configurations("florence-2-base"),
    decoder=lambda sizes: sizes.decoder.decoder,
    stages=(
        page_stage(
            name="vit",
            title="DaViT over the page",
            modules=(VISION,),
            operators=lambda sizes, values: davit_operators(sizes.vision, values["views"]),
            parameters=lambda sizes: davit_parameters(sizes.vision),
            variables=_PAGES,
            calls=_calls,
            inputs=lambda model, sizes, workload: (_pixels(model, sizes, workload),),
        ),
        projector_stage(
            lambda sizes: [LinearSize(sizes.vision.outputs, sizes.decoder.hidden)],
            title="projection of the features to the encoder's width",
            inputs=_projector_inputs,
            variables=_PAGES,
            calls=_calls,
            rows=lambda sizes, values: values["views"] * sizes.view_tokens,
            # Learned positions, and a norm.
            norms=lambda sizes: sizes.places * sizes.vision.outputs + 2 * sizes.decoder.hidden,
        ),
        page_stage(
            name="encode",
            title="encoder over the tokens of page and text",
            modules=(_ENCODER,),
            operators=_encoder_operators,
            parameters=_encoder_parameters,
            variables={"batch": "batch_size", "encoder_tokens": "tokens of page and text"},
            calls=lambda sizes, workload: [
                {"batch": workload.batch_size, "encoder_tokens": sizes.decoder.decoder.encoder_tokens(workload)}
            ],
            inputs=_encoder_inputs,
        ),
        *sequence_stages(DecoderModules(_DECODER, "lm_head"), "tokens of page and text"),
    ),
    other_parameters=lambda sizes: {},
    architecture_from_sizes=sizes_reader(Florence2Architecture),
    whole_passes={"forward": _forward, "decode": _step},
    notes=(
        "the encoder reads page and text, and the decoder attends to both; the decoder's own prompt is one token",
        f"every page is resized to {_IMAGE_SIZE} x {_IMAGE_SIZE} pixels, as the published processors do",
    ),
    prompt_tokens=lambda sizes, image, text: 1,
)
