"""Decoders: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import sum_of
from stagemeter.models.decoder.attention import DecoderPass, GroupedQueryAttention
from stagemeter.models.decoder.decoder import Decoder, Layer, head_operator, layer_operators, pass_cost
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.family import ExpertsRead


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """A decoder of gated feed-forward networks, some of them mixtures of experts.

    Attributes
    ----------
    hidden, layers : int
        Width and depth.
    heads, key_value_heads, head_width : int
        Query heads, the key and value heads that they share (equal: multi-head attention), and the width of each.
    intermediate : int
        Width of a dense feed-forward network.
    dense_layers : int
        How many layers are dense; the first ones. The others route tokens to experts.
    experts, experts_per_token, shared_experts, expert_intermediate : int
        Routed experts, how many of them a token uses, experts that every token uses, and the width of each.
    vocabulary : int
        Tokens that the embedding and the output head know.
    max_positions : int
        Longest sequence the model was made for.
    generated_window : int
        Generated tokens that a token attends to at most, itself included, besides the prompt; 0 where nothing limits
        them.
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
    generated_window: int = 0

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

    def experts_read(self, tokens: int) -> ExpertsRead:
        """How many experts of a layer some tokens can touch."""
        return self.decoder.experts_read(tokens)


def decoder_cost(
    decoder: DecoderArchitecture, batch: int, tokens: int, context: int, experts_read: int, causal: bool
) -> Cost:
    """Cost of one pass through the decoder's layers, the output head left out.

    Parameters
    ----------
    decoder : DecoderArchitecture
        Sizes.
    batch : int
        Sequences.
    tokens : int
        New tokens of each sequence.
    context : int
        Tokens that each attends to, in the cache after this pass.
    experts_read : int
        Experts whose weights are read, see `DecoderArchitecture.experts_read`.
    causal : bool
        Whether the new tokens are the whole context (prefill), so that a causal mask leaves half of the scores.

    Notes
    -----
    Source: transformers, ``modeling_unlimited_ocr.py``, ``UnlimitedOcrTextModel``. Rotary positions, norms and softmax
    are elementwise and not counted.
    """
    return sum_of(layer_operators(decoder.decoder, DecoderPass(batch, tokens, context, context, experts_read, causal)))


def output_head_cost(decoder: DecoderArchitecture, positions: int) -> Cost:
    """Cost of the output head at some positions; generating needs one position per sequence and pass."""
    return sum_of([head_operator(decoder.decoder, positions)])


def decode_cost(decoder: DecoderArchitecture, batch: int, context: int, experts_read: int) -> Cost:
    """Cost of one token through the decoder and the output head, `context` tokens attended to, itself included."""
    return pass_cost(decoder.decoder, DecoderPass(batch, 1, context, context, experts_read, causal=False))
