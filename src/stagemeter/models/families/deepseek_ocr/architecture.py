"""Sizes of DeepSeek-OCR, as hashes and reports hold them."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.sizes import Sizes, later
from stagemeter.models.vision.projector import LinearSize
from stagemeter.models.vision.sam import SamArchitecture
from stagemeter.models.vision.vit import TransformerSizes, VisionTransformer, vit_of


@dataclass(frozen=True, slots=True)
class ClipArchitecture(TransformerSizes):
    """CLIP's vision transformer, which reads SAM's feature map instead of its own patches.

    `patch_size` is that of the unused patch embedding, `pretrain_size` the side in pixels of the view that positions
    are stored for.
    """

    pretrain_size: int

    @property
    def vit(self) -> VisionTransformer:
        """The vision transformer, its patch embedding included."""
        return vit_of(self, image_size=self.pretrain_size, class_token=True, patch_bias=False)

    @property
    def unused_parameters(self) -> int:
        """Parameters of the patch embedding, which the checkpoint holds and SAM's feature map replaces."""
        return self.vit.patch_elements * self.hidden


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """A decoder of gated feed-forward networks, some of them mixtures of experts.

    Attributes
    ----------
    dense_layers, intermediate : int
        How many of the first layers are dense, and the width of their network. The others route tokens to experts.
    experts, experts_per_token, shared_experts, expert_intermediate : int
        Routed experts, how many of them a token uses, experts that every token uses, and the width of each.
    max_positions : int
        Longest sequence the model was made for.
    generated_window : int
        Most generated tokens that a token attends to besides the prompt, itself included; 0: no limit.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    intermediate: int
    dense_layers: int
    experts: int
    experts_per_token: int
    shared_experts: int
    expert_intermediate: int
    vocabulary: int
    max_positions: int
    generated_window: int = later(0)

    @property
    def expert_layers(self) -> int:
        """Layers that route tokens to experts."""
        return self.layers - self.dense_layers

    @property
    def decoder(self) -> Decoder:
        """The same sizes, layer by layer."""
        attention = GroupedQueryAttention(
            self.heads,
            self.key_value_heads,
            self.head_width,
            window=self.generated_window,
            keeps_prompt=self.generated_window > 0,
        )
        experts = Experts(
            self.experts,
            self.experts_per_token,
            self.expert_intermediate,
            # The shared experts are one network as wide as all of them.
            shared_intermediate=self.shared_experts * self.expert_intermediate,
        )
        return Decoder(
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            max_positions=self.max_positions,
            layers=(
                Layer(attention, GatedFeedForward(self.intermediate), self.dense_layers),
                Layer(attention, experts, self.expert_layers),
            ),
        )


@dataclass(frozen=True, slots=True)
class DeepseekOCRArchitecture(Sizes):
    """Sizes of a model of this family."""

    sam: SamArchitecture
    clip: ClipArchitecture
    decoder: DecoderArchitecture

    @property
    def projector(self) -> LinearSize:
        """The projector, which reads CLIP's features beside SAM's."""
        return LinearSize(self.clip.hidden + self.sam.downsample_channels[-1], self.decoder.hidden, bias=True)

    @property
    def downsample_ratio(self) -> int:
        """Patches per side that become one token: two convolutions of stride two."""
        return 4
