"""Encoders of pages at their own resolution, whose neighbouring patches are merged to tokens.

Qwen-VL and GLM-V have such an encoder, and so have Kimi (MoonViT), PaddleOCR-VL and Mistral (Pixtral).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.patches import Patches
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import LinearSize, require_width
from stagemeter.models.vision.vit import TransformerSizes, VisionTransformer, layer_sizes, vit_of


@dataclass(frozen=True, slots=True)
class MergingEncoder(TransformerSizes):
    """Sizes of a vision transformer and of its merger; `merge_size` patches per side become one token."""

    merge_size: int

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer."""
        return vit_of(self, view_by_view=True)

    @property
    def patches(self) -> Patches:
        """Return the rule that cuts a page to patches."""
        return Patches(self.patch_size, self.vit.temporal_patch_size, self.merge_size)

    @property
    def block(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * self.merge_size

    @property
    def merged(self) -> int:
        """Width of the patches of one token, side by side."""
        return self.hidden * self.merge_size**2

    def merger(self, outputs: int) -> list[LinearSize]:
        """Return the linear layers that project merged patches to a width."""
        return [LinearSize(self.merged, self.merged, True), LinearSize(self.merged, outputs, True)]


@dataclass(frozen=True, slots=True)
class MoonViT(MergingEncoder):
    """The encoder of Kimi and PaddleOCR-VL; its learned `positions` are interpolated to a page."""

    positions: int


def moonvit(sizes: Settings, merge_size: int, positions: int) -> MoonViT:
    """Read MoonViT."""
    return MoonViT(
        **layer_sizes(sizes),
        patch_size=sizes.whole("patch_size"),
        merge_size=merge_size,
        positions=positions,
    )


@dataclass(frozen=True, slots=True)
class QwenVision(MergingEncoder):
    """The encoder of Qwen-VL and GLM-V: attention is within a view, and in some models within windows of it.

    For those missing here, see `VisionTransformer`.

    Attributes
    ----------
    bias : bool
        Whether queries, keys and values have a bias.
    positions : int
        Learned position embeddings, resampled to a page; 0 without.
    other_norms : int
        Norms outside of the layers.
    outputs : int
        Width of a token.
    window_size, full_layers : int
        Side of an attention window in pixels, 0 without windows; layers that attend to the whole view.
    deep_mergers : int
        Layers whose patches are also merged, for the first layers of the decoder.
    """

    gated: bool
    norm_bias: bool
    temporal_patch_size: int
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
    def vit(self) -> VisionTransformer:
        return vit_of(
            self,
            attention_bias=self.bias,
            outer_norms=self.other_norms,
            fused=True,
            view_by_view=True,
            window_layers=self.layers - self.full_layers,
        )


def qwen_vision(
    sizes: Settings,
    decoder_width: int,
    pixels: tuple[int, int],
    width: str = "hidden_size",
    outputs: str = "out_hidden_size",
    window_size: int = 0,
    full_layers: int | None = None,
    **options: Any,
) -> QwenVision:
    """Read the encoder, for a language model of a width.

    `pixels` are the limits of a page. `width` and `outputs` name the settings with the width of the encoder and of its
    tokens. By default, all layers attend to the whole view. `options` are fields of `QwenVision` that the family sets.
    """
    sizes.split(width, "num_heads")
    tokens, layers = require_width(sizes, outputs, decoder_width, "the decoder"), sizes.whole("depth")
    block = sizes.whole("patch_size") * sizes.whole("spatial_merge_size")
    if window_size and window_size < block:
        raise StagemeterError(f"{sizes.source}: window_size is {window_size}. A token alone has {block} pixels a side")
    return QwenVision(
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
        **options,
    )


def window_pairs(vision: QwenVision, width: int, height: int) -> int:
    """Return the pairs of patches within the windows of a view; windows at its edges are smaller."""
    if not vision.window_size:
        return 0
    span = vision.window_size // vision.block

    def squares(side: int) -> int:
        tokens = side // vision.block
        return (tokens // span) * span**2 + (tokens % span) ** 2

    return squares(width) * squares(height) * vision.merge_size**4


def merger_norms(vision: QwenVision) -> int:
    """Return the parameters of the norms before the layers that merge patches."""
    # Deep mergers norm patches that are already side by side.
    return (vision.hidden + vision.merged * vision.deep_mergers) * (1 + vision.norm_bias)
