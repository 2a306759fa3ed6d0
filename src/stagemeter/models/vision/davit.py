"""DaViT: vision transformers whose layers attend within windows, then among channels.

Source: DaViT, arXiv 2204.03645; transformers, ``modeling_florence2.py``, ``Florence2VisionBackbone``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import Operator, convolution, feed_forward, linear, repeated, self_attention
from stagemeter.models.vision import CHANNELS

#: Elements of the depthwise filters before attention and feed-forward networks.
_FILTER = 9


@dataclass(frozen=True, slots=True)
class DaViTGroup:
    """A group of layers of one width, after a convolution.

    `heads` attend within windows, `channel_groups` among channels. With `norm_before`, a norm precedes the convolution
    rather than follows it.
    """

    width: int
    depth: int
    heads: int
    channel_groups: int
    filter_size: int
    stride: int
    padding: int
    norm_before: bool


@dataclass(frozen=True, slots=True)
class DaViT:
    """Sizes of a DaViT over square pictures of one size.

    Attributes
    ----------
    window_size, image_size : int
        Side of a window in places of the feature map, and of a picture in pixels.
    ratio : float
        Feed-forward width over the width of a layer.
    attention_bias : bool
        Whether queries, keys and values have a bias; the output projection always has one.
    """

    groups: tuple[DaViTGroup, ...]
    window_size: int
    ratio: float
    attention_bias: bool
    image_size: int

    @property
    def outputs(self) -> int:
        """Width of the features."""
        return self.groups[-1].width

    @property
    def side(self) -> int:
        """Side of the features of a picture."""
        *_, (_, _, _, side) = self.sides()
        return side

    def sides(self) -> Iterator[tuple[DaViTGroup, int, int, int]]:
        """Yield each group of layers, the width and side of its input, and the side of its output."""
        channels, taken = CHANNELS, self.image_size
        for group in self.groups:
            side = (taken + 2 * group.padding - group.filter_size) // group.stride + 1
            yield group, channels, taken, side
            channels, taken = group.width, side


def davit_operators(davit: DaViT, views: int) -> list[Operator]:
    """Return the operators of one pass; windows at the edges are padded."""
    operators: list[Operator] = []
    for group, channels, taken, side in davit.sides():
        embedding = convolution(
            positions=views * side**2,
            input_elements=views * taken**2 * channels,
            inputs=channels,
            outputs=group.width,
            kernel_area=group.filter_size**2,
            bias=True,
        )
        operators += [(embedding, 1), *repeated(_layer(davit, group, views, side), group.depth)]
    return operators


def _layer(davit: DaViT, group: DaViTGroup, views: int, side: int) -> list[Cost]:
    """Return the operators of attention within windows, then among channels, each with its feed-forward network."""
    width, window = group.width, davit.window_size
    rows, inside = views * side**2, views * (-(-side // window) * window) ** 2
    macs = rows * width * _FILTER
    by_channel = Cost(
        macs=macs,
        macs_causal=macs,
        activations=rows * width,
        activation_reads=rows * width,
        weight_reads=width * (_FILTER + 1),
    )
    # Among channels, a channel is a vector over all places of a picture.
    channels = width // group.channel_groups
    return [
        *[by_channel] * 4,
        linear(inside, width, 3 * width, davit.attention_bias),
        self_attention(inside, window**2, group.heads, width // group.heads),
        linear(inside, width, width, bias=True),
        linear(rows, width, 3 * width, davit.attention_bias),
        self_attention(views * channels, channels, group.channel_groups, side**2),
        linear(rows, width, width, bias=True),
        *feed_forward(rows, width, int(davit.ratio * width)) * 2,
    ]


def davit_parameters(davit: DaViT) -> int:
    """Return the parameters: weights, biases and norms."""
    total = 0
    for group, channels, _, _ in davit.sides():
        width, between = group.width, int(davit.ratio * group.width)
        total += (channels * group.filter_size**2 + 1) * width + 2 * (channels if group.norm_before else width)
        attention = 4 * width**2 + width + 3 * width * davit.attention_bias
        filters_and_norms = 2 * width * (_FILTER + 1) + 4 * width
        total += 2 * group.depth * (attention + filters_and_norms + 2 * width * between + between + width)
    return total
