"""SAM's image encoder (ViTDet): sizes, operators, parameters."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.models.blocks import (
    Operator,
    convolution,
    feed_forward,
    linear,
    repeated,
    self_attention,
)
from stagemeter.models.settings import Settings
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.vit import TransformerSizes

#: Side of the filters of SAM's neck and of the two convolutions that shrink its feature map.
_NECK_KERNEL = 3
#: Variables of closed forms over groups of views, see `ViewGroup`.
VIEW_VARIABLES = {
    "views": "views of one size that pass through together: batch times the views of a page",
    "side": "side of a view in pixels",
    "grid": "side // patch_size, patches per side",
    "padded_grid": "grid rounded up to a multiple of window_size",
    "half_grid": "grid / 2 rounded up",
    "quarter_grid": "half_grid / 2 rounded up, tokens per side",
}


@dataclass(frozen=True, slots=True)
class SamArchitecture(TransformerSizes):
    """SAM's image encoder with the two strided convolutions that DeepSeek-OCR adds to it.

    Attributes
    ----------
    window_size : int
        Side of an attention window in patches.
    global_layers : tuple of int
        Layers that attend to the whole view; the others attend within windows.
    pretrain_size : int
        Side in pixels of the view that positions are stored for.
    neck, downsample_channels
        Channels of the neck, and of the two strided convolutions, each of which halves the side of the feature map.
    """

    window_size: int
    global_layers: tuple[int, ...]
    pretrain_size: int
    neck: int
    downsample_channels: tuple[int, int]

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """Views of one size that pass through the encoders together.

    Attributes
    ----------
    side : int
        Side of a view in pixels.
    grid, padded_grid : int
        Patches per side, and the same padded to whole attention windows.
    half_grid, quarter_grid : int
        Side of the feature map after one and two strided convolutions; the latter is in tokens.
    """

    views: int
    side: int
    grid: int
    padded_grid: int
    half_grid: int
    quarter_grid: int

    @property
    def tokens(self) -> int:
        """Tokens of all views."""
        return self.views * self.quarter_grid**2

    @classmethod
    def of(cls, views: int, side: int, patch_size: int, window_size: int) -> ViewGroup:
        """Return a group of views with its grids, for a side in pixels."""
        grid = side // patch_size
        return cls(
            views=views,
            side=side,
            grid=grid,
            padded_grid=_ceil_divide(grid, window_size) * window_size,
            half_grid=_ceil_divide(grid, 2),
            quarter_grid=_ceil_divide(_ceil_divide(grid, 2), 2),
        )


#: Names of sizes in configurations of transformers.
SAM_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "mlp_dim",
    "patch_size": "patch_size",
    "window_size": "window_size",
    "pretrain_size": "image_size",
    "neck": "output_channels",
}


def sam_architecture(sizes: Settings, channels: tuple[int, int]) -> SamArchitecture:
    """Read the sizes of SAM's encoder; `channels` are those of the two strided convolutions behind it."""
    sizes.split("hidden_size", "num_attention_heads")
    side, patch = sizes.whole("image_size"), sizes.whole("patch_size")
    if side % patch:
        raise StagemeterError(
            f"{sizes.source}: image_size is {side}, which cannot be split into patches of patch_size {patch}. Give a "
            "multiple of it"
        )
    return SamArchitecture(
        **{size: sizes.whole(name) for size, name in SAM_NAMES.items()},
        global_layers=global_layers(sizes, sizes.whole("num_hidden_layers")),
        downsample_channels=channels,
    )


def global_layers(sizes: Settings, layers: int) -> tuple[int, ...]:
    """Read which of some layers attend to the whole view."""
    return tuple(sorted(set(sizes.indices("global_attn_indexes", layers))))


def downsample_channels(sizes: Settings, width: int) -> tuple[int, int]:
    """Read the channels of the two strided convolutions before an encoder of a width."""
    channels = sizes.wholes("downsample_channels")
    if len(channels) != 2 or channels[1] != width:
        raise StagemeterError(
            f"{sizes.source}: downsample_channels is {shown(list(channels))}. It must hold two numbers, the second "
            f"{width}, the width of the encoder behind SAM"
        )
    return channels[0], channels[1]


def sam_operators(sam: SamArchitecture, group: ViewGroup) -> list[Operator]:
    """Return the operators of the encoder and of the two strided convolutions.

    Sources: segment-anything, ``image_encoder.py`` (windows, decomposed relative positions, neck); transformers,
    ``modeling_unlimited_ocr.py``, ``UnlimitedOcrSamVisionEncoder``.
    """
    return [*sam_encoder(sam, group), *sam_downsampling(sam, group)]


def sam_encoder(sam: SamArchitecture, group: ViewGroup, fused: bool = True) -> list[Operator]:
    """Return the operators of the encoder and its neck; with `fused`, attention writes no scores."""
    patches = group.views * group.grid**2
    embedding = convolution(
        positions=patches,
        input_elements=group.views * CHANNELS * group.side**2,
        inputs=CHANNELS,
        outputs=sam.hidden,
        kernel_area=sam.patch_size**2,
        bias=True,
    )
    # Attention pads the grid to (padded grid / window)^2 windows of window^2 patches.
    padded_patches = group.views * group.padded_grid**2
    windowed = _sam_attention(sam, padded_patches, sam.window_size, fused)
    whole = _sam_attention(sam, patches, group.grid, fused)
    global_layers = len(sam.global_layers)
    return [
        (embedding, 1),
        *repeated(windowed, sam.layers - global_layers),
        *repeated(whole, global_layers),
        *repeated(feed_forward(patches, sam.hidden, sam.intermediate), sam.layers),
        (convolution(patches, patches * sam.hidden, sam.hidden, sam.neck, kernel_area=1), 1),
        (convolution(patches, patches * sam.neck, sam.neck, sam.neck, kernel_area=_NECK_KERNEL**2), 1),
    ]


def sam_downsampling(sam: SamArchitecture, group: ViewGroup) -> list[Operator]:
    """Return the operators of the two strided convolutions behind the neck."""
    patches = group.views * group.grid**2
    half = group.views * group.half_grid**2
    quarter = group.views * group.quarter_grid**2
    first, second = sam.downsample_channels
    area = _NECK_KERNEL**2
    return [
        (convolution(half, patches * sam.neck, sam.neck, first, kernel_area=area), 1),
        (convolution(quarter, half * first, first, second, kernel_area=area), 1),
    ]


def _sam_attention(sam: SamArchitecture, patches: int, side: int, fused: bool) -> list[Cost]:
    # Decomposed relative positions: each query multiplies a vector per row and one per column of its sequence.
    # They are gathered from a table of (side, side, head width), which is read once for all sequences.
    relative_positions = Cost(
        macs=patches * side * sam.hidden,
        macs_causal=patches * side * sam.hidden,
        activations=patches * side * sam.heads,
        activation_reads=patches * sam.hidden + side**2 * sam.head_width,
    )
    attention = self_attention(patches, side**2, sam.heads, sam.head_width, biased=fused)
    scores = patches * side**2 * sam.heads
    return [
        linear(patches, sam.hidden, 3 * sam.hidden, bias=True),
        *[relative_positions] * 2,
        attention if fused else attention + Cost(activations=scores, activation_reads=scores),
        linear(patches, sam.hidden, sam.hidden, bias=True),
    ]


def sam_parameters(sam: SamArchitecture) -> int:
    """Return the parameters of encoder, neck and strided convolutions."""
    return sam_encoder_parameters(sam) + sam_downsampling_parameters(sam)


def sam_encoder_parameters(sam: SamArchitecture) -> int:
    """Return the parameters of layers, absolute and relative positions, and neck."""
    grid = sam.pretrain_size // sam.patch_size
    width, intermediate = sam.hidden, sam.intermediate
    embedding = CHANNELS * sam.patch_size**2 * width + width + grid**2 * width
    layer = 4 * width + _linear_parameters(width, 3 * width) + _linear_parameters(width, width)
    layer += _linear_parameters(width, intermediate) + _linear_parameters(intermediate, width)
    relative_positions = sum(
        2 * (2 * (grid if index in sam.global_layers else sam.window_size) - 1) * sam.head_width
        for index in range(sam.layers)
    )
    neck = width * sam.neck + _NECK_KERNEL**2 * sam.neck**2 + 4 * sam.neck
    return embedding + layer * sam.layers + relative_positions + neck


def sam_downsampling_parameters(sam: SamArchitecture) -> int:
    """Return the parameters of the two strided convolutions behind the neck."""
    first, second = sam.downsample_channels
    return _NECK_KERNEL**2 * (sam.neck * first + first * second)


def _linear_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _ceil_divide(number: int, divisor: int) -> int:
    return -(-number // divisor)
