"""Layers of a decoder that attend to a source, such as a page, in place of the decoder's own tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, cached_attention
from stagemeter.models.decoder.attention import NO_PASS, DecoderPass


@dataclass(frozen=True, slots=True)
class SourceAttention:
    """Attention to a source, whose keys and values a prefill makes and the cache keeps.

    A mask says which token sees what of the source. Source: transformers, ``modeling_mllama.py``,
    ``MllamaTextCrossAttention``.

    Attributes
    ----------
    heads, key_value_heads, head_width : int
        Query heads, the key and value heads that they share, and the width of each.
    source : int
        Tokens of the source of each sequence, as wide as the decoder.
    norms : int
        Parameters of the norms of queries and keys.
    window, keeps_prompt : int, bool
        Always 0 and false: all of the source is attended to.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    heads: int
    key_value_heads: int
    head_width: int
    source: int
    norms: int
    window: Literal[0] = 0
    keeps_prompt: Literal[False] = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["source"] = "source"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass; those of the source run in a prefill alone."""
        rows, width = of.batch * of.tokens, self.heads * self.head_width
        of_source = ("k_proj", "v_proj") if of.causal else ()
        return [
            NamedLinear("cross_attn.q_proj", rows, hidden, width, quantized=self.quantized),
            *(
                NamedLinear(
                    f"cross_attn.{name}",
                    of.batch * self.source,
                    hidden,
                    self.key_value_heads * self.head_width,
                    quantized=self.quantized,
                )
                for name in of_source
            ),
            NamedLinear("cross_attn.o_proj", rows, width, hidden, quantized=self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        attention = cached_attention(
            of.batch, of.tokens, self.source, self.heads, self.key_value_heads, self.head_width, causal=False
        )
        made = self.cached_elements(of.batch, 1) if of.causal else 0
        mask = Cost(activation_reads=of.batch * of.tokens * self.source)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        return [*projections, replace(attention, kv_writes=made) + mask]

    def stored_as(self, storage: Storage) -> SourceAttention:
        """The same with its matrices stored as `storage` says."""
        prefill = replace(NO_PASS, causal=True)
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, prefill))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections and norms."""
        return 2 * hidden * (self.heads + self.key_value_heads) * self.head_width + self.norms

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the keys and the values of the source, however many tokens there are."""
        shape = (batch, self.key_value_heads, self.source, self.head_width)
        return shape, shape

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the keys and values of the source, however many tokens there are."""
        return 2 * batch * self.source * self.key_value_heads * self.head_width * (tokens > 0)

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens: none."""
        return {}
