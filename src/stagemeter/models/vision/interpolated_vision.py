"""Vision transformers over pages at their own resolution whose learned positions are interpolated to it.

Neighbouring patches are merged to one token behind them. As in Kimi's MoonViT and in PaddleOCR-VL: queries, keys and
values by three projections, a feed-forward network of two layers, biases everywhere, each page attending to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.models.blocks import Operator, convolution, feed_forward, linear, repeated, self_attention
from stagemeter.models.settings import Settings
from stagemeter.models.vision.sam import CHANNELS


@dataclass(frozen=True, slots=True)
class InterpolatedVision:
    """Sizes of such a vision transformer.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the feed-forward network.
    patch_size, merge_size : int
        Side of a patch in pixels, and patches per side that become one token.
    positions : int
        Learned embeddings of positions.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    merge_size: int
    positions: int

    @property
    def block(self) -> int:
        """Side in pixels of what becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def merged(self) -> int:
        """Width of the patches that become one token, side by side."""
        return self.hidden * self.merge_size**2


def interpolated_vision(sizes: Settings, merge_size: int, positions: int) -> InterpolatedVision:
    """Vision transformer of the sizes that a configuration gives it.

    Raises
    ------
    StagemeterError
        If its width cannot be split into its heads.
    """
    sizes.split("hidden_size", "num_attention_heads")
    return InterpolatedVision(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=sizes.whole("patch_size"),
        merge_size=merge_size,
        positions=positions,
    )


def require_width(settings: Settings, key: str, width: int) -> None:
    """Refuse a setting that has to be the encoder's width and is not.

    Raises
    ------
    StagemeterError
        If it is given and is another one.
    """
    given = settings.whole(key, width)
    if given != width:
        raise StagemeterError(f"{settings.source}: {key} is {given}, and the encoder is {width} wide")


def interpolated_operators(vision: InterpolatedVision, views: int, patches: int) -> list[Operator]:
    """Operators over some pages of so many patches each; interpolation gathers, which costs nothing by convention."""
    rows, width = views * patches, vision.hidden
    embedding = convolution(
        positions=rows,
        input_elements=rows * CHANNELS * vision.patch_size**2,
        inputs=CHANNELS,
        outputs=width,
        kernel_area=vision.patch_size**2,
        bias=True,
    )
    layer = [*[linear(rows, width, width, bias=True)] * 4, *feed_forward(rows, width, vision.intermediate)]
    attention = self_attention(patches, patches, vision.heads, width // vision.heads)
    return [(embedding, 1), *repeated(layer, vision.layers), (attention, views * vision.layers)]


def interpolated_parameters(vision: InterpolatedVision) -> int:
    """Parameters: patches and positions, layers, the norm behind them."""
    width, between = vision.hidden, vision.intermediate
    embedding = (CHANNELS * vision.patch_size**2 + 1 + vision.positions) * width
    layer = 4 * (width + 1) * width + 2 * width * between + between + width + 4 * width
    return embedding + vision.layers * layer + 2 * width


def merging_parameters(vision: InterpolatedVision, outputs: int) -> int:
    """Parameters of a norm and of the two layers that bring merged patches to the decoder's width."""
    return 2 * vision.hidden + (vision.merged + 1) * (vision.merged + outputs)
