"""The sizes of DeepSeek-OCR's decoder, as hashes and reports hold them."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.sizes import later


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
