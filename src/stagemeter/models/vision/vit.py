"""The vision transformer: sizes and options, operators, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.models.blocks import (
    Operator,
    convolution,
    feed_forward,
    gated_feed_forward,
    linear,
    repeated,
    self_attention,
)
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import later
from stagemeter.models.vision import CHANNELS


@dataclass(frozen=True, slots=True)
class TransformerSizes:
    """Width, depth, attention heads and feed-forward width of a vision transformer, and a patch's side in pixels."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int


@dataclass(frozen=True, slots=True)
class VisionTransformer(TransformerSizes):
    """Sizes and options of a vision transformer.

    Attributes
    ----------
    image_size : int
        Side of a square view in pixels; 0 if views have a size of their own.
    norms, outer_norms : int
        Norms of a layer, and norms before and after all layers.
    positions : int or None
        Learned position embeddings; None: one for each token of a square view.
    temporal_patch_size : int
        Frames that a patch spans.
    head_width : int
        Width of an attention head; 0: `hidden` divided by `heads`.
    fused : bool
        Whether one projection makes queries, keys and values.
    attention_bias, output_bias, feed_forward_bias : bool
        Whether biases are in queries, keys and values; in attention's output; in a gated feed-forward network.
    head_norms, layer_scale : bool
        Whether norms act on each head of queries and keys; whether factors scale the results of both halves of a layer.
    view_by_view : bool
        Whether attention runs once for each view, rather than once for all.
    masked : bool
        Whether attention reads a mask with an element for each pair of tokens.
    """

    image_size: int = 0
    class_token: bool = False
    patch_bias: bool = True
    attention_bias: bool = True
    layer_scale: bool = False
    outer_norms: int = 1
    positions: int | None = later(None)
    temporal_patch_size: int = later(1)
    head_width: int = later(0)
    fused: bool = later(False)
    output_bias: bool = later(True)
    feed_forward_bias: bool = later(True)
    gated: bool = later(False)
    norms: int = later(2)
    norm_bias: bool = later(True)
    head_norms: bool = later(False)
    view_by_view: bool = later(False)
    masked: bool = later(False)
    window_layers: int = later(0)

    @property
    def side(self) -> int:
        """Patches per side of a square view."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of a square view: its patches, and the class token."""
        return self.side**2 + self.class_token

    @property
    def width_of_head(self) -> int:
        """Width of an attention head."""
        return self.head_width or self.hidden // self.heads

    @property
    def patch_elements(self) -> int:
        """Elements of a patch."""
        return CHANNELS * self.temporal_patch_size * self.patch_size**2


#: Names of sizes in most configurations.
LAYER_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}
#: Options of layers like Llama's: gated feed-forward networks, norms without a bias, and no other biases.
LLAMA_LAYERS = {
    "patch_bias": False,
    "attention_bias": False,
    "output_bias": False,
    "feed_forward_bias": False,
    "norm_bias": False,
    "gated": True,
}
#: Number of views that attend to themselves, and the tokens of each.
Views = Sequence[tuple[int, int]]


def vit_of(sizes: Any, **options: Any) -> VisionTransformer:
    """Return the vision transformer whose sizes have the same names in another data class of sizes.

    `options` are fields of `VisionTransformer` that differ, or that all models of a family share.
    """
    names = {size.name for size in fields(VisionTransformer)} & {size.name for size in fields(sizes)}
    return VisionTransformer(**{name: getattr(sizes, name) for name in names} | options)


def vision_transformer(sizes: Settings, **options: Any) -> VisionTransformer:
    """Read a vision transformer over square views, under the names that most configurations use.

    `options` are fields of `VisionTransformer` that the family sets.
    """
    patch_size, image_size = patch_and_view(sizes)
    return VisionTransformer(
        **layer_sizes(sizes),
        patch_size=patch_size,
        image_size=image_size,
        **options,
    )


def siglip(sizes: Settings) -> VisionTransformer:
    """Read SigLIP's vision transformer; one of another kind, or with a head, is left to the generic family."""
    sizes.require("model_type", "siglip_vision_model", "its encoder")
    sizes.require("vision_use_head", False, "its encoder")
    return vision_transformer(sizes)


def clip(sizes: Settings) -> VisionTransformer:
    """Read CLIP's vision transformer; one of another kind is left to the generic family."""
    sizes.require("model_type", "clip_vision_model", "its encoder")
    return vision_transformer(sizes, class_token=True, patch_bias=False, outer_norms=2)


def layer_sizes(sizes: Settings) -> dict[str, Any]:
    """Read width, depth, heads and feed-forward width, under the names that most configurations use."""
    sizes.split("hidden_size", "num_attention_heads")
    return {size: sizes.whole(name) for size, name in LAYER_NAMES.items()}


def patch_and_view(sizes: Settings) -> tuple[int, int]:
    """Read the sides in pixels of a patch and of a square view; refuse a view smaller than a patch."""
    patch_size, image_size = sizes.square("patch_size"), sizes.square("image_size")
    if image_size < patch_size:
        raise StagemeterError(
            f"{sizes.source}: image_size is {image_size}, and a view of it holds no patch of patch_size {patch_size}. "
            "Give a larger view"
        )
    return patch_size, image_size


def vit_operators(vit: VisionTransformer, views: int, patches: int | None = None, pairs: int = 0) -> list[Operator]:
    """Return the operators of one pass over views, each of so many patches.

    Without `patches`, views are square. `pairs` counts the pairs of patches within the windows of a view.
    """
    patches = vit.side**2 if patches is None else patches
    layers = layer_operators(vit, [(views, patches + vit.class_token)], vit.layers - vit.window_layers)
    if vit.window_layers:
        rows = views * patches
        # One operator for all windows of a layer: their sizes differ, and the other operators outweigh them.
        macs = 2 * views * pairs * vit.hidden
        windows = Cost(
            macs=macs, macs_causal=macs, activations=rows * vit.hidden, activation_reads=3 * rows * vit.hidden
        )
        layers += repeated([*_linear_layers(vit, rows), windows], vit.window_layers)
    return [(patch_embedding(vit, views * patches, views), 1), *layers]


def patch_embedding(vit: VisionTransformer, patches: int, views: int = 0) -> Cost:
    """Return the cost of embedding patches; a square view is read in full, even pixels that no patch covers."""
    elements = views * CHANNELS * vit.image_size**2 if vit.image_size else patches * vit.patch_elements
    return convolution(
        positions=patches,
        input_elements=elements,
        inputs=CHANNELS,
        outputs=vit.hidden,
        kernel_area=vit.temporal_patch_size * vit.patch_size**2,
        bias=vit.patch_bias,
    )


def layer_operators(vit: VisionTransformer, views: Views, layers: int) -> list[Operator]:
    """Return the operators of layers in which each view attends to itself."""
    if not layers:
        return []
    rows = sum(number * tokens for number, tokens in views)
    attention = [_attention(vit, number, tokens) for number, tokens in views]
    return [*repeated(_linear_layers(vit, rows), layers), *((cost, times * layers) for cost, times in attention)]


def _attention(vit: VisionTransformer, views: int, tokens: int) -> Operator:
    together, times = (1, views) if vit.view_by_view else (views, 1)
    cost = self_attention(together * tokens, tokens, vit.heads, vit.width_of_head)
    return (cost + Cost(activation_reads=together * tokens**2) if vit.masked else cost), times


def _linear_layers(vit: VisionTransformer, rows: int) -> list[Cost]:
    width, inner = vit.hidden, vit.heads * vit.width_of_head
    number, outputs = (1, 3 * inner) if vit.fused else (3, inner)
    return [
        *[linear(rows, width, outputs, vit.attention_bias)] * number,
        linear(rows, inner, width, vit.output_bias),
        *(
            gated_feed_forward(rows, width, vit.intermediate, vit.feed_forward_bias)
            if vit.gated
            else feed_forward(rows, width, vit.intermediate)
        ),
    ]


def vit_parameters(vit: VisionTransformer) -> int:
    """Return the parameters: patch embedding, class token, positions, layers, outer norms."""
    positions = vit.tokens if vit.positions is None else vit.positions
    embedding = (vit.patch_elements + vit.patch_bias + vit.class_token + positions) * vit.hidden
    return embedding + vit.layers * layer_parameters(vit) + vit.outer_norms * norm_parameters(vit)


def layer_parameters(vit: VisionTransformer) -> int:
    """Return the parameters of a layer."""
    width, between, inner = vit.hidden, vit.intermediate, vit.heads * vit.width_of_head
    attention = 4 * width * inner + 3 * inner * vit.attention_bias + width * vit.output_bias
    projections = 2 + vit.gated
    biases = ((projections - 1) * between + width) * vit.feed_forward_bias
    norms = vit.norms * norm_parameters(vit) + 2 * vit.width_of_head * vit.head_norms
    return attention + projections * width * between + biases + norms + 2 * width * vit.layer_scale


def norm_parameters(vit: VisionTransformer) -> int:
    """Return the parameters of a norm."""
    return vit.hidden * (1 + vit.norm_bias)
