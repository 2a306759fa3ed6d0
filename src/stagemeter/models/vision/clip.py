"""CLIP's vision transformer behind SAM, as DeepSeek-OCR has it."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.blocks import Operator
from stagemeter.models.vision.sam import ViewGroup
from stagemeter.models.vision.vit import VisionTransformer, layer_operators, vit_parameters


@dataclass(frozen=True, slots=True)
class ClipArchitecture:
    """CLIP's vision transformer, fed with SAM's feature map in place of its own patches.

    `patch_size` is the side in pixels of the unused patch embedding's patches, `pretrain_size` that of the view that
    positions are stored for.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    pretrain_size: int

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer, its patch embedding included."""
        return VisionTransformer(
            self.hidden,
            self.layers,
            self.heads,
            self.intermediate,
            self.patch_size,
            self.pretrain_size,
            class_token=True,
            patch_bias=False,
        )

    @property
    def unused_parameters(self) -> int:
        """Parameters of the patch embedding, which the checkpoint holds and SAM's feature map replaces."""
        return self.vit.patch_elements * self.hidden


def clip_operators(clip: ClipArchitecture, group: ViewGroup) -> list[Operator]:
    """Return the operators of one pass over SAM's feature map and a class token.

    Source: transformers, ``modeling_unlimited_ocr.py``, ``UnlimitedOcrVisionEncoder``.
    """
    return layer_operators(clip.vit, [(group.views, group.quarter_grid**2 + 1)], clip.layers)


def clip_parameters(clip: ClipArchitecture) -> int:
    """Return the parameters, those of the unused patch embedding included."""
    return vit_parameters(clip.vit)
