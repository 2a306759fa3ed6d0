"""Vision transformers over square views of one size: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.blocks import Operator, convolution, encoder_layer, repeated
from stagemeter.models.vision.sam import CHANNELS


@dataclass(frozen=True, slots=True)
class VisionTransformer:
    """A vision transformer: patches by a convolution, learned positions, layers with norms, biases and two-layer FFNs.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the feed-forward network.
    patch_size, image_size : int
        Side of a patch and of a view in pixels.
    class_token : bool
        Whether one more token goes through with the patches of a view.
    patch_bias : bool
        Whether the convolution adds a bias.
    attention_bias : bool
        Whether the projections of queries, keys and values add a bias; that of the output always does.
    layer_scale : bool
        Whether the results of attention and feed-forward network are scaled by learned factors, two per layer.
    outer_norms : int
        Norms before and after all layers.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    image_size: int
    class_token: bool
    patch_bias: bool
    attention_bias: bool = True
    layer_scale: bool = False
    outer_norms: int = 1

    @property
    def side(self) -> int:
        """Patches per side of a view."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of one view: its patches, and the class token."""
        return self.side**2 + self.class_token


def transformer_operators(vision: VisionTransformer, views: int) -> list[Operator]:
    """Operators of one pass of some views; each view attends to itself alone."""
    patches = views * vision.side**2
    embedding = convolution(
        positions=patches,
        input_elements=views * CHANNELS * vision.image_size**2,
        inputs=CHANNELS,
        outputs=vision.hidden,
        kernel_area=vision.patch_size**2,
        bias=vision.patch_bias,
    )
    layer = encoder_layer(
        views * vision.tokens,
        vision.tokens,
        vision.hidden,
        vision.heads,
        vision.intermediate,
        vision.attention_bias,
    )
    return [(embedding, 1), *repeated(layer, vision.layers)]


def transformer_parameters(vision: VisionTransformer) -> int:
    """Parameters of a vision transformer: weights, biases, norms, positions, class token, factors."""
    width, between = vision.hidden, vision.intermediate
    embedding = CHANNELS * vision.patch_size**2 * width + vision.patch_bias * width
    embedding += vision.class_token * width + vision.tokens * width
    attention = 4 * width**2 + width + 3 * width * vision.attention_bias
    feed_forward = 2 * width * between + between + width
    layer = attention + feed_forward + 4 * width + 2 * width * vision.layer_scale
    return embedding + layer * vision.layers + 2 * width * vision.outer_norms
