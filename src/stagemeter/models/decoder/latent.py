"""Multi-head latent attention (MLA), and the indexer of sparse attention (DSA)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stagemeter.core.cost import Cost, total
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, linear, product
from stagemeter.models.decoder.mixer import NO_PASS, DecoderPass, Held, Mixer, Shape
from stagemeter.models.decoder.visibility import Limit
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import later


@dataclass(frozen=True, slots=True)
class Indexer:
    """The indexer of sparse attention: it scores each token with all earlier ones, and chooses those attended to.

    Its query heads share one key. `chosen` is the most tokens that it chooses. `weights_quantized` is the storage of
    the matrix that weighs the heads, `quantized` that of the others. transformers masks the tokens that were not
    chosen, so attention computes all scores, too.
    Source: DeepSeek-V3.2, arXiv 2512.02556, section 2.1; transformers, ``modeling_deepseek_v32.py``,
    ``DeepseekV32Indexer``.
    """

    heads: int
    head_width: int
    chosen: int = later(0)
    quantized: QuantizedMatrix | None = later(None)
    weights_quantized: QuantizedMatrix | None = later(None)

    def linear_layers(self, hidden: int, query_rank: int, rows: int) -> list[NamedLinear]:
        """Return the projections over `rows` tokens; queries are made of the compressed ones."""
        width = self.heads * self.head_width
        return [
            NamedLinear("self_attn.indexer.wq_b", rows, query_rank, width, quantized=self.quantized),
            NamedLinear("self_attn.indexer.wk", rows, hidden, self.head_width, quantized=self.quantized),
            NamedLinear("self_attn.indexer.weights_proj", rows, hidden, self.heads, quantized=self.weights_quantized),
        ]

    def scores(self, of: DecoderPass) -> list[Cost]:
        """Return the costs of the scores of all heads, and of their weighted sums.

        transformers writes both. The model needs one fused operator, as attention is: it writes the chosen positions.
        Source of the fusion: DeepGEMM's ``fp8_mqa_logits``, which writes no scores of single heads.
        """
        rows, keys = of.batch * of.tokens, of.batch * of.full.keys * self.head_width
        scores, sums = of.batch * of.full.pairs * self.heads, of.batch * of.full.pairs
        visible = of.batch * of.full.visible * self.heads
        products = Cost(
            macs=scores * self.head_width,
            macs_causal=visible * self.head_width,
            activations=scores,
            activation_reads=rows * self.heads * self.head_width,
            kv_reads=keys,
            kv_writes=rows * self.head_width,
        )
        weighted = Cost(macs=scores, macs_causal=visible, activations=sums, activation_reads=rows * self.heads + scores)
        if not of.model:
            return [products, weighted]
        read = rows * self.heads * (self.head_width + 1)
        return [replace(products + weighted, activations=of.batch * of.limited.pairs, activation_reads=read)]

    def parameters(self, hidden: int, query_rank: int) -> int:
        """Return the parameters of one layer: projections and the norm of keys."""
        return query_rank * self.heads * self.head_width + hidden * (self.head_width + self.heads) + 2 * self.head_width


@dataclass(frozen=True, slots=True)
class _AbsorbedExpansion(NamedLinear):
    """The expansion of compressed vectors, absorbed: its matrix meets queries and weighted sums, head by head.

    A query of `plain_width` becomes as wide as a compressed vector, and a sum as wide as that comes back to
    `value_width`. An adapter adds its product to the matrix, so it meets the same operands: queries go through the
    matrix out of its rank first and then through the one into it, sums the other way round.
    """

    heads: int = 0
    plain_width: int = 0
    value_width: int = 0

    @property
    def cost(self) -> Cost:
        """The cost of both products of each head."""
        return replace(
            linear(self.rows, self.inputs, self.outputs, self.bias, self.quantized),
            activations=self.rows * self.heads * (self.inputs + self.value_width),
            activation_reads=self.rows * self.heads * (self.plain_width + self.inputs),
        )

    def adapter(self, rank: int) -> Cost:
        """Return the cost of a LoRA adapter beside it: two products for each head's query, and two for its sum."""
        rows = self.rows * self.heads
        widths = [(self.plain_width, rank), (rank, self.inputs), (self.inputs, rank), (rank, self.value_width)]
        products = total(product(1, rows, before, after) for before, after in widths)
        # `product` reads both operands as activations; the second ones are the adapter's, a part of them for each head.
        read = sum(before * after for before, after in widths)
        matrices = 2 * rank * self.inputs + rank * self.outputs
        return products + Cost(activation_reads=-read, weight_reads=matrices)


@dataclass(frozen=True, slots=True)
class _Expansion(NamedLinear):
    """The expansion of a prompt's tokens, in the one of two ways whose factor is 1; that of the other is 0."""

    ways: tuple[tuple[NamedLinear, int], ...] = ()

    @property
    def cost(self) -> Cost:
        """The cost of the layer."""
        return total(way.cost * factor for way, factor in self.ways)

    def adapter(self, rank: int) -> Cost:
        """Return the cost of a LoRA adapter beside it."""
        return total(way.adapter(rank) * factor for way, factor in self.ways)


@dataclass(frozen=True)
class LatentAttention(Mixer):
    """Multi-head latent attention (MLA): the cache holds one compressed vector per token.

    transformers (``modeling_deepseek_v3.py``) expands the compressed vectors of the whole context into keys and values
    in each pass. A prompt needs that once for each token. A decode step needs less if it absorbs the expansion: the
    queries go into the space of the compressed vectors, and the weighted sum of those comes back from it.
    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2 and appendix C.

    Attributes
    ----------
    query_rank, key_value_rank : int
        Widths of the compressed queries, 0 if they are not compressed, and of compressed keys and values.
    rotary_width, plain_width, value_width : int
        Widths of the rotated and the other part of a head's queries and keys, and of its values.
    bias : bool
        Whether the compressing projections and that of the output add a bias.
    indexer : Indexer or None
        The indexer that chooses the tokens attended to; None if all are.
    """

    heads: int
    query_rank: int
    key_value_rank: int
    rotary_width: int
    plain_width: int
    value_width: int
    bias: bool = False
    indexer: Indexer | None = later(None)
    kind: Literal["latent"] = "latent"

    @classmethod
    def read(cls, settings: Settings, indexed: bool = False) -> LatentAttention:
        """Read the sizes from a configuration of DeepSeek's kind, with those of an indexer if `indexed`."""
        return cls(
            heads=settings.whole("num_attention_heads"),
            # Null: queries are not compressed. An indexer needs compressed ones.
            query_rank=settings.whole("q_lora_rank", None if indexed else 0),
            key_value_rank=settings.whole("kv_lora_rank"),
            rotary_width=settings.whole("qk_rope_head_dim"),
            plain_width=settings.whole("qk_nope_head_dim"),
            value_width=settings.whole("v_head_dim"),
            bias=settings.flag("attention_bias"),
            indexer=_read_indexer(settings) if indexed else None,
        )

    @property
    def limit(self) -> Limit:
        return Limit(self.indexer.chosen, chosen=True) if self.indexer else Limit()

    def execution(self, of: DecoderPass) -> str:
        chooses = self.indexer is not None and of.limited.pairs != of.full.pairs
        clauses = ["attends to every token, of which the indexer chooses some"] if chooses else []
        if self._ways(of)[0]:
            clauses.append("expands the compressed vectors of the whole context" + " in each step" * (not of.prefill))
        return ", and ".join(clauses)

    def absorbed(self, past: int, visible: int) -> int:
        """Return 1 where absorbing the expansion takes less for new tokens of a prompt, else 0.

        `past` tokens precede the new ones, which see `visible` keys all together. Expanding takes one product more for
        each earlier token; a pair costs the widths of both products of attention. All heads have the same sizes.
        """
        expanded = self.plain_width + self.value_width
        return (visible * (2 * self.key_value_rank - expanded) < past * self.key_value_rank * expanded) * 1

    def _ways(self, of: DecoderPass) -> tuple[int, int]:
        """Return 1 and 0 where a pass absorbs the expansion, 0 and 1 where it does not; a step always absorbs.

        A step would expand every token of its context, which costs more wherever a head's plain and value widths are 4
        or more together.
        """
        if not of.model:
            return 0, 1
        return (of.absorbed, of.expanded) if of.prefill else (1, 0)

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
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
        shape = self.key_value_rank, self.heads * (self.plain_width + self.value_width), False, quantized
        name, widths = "self_attn.kv_b_proj", (self.heads, self.plain_width, self.value_width)
        # The expansion reads the compressed vectors of the whole context; rotated keys are only copied.
        expands = NamedLinear(name, of.batch * of.context, *shape, cached=True)
        absorbs = _AbsorbedExpansion(name, rows, *shape, False, *widths)
        absorbed, expanded = self._ways(of)
        expansion = _Expansion(name, rows, *shape, ways=((expands, expanded), (absorbs, absorbed)))
        return [
            *queries,
            NamedLinear("self_attn.kv_a_proj_with_mqa", rows, hidden, compressed, self.bias, quantized),
            expansion,
            NamedLinear("self_attn.o_proj", rows, value_width, hidden, self.bias, quantized),
            *(self.indexer.linear_layers(hidden, self.query_rank, rows) if self.indexer else []),
        ]

    @property
    def _widths(self) -> tuple[int, int]:
        """Widths of all queries, and of all values."""
        return self.heads * (self.rotary_width + self.plain_width), self.heads * self.value_width

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        linears = [layer.cost for layer in self.linear_layers(hidden, of)]
        absorbed, expanded = self._ways(of)
        attention = self._attention_expanded(of) * expanded + self._attention_absorbed(of) * absorbed
        choice = self.indexer.scores(of) if self.indexer else []
        return [*linears, attention, *choice]

    def _attention_expanded(self, of: DecoderPass) -> Cost:
        """Return the cost of attention to keys and values that were expanded."""
        rows, reach, (query_width, value_width) = of.batch * of.tokens, self.reach(of), self._widths
        width = query_width + value_width
        return Cost(
            macs=of.batch * reach.pairs * width,
            macs_causal=of.batch * reach.visible * width,
            activations=rows * value_width,
            activation_reads=rows * query_width + of.batch * of.context * width,
            kv_writes=rows * (self.key_value_rank + self.rotary_width),
        )

    def _attention_absorbed(self, of: DecoderPass) -> Cost:
        """Return the cost of attention in the space of the compressed vectors."""
        rows, reach, rank = of.batch * of.tokens, self.reach(of), self.key_value_rank
        kept = rank + self.rotary_width
        width = self.heads * (kept + rank)
        return Cost(
            macs=of.batch * reach.pairs * width,
            macs_causal=of.batch * reach.visible * width,
            activations=rows * self.heads * rank,
            activation_reads=rows * self.heads * kept,
            kv_reads=of.batch * reach.keys * kept,
            kv_writes=rows * kept,
        )

    def stored_as(self, storage: Storage) -> LatentAttention:
        indexer = self.indexer
        if indexer is not None:
            *projections, weights = (layer.name for layer in indexer.linear_layers(1, 1, 1))
            indexer = replace(indexer, quantized=storage(*projections), weights_quantized=storage(weights))
        others = replace(self, indexer=None).linear_layers(1, NO_PASS)
        return replace(self, quantized=storage(*(layer.name for layer in others)), indexer=indexer)

    def parameters(self, hidden: int) -> int:
        query_width, value_width = self._widths
        compressed = self.key_value_rank + self.rotary_width
        queries = self.query_rank * (hidden + query_width + 1) if self.query_rank else hidden * query_width
        keys_and_values = hidden * compressed + self.key_value_rank * (1 + self.heads * self.plain_width + value_width)
        biases = (self.query_rank + compressed + hidden) * self.bias
        indexer = self.indexer.parameters(hidden, self.query_rank) if self.indexer else 0
        return queries + keys_and_values + value_width * hidden + biases + indexer

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        batch, tokens = held.batch, held.tokens
        latent = (batch, 1, tokens, self.key_value_rank), (batch, 1, tokens, self.rotary_width)
        return (*latent, (batch, tokens, self.indexer.head_width)) if self.indexer else latent


def _read_indexer(settings: Settings) -> Indexer:
    heads, width = settings.whole("index_n_heads"), settings.whole("index_head_dim")
    return Indexer(heads, width, chosen=settings.whole("index_topk"))
