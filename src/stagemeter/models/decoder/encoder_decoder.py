"""Decoders of encoder-decoders: they attend to their own tokens and to a source. Sizes, parameters, closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedWeights
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import NamedLinear, Operator, cached_attention, repeated, sum_of
from stagemeter.models.lora import Adapter
from stagemeter.models.settings import Settings

#: Rows of the table of positions that stand for none: ``MBartLearnedPositionalEmbedding`` and its like of TrOCR.
_OFFSET = 2


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
    text_in_source : bool
        Whether the text of a request is part of the source, beside the page.
    head_on_last : bool
        Whether the output head runs on the last position of a prompt alone, and not on all.
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
    text_in_source: bool = False
    head_on_last: bool = False

    def source_of(self, workload: Workload) -> int:
        """Tokens of the source of each sequence."""
        return workload.image_tokens + workload.text_tokens * self.text_in_source

    def cache_of(self, workload: Workload, tokens: int) -> int:
        """Elements of the cache: keys and values of its own tokens, and those of the source."""
        return self.cached_elements(workload.batch_size, tokens + self.source_of(workload) * (tokens > 0))

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the keys and values of some tokens of each sequence, its own or of the source."""
        return 2 * self.layers * batch * tokens * self.hidden

    def quantized_weights(self) -> QuantizedWeights:
        """No weights are stored in fewer bits."""
        return QuantizedWeights(0, 0)


def read_decoder(settings: Settings, source_width: int, **changes: Any) -> SequenceDecoder:
    """Decoder of the sizes that configurations of mBART's kind give it.

    Parameters
    ----------
    settings : Settings
        Configuration of the decoder, which says whether the output head is tied, whatever the whole model's says.
    source_width : int
        Width of the source.
    **changes
        What the family does its own way, see `SequenceDecoder`.

    Raises
    ------
    StagemeterError
        If a size is missing, or sizes contradict one another.
    """
    settings.split("d_model", "decoder_attention_heads")
    positions = settings.whole("max_position_embeddings")
    return SequenceDecoder(
        hidden=settings.whole("d_model"),
        layers=settings.whole("decoder_layers"),
        heads=settings.whole("decoder_attention_heads"),
        intermediate=settings.whole("decoder_ffn_dim"),
        vocabulary=settings.whole("vocab_size"),
        positions=positions + _OFFSET,
        max_positions=positions,
        source_width=source_width,
        tied=settings.flag("tie_word_embeddings"),
        **changes,
    )


def prefill_layers(decoder: SequenceDecoder, batch: int, tokens: int, source: int) -> list[NamedLinear]:
    """Linear layers of one layer over a prompt: those of the source make keys and values, which are kept.

    Parameters
    ----------
    decoder : SequenceDecoder
        Sizes.
    batch, tokens, source : int
        Sequences, tokens of each, and tokens of the source of each.
    """
    width, rows = decoder.hidden, batch * source
    kept = [
        NamedLinear(f"encoder_attn.{name}_proj", rows, decoder.source_width, width, bias=True) for name in ("k", "v")
    ]
    return [*_layers(decoder, batch * tokens), *kept]


def prefill_operators(decoder: SequenceDecoder, batch: int, tokens: int, source: int) -> list[Operator]:
    """Operators over a prompt, see `prefill_layers`."""
    cross = replace(_attention(decoder, batch, tokens, source), kv_writes=2 * batch * source * decoder.hidden)
    own = _attention(decoder, batch, tokens, tokens, causal=decoder.fused)
    layers = [layer.cost for layer in prefill_layers(decoder, batch, tokens, source)]
    written = batch * (1 if decoder.head_on_last else tokens)
    return [*repeated([*layers, own, cross], decoder.layers), (head(decoder, written).cost, 1)]


def decode_layers(decoder: SequenceDecoder, batch: int, context: int, source: int) -> list[NamedLinear]:
    """Linear layers of one layer over one new token of each sequence.

    Parameters
    ----------
    decoder : SequenceDecoder
        Sizes.
    batch, context, source : int
        Sequences, tokens of its own that each attends to, and tokens of the source.
    """
    return _layers(decoder, batch)


def decode_operators(decoder: SequenceDecoder, batch: int, context: int, source: int) -> list[Operator]:
    """Operators over one new token of each sequence, see `decode_layers`; it attends to its context and the source."""
    cross = replace(_attention(decoder, batch, 1, source), kv_writes=0)
    own = _attention(decoder, batch, 1, context)
    layers = [layer.cost for layer in decode_layers(decoder, batch, context, source)]
    return [*repeated([*layers, own, cross], decoder.layers), (head(decoder, batch).cost, 1)]


def adapter_cost(
    decoder: SequenceDecoder, layers: Sequence[NamedLinear], output: NamedLinear, adapter: Adapter, module: str
) -> Cost:
    """Cost of a low-rank adapter beside the layers, apart from that of the layers.

    Parameters
    ----------
    decoder : SequenceDecoder
        Sizes.
    layers : sequence of NamedLinear
        Linear layers of one layer in one pass.
    output : NamedLinear
        The output head, by its name in the whole model.
    adapter : Adapter
        The adapter.
    module : str
        The module that holds the layers.

    Raises
    ------
    StagemeterError
        If it stands beside some of those that are alike.
    """
    taken = [
        (layer.adapter(adapter.rank), decoder.layers)
        for layer in layers
        if adapter.takes_part([f"{module}.layers.{index}.{layer.name}" for index in range(decoder.layers)], output.name)
    ]
    if adapter.takes(output.name, output.name):
        taken.append((output.adapter(adapter.rank), 1))
    return sum_of(taken)


def head(decoder: SequenceDecoder, positions: int, name: str = "") -> NamedLinear:
    """The output head at some positions."""
    return NamedLinear(name, positions, decoder.hidden, decoder.vocabulary)


def decoder_parameters(decoder: SequenceDecoder) -> int:
    """Parameters of embedding, positions, layers and norms; those of a head that is not tied are as the embedding's."""
    hidden, between = decoder.hidden, decoder.intermediate
    # Six projections of its own width, and the two of the source.
    attention = 6 * (hidden + 1) * hidden + 2 * (decoder.source_width + 1) * hidden
    layer = attention + 2 * hidden * between + between + hidden + 3 * 2 * hidden
    outer = (decoder.vocabulary + decoder.positions + 2 * decoder.norms) * hidden
    return outer + decoder.layers * layer


def _layers(decoder: SequenceDecoder, rows: int) -> list[NamedLinear]:
    """All but what makes keys and values of the source."""
    width, between = decoder.hidden, decoder.intermediate
    own = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    return [
        *(NamedLinear(name, rows, width, width, bias=True) for name in own),
        *(NamedLinear(f"encoder_attn.{name}_proj", rows, width, width, bias=True) for name in ("q", "out")),
        NamedLinear("fc1", rows, width, between, bias=True),
        NamedLinear("fc2", rows, between, width, bias=True),
    ]


def _attention(decoder: SequenceDecoder, batch: int, queries: int, keys: int, causal: bool = False) -> Cost:
    heads = decoder.heads
    fused = cached_attention(batch, queries, keys, heads, heads, decoder.hidden // heads, causal)
    scores = batch * heads * queries * keys
    # Scores that one operator writes and, after the softmax, the next one reads.
    return fused if decoder.fused else fused + Cost(activations=scores, activation_reads=scores)
