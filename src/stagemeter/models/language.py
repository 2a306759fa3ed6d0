"""Decoders: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.cost import Cost
from stagemeter.models.blocks import (
    Operator,
    cached_attention,
    gated_feed_forward,
    linear,
    mixture_of_experts,
    repeated,
    sum_of,
    working_set,
)
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

    @property
    def expert_layers(self) -> int:
        """Layers that route tokens to experts."""
        return self.layers - self.dense_layers

    def experts_read(self, tokens: int) -> ExpertsRead:
        """How many experts of a layer some tokens can touch."""
        return ExpertsRead(fewest=self.experts_per_token, most=_smaller(self.experts, tokens * self.experts_per_token))


def _smaller(one: int, other: int) -> int:
    # By arithmetic, so that arrays of numbers can be put in like single ones.
    return (one + other - abs(one - other)) // 2


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
    return sum_of(_decoder_operators(decoder, batch, tokens, context, experts_read, causal))


def _decoder_operators(
    decoder: DecoderArchitecture, batch: int, tokens: int, context: int, experts_read: int, causal: bool
) -> list[Operator]:
    rows = batch * tokens
    query_width = decoder.heads * decoder.head_width
    key_value_width = decoder.key_value_heads * decoder.head_width
    attention = [
        linear(rows, decoder.hidden, query_width),
        *[linear(rows, decoder.hidden, key_value_width)] * 2,
        cached_attention(
            batch, tokens, context, decoder.heads, decoder.key_value_heads, decoder.head_width, causal=causal
        ),
        linear(rows, query_width, decoder.hidden),
    ]
    return [
        *repeated(attention, decoder.layers),
        *repeated(gated_feed_forward(rows, decoder.hidden, decoder.intermediate), decoder.dense_layers),
        *repeated(_experts(decoder, rows, experts_read), decoder.expert_layers),
    ]


def _experts(decoder: DecoderArchitecture, rows: int, experts_read: int) -> list[Cost]:
    routed = mixture_of_experts(
        rows,
        decoder.hidden,
        decoder.expert_intermediate,
        decoder.experts,
        decoder.experts_per_token,
        experts_read,
    )
    if not decoder.shared_experts:
        return routed
    # The shared experts are one network as wide as all of them.
    shared = gated_feed_forward(rows, decoder.hidden, decoder.shared_experts * decoder.expert_intermediate)
    return [*routed, *shared]


def output_head_cost(decoder: DecoderArchitecture, positions: int) -> Cost:
    """Cost of the output head at some positions; generating needs one position per sequence and pass."""
    return linear(positions, decoder.hidden, decoder.vocabulary)


def prefill_cost(decoder: DecoderArchitecture, batch: int, tokens: int, experts_read: int) -> Cost:
    """Cost of the decoder over a prompt, and of the output head on its last position."""
    layers = decoder_cost(decoder, batch, tokens, tokens, experts_read, causal=True)
    return layers + output_head_cost(decoder, batch)


def decode_cost(decoder: DecoderArchitecture, batch: int, context: int, experts_read: int) -> Cost:
    """Cost of one token through the decoder and the output head, `context` tokens attended to, itself included."""
    return decoder_cost(decoder, batch, 1, context, experts_read, causal=False) + output_head_cost(decoder, batch)


def prefill_working_set(decoder: DecoderArchitecture, batch: int, tokens: int, experts_read: int) -> int:
    """Elements that the most demanding operator of a prefill reads and writes, see `blocks.working_set`."""
    layers = _decoder_operators(decoder, batch, tokens, tokens, experts_read, causal=True)
    return working_set([*layers, (output_head_cost(decoder, batch), 1)])


def decode_working_set(decoder: DecoderArchitecture, batch: int, context: int, experts_read: int) -> int:
    """Elements that the most demanding operator of a decode step reads and writes, see `blocks.working_set`."""
    layers = _decoder_operators(decoder, batch, 1, context, experts_read, causal=False)
    return working_set([*layers, (output_head_cost(decoder, batch), 1)])


def embedding_parameters(decoder: DecoderArchitecture) -> int:
    """Parameters of the token embedding; the output head has as many."""
    return decoder.vocabulary * decoder.hidden


def decoder_parameters(decoder: DecoderArchitecture, experts: int) -> int:
    """Parameters of the decoder's layers and final norm, with `experts` routed experts per layer.

    Called with all experts it gives the parameters that there are, with the experts of one token those that are
    active.
    """
    hidden = decoder.hidden
    key_value_width = decoder.key_value_heads * decoder.head_width
    attention = 2 * hidden * decoder.heads * decoder.head_width + 2 * hidden * key_value_width
    dense = 3 * hidden * decoder.intermediate
    expert = 3 * hidden * decoder.expert_intermediate
    routed = decoder.experts * hidden + (experts + decoder.shared_experts) * expert
    layers = (attention + 2 * hidden) * decoder.layers + dense * decoder.dense_layers + routed * decoder.expert_layers
    return layers + hidden


def key_value_cache_elements(decoder: DecoderArchitecture, batch: int, tokens: int) -> int:
    """Elements of the key-value cache that holds some tokens of each sequence."""
    return 2 * decoder.layers * batch * tokens * decoder.key_value_heads * decoder.head_width
