"""Decoders of encoder-decoders: they attend to their own tokens and to a source. Sizes, parameters, closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stagemeter.cost import Cost
from stagemeter.models.blocks import Operator, cached_attention, feed_forward, linear, repeated
from stagemeter.packing import PackedWeights
from stagemeter.workload import Workload


@dataclass(frozen=True, slots=True)
class SequenceDecoder:
    """A decoder with attention to a source: learned positions, biases everywhere, feed-forward networks of two layers.

    Source: Attention Is All You Need, arXiv 1706.03762, section 3.1; transformers, ``modeling_mbart.py`` and
    ``modeling_trocr.py``.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, attention heads and width of the feed-forward network.
    vocabulary : int
        Tokens that the embedding and the output head know.
    positions : int
        Learned embeddings of positions.
    max_positions : int
        Longest sequence that it was made for.
    source_width : int
        Width of the source.
    norms : int
        Norms outside of the layers.
    fused : bool
        Whether attention runs as one operator, which writes no scores, and of which a causal mask leaves half; two
        products of their own show no mask.
    tied : bool
        Whether the output head's weights are the embedding's.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    max_positions: int
    source_width: int
    norms: int
    fused: bool
    tied: bool

    def cache_of(self, workload: Workload, tokens: int) -> int:
        """Elements of the cache: keys and values of its own tokens, and those of the source."""
        return self.cached_elements(workload.batch_size, tokens + workload.image_tokens if tokens else 0)

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the keys and values of some tokens of each sequence, its own or of the source."""
        return 2 * self.layers * batch * tokens * self.hidden

    def packed(self) -> PackedWeights:
        """No weights are stored in fewer bits."""
        return PackedWeights(0, 0)


def prefill_operators(decoder: SequenceDecoder, batch: int, tokens: int, source: int) -> list[Operator]:
    """Operators over a prompt: keys and values of the source are made and kept; the head runs on every position.

    Parameters
    ----------
    decoder : SequenceDecoder
        Sizes.
    batch, tokens, source : int
        Sequences, tokens of each, and tokens of the source of each.
    """
    keys = linear(batch * source, decoder.source_width, decoder.hidden, bias=True)
    written = 2 * batch * source * decoder.hidden
    cross = replace(_attention(decoder, batch, tokens, source), kv_writes=written)
    return _operators(
        decoder, batch * tokens, _attention(decoder, batch, tokens, tokens, causal=decoder.fused), [keys, keys, cross]
    )


def decode_operators(decoder: SequenceDecoder, batch: int, context: int, source: int) -> list[Operator]:
    """Operators over one new token of each sequence, which attends to its context and to the source.

    Parameters
    ----------
    decoder : SequenceDecoder
        Sizes.
    batch, context, source : int
        Sequences, tokens of its own that each attends to, and tokens of the source.
    """
    cross = replace(_attention(decoder, batch, 1, source), kv_writes=0)
    return _operators(decoder, batch, _attention(decoder, batch, 1, context), [cross])


def decoder_parameters(decoder: SequenceDecoder) -> int:
    """Parameters of embedding, positions, layers and norms; those of a head that is not tied are as the embedding's."""
    hidden, between = decoder.hidden, decoder.intermediate
    # Six projections of its own width, and the two of the source.
    attention = 6 * (hidden + 1) * hidden + 2 * (decoder.source_width + 1) * hidden
    layer = attention + 2 * hidden * between + between + hidden + 3 * 2 * hidden
    outer = (decoder.vocabulary + decoder.positions + 2 * decoder.norms) * hidden
    return outer + decoder.layers * layer


def _operators(decoder: SequenceDecoder, rows: int, own: Cost, cross: list[Cost]) -> list[Operator]:
    square = linear(rows, decoder.hidden, decoder.hidden, bias=True)
    # Queries, keys, values and output of its own tokens; queries and output of the attention to the source.
    layer = [*[square] * 6, own, *cross, *feed_forward(rows, decoder.hidden, decoder.intermediate)]
    return [*repeated(layer, decoder.layers), (linear(rows, decoder.hidden, decoder.vocabulary), 1)]


def _attention(decoder: SequenceDecoder, batch: int, queries: int, keys: int, causal: bool = False) -> Cost:
    heads = decoder.heads
    fused = cached_attention(batch, queries, keys, heads, heads, decoder.hidden // heads, causal)
    scores = batch * heads * queries * keys
    # Scores that one operator writes and, after the softmax, the next one reads.
    return fused if decoder.fused else fused + Cost(activations=scores, activation_reads=scores)
