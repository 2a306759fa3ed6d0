"""Vision transformers that take a page at its own resolution: sizes, parameters and closed forms.

A page is resized to whole blocks of patches; neighbouring patches are merged to one token at the end. Attention is
within a view, and in some models within windows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from stagemeter.models.pages.pixel_limits import PixelLimits, resized_between
from stagemeter.models.pages.settings import PageSettings
from stagemeter.models.settings import Settings
from stagemeter.models.vision.sam import CHANNELS


@dataclass(frozen=True, slots=True)
class NativeVision:
    """A vision transformer over pages at their own resolution, with the layers that merge patches to tokens.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the feed-forward network.
    gated : bool
        Whether the feed-forward network has a gate.
    norm_bias : bool
        Whether norms have a bias besides their weight.
    patch_size, temporal_patch_size : int
        Side of a patch in pixels, and the pictures that one patch spans; a single picture is repeated.
    merge_size : int
        Patches per side that become one token.
    window_size : int
        Side of an attention window in pixels; 0 where there are none.
    full_layers : int
        Layers that attend to the whole view.
    outputs : int
        Width of the tokens.
    min_pixels, max_pixels : int
        Between which a page is resized.
    patch_bias : bool
        Whether the embedding of patches has a bias.
    positions : int
        Learned embeddings of positions, which are resampled to a page; 0 where there are none.
    deep_mergers : int
        Layers whose patches are merged, too, each by merging layers of its own, for the decoder's first layers.
    bias, output_bias, feed_forward_bias : bool
        Whether queries, keys and values have a bias, the output projection of attention, and the feed-forward network.
    head_norms : bool
        Whether queries and keys are normed, each head by itself.
    other_norms : int
        Norms of patches that are in no layer.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    gated: bool
    norm_bias: bool
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_size: int
    full_layers: int
    outputs: int
    min_pixels: int
    max_pixels: int
    patch_bias: bool = False
    positions: int = 0
    deep_mergers: int = 0
    bias: bool = True
    output_bias: bool = True
    feed_forward_bias: bool = True
    head_norms: bool = False
    other_norms: int = 0

    @property
    def block(self) -> int:
        """Side in pixels of what becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def patch_elements(self) -> int:
        """Elements of one patch."""
        return CHANNELS * self.temporal_patch_size * self.patch_size**2

    @property
    def merged(self) -> int:
        """Width of the patches that become one token, side by side."""
        return self.hidden * self.merge_size**2


def native_vision(
    sizes: Settings,
    decoder_width: int,
    pixels: tuple[int, int],
    width: str = "hidden_size",
    outputs: str = "out_hidden_size",
    window_size: int = 0,
    full_layers: int | None = None,
    **changes: Any,
) -> NativeVision:
    """Encoder of the sizes that configurations give it.

    Parameters
    ----------
    sizes : Settings
        Configuration of the encoder.
    decoder_width : int
        Width of the language model that takes its tokens.
    pixels : tuple of int
        Pixels between which a page is resized.
    width, outputs : str
        Settings that hold the width of the encoder and of its tokens.
    window_size, full_layers
        See `NativeVision`; by default all layers attend to the whole view.
    **changes
        What the family does its own way, see `NativeVision`.

    Raises
    ------
    StagemeterError
        If the sizes contradict one another.
    """
    sizes.split(width, "num_heads")
    tokens, layers = sizes.whole(outputs), sizes.whole("depth")
    if tokens != decoder_width:
        raise StagemeterError(
            f"{sizes.source}: the encoder's tokens are {tokens} wide, and the decoder takes {decoder_width}"
        )
    block = sizes.whole("patch_size") * sizes.whole("spatial_merge_size")
    if window_size and window_size < block:
        raise StagemeterError(f"{sizes.source}: window_size is {window_size}, less than a token of {block} pixels")
    return NativeVision(
        hidden=sizes.whole(width),
        layers=layers,
        heads=sizes.whole("num_heads"),
        patch_size=sizes.whole("patch_size"),
        temporal_patch_size=sizes.whole("temporal_patch_size"),
        merge_size=sizes.whole("spatial_merge_size"),
        window_size=window_size,
        full_layers=layers if full_layers is None else full_layers,
        outputs=tokens,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
        **changes,
    )


def require_encoder(vision: NativeVision, settings: PageSettings, defaults: Mapping[str, int]) -> None:
    """Refuse settings of a processor that contradict the encoder.

    Parameters
    ----------
    vision : NativeVision
        Sizes.
    settings : PageSettings
        Settings of the image processor or the video processor.
    defaults : mapping
        Sizes that transformers' class gives a file that leaves them out.

    Raises
    ------
    StagemeterError
        If a size of patches, or how many are merged, is another one.
    """
    for key, needed in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.merge_size),
    ):
        settings.require(key, needed=needed, default=defaults[key])


def resized(vision: NativeVision, width: int, height: int, limits: PixelLimits | None = None) -> tuple[int, int]:
    """Width and height that a page is resized to; without limits, within those of the published models.

    Raises
    ------
    StagemeterError
        As `stagemeter.models.pages.pixel_limits.resized_between`.
    """
    limits = limits or PixelLimits(vision.min_pixels, vision.max_pixels)
    return resized_between(limits, vision.block, width, height)


def resized_together(
    vision: NativeVision, frames: int, width: int, height: int, limits: PixelLimits
) -> tuple[int, int]:
    """Width and height that the frames of a video are resized to, where there are limits for all of them together.

    Source: transformers, ``video_processing_qwen3_vl.py``, ``smart_resize``.

    Parameters
    ----------
    vision : NativeVision
        Sizes.
    frames, width, height : int
        Frames, and the size of each in pixels.
    limits : PixelLimits
        Pixels of all frames together.

    Raises
    ------
    StagemeterError
        As `stagemeter.models.pages.pixel_limits.resized_between`.
    """
    if limits.resizes and min(width, height) < vision.block:
        scale = max(vision.block / width, vision.block / height)
        width, height = int(width * scale), int(height * scale)
    span = vision.temporal_patch_size if frames > 1 else 1
    return resized_between(limits, vision.block, width, height, frames, span)


def patches_of(vision: NativeVision, width: int, height: int) -> int:
    """Patches of a view of some size."""
    return (width // vision.patch_size) * (height // vision.patch_size)


def window_pairs(vision: NativeVision, width: int, height: int) -> int:
    """Pairs of patches that attend to one another within the windows of a view; those at its edges are smaller."""
    if not vision.window_size:
        return 0
    span = vision.window_size // vision.block

    def squares(side: int) -> int:
        tokens = side // vision.block
        return (tokens // span) * span**2 + (tokens % span) ** 2

    return squares(width) * squares(height) * vision.merge_size**4


def native_operators(vision: NativeVision, views: int, patches: int, pairs: int) -> list[Operator]:
    """Operators of the transformer over some views, the merging left out.

    Parameters
    ----------
    vision : NativeVision
        Sizes.
    views, patches : int
        Views, and patches of each.
    pairs : int
        See `window_pairs`.
    """
    rows, width = views * patches, vision.hidden
    embedding = convolution(
        positions=rows,
        input_elements=rows * vision.patch_elements,
        inputs=CHANNELS,
        outputs=width,
        kernel_area=vision.temporal_patch_size * vision.patch_size**2,
        bias=vision.patch_bias,
    )
    feed = gated_feed_forward(rows, width, vision.intermediate, vision.feed_forward_bias) if vision.gated else None
    others = [
        linear(rows, width, 3 * width, vision.bias),
        linear(rows, width, width, vision.output_bias),
        *(feed or feed_forward(rows, width, vision.intermediate)),
    ]
    whole = self_attention(patches, patches, vision.heads, width // vision.heads)
    # All windows of a layer together: they are of several sizes, and small beside the layer's other operators.
    macs = 2 * views * pairs * width
    windows = Cost(macs=macs, macs_causal=macs, activations=rows * width, activation_reads=3 * rows * width)
    return [
        (embedding, 1),
        *repeated(others, vision.layers),
        *([(whole, views * vision.full_layers)] if vision.full_layers else []),
        *repeated([windows], vision.layers - vision.full_layers),
    ]


def merger_operators(vision: NativeVision, tokens: int) -> list[Operator]:
    """Operators of the layers that merge patches to some tokens: two, and two more for each deep merger."""
    return [
        (linear(tokens, vision.merged, vision.merged, bias=True), 1 + vision.deep_mergers),
        (linear(tokens, vision.merged, vision.outputs, bias=True), 1 + vision.deep_mergers),
    ]


def native_parameters(vision: NativeVision) -> int:
    """Parameters of the transformer, the merging left out."""
    width, between, projections = vision.hidden, vision.intermediate, 2 + vision.gated
    norm = width * (1 + vision.norm_bias)
    feed = projections * width * between + ((projections - 1) * between + width) * vision.feed_forward_bias
    attention = 4 * width**2 + (3 * vision.bias + vision.output_bias) * width
    layer = attention + feed + 2 * norm + 2 * width // vision.heads * vision.head_norms
    embedding = (vision.patch_elements + vision.patch_bias + vision.positions) * width
    return embedding + layer * vision.layers + vision.other_norms * norm


def merger_parameters(vision: NativeVision) -> int:
    """Parameters of the layers that merge patches, and of the norms before them."""
    layers = (vision.merged + 1) * vision.merged + (vision.merged + 1) * vision.outputs
    # Deep mergers norm what is side by side already.
    norms = (vision.hidden + vision.merged * vision.deep_mergers) * (1 + vision.norm_bias)
    return norms + layers * (1 + vision.deep_mergers)
