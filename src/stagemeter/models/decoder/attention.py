"""Attention as decoders have it: sizes, parameters and closed forms.

Each kind is a data class of its sizes. A decoder asks it for the operators of a pass, for its parameters, and for what
it keeps in the key-value cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, cached_attention


@dataclass(frozen=True, slots=True)
class DecoderPass:
    """One pass of some tokens through a decoder. The numbers may be symbols.

    Attributes
    ----------
    batch : int
        Sequences.
    tokens : int
        New tokens of each sequence.
    context : int
        Tokens that each attends to where nothing limits that; in the cache after this pass.
    windowed : int
        Tokens that each attends to in layers with a sliding window.
    experts_read : int
        Experts whose weights are read, in every layer that has experts.
    causal : bool
        Whether the new tokens are the whole context (prefill), so that a causal mask leaves half of the scores.
    chunks, padded : int
        Of a prefill with layers that keep states: chunks that the tokens of a sequence make, and tokens, but as many as
        a convolution spans at least.
    blocks, pairs : int
        Of a prefill with lightning attention: blocks of the tokens of a sequence, and pairs of tokens within them.
    single : int
        Of a prefill with layers that share keys and values: 1 where the prompt is one token, else 0.
    """

    batch: int
    tokens: int
    context: int
    windowed: int
    experts_read: int
    causal: bool
    chunks: int = 0
    padded: int = 0
    blocks: int = 0
    pairs: int = 0
    single: int = 0


#: A pass over nothing, for what no pass changes.
NO_PASS = DecoderPass(0, 0, 0, 0, 0, causal=False)


class Attention(Protocol):
    """What a decoder asks of the attention of a layer."""

    @property
    def window(self) -> int:
        """Tokens that a token attends to at most, itself included; 0 where nothing limits them."""

    @property
    def keeps_prompt(self) -> bool:
        """Whether the window is for generated tokens alone, and all of the prompt is attended to besides."""

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass."""

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass."""

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer."""

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that the cache holds of some tokens."""

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements that the cache of one layer holds of some tokens."""

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens, by the names that `DecoderPass` has for them."""


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Attention whose query heads share key and value heads; with as many of both it is multi-head attention.

    Attributes
    ----------
    heads, key_value_heads, head_width : int
        Query heads, the key and value heads that they share, and the width of each.
    bias, output_bias : bool
        Whether the projections of queries, keys and values, and that of the output, add a bias.
    output_gate : bool
        Whether the projection of queries also makes numbers by which the output is scaled, as many as queries.
    norms : int
        Parameters of the norms of queries and keys.
    sinks : int
        Parameters that stand in each head's softmax for a token that is not there.
    window : int
        Tokens that a token attends to at most, itself included; 0 where nothing limits them. A prefill computes all
        scores and masks those outside of the window, so the window shows in decode steps alone.
    keeps_prompt : bool
        Whether the window is for generated tokens alone, and all of the prompt is attended to besides.
    fused : bool
        Whether it runs as one operator, which writes no scores.
    keys_are_values : bool
        Whether values are made by the projection of keys, and have none of their own.
    shared : bool
        Whether keys and values are those of an earlier layer, and there are no projections of them. Nothing that comes
        after needs more of a prompt than its last token, and such layers run on no other.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    heads: int
    key_value_heads: int
    head_width: int
    bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    norms: int = 0
    sinks: int = 0
    window: int = 0
    keeps_prompt: bool = False
    fused: bool = True
    keys_are_values: bool = False
    shared: bool = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["grouped_query"] = "grouped_query"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass; see `Attention`."""
        rows = of.batch * of.tokens
        width, key_value_width = self.heads * self.head_width, self.key_value_heads * self.head_width
        return [
            NamedLinear("self_attn.q_proj", rows, hidden, width * (1 + self.output_gate), self.bias, self.quantized),
            *(
                NamedLinear(f"self_attn.{name}", rows, hidden, key_value_width, self.bias, self.quantized)
                for name in ("k_proj", "v_proj")[: self._key_value_projections]
            ),
            NamedLinear("self_attn.o_proj", rows, width, hidden, self.output_bias, self.quantized),
        ]

    @property
    def _key_value_projections(self) -> int:
        return 0 if self.shared else 2 - self.keys_are_values

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass; see `Attention`."""
        attended = of.windowed if self.window else of.context
        attention = cached_attention(
            of.batch, of.tokens, attended, self.heads, self.key_value_heads, self.head_width, of.causal
        )
        if self.shared:
            # A prompt of one token is halved like every other one.
            alone = of.batch * self.heads * self.head_width * of.single
            attention = replace(attention, kv_writes=0, macs_causal=attention.macs - alone)
        # Scores that one operator writes and, after the softmax, the next one reads.
        scores = of.batch * self.heads * of.tokens * attended
        return [
            *(layer.cost for layer in self.linear_layers(hidden, of)),
            attention if self.fused else attention + Cost(activations=scores, activation_reads=scores),
        ]

    def stored_as(self, storage: Storage) -> GroupedQueryAttention:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, NO_PASS))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections, biases, norms and sinks."""
        width, key_value_width = self.heads * self.head_width, self.key_value_heads * self.head_width
        queries = width * (1 + self.output_gate)
        made = self._key_value_projections * key_value_width
        biases = (queries + made) * self.bias + hidden * self.output_bias
        return hidden * (queries + width + made) + biases + self.norms + self.sinks

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the keys and the values of some tokens, all of them: what a window drops, the cache drops."""
        shape = (batch, self.key_value_heads, tokens, self.head_width)
        return shape, shape

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the keys and values of some tokens; none where they are those of another layer."""
        return 0 if self.shared else 2 * batch * tokens * self.key_value_heads * self.head_width

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens; see `Attention`."""
        return {"single": (tokens == 1) * 1} if self.shared else {}


@dataclass(frozen=True, slots=True)
class Indexer:
    """What chooses the tokens that sparse attention attends to, by scores of every token with every one before.

    Source: DeepSeek-V3.2, arXiv 2512.02556, section 2.1; transformers, ``modeling_deepseek_v32.py``,
    ``DeepseekV32Indexer``, which masks the tokens that were not chosen, so that attention computes all scores, too.

    Attributes
    ----------
    heads, head_width : int
        Heads of its queries, which share one key, and their width.
    quantized, weights_quantized : QuantizedMatrix or None
        How its matrices are stored, and the one that weighs its heads, if they are in fewer bits than the rest.
    """

    heads: int
    head_width: int
    quantized: QuantizedMatrix | None = None
    weights_quantized: QuantizedMatrix | None = None

    def linear_layers(self, hidden: int, query_rank: int, rows: int) -> list[NamedLinear]:
        """Its projections over `rows` tokens: queries are made of the compressed ones."""
        width = self.heads * self.head_width
        return [
            NamedLinear("self_attn.indexer.wq_b", rows, query_rank, width, quantized=self.quantized),
            NamedLinear("self_attn.indexer.wk", rows, hidden, self.head_width, quantized=self.quantized),
            NamedLinear("self_attn.indexer.weights_proj", rows, hidden, self.heads, quantized=self.weights_quantized),
        ]

    def scores(self, of: DecoderPass) -> list[Cost]:
        """Costs of the scores of all heads, and of their sums, each head with a weight."""
        rows, keys = of.batch * of.tokens, of.batch * of.context * self.head_width
        scores, sums = rows * of.context * self.heads, rows * of.context
        return [
            Cost(
                macs=scores * self.head_width,
                macs_causal=scores * self.head_width,
                activations=scores,
                activation_reads=rows * self.heads * self.head_width,
                kv_reads=keys,
                kv_writes=rows * self.head_width,
            ),
            Cost(macs=scores, macs_causal=scores, activations=sums, activation_reads=rows * self.heads + scores),
        ]

    def parameters(self, hidden: int, query_rank: int) -> int:
        """Parameters of one layer: projections, and the norm of keys."""
        return query_rank * self.heads * self.head_width + hidden * (self.head_width + self.heads) + 2 * self.head_width


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): the cache holds one compressed vector per token, and no keys and values.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1. Counted as transformers runs it (``modeling_deepseek_v3.py``):
    each pass expands the compressed vectors of the whole context into keys and values again. Engines that absorb that
    product into the projections of queries and output do other work in decode steps.

    Attributes
    ----------
    heads : int
        Heads.
    query_rank : int
        Width that queries are compressed to; 0 where they are not.
    key_value_rank : int
        Width that keys and values are compressed to.
    rotary_width, plain_width, value_width : int
        Widths of the part of a head's queries and keys that is rotated, of the other part, and of its values.
    bias : bool
        Whether the compressing projections and that of the output add a bias.
    indexer : Indexer or None
        What chooses the tokens that are attended to, if not all are.
    window, keeps_prompt : int, bool
        Always 0 and false: all tokens are attended to.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    heads: int
    query_rank: int
    key_value_rank: int
    rotary_width: int
    plain_width: int
    value_width: int
    bias: bool = False
    indexer: Indexer | None = None
    window: Literal[0] = 0
    keeps_prompt: Literal[False] = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["latent"] = "latent"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass; see `Attention`."""
        rows, quantized = of.batch * of.tokens, self.quantized
        query_width, value_width = self._widths
        queries = (
            [
                NamedLinear("self_attn.q_a_proj", rows, hidden, self.query_rank, self.bias, quantized),
                NamedLinear("self_attn.q_b_proj", rows, self.query_rank, query_width, quantized=quantized),
            ]
            if self.query_rank
            else [NamedLinear("self_attn.q_proj", rows, hidden, query_width, quantized=quantized)]
        )
        compressed = self.key_value_rank + self.rotary_width
        expanded = self.heads * (self.plain_width + self.value_width)
        return [
            *queries,
            NamedLinear("self_attn.kv_a_proj_with_mqa", rows, hidden, compressed, self.bias, quantized),
            # The expansion reads the compressed vectors of the whole context; what is rotated is only copied.
            NamedLinear(
                "self_attn.kv_b_proj",
                of.batch * of.context,
                self.key_value_rank,
                expanded,
                quantized=quantized,
                cached=True,
            ),
            NamedLinear("self_attn.o_proj", rows, value_width, hidden, self.bias, quantized),
            *(self.indexer.linear_layers(hidden, self.query_rank, rows) if self.indexer else []),
        ]

    @property
    def _widths(self) -> tuple[int, int]:
        """Width of the queries and of the values of all heads."""
        return self.heads * (self.rotary_width + self.plain_width), self.heads * self.value_width

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass; see `Attention`."""
        rows, cached = of.batch * of.tokens, of.batch * of.context
        query_width, value_width = self._widths
        macs = of.batch * of.tokens * of.context * (query_width + value_width)
        attention = Cost(
            macs=macs,
            # Half a product of two tokens and two widths: whole, as numbers and as symbols.
            macs_causal=of.batch * of.tokens * of.context * ((query_width + value_width) // 2) if of.causal else macs,
            activations=rows * value_width,
            activation_reads=rows * query_width + cached * (query_width + value_width),
            kv_writes=rows * (self.key_value_rank + self.rotary_width),
        )
        choice = self.indexer.scores(of) if self.indexer else []
        return [*(layer.cost for layer in self.linear_layers(hidden, of)), attention, *choice]

    def stored_as(self, storage: Storage) -> LatentAttention:
        """The same with its matrices stored as `storage` says."""
        indexer = self.indexer
        if indexer is not None:
            *projections, weights = (layer.name for layer in indexer.linear_layers(1, 1, 1))
            indexer = replace(indexer, quantized=storage(*projections), weights_quantized=storage(weights))
        others = replace(self, indexer=None).linear_layers(1, NO_PASS)
        return replace(self, quantized=storage(*(layer.name for layer in others)), indexer=indexer)

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections, biases and the norms of what is compressed."""
        query_width = self.heads * (self.rotary_width + self.plain_width)
        value_width = self.heads * self.value_width
        compressed = self.key_value_rank + self.rotary_width
        queries = self.query_rank * (hidden + query_width + 1) if self.query_rank else hidden * query_width
        keys_and_values = hidden * compressed + self.key_value_rank * (1 + self.heads * self.plain_width + value_width)
        biases = (self.query_rank + compressed + hidden) * self.bias
        indexer = self.indexer.parameters(hidden, self.query_rank) if self.indexer else 0
        return queries + keys_and_values + value_width * hidden + biases + indexer

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the compressed vectors, of the rotated keys, and of the indexer's keys of some tokens."""
        latent = (batch, 1, tokens, self.key_value_rank), (batch, 1, tokens, self.rotary_width)
        return (*latent, (batch, tokens, self.indexer.head_width)) if self.indexer else latent

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the compressed vectors, rotated keys and keys of the indexer of some tokens."""
        chosen_by = self.indexer.head_width if self.indexer else 0
        return batch * tokens * (self.key_value_rank + self.rotary_width + chosen_by)

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens: none."""
        return {}
