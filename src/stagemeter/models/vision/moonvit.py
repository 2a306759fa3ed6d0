"""The vision encoder of Kimi (MoonViT) and PaddleOCR-VL: a page at its own resolution, patches merged behind it.

Learned positions are interpolated to the page.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.pages.patches import Patches
from stagemeter.models.settings import Settings
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.vit import VisionTransformer, layer_sizes


@dataclass(frozen=True, slots=True)
class MoonViT:
    """Sizes of the vision transformer and of its merger, by their names in reports.

    `merge_size` patches per side become one token; `positions` counts learned embeddings.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch_size: int
    merge_size: int
    positions: int

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer."""
        return VisionTransformer(
            self.hidden,
            self.layers,
            self.heads,
            self.intermediate,
            self.patch_size,
            positions=self.positions,
            view_by_view=True,
        )

    @property
    def patches(self) -> Patches:
        """How a page is cut to patches."""
        return Patches(self.patch_size, 1, self.merge_size)

    @property
    def block(self) -> int:
        """Side of a token in pixels."""
        return self.patches.block

    def merger(self, outputs: int) -> list[LinearSize]:
        """Return the linear layers that project merged patches to a width."""
        merged = self.hidden * self.merge_size**2
        return [LinearSize(merged, merged, True), LinearSize(merged, outputs, True)]


def moonvit(sizes: Settings, merge_size: int, positions: int) -> MoonViT:
    """Read the vision transformer."""
    return MoonViT(
        **layer_sizes(sizes),
        patch_size=sizes.whole("patch_size"),
        merge_size=merge_size,
        positions=positions,
    )
