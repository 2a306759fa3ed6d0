"""Florence-2: a DaViT, an encoder over its features and the text, and a decoder with cross-attention to both.

Source: Florence-2, arXiv 2311.06242; transformers, ``modeling_florence2.py``, ``modeling_bart.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoder_decoder import EncoderDecoderArchitecture, encoder_decoder_family
from stagemeter.models.builders.encoders import projector_stage, square_pixels
from stagemeter.models.builders.page_stages import PAGES, Calls, page_stage
from stagemeter.models.builders.vision_language import VISION
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.decoder.passes import empty
from stagemeter.models.decoder.stages import DecoderModules
from stagemeter.models.pages.square_views import one_view
from stagemeter.models.settings import Settings
from stagemeter.models.vision.davit import DaViT, DaViTGroup, davit_operators, davit_parameters
from stagemeter.models.vision.projector import LinearSize, require_width
from stagemeter.models.vision.vit import VisionTransformer, layer_operators, layer_parameters

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
    def encoder(self) -> VisionTransformer:
        """The encoder, whose layers are a vision transformer's."""
        return VisionTransformer(self.decoder.hidden, self.layers, self.heads, self.intermediate, patch_size=0)

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
    require_width(sizes, "projection_dim", decoder.hidden, "the encoder over the text")
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
        raise StagemeterError(
            f"{sizes.source}: settings of groups of layers differ in length, {lengths}. Give all as many"
        )
    groups = tuple(DaViTGroup(*numbers) for numbers in zip(*lists.values(), strict=True))
    for group in groups:
        if group.width % group.heads or group.width % group.channel_groups:
            raise StagemeterError(
                f"{sizes.source}: layers of width {group.width} cannot be split into {group.heads} heads and "
                f"{group.channel_groups} groups of channels. Give divisors of the width"
            )
    return DaViT(groups, sizes.whole("window_size"), sizes.number("mlp_ratio"), sizes.flag("qkv_bias"), _IMAGE_SIZE)


def _page(model: Any, sizes: Florence2Architecture, workload: Workload) -> dict[str, Any]:
    import torch

    row = [model.config.image_token_id] * workload.image_tokens + [0] * workload.text_tokens
    ids = torch.tensor([row] * workload.batch_size, device=model.device)
    return {"input_ids": ids, **square_pixels(model, sizes, workload)}


def _encoder_inputs(model: Any, sizes: Florence2Architecture, workload: Workload) -> dict[str, Any]:
    decoder = sizes.decoder.decoder
    return {"inputs_embeds": empty(model, workload.batch_size, decoder.encoder_tokens(workload), decoder.hidden)}


FAMILY = encoder_decoder_family(
    name="florence2",
    title="Florence-2: a DaViT, an encoder over page and text, a decoder that attends to both",
    model_types=("florence2",),
    sizes=Florence2Architecture,
    read=_read,
    rules=lambda sizes, settings: one_view(
        settings, sizes.vision.image_size, sizes.view_tokens, default=224, crops=True
    ),
    stages=(
        page_stage(
            name="vit",
            title="DaViT over the page",
            modules=(VISION,),
            operators=lambda sizes, values: davit_operators(sizes.vision, values["views"]),
            parameters=lambda sizes: davit_parameters(sizes.vision),
            calls=PAGES,
            inputs=lambda model, sizes, workload: tuple(square_pixels(model, sizes, workload).values()),
        ),
        projector_stage(
            lambda sizes: [LinearSize(sizes.vision.outputs, sizes.decoder.hidden)],
            title="projection of the features to the encoder's width",
            inputs=lambda model, sizes, workload: (
                empty(model, workload.batch_size, sizes.vision.outputs, sizes.vision.side, sizes.vision.side),
            ),
            calls=PAGES,
            rows=lambda sizes, values: values["views"] * sizes.view_tokens,
            # Learned positions, and a norm.
            norms=lambda sizes: sizes.places * sizes.vision.outputs + 2 * sizes.decoder.hidden,
        ),
        page_stage(
            name="encode",
            title="encoder over the tokens of page and text",
            modules=("model.language_model.encoder",),
            operators=lambda sizes, values: layer_operators(
                sizes.encoder, [(values["batch"], values["encoder_tokens"])], sizes.layers
            ),
            # The decoder shares its embedding with the encoder.
            parameters=lambda sizes: (
                sizes.layers * layer_parameters(sizes.encoder) + (sizes.decoder.positions + 2) * sizes.decoder.hidden
            ),
            calls=Calls(
                {"batch": "batch_size", "encoder_tokens": "tokens of page and text"},
                lambda sizes, workload: [
                    {"batch": workload.batch_size, "encoder_tokens": sizes.decoder.decoder.encoder_tokens(workload)}
                ],
            ),
            inputs=_encoder_inputs,
        ),
    ),
    page=_page,
    decoder=DecoderModules("model.language_model.decoder", "lm_head"),
    meaning="tokens of page and text",
    shipped=("florence-2-base",),
    notes=(
        "the encoder reads page and text, and the decoder attends to both; the decoder's own prompt is one token",
        f"every page is resized to {_IMAGE_SIZE} x {_IMAGE_SIZE} pixels, as the published processors do",
    ),
    prompt_tokens=lambda sizes, image, text: 1,
)
