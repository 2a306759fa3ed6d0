"""Swin transformers: attention within shifted windows, patches merged between groups of layers.

Source: Swin Transformer, arXiv 2103.14030, section 3.2; transformers, ``modeling_donut_swin.py``,
``DonutSwinLayer.get_attn_mask``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import Operator, convolution, feed_forward, linear, repeated, self_attention
from stagemeter.models.vision import CHANNELS


@dataclass(frozen=True, slots=True)
class SwinTransformer:
    """Sizes of a Swin transformer over pictures of one size.

    Attributes
    ----------
    hidden : int
        Width of the first group of layers; each group is twice as wide as the one before.
    depths, heads : tuple of int
        Layers and attention heads of each group.
    window_size, patch_size : int
        Side of a window in patches, and of a patch in pixels.
    width, height : int
        Size of a picture in pixels.
    ratio : float
        Feed-forward width over the width of a layer.
    attention_bias : bool
        Whether queries, keys and values have a bias; the output projection always has one.
    """

    hidden: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window_size: int
    patch_size: int
    width: int
    height: int
    ratio: float
    attention_bias: bool

    @property
    def outputs(self) -> int:
        """Width of the features."""
        return self.hidden << (len(self.depths) - 1)

    @property
    def tokens(self) -> int:
        """Tokens of the features of a picture."""
        *_, (_, _, columns, rows) = self.groups()
        return columns * rows

    def groups(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield layers and heads of each group, and the columns and rows of its patches."""
        columns, rows = self.width // self.patch_size, self.height // self.patch_size
        for depth, heads in zip(self.depths, self.heads, strict=True):
            yield depth, heads, columns, rows
            columns, rows = -(-columns // 2), -(-rows // 2)


def swin_operators(swin: SwinTransformer, views: int, model: bool = False) -> list[Operator]:
    """Return the operators of one pass; windows at the edges are padded.

    Every second layer of a group shifts its windows by half of their side. Those at the far edges then hold parts of
    a picture that are no neighbours, and the mask hides their pairs: the `model` does not need them.
    """
    columns, rows = swin.width // swin.patch_size, swin.height // swin.patch_size
    embedding = convolution(
        positions=views * columns * rows,
        input_elements=views * CHANNELS * swin.width * swin.height,
        inputs=CHANNELS,
        outputs=swin.hidden,
        kernel_area=swin.patch_size**2,
        bias=True,
    )
    operators: list[Operator] = [(embedding, 1)]
    for index, (depth, heads, columns, rows) in enumerate(swin.groups()):
        width = swin.hidden * 2**index
        if index:
            # Merging puts four patches of the previous group side by side.
            operators.append((linear(views * columns * rows, 2 * width, width), 1))
        shifted = depth // 2 if model and min(columns, rows) > swin.window_size else 0
        operators += repeated(_layer(swin, views, columns, rows, width, heads), depth - shifted)
        operators += repeated(_layer(swin, views, columns, rows, width, heads, swin.window_size // 2), shifted)
    return operators


def _layer(
    swin: SwinTransformer, views: int, columns: int, rows: int, width: int, heads: int, shift: int = 0
) -> list[Cost]:
    side = swin.window_size
    length = side**2
    inside = views * -(-columns // side) * -(-rows // side) * length
    scores = inside * length * heads
    patches = views * columns * rows
    # The last window of a row or a column of windows has two parts, which see themselves alone.
    across, along = (-(-size // side) * side**2 - 2 * shift * (side - shift) for size in (columns, rows))
    pairs = 2 * views * across * along * width
    attention = self_attention(inside, length, heads, width // heads)
    return [
        *[linear(inside, width, width, swin.attention_bias)] * 3,
        replace(attention, macs=pairs, macs_causal=pairs) + Cost(activations=scores, activation_reads=scores),
        linear(inside, width, width, bias=True),
        *feed_forward(patches, width, int(swin.ratio * width)),
    ]


def swin_parameters(swin: SwinTransformer) -> int:
    """Return the parameters; each layer has a table of relative positions."""
    embedding = (CHANNELS * swin.patch_size**2 + 1) * swin.hidden + 2 * swin.hidden
    total = embedding
    for index, (depth, heads) in enumerate(zip(swin.depths, swin.heads, strict=True)):
        width = swin.hidden * 2**index
        if index:
            # The merging layer and the norm before it, both over four patches of half the width.
            total += 2 * width * width + 4 * width
        attention = 4 * width**2 + width + 3 * width * swin.attention_bias + (2 * swin.window_size - 1) ** 2 * heads
        between = int(swin.ratio * width)
        layer = attention + 2 * width * between + between + width + 4 * width
        total += depth * layer
    return total
